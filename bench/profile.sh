#!/usr/bin/env bash
# profile.sh FILE: where the time goes, by perf, on plain TCP and fused: for each case
# a flame graph as text, in Markdown (make benchmarks).  Inside isolate.sh only.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
# shellcheck source=bench/helpers.bash
. "$here/helpers.bash"

# KIND BYTES SECONDS, on one processor: all of it is work
CASES=("rr 64 1" "stream 262144 1" "connect 64 1")
LEAST=3 # percent that a function and what it calls must take to be shown

make_cgroups
"$here/../load.sh" --quiet --cgroup "$FUSED"
work=$(mktemp -d)
trap 'rm -rf "$work"; "$here/../unload.sh" --quiet' EXIT

# record MODE KIND BYTES SECONDS
record() (
  echo "$BASHPID" >"/sys/fs/cgroup/$1/cgroup.procs"
  exec perf record -q -g -C 0 -e cpu-clock -F 4000 -o "$work/perf.data" -- "$here/load" "$2" "$3" "$4" 0 0 >/dev/null
)

# Each function under its caller, with the share of samples it and what it calls have.
# Where the processor was idle does not count.
flame() {
  perf script -i "$work/perf.data" -F ip,sym 2>/dev/null | awk -v least="$LEAST" '
    function take(i, path) {
      if (!n) return
      for (i = n; i >= 1; i--) if (stack[i] ~ /idle/) { n = 0; return }
      samples++
      for (i = n; i >= 1; i--) {
        path = path sprintf("%s;", stack[i])
        count[path]++
      }
      n = 0
    }
    NF == 0 { take(); next }
    { sub(/^bpf_prog_[0-9a-f]*_/, "bpf: ", $2); if ($2 == "bpf:") $2 = $2 " " $3; if ($2 != "[unknown]") stack[++n] = $2 }
    END {
      take()
      for (path in count) if (count[path] * 100 >= least * samples) {
        depth = gsub(/;/, ";", path)
        split(path, part, ";")
        printf "%s\t%d\t%d\t%s\n", path, depth, count[path] * 100 / samples + 0.5, part[depth]
      }
    }' | LC_ALL=C sort -t "$(printf '\t')" -k 1,1 | awk -F '\t' '{ printf "%3d %%  %*s%s\n", $3, ($2 - 1), "", $4 }'
}

for case in "${CASES[@]}"; do
  read -r kind bytes seconds <<<"$case"
  for mode in plain fused; do
    record "$mode" "$kind" "$bytes" "$seconds"
    # shellcheck disable=SC2016 # Markdown
    printf '\n<details><summary>%s, %s bytes, one processor, %s</summary>\n\n```\n%s\n```\n\n</details>\n' "$kind" "$bytes" "$mode" "$(flame)"
  done
done >"$1"
