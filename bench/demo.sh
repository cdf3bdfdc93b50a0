#!/usr/bin/env bash
# demo.sh: iperf3 and request/response before and after load.sh, and what tcpdump sees
# on lo meanwhile, as a table (make demo).  Inside isolate.sh only.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
# shellcheck source=bench/helpers.bash
. "$here/helpers.bash"

SECONDS_EACH=3
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

progress() { [[ ! -t 2 ]] || printf '\r\033[K%s' "$1" >&2; }

# packets_of FILE COMMAND...: the packets that tcpdump counted on lo, into FILE
packets_of() {
  local tcpdump
  # tcpdump gives a file that it writes to its own user, /dev/null, too.
  tcpdump -i lo -n -s 96 -B 65536 -w - 2>"$1.log" >/dev/null &
  tcpdump=$!
  until grep -q 'listening on' "$1.log"; do sleep 0.05; done
  "${@:2}"
  kill -INT "$tcpdump"
  wait "$tcpdump" || true
  sed -n 's/ packets received by filter//p' "$1.log" >"$1"
}

stream() { iperf3_stream 64k "$SECONDS_EACH" >"$results/$1.stream"; }
requests() { "$here/load" rr 64 "$SECONDS_EACH" 0 0 | jq .per_second >"$results/$1.requests"; }

measure() {
  progress "$1: iperf3 for $SECONDS_EACH s"
  packets_of "$results/$1.stream_packets" stream "$1"
  progress "$1: request/response for $SECONDS_EACH s"
  packets_of "$results/$1.request_packets" requests "$1"
  progress ""
}

# row LABEL CASE UNIT DIVISOR
row() {
  local plain fused
  plain=$(<"$results/plain.$2") fused=$(<"$results/fused.$2")
  awk -v label="$1" -v p="$plain" -v f="$fused" -v unit="$3" -v by="$4" 'BEGIN {
    number = by > 1 ? "%12.2f %-5s" : "%12d %-5s"
    printf "%-34s " number " " number (unit == "" ? "\n" : "  x %.2f\n"), label, p / by, unit, f / by, unit, f / p
  }'
}

make_cgroups
measure plain
"$here/../load.sh" --quiet
measure fused
"$here/../unload.sh" --quiet
printf '%-34s %18s %18s\n' "" "plain TCP" "fused"
row "iperf3, 64 KB writes" stream GB/s 1e9
row "  packets on lo" stream_packets "" 1
row "request/response, 64 B, 1 processor" requests /s 1
row "  packets on lo" request_packets "" 1
