#!/usr/bin/env bash
# run.sh [--quick] FILE: measures plain TCP, fused connections and AF_UNIX stream
# sockets in turn, in the same run, and writes FILE.json, which bench/report.jq turns
# into a table (make bench, make bench-quick).  Inside isolate.sh only.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
# shellcheck source=bench/helpers.bash
. "$here/helpers.bash"

# KIND HOW CONNECTIONS BYTES...: each on one processor and on two
CASES=(
  "rr blocking 1 1 64 1024 4096 16384 65536 262144"
  "rr epoll 1 64 16384"
  "rr epoll 16 64 16384"
  "rr epoll 256 64 16384"
  "stream blocking 1 64 256 1024 4096 16384 65536 131072 262144 1048576"
  "connect blocking 1 64"
)
rounds=5
if [[ ${1-} == --quick ]]; then
  CASES=("rr blocking 1 64 16384" "stream blocking 1 64 16384 65536" "connect blocking 1 64")
  rounds=3
  shift
fi
last_cpu=$(($(nproc) - 1))
make_cgroups
"$here/../load.sh" --quiet --cgroup "$FUSED"
results=$(mktemp)
trap 'rm -f "$results"; "$here/../unload.sh" --quiet' EXIT

# A stream of small writes takes 0.3 s to leave the map.
declare -A seconds=([rr]=0.5 [connect]=0.5 [stream]=1)

# one MODE KIND HOW CONNECTIONS BYTES CPU_A CPU_B: what load printed
one() (
  local options=(--connections "$4")
  [[ $3 != epoll ]] || options+=(--epoll)
  [[ $1 != unix ]] || options+=(--unix)
  if [[ $1 == fused ]]; then echo "$BASHPID" >"$FUSED/cgroup.procs"; else echo "$BASHPID" >"$PLAIN/cgroup.procs"; fi
  exec "$here/load" "${options[@]}" "$2" "$5" "${seconds[$2]}" "$6" "$7"
)

# measure PROCESSORS CPU_A CPU_B KIND HOW CONNECTIONS BYTES
measure() {
  local round mode
  [[ ! -t 2 ]] || printf '\r\033[K%s' "${*:4}, $1" >&2
  for ((round = 0; round < rounds; round++)); do
    for mode in plain fused unix; do
      one "$mode" "${@:4}" "$2" "$3" | jq -c --arg processors "$1" --arg kind "$4" --arg how "$5" --argjson connections "$6" \
        --argjson bytes "$7" --arg mode "$mode" '{$kind, $how, $connections, $bytes, $processors, $mode} + .' >>"$results"
    done
  done
}

for case in "${CASES[@]}"; do
  read -r kind how connections sizes <<<"$case"
  for bytes in $sizes; do
    measure one 0 0 "$kind" "$how" "$connections" "$bytes"
    [[ $last_cpu == 0 ]] || measure two 0 "$last_cpu" "$kind" "$how" "$connections" "$bytes"
  done
done
[[ ! -t 2 ]] || printf '\r\033[K' >&2
jq -s --arg kernel "Linux $(uname -r)" --arg date "$(date -u +%F)" --argjson processors "$(nproc)" \
  --arg processor "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" \
  --argjson rounds "$rounds" -f "$here/summarize.jq" "$results" >"$1"
