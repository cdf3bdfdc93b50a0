#!/usr/bin/env bash
# guard.sh [ROUNDS] [SECONDS]: the speed with the guard, and with all of it but its hook
# of splice, as ratios of that without it, in turn; medians of the rounds.  For a machine
# of one's own, whose kernel takes the guard: load.sh changes what the host has.  In
# instructions:
# QEMU_OPTIONS="-icount shift=0,sleep=off" tests/vm/run.sh 6.12 bench/guard.sh 3 0.5
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
# shellcheck source=bench/helpers.bash
. "$here/helpers.bash"

rounds=${1:-7} seconds=${2:-2}
guard=/sys/fs/bpf/sockfuse/guard
results=$(mktemp -d)
trap 'rm -rf "$results"; "$here/../unload.sh" --quiet' EXIT

# rate KIND SIZE SECONDS CPU...: per second
rate() { "$here/load" "$@" | jq .per_second; }

# measure NAME: once what was loaded or taken away has been freed
measure() {
  sleep 3
  rate rr 64 "$seconds" 0 0 >>"$results/rr.$1"
  rate pipe 1 "$seconds" 0 >>"$results/byte.$1"
  rate pipe 4096 "$seconds" 0 >>"$results/page.$1"
  rate pipe 65536 "$seconds" 0 >>"$results/full.$1"
}

for ((round = 0; round < rounds; round++)); do
  "$here/../load.sh" --quiet
  [[ -e $guard ]] || {
    echo "guard.sh: the guard cannot be attached here; see: ./load.sh" >&2
    exit 6
  }
  measure with
  rm "$guard/guard_splice" # a link goes with its pin
  measure unhooked
  rm -r "$guard"
  measure without
done
printf '%s, median of %d rounds of %s s\n\n| | without | but splice | with | ratio | ratio |\n|---|---:|---:|---:|---:|---:|\n' "Linux $(uname -r)" "$rounds" "$seconds"
for case in "rr:request/response, 64 bytes" "byte:pipe, 1 byte" "page:pipe, 4 KB" \
  "full:pipe, 64 KB"; do
  files=("$results/${case%%:*}".{without,unhooked,with})
  printf '| %s | %.0f /s | %.0f /s | %.0f /s | %.3f | %.3f |\n' "${case#*:}" "$(median <"${files[0]}")" "$(median <"${files[1]}")" \
    "$(median <"${files[2]}")" "$(paste "${files[@]}" | awk '{ print $2 / $1 }' | median)" "$(paste "${files[@]}" | awk '{ print $3 / $1 }' | median)"
done
