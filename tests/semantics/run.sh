#!/usr/bin/env bash
# run.sh DIRECTORY [OPTION of load.sh...]: runs the catalogue on plain TCP and
# fused, both at a time, and writes plain.tsv, fused.tsv and counters.json into
# DIRECTORY.  Inside isolate.sh only.
set -euo pipefail
BATS_TEST_DIRNAME=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd) # as bats would set it
# shellcheck source=tests/helpers.bash
. "$BATS_TEST_DIRNAME/helpers.bash"

mkdir -p "$CGROUP/plain" "$CGROUP/fused"
load --cgroup "$CGROUP/fused" "${@:2}"
trap 'unload --quiet' EXIT
# catalogue PATH ADDRESS DIRECTORY
catalogue() {
  echo "$BASHPID" >"$CGROUP/$1/cgroup.procs"
  exec "$here/tests/semantics/catalogue" "$2" >"$3/$1.tsv"
}

# Plain TCP has an address that is not loopback: a sockfuse that is on in a cgroup
# above, as after "make load", would fuse that too.
plain_address
catalogue plain "$PLAIN_ADDRESS" "$1" &
catalogue fused 127.0.0.1 "$1" &
wait
counters >"$1/counters.json"
