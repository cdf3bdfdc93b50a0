#!/usr/bin/env bash
# run.sh [BATS FILE...]: runs the tests, isolated from this machine (make check, make check-apps).
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)

((EUID == 0)) || {
  echo "run.sh: root is needed; try: sudo make check" >&2
  exit 3
}
(($#)) || set -- "$here"/*.bats
log=$(mktemp)
trap 'rm -f "$log"' EXIT
code=0
"$here/isolate.sh" bats --formatter tap "$@" </dev/null 2>&1 | tee "$log" || code=$?
awk -v code="$code" '
  /^ok .* # skip/ { skipped++; next }
  /^ok / { passed++ }
  /^not ok / { failed++ }
  END {
    if (code && !failed) failed++ # bats itself failed
    printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
  }' "$log"
exit "$code"
