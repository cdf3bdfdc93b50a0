#!/usr/bin/env bash
# modes.sh: runs the catalogue as sockfuse is without the guard, with it and with
# --careful, and prints what differs from plain TCP, a line for each:
# "differs", kernel, mode, behaviours.  For tests/vm/run.sh (make semantics-kernels).
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)

# mode NAME ARGUMENT of run.sh...
mode() {
  local results name=$1
  shift
  results=$(mktemp -d)
  "$here/run.sh" "$results" "$@" >&2
  printf 'differs\t%s\t%s\t%s\n' "$(uname -r)" "$name" "$(
    join -t $'\t' <(sort "$results/plain.tsv") <(sort "$results/fused.tsv") |
      awk -F '\t' '$2 != $3 { printf "%s ", $1 }'
  )"
}
mode unguarded --no-guard
mode guard
mode again --again
mode careful --careful
mode careful-polled --polled --careful
