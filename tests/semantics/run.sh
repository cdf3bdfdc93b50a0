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
for path in plain fused; do
  (
    echo "$BASHPID" >"$cgroup/$path/cgroup.procs"
    exec "$here/catalogue" >"$1/$path.tsv"
  ) &
done
wait
"$bpftool" -j map dump pinned /sys/fs/bpf/sockfuse/fuse_counters |
  jq '[.[0].formatted.values[].value | to_entries[]] | group_by(.key)
      | map({(.[0].key): (map(.value) | add)}) | add' >"$1/counters.json"
