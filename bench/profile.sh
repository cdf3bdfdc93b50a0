#!/usr/bin/env bash
# profile.sh FILE: where the time goes, by perf, on plain TCP and fused: for each case
# a flame graph as text, in Markdown (make benchmarks).  Inside isolate.sh only.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
# shellcheck source=bench/helpers.bash
. "$here/helpers.bash"

# KIND BYTES CPU_A CPU_B MODES.  On one processor all of it is work; on two it is what
# the processes do, and not how long one waits for the other.
CASES=("rr 64 0 0 plain fused" "stream 262144 0 0 plain fused" "connect 64 0 0 plain fused"
  "rr 64 0 1 plain fused unix" "rr 262144 0 1 plain fused")
SECONDS_EACH=1
LEAST=3 # percent that a function and what it calls must take to be shown

make_cgroups
"$here/../load.sh" --quiet --cgroup "$FUSED"
work=$(mktemp -d)
trap 'rm -rf "$work"; "$here/../unload.sh" --quiet' EXIT

# record MODE KIND BYTES CPU_A CPU_B
record() (
  options=()
  [[ $1 != unix ]] || options=(--unix)
  echo "$BASHPID" >"/sys/fs/cgroup/$1/cgroup.procs"
  exec perf record -q -g -C "$4-$5" -e cpu-clock -F 4000 -o "$work/perf.data" -- "$here/load" "${options[@]}" "$2" "$3" "$SECONDS_EACH" "$4" "$5" >/dev/null
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
  read -r kind bytes cpu_a cpu_b modes <<<"$case"
  ((cpu_b < $(nproc))) || continue
  on="one processor"
  [[ $cpu_a == "$cpu_b" ]] || on="two processors"
  for mode in $modes; do
    record "$mode" "$kind" "$bytes" "$cpu_a" "$cpu_b"
    # shellcheck disable=SC2016 # Markdown
    printf '\n<details><summary>%s, %s bytes, %s, %s</summary>\n\n```\n%s\n```\n\n</details>\n' "$kind" "$bytes" "$on" "$mode" "$(flame)"
  done
done >"$1"
