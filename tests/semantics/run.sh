#!/usr/bin/env bash
# run.sh DIRECTORY [--again | --polled] [OPTION of load.sh...]: runs the catalogue on plain
# TCP and fused, both at a time, and writes plain.tsv, fused.tsv and counters.json
# into DIRECTORY.  Inside isolate.sh only.
set -euo pipefail
# shellcheck source=tests/helpers.bash
. "$(dirname "$(readlink -f "$0")")/../helpers.bash"

results=$1 way=()
shift
[[ ${1-} != --again && ${1-} != --polled ]] || {
  way=("$1")
  shift
}
mkdir -p "$CGROUP/plain" "$CGROUP/fused"
load --cgroup "$CGROUP/fused" "$@"
trap 'unload --quiet' EXIT
# catalogue CGROUP ADDRESS
catalogue() {
  echo "$BASHPID" >"$CGROUP/$1/cgroup.procs"
  exec "$here/tests/semantics/catalogue" "$2" "${way[@]}" >"$results/$1.tsv"
}

# Plain TCP has an address that is not loopback: a sockfuse that is on in a cgroup
# above, as after "make load", would fuse that too.
plain_address
catalogue plain "$PLAIN_ADDRESS" &
catalogue fused 127.0.0.1 &
wait
counters >"$results/counters.json"
