#!/usr/bin/env bash
# run.sh [--quick] FILE: measures plain TCP, fused connections and AF_UNIX stream
# sockets in turn, in the same run, and writes FILE, JSON, which bench/report.jq turns
# into a table (make bench, make bench-quick).  Inside isolate.sh only.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
# shellcheck source=bench/helpers.bash
. "$here/helpers.bash"
# shellcheck source=bench/applications.bash
. "$here/applications.bash"

# KIND HOW CONNECTIONS BYTES...: each on one processor and on two
CASES=(
  "rr blocking 1 1 64 1024 16384 65536 262144"
  "rr epoll 1 64 16384"
  "rr epoll 16 64 16384"
  "rr epoll 256 64 16384"
  "stream beginning 1 64 4096"
  "stream lasting 1 64 256 1024 4096 16384 65536 131072 262144 1048576"
  "connect blocking 1 64"
)
IDLE=(0 1000 10000 60000)
rounds=5
if [[ ${1-} == --quick ]]; then
  CASES=("rr blocking 1 64 16384" "stream lasting 1 64 16384 65536" "connect blocking 1 64")
  IDLE=()
  APPLICATIONS=()
  rounds=3
  shift
fi
last_cpu=$(($(nproc) - 1))
make_cgroups
# HAProxy is measured fused; it does not splice here.
"$here/../load.sh" --quiet --no-guard --cgroup "$FUSED" --max-connections 131072
results=$(mktemp)
trap 'rm -f "$results"; "$here/../unload.sh" --quiet' EXIT
# Of this network namespace.  What waits after its close would make each later run slower.
sysctl -q net.ipv4.ip_local_port_range="1024 65535" net.ipv4.tcp_max_tw_buckets=1000

seconds=0.4
lasting=(--after 0.5) # a stream of small writes takes some 0.3 s to leave the map

say() { [[ ! -t 2 ]] || printf '\r\033[K%s' "$*" >&2; }

# one MODE KIND BYTES CPU_A CPU_B [OPTION...]: what load printed
one() {
  [[ $1 != unix ]] || set -- "$@" --unix
  in_cgroup "$1" "$here/load" "${@:6}" "$2" "$3" "$seconds" "$4" "$5"
}

# keep MODE CASE: what comes on standard input, as a round of that case
keep() { jq -c --arg mode "$1" --argjson case "$2" '$case + {$mode} + .' >>"$results"; }

# case_of KIND HOW CONNECTIONS BYTES PROCESSORS [IDLE]
case_of() {
  jq -cn --arg kind "$1" --arg how "$2" --argjson connections "$3" --argjson bytes "$4" --arg processors "$5" --argjson idle "${6:-0}" \
    '{$kind, $how, $connections, $bytes, $processors, $idle}'
}

# measure PROCESSORS CPU_A CPU_B KIND HOW CONNECTIONS BYTES
measure() {
  local round mode case options=(--connections "$6") rounds=$rounds
  [[ $5 != epoll ]] || options+=(--epoll)
  if [[ $5 == lasting ]]; then
    rounds=$((rounds + 2)) # plain TCP itself differs from one to the next, by 2 and more
    options+=("${lasting[@]}")
  fi
  case=$(case_of "${@:4}" "$1")
  say "$case"
  for ((round = 0; round < rounds; round++)); do
    for mode in $(modes_of "$round" plain fused unix); do
      one "$mode" "$4" "$7" "$2" "$3" "${options[@]}" | keep "$mode" "$case"
    done
  done
}

# Of the host's kernel, bytes
kernel_memory() { awk '/^(Slab|Percpu):/ { sum += $2 } END { printf "%.0f", sum * 1024 }' /proc/meminfo; }

# hold MODE N: sets HOLD, a process that has so many idle connections, and memory, what
# one of them takes in the kernel
hold() {
  local before
  before=$(kernel_memory)
  coproc HOLD {
    echo "$BASHPID" >"/sys/fs/cgroup/$1/cgroup.procs"
    exec "$here/../tests/traffic" hold "$2" 600
  }
  read -r -t 120 <&"${HOLD[0]}"
  memory=$((($(kernel_memory) - before) / $2))
}

let_go() {
  kill "$HOLD_PID"
  wait "$HOLD_PID" || true
  while (($(awk '/^TCP:/ { print $3 }' /proc/net/sockstat) > 10)); do sleep 0.1; done
  sleep 1 # what RCU frees
}

# Ten connections that talk beside so many that do not.
measure_scale() {
  local round mode idle case memory
  for ((round = 0; round < rounds; round++)); do
    for idle in "$@"; do
      case=$(case_of rr epoll 10 64 one "$idle")
      say "$case"
      for mode in $(modes_of "$round" plain fused); do
        memory=0
        ((idle == 0)) || hold "$mode" "$idle"
        one "$mode" rr 64 0 0 --epoll --connections 10 | jq -c --argjson memory_bytes "$memory" '. + {$memory_bytes}' | keep "$mode" "$case"
        ((idle == 0)) || let_go
      done
    done
  done
}

# To another host, as far as its address tells: nothing of it may be fused, nor cost.
measure_remote() {
  local round mode kind bytes case seconds=0.25
  ip netns add remote
  ip link add veth0 type veth peer name veth0 netns remote
  ip address add 192.0.2.1/24 dev veth0
  ip -n remote address add 192.0.2.2/24 dev veth0
  ip link set veth0 up
  ip -n remote link set veth0 up
  while read -r kind bytes; do
    case=$(case_of "$kind" remote 1 "$bytes" two)
    say "$case"
    for ((round = 0; round < 8 * rounds; round++)); do # one differs from the next by 10 %
      for mode in $(modes_of "$round" plain fused); do
        one "$mode" "$kind" "$bytes" 0 "$last_cpu" --netns /run/netns/remote --address 192.0.2.2 | keep "$mode" "$case"
      done
    done
  done <<<$'rr 64\nstream 65536\nconnect 64'
}

# measure_applications HOW NAME...
measure_applications() {
  local name connections bytes unit modes round mode case
  while read -r name connections bytes unit modes; do
    [[ " ${*:2} " == *" $name "* ]] || continue
    case=$(case_of "$name" "$1" "$connections" "$bytes" all)
    say "$case"
    for ((round = 0; round < rounds; round++)); do
      # shellcheck disable=SC2086 # words
      for mode in $(modes_of "$round" ${modes//,/ }); do
        application "$mode" "$name" "$unit" | keep "$mode" "$case"
      done
    done
  done < <(printf '%s\n' "${APPLICATIONS[@]}")
}

for case in "${CASES[@]}"; do
  read -r kind how connections sizes <<<"$case"
  for bytes in $sizes; do
    measure one 0 0 "$kind" "$how" "$connections" "$bytes"
    [[ $last_cpu == 0 ]] || measure two 0 "$last_cpu" "$kind" "$how" "$connections" "$bytes"
  done
done
((${#IDLE[@]} == 0)) || measure_scale "${IDLE[@]}"
measure_remote
if ((${#APPLICATIONS[@]})) && [[ ! -e $ROOT/.complete ]]; then
  echo "run.sh: no Debian root, so no applications; try: make check-apps, or DEBIAN_MIRROR=URL make bench" >&2
  APPLICATIONS=()
fi
if ((${#APPLICATIONS[@]})); then
  start_applications
  measure_applications application "${APPLICATIONS[@]%% *}"
fi
measure_aged
say ""
jq -s --arg kernel "Linux $(uname -r)" --arg date "$(date -u +%F)" --argjson processors "$(nproc)" \
  --arg processor "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" \
  --argjson rounds "$rounds" -f "$here/summarize.jq" "$results" >"$1"
