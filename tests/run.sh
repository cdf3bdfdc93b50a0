#!/usr/bin/env bash
# run.sh [BATS FILE...]: runs the tests (make check, make check-apps), each file isolated from
# this machine and from the others, as many side by side as there are processors.  A file's
# report is printed when its last test has ended.  A file with the tag "alone" changes what
# the whole machine has one of; it runs after the others, by itself.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)

((EUID == 0)) || {
  echo "run.sh: root is needed; try: sudo make check" >&2
  exit 3
}
(($#)) || set -- "$here"/*.bats
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# run_file FILE
run_file() {
  local log=$logs/${1##*/} code=0 start=$SECONDS
  "$here/isolate.sh" bats --formatter tap "$1" </dev/null >"$log" 2>&1 || code=$?
  ((code == 0)) || grep -q '^not ok' "$log" || echo "not ok: bats itself ended with $code" >>"$log"
  flock "$logs" cat - "$log" <<<"# ${1##*/}, $((SECONDS - start)) s"
}
export -f run_file
export here logs

# run_files PROCESSES FILE...
run_files() {
  (($# > 1)) || return 0
  # shellcheck disable=SC2016 # expanded inside
  printf '%s\0' "${@:2}" | xargs -0 -r -n 1 -P "$1" bash -ec 'run_file "$1"' run.sh
}

beside=() alone=()
for file; do
  if grep -q '^# bats file_tags=alone$' "$file"; then
    alone+=("$file")
  else
    beside+=("$file")
  fi
done
run_files "$(nproc)" "${beside[@]}"
run_files 1 "${alone[@]}"
cat "$logs"/*.bats | awk '
  /^ok .* # skip/ { skipped++; next }
  /^ok / { passed++ }
  /^not ok/ { failed++ }
  END {
    printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
    exit !!failed
  }'
