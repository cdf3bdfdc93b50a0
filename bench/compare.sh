#!/usr/bin/env bash
# compare.sh FILE: plain TCP, sockfuse, the programs of tutorial.bpf.c, AF_UNIX and, where the
# kernel has it, AF_SMC: how fast, what stays on lo, and what goes wrong, as JSON, of
# which comparison.sh makes a page (make compare).  Inside isolate.sh only.
#
# Environment: ROUNDS of each speed (7), SLICE, their seconds (0.5), ADVERSARIES, their names
# (all), and ADVERSARY_SECONDS for each (2).
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
# shellcheck source=bench/helpers.bash
. "$here/helpers.bash"
BPFTOOL=${BPFTOOL:-bpftool}
TUTORIAL=/sys/fs/bpf/tutorial
traffic=$here/../tests/traffic
rounds=${ROUNDS:-7} slice=${SLICE:-0.5}
read -rd '' -a adversaries <<<"${ADVERSARIES:-refused_connect leaving_map leaving_map_lowat closing_peer under_way
uring_seam sigio nested_epoll zerocopy_receive two_readers woken_reader thread_pairs acks_elsewhere schedule}" || true # at its end
modes=(plain fused tutorial unix)
tcp=(plain fused tutorial) # what has TCP's sockets

make_cgroups
mkdir /sys/fs/cgroup/{tutorial,smc}
"$here/../load.sh" --quiet --cgroup "$FUSED"
results=$(mktemp)
trap 'rm -f "$results"; "$here/../unload.sh" --quiet' EXIT
"$BPFTOOL" prog loadall "$here/tutorial.bpf.o" "$TUTORIAL" pinmaps "$TUTORIAL"
"$BPFTOOL" prog attach pinned "$TUTORIAL/redirects" msg_verdict pinned "$TUTORIAL/tutorial"
"$BPFTOOL" cgroup attach /sys/fs/cgroup/tutorial sock_ops pinned "$TUTORIAL/enters"
# Of this network namespace.  What waits after its close would make each later run slower.
sysctl -q net.ipv4.ip_local_port_range="1024 65535" net.ipv4.tcp_max_tw_buckets=1000

say() { [[ ! -t 2 ]] || printf '\r\033[K%s' "$*" >&2; }

# keep MODE ROW VALUE
keep() { jq -cn --arg mode "$1" --arg row "$2" --arg value "$3" '{$mode, $row, value: ($value | tonumber? // $value)}' >>"$results"; }

# load MODE KIND BYTES SECONDS CPU: one end on the first processor, the other on CPU
load() {
  local options=()
  [[ $1 != unix && $1 != smc ]] || options=("--$1")
  in_cgroup "$1" "$here/load" "${options[@]}" "$2" "$3" "$4" 0 "$5"
}

# Segments with data that TCP has sent in this network namespace
segments() { nstat -asz TcpExtTCPOrigDataSent | awk '/OrigDataSent/ { print $2 }'; }

# speed KIND BYTES MESSAGES PROCESSORS CPU; MESSAGES: in each of what load counts
speed() {
  local round mode before rate
  for ((round = 0; round < rounds; round++)); do
    for mode in $(modes_of "$round" "${modes[@]}"); do
      say "$1, $4 processors, round $round, $mode"
      before=$(segments)
      rate=$(load "$mode" "$1" "$2" "$slice" "$5" | jq .per_second) || rate=0 # a call failed
      keep "$mode" "$1-$4" "$rate"
      [[ $rate == 0 ]] || keep "$mode" "$1-$4-segments" "$(jq -n "($(segments) - $before) * 1000 / ($rate * $slice * $3) | round")"
    done
  done
}

# adversary NAME [ROW]: for each of TCP's ways, what it counts.  One that never ends hangs.
adversary() {
  local mode line word
  for mode in "${tcp[@]}"; do
    say "$1, $mode"
    line=$(PATIENCE_S=5 in_cgroup "$mode" timeout -s KILL 20 "$here/../tests/adversaries/adversaries" "$1" 127.0.0.1 "${ADVERSARY_SECONDS:-2}" 1 2>/dev/null) ||
      line="rounds=1 lost=0 reordered=0 failed=0 hung=1"
    for word in $line; do
      [[ ! $word =~ ^(rounds|lost|reordered|failed|hung|skipped)=(.*) ]] || keep "$mode" "${2:-$1}-${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}"
    done
  done
}

# on_all_processors COMMAND...: while each handles what lo receives
on_all_processors() {
  printf '%x' $(((1 << $(nproc)) - 1)) >/sys/class/net/lo/queues/rx-0/rps_cpus
  "$@"
  echo 0 >/sys/class/net/lo/queues/rx-0/rps_cpus
}

# works ROW COMMAND...: yes or no
works() {
  local mode
  for mode in "${tcp[@]}"; do
    keep "$mode" "$1" "$(in_cgroup "$mode" "${@:2}" >/dev/null 2>&1 && echo yes || echo no)"
  done
}

entries() { "$BPFTOOL" -j map dump pinned "$1" | jq length; }

! load smc rr 64 0.01 0 >/dev/null 2>&1 || modes+=(smc)
for processors in one two; do
  cpu=$(($(nproc) - 1))
  [[ $processors == two ]] || cpu=0
  [[ $processors == one || $cpu != 0 ]] || continue
  speed rr 64 2 "$processors" "$cpu"
  speed stream 65536 1/65536 "$processors" "$cpu"
  speed connect 64 2 "$processors" "$cpu"
done
for mode in "${modes[@]}"; do
  keep "$mode" unread "$(load "$mode" stall 65536 1 0 | jq .unread)"
done
works dual-stack "$traffic" echo :: 127.0.0.1 1000
works namespaces "$traffic" tuples
on_all_processors adversary refused_connect late_peer
for name in "${adversaries[@]}"; do
  case $name in
    acks_elsewhere) on_all_processors adversary "$name" ;;
    *) adversary "$name" ;;
  esac
done
sleep 1 # what RCU frees
keep fused entries "$(entries /sys/fs/bpf/sock_ops_map)"
keep tutorial entries "$(entries "$TUTORIAL/tutorial")"
say ""
jq -s --arg kernel "Linux $(uname -r)" --arg date "$(date -u +%F)" --argjson processors "$(nproc)" \
  --arg processor "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" --argjson rounds "$rounds" \
  '{$kernel, $date, $processor, $processors, $rounds, results: .}' "$results" >"$1"
