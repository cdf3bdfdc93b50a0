#!/usr/bin/env bash
# run.sh DIRECTORY [--again | --polled | --remote] [OPTION of load.sh...]: runs the catalogue on plain
# TCP and fused, both at a time, and writes plain.tsv, fused.tsv and counters.json
# into DIRECTORY.  --remote: those of fused.tsv are to another host, as far as sockfuse
# knows: who accepts them is none of its own.  Inside isolate.sh only.
set -euo pipefail
# shellcheck source=tests/helpers.bash
. "$(dirname "$(readlink -f "$0")")/../helpers.bash"

results=$1 way=()
shift
address=127.0.0.1
case ${1-} in
  --again | --polled)
    way=("$1")
    shift
    ;;
  --remote)
    way=("$1" "$CGROUP/fused" "$CGROUP/elsewhere")
    address=192.0.2.2
    shift
    set -- --net "$address/32" "$@"
    ;;
esac
mkdir -p "$CGROUP/plain" "$CGROUP/fused" "$CGROUP/elsewhere"
load_always --cgroup "$CGROUP/fused" "$@"
trap 'unload --quiet' EXIT
# catalogue CGROUP ADDRESS
catalogue() {
  echo "$BASHPID" >"$CGROUP/$1/cgroup.procs"
  exec "$here/tests/semantics/catalogue" "$2" "${@:3}" >"$results/$1.tsv"
}

# Plain TCP has an address that is not loopback: a sockfuse that is on in a cgroup
# above, as after "make load", would fuse that too.
plain_address
[[ $address == 127.* ]] || ip address replace "$address/32" dev lo
if [[ ${way[0]-} == --remote ]]; then
  catalogue plain "$PLAIN_ADDRESS" &
else
  catalogue plain "$PLAIN_ADDRESS" "${way[@]}" &
fi
catalogue fused "$address" "${way[@]}" &
wait
counters >"$results/counters.json"
