#!/usr/bin/env bash
# check.sh [--table FILE] KERNEL...: holds the promises (promises.bats) against each
# kernel of kernel.sh as its suite has it: with cgroup2 alone, and with the suite's bpftool if
# tests/bpftools.sh could fetch it; prints TAP for each and a verdict.  With --table each kernel
# runs once more, with cgroup2 beside version 1 and a new bpftool, and FILE gets a table of both,
# in Markdown.  A kernel that cannot be fetched is skipped, by name.  An emulated machine that
# stands still (seen once in some fifty runs, for no known reason) is tried once more, and that
# is said.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)

table='' modes=(unified)
[[ ${1-} != --table ]] || {
  table=$2 modes=(unified hybrid)
  shift 2
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

passed=0 failed=0 skipped=0
for kernel; do
  code=0
  boot=$("$here/kernel.sh" "$kernel") || code=$?
  ((code)) || [[ $kernel != *-arm64 ]] || "$here/root-arm64.sh" || code=$?
  if ((code == 75)); then
    echo "Linux $kernel: skipped"
    skipped=$((skipped + 1))
    continue
  fi
  ((code == 0)) || exit "$code"
  for cgroups in "${modes[@]}"; do
    start=$SECONDS
    for attempt in 1 2; do
      code=0
      SECONDS_MAX=600 CGROUP=$cgroups "$here/run.sh" "$kernel" bats --formatter tap tests/vm/promises.bats |
        sed -n '/^1\.\.\|^ok\|^not ok\|^#/p' | tee "$work/results" || code=$?
      ((code == 70 && attempt == 1)) || break
      echo "Linux $kernel, cgroup2 $cgroups: the machine stood still; once more"
    done
    cat "$work/results" >>"$work/${boot##*/}"
    if ((code == 0)); then
      passed=$((passed + 1)) verdict=passed
    else
      failed=$((failed + 1)) verdict=failed
    fi
    echo "Linux $kernel (${boot##*/}), cgroup2 $cgroups: $verdict, $((SECONDS - start)) s"
  done
done
echo "$passed passed, $failed failed, $skipped skipped"

# A row for each promise, a column for each kernel, and what load.sh said there.
if [[ $table ]]; then
  mapfile -t results < <(find "$work" -type f -name '*.*' -printf '%f\n' | sort -V)
  (cd "$work" && awk -v objects="$(cat "$here"/../../bpf/*.o | sha256sum | cut -c 1-16)" '
    FNR == 1 { kernel[++kernels] = FILENAME }
    /^(not )?ok / {
      answer = /^ok .* # skip/ ? "–" : /^ok/ ? "yes" : "**no**"
      sub(/^(not )?ok [0-9]+ /, "")
      sub(/ # skip.*/, "")
      if (!($0 in known)) { known[$0]; promise[++promises] = $0 }
      if (cell[$0, kernels] !~ /no/) cell[$0, kernels] = answer
    }
    /^# load: / && !((kernels, $0) in told) { told[kernels, $0]; said[kernels] = said[kernels] "\n  - " substr($0, 9) }
    END {
      print "# Kernels\n\nWritten by `make vmcheck-all`, from Debian'\''s kernels for cloud machines under emulation. They"
      print "attach to the root cgroup. Each kernel ran twice: with cgroup2 alone and the bpftool of the"
      print "kernel'\''s suite, and with cgroup2 beside version 1. All ran one set of objects (SHA-256 of all:"
      print objects "), or the set for bpftool before 5.16 where the suite has such a bpftool.\n"
      printf "| promise |"
      for (k = 1; k <= kernels; k++) { version = kernel[k]; sub(/-cloud-amd64$/, "", version); sub(/-cloud/, "", version); printf " %s |", version }
      printf "\n|---|"
      for (k = 1; k <= kernels; k++) printf "---|"
      for (p = 1; p <= promises; p++) {
        printf "\n| %s |", promise[p]
        for (k = 1; k <= kernels; k++) printf " %s |", cell[promise[p], k]
      }
      print "\n\n`load.sh` said there that this is reduced:\n"
      for (k = 1; k <= kernels; k++) print "- " kernel[k] (said[k] == "" ? ": nothing" : said[k])
    }' "${results[@]}") >"$table"
  cat >>"$table" <<'END'

## Kernels to come

`load.sh` asks the running kernel, not its version:

- Where do fused bytes wait? If `struct sk_psock` has a further queue (`backlog_msg`, proposed in
  January 2026), or if the psock, its link or the element of the map is laid out otherwise, nothing
  is loaded (exit code 4).
- Which bytes does FIONREAD count? Its BTF tells whether it counts fused bytes. A socket in the map
  tells whether it counts TCP's with them (Linux 6.12.118 does, 6.18.44 does not). `load.sh --check`
  says so. Where it counts no fused bytes, edge-triggered readers stay on TCP.
- Does sockmap read fused bytes in splice? No kernel does so far. The guard stays all the same,
  since it sees more than splice.
- Faults are the exception: `load.sh` can only tell them by the stable version that a kernel is made
  from. [faults](../lib/faults) has them, with their sources.
END
fi
((failed == 0))
