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

Written by \`make semantics\` from a run on Linux $(uname -r). \`make check\` fails when a behaviour
differs from plain TCP and is not listed here. Each row is a function of
\`tests/semantics/catalogue.c\`. It ran on a connection of plain TCP and on a fused one. A transcript
tells what the calls returned, in their order. \`//\` separates the variants of a behaviour; each of
them had a connection of its own.

A direction goes by TCP, and so behaves as TCP does, while one of these options is set. For the
reader they are \`SO_RCVLOWAT\` above 1, \`SO_PEEK_OFF\`, \`TCP_INQ\`, \`SO_TIMESTAMP\`, \`SO_TIMESTAMPING\`
and \`SO_OOBINLINE\`; for the writer \`SO_ZEROCOPY\` and \`SO_TIMESTAMPING\`. Bytes that were fused before
such an option was set are read as before.

Of $(wc -l <both.tsv) behaviours, $(wc -l <differ.tsv) differ.

## Different

| behaviour | plain TCP | fused | cause in the kernel | advice |
|---|---|---|---|---|
$(awk -F '\t' '{ gsub(/\|/, "\\|"); printf "| `%s` | %s | %s | %s | %s |\n", $1, $2, $3, $4, $5 }' differ.tsv)

To leave a service out, give \`load.sh --exclude-port\` the port that it listens on, or \`--cgroup\` a
cgroup that it is not in.

## With the guard, and on other kernels

[The guard](design.md#the-guard) needs BTF trampolines; \`load.sh\` says so where the kernel has none.
The columns:

- *default*: the load whose transcripts are above.
- *unguarded*: without the guard.
- *guard*: the first connection of a service that shows the behaviour.
- *again*: later connections of that service. They start on TCP.
- *careful*: with \`load.sh --careful\`. It leaves ends that block in recv on TCP, as most ends of the
  catalogue do.
- *careful-polled*: the same, but the ends have polled and read once before. So fusing has begun
  when the behaviour is shown.

$(matrix)

$(awk -F '\t' 'NF == 4 { printf "`%s` differs on Linux %s only (%s): %s\n", $1, $4, $2, $3 }' "$here/differences.tsv" | fmt -w 100)

With the guard \`splice\` from a fused socket answers EINVAL instead of waiting for ever. A reader
that then reads loses nothing. Go programs do so. systemd-socket-proxyd closes the connection
instead, and HAProxy 2.6 waits for ever if it has read before (HTTP, an upload of 1 GB). So programs
of the list \`splicers\` stay plain TCP with the guard, too. A service that is not in the list and
splices is remembered: its next connections are plain TCP.

kTLS: Linux 6.1.176 and 6.12.117 answer EINVAL when a socket in a sockhash is given keys (\`SOL_TLS\`;
\`traffic ktls\` in the tests). OpenSSL goes on without kTLS. The guard remembers a service that asks
for it (\`TCP_ULP\`), and its next connections can have keys. Without the guard, leave out services
that should use kTLS.

### What the hook of splice costs, and why it is the default

A BPF program may answer for a kernel function only in two cases. The function is a hook of the
security modules, or it is on the kernel's list for error injection
(\`CONFIG_FUNCTION_ERROR_INJECTION\`). Debian's kernels do not have that list: 6.1 and 6.12 refuse
\`fmod_ret/__x64_sys_splice\` ("is not modifiable"). Linux 7.2 takes it and \`__x64_sys_sendfile64\`
without the list. But these system calls are not all: io_uring's splice is none of them, and by the
kernel's source the calls of 32-bit programs have other names. Both would wait for ever.

So the guard answers in \`security_file_permission\`. Every splice passes it, and so does every \`read\`
and \`write\` of the host. The table shows rates as shares of those without the guard, by instructions
(Linux 6.12, \`bench/guard.sh\`; the last column is from two runs, the other from one):

| | the guard without that hook | the guard |
|---|---:|---:|
| request and answer of 64 bytes, fused | 0.92 | 0.91–0.92 |
| pipe, 1 byte | 0.99 | 0.84–0.87 |
| pipe, 4 KB | 1.01 | 0.98–1.01 |
| pipe, 64 KB | 1.01 | 0.98–1.00 |

Most of the cost is the kernel's way into any BPF program there. A program that only tests the
file's mode costs as much, as \`fmod_ret\` or as \`lsm\`.

There is another way: to leave out Go programs, too, and to learn of all other splices at
\`tcp_splice_read\`, for which only splices pay. But no program may answer there. So for each service
that nobody suspected, one connection would wait for ever, end early, or be read out of order. And
Go programs would not be fused. A cost for small reads and writes is the smaller harm. Where it is
not, use \`--no-guard\`, and \`--exclude-port\` for services that splice.

## Edge-triggered readers

An edge-triggered reader gets an edge for every byte (\`traffic edge\` in the tests). At the latest it
comes a second after the reader has read what was fused before TCP bytes. While fused and TCP bytes
wait for a reader that is edge-triggered, or may become so, its end probes its peer. During that
time \`SO_KEEPALIVE\`, \`TCP_KEEPIDLE\` and \`TCP_KEEPINTVL\` read as 1 there, and \`TCP_KEEPCNT\` as 127.
Three things can leave the reader without an edge until the next bytes come:

- \`unload.sh\` while it has unread fused bytes;
- \`load.sh\` again, for connections of the load before;
- a reader that takes more than a minute (TIME_WAIT) to read a backlog so large that TCP took over,
  when its peer has closed. A reset then answers the probe. epoll reports that as EPOLLHUP. A reader
  that reads to the end after EPOLLHUP has every byte.

## Flow control

A send of 48 KB and more that is ahead of its reader waits for it without sleeping, for some 0.25 ms
at most ([design.md](design.md#flow-control) has the rules). If the reader does not catch up,
messages go by TCP until the writer sleeps there. They are fused again once the reader has caught
up.

TCP's receive buffer grows by what the reader takes from it, and a reader of fused bytes takes
nothing from it. So where messages go by TCP after a long fused stream, the writer gets about 3.8 MB
ahead of its reader, as on a new connection, where with TCP alone it would get 5 MB or more (with
the kernel's default \`tcp_rmem\` and \`tcp_wmem\`). Two ends that each write that much before they
read can block each other: 1 to 4 of 100 such connections did. On a new connection they block each
other with TCP alone, too.

## A send that meets a close

The kernel decides where a message goes, lets go of the lock, and then looks for the other end's
queue. If the other end closes between the two, the send fails with \`EPIPE\`. By TCP the send would
have succeeded and the bytes would have been lost. The last thing that the program checks is whether
the other end still has its queue. The remaining window was met in 120 of 378,650 rounds in which
one end closed while the other sent its only message, and in none of 375,631 by TCP (Linux 6.18, two
processors, busy; \`make adversaries NAMES=closing_peer\`). A program that sends to an end which may
close at any time must expect \`EPIPE\` from TCP, too.

## Other programs that have the socket in a map

Another program may put the same sockets into a sockmap or a sockhash of its own (Envoy, dae, Beyla,
Cilium's L7 policy). Such a socket is never fused, so the other program's verdict sees every byte:

- If the other program comes first, the socket stays out (\`refused\`).
- If the other program comes later, messages of the socket go by TCP from then on (\`socket_state\`),
  in order behind what was fused.
- A map with an \`sk_msg\` program of its own does not get a socket that sockfuse has. The kernel
  allows one such program a socket, and answers EBUSY to the second (\`sock_map_link\`). Leave that
  service out with \`--exclude-port\`.

## Readers that are interrupted

A thread that sleeps in recv on a socket of the map answers \`EAGAIN\` when it is woken and no byte is
there (\`recv_interrupted\`). By TCP it sleeps on. These wake it: SIGSTOP and SIGCONT, Ctrl-Z and fg,
strace or a debugger that attaches, a cgroup that is frozen and thawed (\`docker pause\`), and a
signal that the program handles. No byte is lost; the next recv returns what comes. But a program
that takes the error for the end of the connection does not ask again.

Clients that waited for an answer, and servers that waited for a request or the rest of one, were
interrupted once: by SIGSTOP and SIGCONT, by a frozen cgroup, and by strace (Debian 12's packages,
the default load, Linux 6.18). All three ways gave the same results. By TCP every one went on.

| | waits in poll, and goes on | waits in recv, and goes on | waits in recv, and gives up |
|---|---|---|---|
| clients | curl, wget, git over HTTP, apt, lftp, lynx; psql, mariadb, ssh, rsync, mosquitto_sub, libmemcached; nc, ncat, socat, telnet, openssl s_client; Python with a timeout, asyncio, psycopg2, MySQLdb; Perl's LWP, HTTP::Tiny, Net::SMTP, DBD::Pg, DBD::mysql; Ruby; PHP's streams, curl, pgsql, mysqli, redis; Node | Java; Python with TLS; git from a daemon | redis-cli; Python without a timeout: socket, http.client, urllib, requests, smtplib, redis, pymysql, pymemcache, Mercurial; Perl's \`<\$socket>\`, sysread, IO::Socket::SSL, Redis; PHP's socket_read; bash's /dev/tcp; Tcl; svn, whois, w3m, ftp, msmtp, BusyBox wget |
| servers | sshd, rsync, PostgreSQL, MariaDB, Redis, memcached, Mosquitto, nginx, Apache (prefork), uWSGI, \`php -S\`, Node, Ruby, socat, ncat | Java, git daemon, openssl s_server, BusyBox httpd | php-fpm, gunicorn (sync), Flask and Python's http.server, Starman and Perl's IO::Socket, Exim, vsftpd, svnserve; cat that socat or \`nc -e\` starts on the socket |

Of the 49 ways to wait in recv that were tried, 41 gave up. Of the 69 ways to wait in poll, none
did. Most report the error or a closed connection. Five say nothing and take it for the end of the
stream: bash's \`read\`, Tcl's \`gets\`, Perl's \`<\$socket>\`, Python's \`makefile\` and w3m. php-fpm runs
the script without the rest of the request's body. A Python program with a signal handler and a
timer interrupts itself. Go programs are plain TCP where there is no guard, and so were not
concerned.

The cause is \`tcp_bpf_recvmsg()\`: it answers \`EAGAIN\` without a look at the signal. No BPF program
runs between the wake and the answer, so sockfuse cannot mend it. Taking the socket out of the map
does not reach a thread that sleeps there already: interrupted after \`unload.sh\`, it still answers
\`EAGAIN\`.

To leave such a service out, take the first of these that fits:

- Give the client a timeout. Some programs then poll, as Python does (\`timeout=\`, \`settimeout\`).
- \`load.sh --exclude-port\` with the port that the service listens on: both of its ends are plain
  TCP.
- \`/etc/sockfuse.splicers\` with the name of the program (redis-cli, php-fpm8.2), then \`load.sh\`
  again: its connections and those to its services are plain TCP, at both ends.
- With the guard nothing has to be done after the first time: a service whose reader answered
  \`EAGAIN\` is plain TCP from its next connection on. Where the reader was a client, that holds for
  its user alone.

\`--careful\` does not prevent it. It fuses nothing to a reader that waits in recv. But the first wait
happens in the map and may fail (\`recv_interrupted\`, column *careful*). Readers with \`SO_RCVTIMEO\`
get an error either way: \`EINTR\` by TCP, \`EAGAIN\` when fused, which looks like the timeout. From
these the guard does not learn.

## Half-closed connections

After \`shutdown(SHUT_WR)\` the acknowledgment of the FIN wakes a thread that waits in recv; by TCP it
sleeps on. So an end leaves the map when it half-closes, and what its peer sends from then on comes
by TCP.

It cannot leave while fused bytes wait for it, or while a message may be under way to it. And if a
thread sleeps in recv already while another half-closes, as in a relay with a thread for each
direction, that thread answers \`EAGAIN\` at once. Once a thread has answered it, the service's next
connections are plain TCP (\`interrupted\` in \`status.sh\`); where the client half-closed, only those
of its user are.

## A thread that reads while another sends

Once a writer has filled TCP's send buffer (its reader is some MB behind), it sleeps. What wakes it
wakes a second thread, too, that sleeps in recv on the same socket, and in the map that one answers
\`EAGAIN\` (\`recv_woken_without_bytes\`). The first connection of a service on which this is about to
happen cannot be spared. Both of its ends leave the map, and the service's next connections are
plain TCP (\`status.sh\` shows \`recv_beside_send\` beside its port); where the client has the two
threads, only those of its user are. Of 4 such connections one after the other, the first failed.

A single thread can meet it, too: a client that sends requests of some MB without reading the
answers. Its send sleeps for room, and an answer wakes it there. Once its last request fits, it
waits in recv, where the room that comes later wakes it. So where a message comes to an end that
sleeps in send, the connection leaves the map in the same way, and the service's next connections
are plain TCP. Of 60 first connections each with requests of 30 to 40 MB to a server that pauses, 0
answered \`EAGAIN\` once where 100 KB have an answer, and 9 where 1 MB has one (without the rule 29
and 36). The same holds where a send with \`MSG_DONTWAIT\` or a poll found no room, and a recv then
waits. No byte is lost, and the next recv goes on.

## Several threads that read one socket

A message wakes every thread that sleeps in recv on the socket. One thread takes it. A thread that
gets nothing answers \`EAGAIN\` (\`recv_woken_without_bytes\`); by TCP it would sleep on. So where two
threads sleep in recv on one socket at once, its connection leaves the map. Leave out a service of
which several threads read one connection. No thread sleeps while bytes wait for it (\`make
adversaries NAMES=two_readers\`).

## Checkpoint and restore

A process with fused connections cannot be checkpointed. CRIU copies what waits in a socket's queues
with \`TCP_REPAIR\`, and a fused socket shows only one of its two receive queues there. While fused
bytes wait, a peek sees them and not the TCP bytes behind them. The send queue shows them, too. Once
they are read, a peek sees TCP's bytes, but FIONREAD counts none of them. So the image lacks bytes,
or has them twice. Leave out what is to be checkpointed, by \`--exclude-port\` or by \`--cgroup\`,
before it connects. Restored sockets are in repair mode when they connect, and stay on TCP.

## The same

| behaviour | plain TCP and fused |
|---|---|
$(awk -F '\t' '{ gsub(/\|/, "\\|"); printf "| `%s` | %s |\n", $1, $2 }' same.tsv)
END
