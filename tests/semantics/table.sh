#!/usr/bin/env bash
# table.sh: writes docs/semantics.md from a run of the catalogue (make semantics).
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
"$here/../isolate.sh" "$here/run.sh" "$results"
cd "$results"
# matrix: which of the differences are there on each kernel, in each mode
matrix() {
  {
    printf 'differs\t%s\tdefault\t%s\n' "$(uname -r)" "$(awk -F '\t' '$2 != $3 { printf "%s ", $1 }' both.tsv)"
    cat "$here/kernels.tsv"
  } | awk -F '\t' '
    { sub(/[-+].*/, "", $2); column[++n] = $2 " " $3; split($4, names, " "); for (i in names) { differs[n, names[i]] = 1; seen[names[i]] = 1 } }
    END {
      printf "| |"; for (c = 1; c <= n; c++) printf " %s |", column[c]
      printf "\n|---|"; for (c = 1; c <= n; c++) printf "---|"
      printf "\n"
      for (name in seen) {
        line = "| " name " |"
        for (c = 1; c <= n; c++) { line = line (differs[c, name] ? " differs |" : " |"); sum[c] += differs[c, name] }
        print line | "sort"
      }
      close("sort")
      printf "| all |"; for (c = 1; c <= n; c++) printf " %d |", sum[c]
      printf "\n"
    }'
}
join -t $'\t' <(sort plain.tsv) <(sort fused.tsv) >both.tsv
join -t $'\t' both.tsv <(awk -F '\t' 'NF == 3' "$here/differences.tsv" | sort) >differ.tsv
join -t $'\t' -v 1 both.tsv differ.tsv >same.tsv

cat >"$here/../../docs/semantics.md" <<END
# What an application can see

Written by \`make semantics\` from a run on Linux $(uname -r); \`make check\` fails when a behaviour differs from plain TCP
and is not listed here.  Each row is a function of \`tests/semantics/catalogue.c\` that ran on a connection of plain TCP
and on a fused one.  A transcript tells what the calls returned, in their order; \`//\` parts the variants of a behaviour,
each of which had a connection of its own.

A direction goes by TCP, and so behaves as TCP does, while its reader has set \`SO_RCVLOWAT\` above 1, \`SO_PEEK_OFF\`,
\`TCP_INQ\`, \`SO_TIMESTAMP\`, \`SO_TIMESTAMPING\` or \`SO_OOBINLINE\`, or its writer \`SO_ZEROCOPY\` or \`SO_TIMESTAMPING\`.
Bytes that were fused before such an option was set are read as before.

Of $(wc -l <both.tsv) behaviours, $(wc -l <differ.tsv) differ.

## Different

| behaviour | plain TCP | fused | cause in the kernel | advice |
|---|---|---|---|---|
$(awk -F '\t' '{ gsub(/\|/, "\\|"); printf "| `%s` | %s | %s | %s | %s |\n", $1, $2, $3, $4, $5 }' differ.tsv)

To exclude a service, give \`load.sh --exclude-port\` the port that it listens on, or \`--cgroup\` a cgroup that it is not in.

## With the guard, and on other kernels

\`bpf_guard.bpf.c\` needs BTF trampolines; \`load.sh\` says so where it cannot.
*unguarded*: as everywhere without it. *guard*: the first connection of a service that does such a thing. *again*: its later ones,
which start on TCP. *careful*: \`load.sh --careful\`, which leaves ends to TCP that wait in recv, as most of the catalogue's do. *careful-polled*: the same,
but the ends have polled and read once before, so that fusing has begun when they do what the behaviour is about.

$(matrix)

$(awk -F '\t' 'NF == 4 { printf "`%s` differs on Linux %s only (%s): %s\n", $1, $4, $2, $3 }' "$here/differences.tsv")

With the guard \`splice\` from a fused socket answers EINVAL instead of waiting for ever; a reader that then reads loses nothing.

kTLS: Linux 6.1.176 and 6.12.117 answer EINVAL when a socket that is in a sockhash is given keys (\`SOL_TLS\`; \`traffic ktls\` in the
tests); OpenSSL goes on without.  The guard remembers a service that asks (\`TCP_ULP\`), so that its next connections can have
them; without the guard, exclude services that should.

### What the hook of splice costs, and why it is the default

A BPF program may answer for a function only where that is a hook of the security modules, or on the kernel's list for error
injection, which Debian's kernels do not have (\`CONFIG_FUNCTION_ERROR_INJECTION\`): 6.1 and 6.12 refuse \`fmod_ret/__x64_sys_splice\`
("is not modifiable"). Linux 7.2 takes it and \`__x64_sys_sendfile64\` without that list, but such a list of system calls leaves out
io_uring's splice, which is none, and by its source those of programs of 32 bits, whose names have another prefix; both would wait for ever. So the guard
answers in \`security_file_permission\`, which every splice passes, and every \`read\` and \`write\` of the host. By instructions
(Linux 6.12, \`bench/guard.sh\`; rates without the guard are 1; from two runs, those of the middle column from one):

| | all but that hook | the guard |
|---|---:|---:|
| request and answer of 64 bytes, fused | 0.92 | 0.91–0.92 |
| pipe, 1 byte | 0.99 | 0.84–0.87 |
| pipe, 4 KB | 1.01 | 0.98–1.01 |
| pipe, 64 KB | 1.01 | 0.98–1.00 |

Most of it is the kernel's way into a program: one that only tests the file's mode costs as much there, as \`fmod_ret\` or as \`lsm\`.
The other way would be to leave out who may splice, as where there is no guard, and to learn the rest at \`tcp_splice_read\`, for which only splices
pay. There no program may answer, so of each service that nobody suspected one connection would wait for ever, end early, or be read out of
order, and Go programs, which the guard lets be fused, would stay plain TCP. Some instructions of small reads and writes are the smaller harm. A host for
which they are not takes \`--no-guard\`, and \`--exclude-port\` for what splices.

## Edge-triggered readers

An edge-triggered reader gets an edge for every byte (\`traffic edge\` in the tests), at the latest a second after it has read
what was fused before TCP bytes.  While both wait for a reader that is edge-triggered, or may yet be, its end probes its
peer: \`SO_KEEPALIVE\`, \`TCP_KEEPIDLE\` and \`TCP_KEEPINTVL\` read as 1 there, \`TCP_KEEPCNT\` as 127.  Three things can leave it without an edge until the
next bytes come: \`unload.sh\` while such a reader has unread fused bytes; \`load.sh\` again, for connections of the load
before; and a reader that takes more than a minute (TIME_WAIT) to read so large a backlog that TCP took over, when its
peer has closed: the probe is answered by a reset then.  epoll tells that as EPOLLHUP; who reads to the end after it has all.

## A send that meets a close

The kernel decides where a message goes, lets go of the lock, and then looks for the other end's queue.  When the other end
closes between the two, the send fails with \`EPIPE\`, where TCP would have taken the bytes and lost them.  The program looks
last whether the other end still has a descriptor.  What is left was met in 43 of 608,635 rounds in which one end closed while
the other sent its only message, and in none of 626,330 by TCP (Linux 6.18, two processors; \`make adversaries
NAMES=closing_peer\`).  A program that sends to an end which may close at any time must expect \`EPIPE\` from TCP, too.

## Readers that are interrupted

A thread that sleeps in recv on a socket of the map answers \`EAGAIN\` when it is woken and no byte is there
(\`recv_interrupted\`).  By TCP it sleeps on.  What wakes it so: SIGSTOP and SIGCONT, Ctrl-Z and fg, strace or a debugger that
attaches, a cgroup that is frozen and thawed (\`docker pause\`), a signal that the program handles.  No byte is lost; the
next recv returns what comes.  But a program that takes the error for the end of the connection does not ask again.

Clients that waited for an answer, and servers that waited for a request or the rest of one, were interrupted once: by
SIGSTOP and SIGCONT, by a frozen cgroup, by strace (Debian 12's packages, the default load, Linux 6.18).  All three ways gave
the same results.  By TCP every one went on.

| | waits in poll, and goes on | waits in recv, and goes on | waits in recv, and gives up |
|---|---|---|---|
| clients | curl, wget, git over HTTP, apt, lftp, lynx; psql, mariadb, ssh, rsync, mosquitto_sub, libmemcached; nc, ncat, socat, telnet, openssl s_client; Python with a timeout, asyncio, psycopg2, MySQLdb; Perl's LWP, HTTP::Tiny, Net::SMTP, DBD::Pg, DBD::mysql; Ruby; PHP's streams, curl, pgsql, mysqli, redis; Node | Java; Python with TLS; git from a daemon | redis-cli; Python without a timeout: socket, http.client, urllib, requests, smtplib, redis, pymysql, pymemcache, Mercurial; Perl's \`<\$socket>\`, sysread, IO::Socket::SSL, Redis; PHP's socket_read; bash's /dev/tcp; Tcl; svn, whois, w3m, ftp, msmtp, BusyBox wget |
| servers | sshd, rsync, PostgreSQL, MariaDB, Redis, memcached, Mosquitto, nginx, Apache (prefork), uWSGI, \`php -S\`, Node, Ruby, socat, ncat | Java, git daemon, openssl s_server, BusyBox httpd | php-fpm, gunicorn (sync), Flask and Python's http.server, Starman and Perl's IO::Socket, Exim, vsftpd, svnserve; cat that socat or \`nc -e\` starts on the socket |

That is 41 of the 49 ways to wait in recv that were tried, and none of the 69 ways to wait in poll.  Most report the error or a
closed connection.  Five say nothing and take it for the end of the stream: bash's \`read\`, Tcl's \`gets\`, Perl's \`<\$socket>\`,
Python's \`makefile\` and w3m.  php-fpm runs the script without the rest of the request's body.  A Python program with a
signal handler and a timer needs nobody to interrupt it.  Go programs are plain TCP where there is no guard, and so were
not concerned.

The cause is \`tcp_bpf_recvmsg()\`: it answers \`EAGAIN\` without a look at the signal.  No BPF program runs between the wake and
the answer, so sockfuse cannot mend it.  Taking the socket out of the map does not reach a thread that sleeps there already:
interrupted after \`unload.sh\`, it answers \`EAGAIN\` still.

To leave such a service out, take the first of these that fits:

- Give the client a timeout, where the program then polls, as Python does (\`timeout=\`, \`settimeout\`).
- \`load.sh --exclude-port\` with the port that the service listens on: both of its ends are plain TCP.
- Without the guard, \`/etc/sockfuse.splicers\` with the name of the program (redis-cli, php-fpm8.2), then \`load.sh\` again: its
  connections and those to its services are plain TCP, at both ends.
- On Linux 6.12 and later, \`load.sh --min-age 1 --nonblocking-only\` and \`adopt.sh --every 1\`: only connections of which both
  ends are \`O_NONBLOCK\` are fused, and such ends do not sleep in recv.  No service has to be named.
- With the guard nothing has to be done after the first time: a service whose reader answered \`EAGAIN\` so is plain TCP from
  its next connection on.  Where the reader was a client, that holds for its user alone.

\`--careful\` does not prevent it.  It fuses nothing to a reader that waits in recv, but the first wait is in the map and may fail
(\`recv_interrupted\`, column *careful*).  Readers with \`SO_RCVTIMEO\` get an error either way, \`EINTR\` by TCP, and fused
\`EAGAIN\`, which looks like the timeout.  From these the guard does not learn.

## Several threads that read one socket

A message wakes every thread that sleeps in recv on the socket.  One takes it, and a thread that gets nothing answers \`EAGAIN\`
(\`recv_woken_without_bytes\`), where by TCP it sleeps on.  So where two threads sleep in recv on one socket at once, its
connection leaves the map.  Exclude a service of which several threads read one connection.  No thread sleeps while bytes wait
for it (\`make adversaries NAMES=two_readers\`).

## Checkpoint and restore

A process with fused connections cannot be checkpointed: CRIU copies what waits in a socket's queues with \`TCP_REPAIR\`, and
a fused socket shows one of its two receive queues there.  While fused bytes wait, a peek sees them and not those of TCP
behind them, and takes them for the send queue, too; when they are read, it sees TCP's, but FIONREAD counts none of them.  The
image then lacks bytes, or has them twice.  Exclude what is to be checkpointed, by \`--exclude-port\` or by \`--cgroup\`, before
it connects.  Restored sockets are in repair mode when they connect, and stay on TCP.

## The same

| behaviour | plain TCP and fused |
|---|---|
$(awk -F '\t' '{ gsub(/\|/, "\\|"); printf "| `%s` | %s |\n", $1, $2 }' same.tsv)
END
