#!/usr/bin/env bash
# Shows with tcpdump what still passes through the loopback device.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
. "$here/lib/common.sh"

usage() {
  cat <<EOF
Usage: ${0##*/} [PORT | FILTER...]

Runs tcpdump on lo, by default for port 5001.  FILTER is in the language of
pcap-filter(7).  Ends with Ctrl-C, and then says how many messages of this host
were fused meanwhile, how many went by TCP, and why.

  --help    this text

Example: ${0##*/} tcp port 8080 and host 127.0.0.2

$EXIT_CODES
EOF
}

[[ ${1-} != -* ]] || last_option "$1"
need_root "$@"
need_command tcpdump tcpdump
filter=("${@:-5001}")
[[ ! ${filter[*]} =~ ^[0-9]+$ ]] || filter=(port "${filter[@]}")
cat >&2 <<EOF
Capturing on lo: ${filter[*]}
Fused connections show the three packets of the handshake and, at the end, the
teardown.  A packet with a length above 0 carries data that went by TCP.
EOF
before=$("$here/status.sh" --prometheus 2>/dev/null) || true
tcpdump -i lo -n -l "${filter[@]}" </dev/null &
tcpdump=$!
trap 'kill "$tcpdump" 2>/dev/null || true' INT TERM HUP
code=0
wait "$tcpdump" || code=$?
((code <= 128)) || {
  code=0 # a signal ended the wait, and then tcpdump
  wait "$tcpdump" || code=$?
}
((code == 0)) || exit "$EX_FAILED"

# Both snapshots, one behind the other: what each counter has grown by
{
  echo "$before"
  "$here/status.sh" --prometheus 2>/dev/null || true
} | awk '
  /^sockfuse_fused_messages_total / { fused = $2 - fused; snapshots++ }
  sub(/^sockfuse_fallback_messages_total[{]reason="/, "") {
    sub(/"[}]/, "")
    by_tcp[$1] = $2 - by_tcp[$1]
  }
  END {
    if (snapshots < 2) {
      print "sockfuse is off: all went by TCP."
      exit
    }
    while (1) {
      most = ""
      for (reason in by_tcp) if (by_tcp[reason] > by_tcp[most]) most = reason
      if (most == "") break
      why = why (why ? ", " : ": ") by_tcp[most] " " most
      sum += by_tcp[most]
      delete by_tcp[most]
    }
    printf "On this host meanwhile: %d messages fused, %d by TCP (%.1f %%)%s\n", fused, sum, sum ? 100 * sum / (fused + sum) : 0, why
  }' >&2
