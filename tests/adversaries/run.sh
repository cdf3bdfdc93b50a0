#!/usr/bin/env bash
# run.sh SECONDS [NAME...]: the adversaries (see adversaries.c), or those named, on plain
# TCP and fused by turns, for SECONDS in all (make adversaries).  Prints what went wrong
# on either, with the seeds where it did.  Loads sockfuse unless it is.  Inside
# isolate.sh only.
#
# Environment: SEED of the first turn, PATIENCE_S after which a round has hung (10).
# Exit codes: 0 fused is as good as plain TCP, 1 it is not, 2 an adversary could not run.
set -euo pipefail
# shellcheck source=tests/helpers.bash
. "$(dirname "$(readlink -f "$0")")/../helpers.bash"

ALL=(refused_connect leaving_map leaving_map_lowat closing_peer half_close under_way uring_seam sigio
  nested_epoll zerocopy_receive two_readers woken_reader thread_pairs acks_elsewhere schedule)
FAULTS=(lost reordered failed hung)

seconds=$1
shift
(($#)) || set -- "${ALL[@]}"
seconds=$((seconds / $#))
pairs=$((seconds / 20)) # of turns
((pairs >= 2)) || pairs=2
slice=$((seconds * 500 / pairs))e-3
seed=${SEED:-$(date +%s)000}
declare -A sum
code=0

plain_address
rps=/sys/class/net/lo/queues/rx-0/rps_cpus
if [[ -e $BPFFS/bpf_sockops ]]; then
  trap 'echo 0 >"$rps"' EXIT
else
  "$here/load.sh" --quiet --port 1-65535 # whatever their connections teach
  trap 'echo 0 >"$rps"; unload --quiet' EXIT
fi

# turn NAME PATH ADDRESS: one slice, added to sum
turn() {
  local line word key
  line=$("$here/tests/adversaries/adversaries" "$1" "$3" "$slice" "$seed") || exit 2
  for word in $line; do
    [[ $word == *=* && $word != seed=* ]] || continue
    key=$2_${word%%=*}
    sum[$key]=$((${sum[$key]:-0} + ${word#*=}))
  done
  [[ $line == *" lost=0 reordered=0 failed=0 "*" hung=0 "* ]] ||
    echo "# $line" >&2
}

# row NAME PATH
row() {
  local key cells=()
  for key in rounds bytes "${FAULTS[@]}" epipe; do
    cells+=("${sum[$2_$key]}")
  done
  # shellcheck disable=SC2059 # a constant
  printf "$FORMAT" "$1" "$2" "${cells[@]}" "${3-}"
}

# faults NAME: those that fused shows and plain TCP does not
faults() {
  local key
  for key in "${FAULTS[@]}"; do
    [[ ${sum[fused_$key]} != 0 && ${sum[plain_$key]} == 0 ]] || continue
    [[ $1 != closing_peer || $key != failed ]] || ! kernels_own_window || continue
    echo "$key"
  done
}

# The kernel takes a closing end out of the map between a sender's verdict and the
# delivery, whatever the programs do: of 1,000 sends one may fail with EPIPE, and some
# more of the few that a short run makes.
kernels_own_window() {
  local failed=${sum[fused_failed]}
  ((failed == sum[fused_epipe] && (failed - 5) * 1000 <= sum[fused_rounds]))
}

# adversary NAME
adversary() {
  local before found pair
  sum=()
  before=$(counter fused_messages)
  [[ $1 != acks_elsewhere ]] || printf '%x' $(((1 << $(nproc)) - 1)) >"$rps"
  for ((pair = 0; pair < pairs; pair++)); do
    turn "$1" plain "$PLAIN_ADDRESS"
    turn "$1" fused 127.0.0.1
    seed=$((seed + 1))
  done
  [[ $1 != acks_elsewhere ]] || echo 0 >"$rps"
  if ((sum[fused_skipped])); then
    row "$1" fused "skipped=1: not on this kernel"
    return
  fi
  found=$(faults "$1")
  row "$1" plain
  row "$1" fused "${found:+<-- $(tr '\n' ' ' <<<"$found")}"
  [[ $1 != closing_peer ]] ||
    echo "# closing_peer: of 10,000 sends that met a close $((sum[fused_failed] * 10000 / sum[fused_rounds])) failed"
  [[ ! $found ]] || code=1
  (($(counter fused_messages) > before)) || {
    echo "# $1: nothing was fused" >&2
    code=1
  }
}

FORMAT='%-18s %-6s %9s %14s %9s %9s %7s %5s %6s %s\n'
# shellcheck disable=SC2059 # a constant
printf "$FORMAT" adversary path rounds bytes "${FAULTS[@]}" epipe ""
for name; do
  adversary "$name"
done
exit "$code"
