#!/usr/bin/env bash
# Shows with tcpdump what still passes through the loopback device.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
. "$here/lib/common.sh"

usage() {
  cat <<EOF
Usage: ${0##*/} [--all] [PORT | FILTER...]

Runs tcpdump on lo, by default for port 5001.  FILTER is in the language of
pcap-filter(7).  Ends with Ctrl-C, and then says how many messages of this host
were fused meanwhile, how many went by TCP, and why.

  --all     meanwhile every message of PORT goes by TCP (with FILTER, or a port of 0,
            every message of this host), so tcpdump, Wireshark and ss see all of them.
            Connections with an edge-triggered reader (nginx, Go) stay on TCP afterwards
  --help    this text

Example: ${0##*/} --all 8080

$EXIT_CODES
EOF
}

readonly CAPTURE_SECONDS=5 # after which it ends by itself: more than a busy host keeps a script waiting

# capture UNTIL PORT: messages of the port go by TCP until then, in seconds of /proc/uptime
capture() {
  local bytes
  printf -v bytes '%d ' $(($1 >> 24 & 255)) $(($1 >> 16 & 255)) $(($1 >> 8 & 255)) $(($1 & 255)) $(($2 >> 8)) $(($2 & 255))
  # shellcheck disable=SC2086 # words
  "$BPFTOOL" map update pinned "$PIN_DIR/$CAPTURE" key 0 0 0 0 value $bytes 0 0
}

# capture_on PORT
capture_on() {
  local now
  read -r now _ </proc/uptime
  capture $((${now%.*} + CAPTURE_SECONDS)) "$1"
}

# keep_capturing PORT: for as long as this script lives
keep_capturing() {
  trap 'exit 0' TERM # once capture has ended
  while kill -0 $$ 2>/dev/null; do
    sleep 0.5 >/dev/null 2>&1 &
    wait $!
    capture_on "$1" 2>/dev/null || true # it may be loaded anew just now
  done
}

stop_capturing() {
  [[ $capturing ]] || return 0
  kill "$capturing" 2>/dev/null || true
  wait "$capturing" || true
  capture 0 0 2>/dev/null || true
  capturing=
}

all=
capturing=
[[ ${1-} != --all ]] || {
  all=1
  shift
}
[[ ${1-} != -* ]] || last_option "$1"
need_root "$@"
need_command tcpdump tcpdump
filter=("${@:-5001}") port=0
if [[ ${filter[*]} =~ ^[0-9]+$ ]]; then
  ((10#${filter[0]} < 65536)) || wrong "not a port: ${filter[0]}"
  port=$((10#${filter[0]}))
  filter=(port "$port")
  ((port)) || filter=(tcp)
fi
if [[ $all ]]; then
  need_bpftool
  [[ -e $PIN_DIR/$CAPTURE ]] || die "$EX_FAILED" "sockfuse is not loaded" "try: $(path_to load)"
  trap stop_capturing EXIT
  capture_on "$port" || die "$EX_FAILED" "the kernel map of captures cannot be written (see above)" "try: $(path_to load)"
  keep_capturing "$port" &
  capturing=$!
  cat >&2 <<EOF
Capturing on lo: ${filter[*]}
Every message of $( ((port)) && echo "port $port" || echo "this host") goes by TCP until this ends.
EOF
else
  cat >&2 <<EOF
Capturing on lo: ${filter[*]}
Fused connections show the three packets of the handshake and, at the end, the
teardown.  A packet with a length above 0 carries data that went by TCP.
EOF
fi
before=$("$here/status.sh" --prometheus 2>/dev/null) || true
# A signal ends tcpdump, whenever it comes, and what follows says what was seen.
tcpdump=
trap 'ended=1; [[ ! $tcpdump ]] || kill "$tcpdump" 2>/dev/null || true' INT TERM HUP
tcpdump -i lo -n -l "${filter[@]}" </dev/null &
tcpdump=$!
[[ ! ${ended-} ]] || kill "$tcpdump" 2>/dev/null || true
code=0
wait "$tcpdump" || code=$?
((code <= 128)) || {
  code=0 # a signal ended the wait, and then tcpdump
  wait "$tcpdump" || code=$?
}
((code <= 128)) || code=0 # it was killed before it could catch a signal
stop_capturing
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
