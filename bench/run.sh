#!/usr/bin/env bash
# run.sh [ROUNDS] [SECONDS]: the speed of fused connections as a ratio of plain
# TCP, both measured in turn in the same run; medians of the rounds (make bench).
# Inside isolate.sh only.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
# shellcheck source=bench/helpers.bash
. "$here/helpers.bash"

rounds=${1:-5} seconds=${2:-1} # iperf3 takes whole seconds
last_cpu=$(($(nproc) - 1))
make_cgroups
"$here/../load.sh" --quiet --cgroup "$FUSED"
trap '"$here/../unload.sh" --quiet' EXIT

# one CGROUP CASE...: in that cgroup
one() (
  echo "$BASHPID" >"$1/cgroup.procs"
  if [[ $2 == iperf3 ]]; then
    iperf3_stream "$3" "$4"
  else
    exec "$here/ratio" "${@:2}"
  fi
)

printf '%s, %s processors, %s, median of %d rounds of %s s\n\n' \
  "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)" "Linux $(uname -r)" "$rounds" "$seconds"
printf '| %-6s | %8s | %-10s | %12s | %12s | %5s |\n' case bytes processors plain fused ratio
printf '|---|---:|---|---:|---:|---:|\n'
for case in "rr 64" "rr 1024" "rr 16384" "rr 65536" "rr 262144" \
  "stream 64" "stream 1024" "stream 16384" "stream 65536" "stream 131072" "stream 262144" "stream 1048576" \
  "iperf3 65536" "iperf3 131072"; do
  read -r kind bytes <<<"$case"
  for processors in one two free; do
    case $processors in
      one) cpus="0 0" ;;
      two) cpus="0 $last_cpu" ;;
      free) cpus= ;;
    esac
    # iperf3 is left to the scheduler, as its users do
    [[ $kind == iperf3 && $processors == free || $kind != iperf3 && $processors != free ]] || continue
    [[ $processors != two || $last_cpu != 0 ]] || continue
    plain=() fused=() ratios=()
    for ((round = 0; round < rounds; round++)); do
      # shellcheck disable=SC2086 # words
      {
        plain+=("$(one "$PLAIN" $case "$seconds" $cpus)")
        fused+=("$(one "$FUSED" $case "$seconds" $cpus)")
      }
      ratios+=("$(awk -v f="${fused[-1]}" -v p="${plain[-1]}" 'BEGIN { print f / p }')")
    done
    [[ $kind == rr ]] && unit=1 || unit=1e9
    printf '| %-6s | %8s | %-10s | %12s | %12s | %5.2f |\n' "$kind" "$bytes" "$processors" \
      "$(printf '%s\n' "${plain[@]}" | median | awk -v u="$unit" '{ printf u == 1 ? "%.0f /s" : "%.2f GB/s", $1 / u }')" \
      "$(printf '%s\n' "${fused[@]}" | median | awk -v u="$unit" '{ printf u == 1 ? "%.0f /s" : "%.2f GB/s", $1 / u }')" \
      "$(printf '%s\n' "${ratios[@]}" | median)"
  done
done
