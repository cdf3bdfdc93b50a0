#!/usr/bin/env bash
# run.sh DIRECTORY: runs the catalogue on plain TCP and fused, both at a time,
# and writes plain.tsv, fused.tsv and counters.json into DIRECTORY.  Inside
# isolate.sh only.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
bpftool=${BPFTOOL:-bpftool}
cgroup=/sys/fs/cgroup

mkdir -p "$cgroup/plain" "$cgroup/fused"
"$here/../../load.sh" --quiet --cgroup "$cgroup/fused"
trap '"$here/../../unload.sh" --quiet' EXIT
# catalogue PATH ADDRESS DIRECTORY
catalogue() {
  echo "$BASHPID" >"$cgroup/$1/cgroup.procs"
  exec "$here/catalogue" "$2" >"$3/$1.tsv"
}

# Plain TCP has an address that is not loopback: a sockfuse that is on in a cgroup
# above, as after "make load", would fuse that too.
ip address add 192.0.2.1/32 dev lo
catalogue plain 192.0.2.1 "$1" &
catalogue fused 127.0.0.1 "$1" &
wait
"$bpftool" -j map dump pinned /sys/fs/bpf/sockfuse/fuse_counters |
  jq '[.[0].formatted.values[].value | to_entries[]] | group_by(.key)
      | map({(.[0].key): (map(.value) | add)}) | add' >"$1/counters.json"
