#!/usr/bin/env bash
# run.sh [ROUNDS] [SECONDS]: the speed of fused connections as a ratio of plain
# TCP, both measured in turn in the same run; medians of the rounds.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)

((EUID == 0)) || {
  echo "run.sh: root is needed; try: sudo make bench" >&2
  exit 3
}
[[ ${SOCKFUSE_ISOLATED-} ]] || SOCKFUSE_ISOLATED=1 exec "$here/../tests/isolate.sh" "$0" "$@"
rounds=${1:-5} seconds=${2:-1}
last_cpu=$(($(nproc) - 1))
cgroup=/sys/fs/cgroup
mkdir "$cgroup/plain" "$cgroup/fused"
"$here/../load.sh" --quiet --cgroup "$cgroup/fused"
trap '"$here/../unload.sh" --quiet' EXIT

median() {
  sort -g | awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'
}

# one MODE CASE...: in the cgroup that is fused, or in the one that is not
one() (
  echo "$BASHPID" >"$cgroup/$1/cgroup.procs"
  exec "$here/ratio" "${@:2}"
)

printf '%s, %s processors, %s, median of %d rounds of %s s\n\n' \
  "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)" "Linux $(uname -r)" "$rounds" "$seconds"
printf '| %-6s | %8s | %-10s | %12s | %12s | %5s |\n' case bytes processors plain fused ratio
printf '|---|---:|---|---:|---:|---:|\n'
for case in "rr 64" "rr 1024" "rr 16384" "stream 64" "stream 1024" "stream 16384" "stream 65536" "stream 262144" "stream 1048576"; do
  for cpus in "0 0" "0 $last_cpu"; do
    [[ $cpus != "0 0" || $last_cpu != 0 ]] || [[ $cpus == "0 0" ]] || continue
    plain=() fused=() ratios=()
    for ((round = 0; round < rounds; round++)); do
      # shellcheck disable=SC2086 # words
      {
        plain+=("$(one plain $case "$seconds" $cpus)")
        fused+=("$(one fused $case "$seconds" $cpus)")
      }
      ratios+=("$(awk -v f="${fused[-1]}" -v p="${plain[-1]}" 'BEGIN { print f / p }')")
    done
    [[ $case == rr* ]] && unit=1 || unit=1e9
    read -r kind bytes <<<"$case"
    printf '| %-6s | %8s | %-10s | %12s | %12s | %5.2f |\n' "$kind" "$bytes" \
      "$([[ $cpus == "0 0" ]] && echo one || echo two)" \
      "$(printf '%s\n' "${plain[@]}" | median | awk -v u="$unit" '{ printf u == 1 ? "%.0f /s" : "%.2f GB/s", $1 / u }')" \
      "$(printf '%s\n' "${fused[@]}" | median | awk -v u="$unit" '{ printf u == 1 ? "%.0f /s" : "%.2f GB/s", $1 / u }')" \
      "$(printf '%s\n' "${ratios[@]}" | median)"
  done
done
