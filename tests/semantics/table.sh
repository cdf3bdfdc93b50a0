#!/usr/bin/env bash
# table.sh: writes docs/semantics.md from a run of the catalogue (make semantics).
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)

((EUID == 0)) || {
  echo "table.sh: root is needed; try: sudo make semantics" >&2
  exit 3
}
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
"$here/../isolate.sh" "$here/run.sh" "$results"
cd "$results"
join -t $'\t' <(sort plain.tsv) <(sort fused.tsv) >both.tsv
join -t $'\t' both.tsv <(sort "$here/differences.tsv") >differ.tsv
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

An edge-triggered reader gets an edge for every byte (\`traffic edge\` in the tests), at the latest a second after it has read
what was fused before TCP bytes.  While both wait for a reader that is edge-triggered, or may yet be, its end probes its
peer: \`SO_KEEPALIVE\`, \`TCP_KEEPIDLE\` and \`TCP_KEEPINTVL\` read as 1 there.  Three things can leave it without an edge until the
next bytes come: \`unload.sh\` while such a reader has unread fused bytes; \`load.sh\` again, for connections of the load
before; and a reader that takes more than a minute (TIME_WAIT) to read so large a backlog that TCP took over, when its
peer has closed: the probe is answered by a reset then.  epoll tells that as EPOLLHUP; who reads to the end after it has all.

## The same

| behaviour | plain TCP and fused |
|---|---|
$(awk -F '\t' '{ gsub(/\|/, "\\|"); printf "| `%s` | %s |\n", $1, $2 }' same.tsv)
END
