#!/usr/bin/env bash
# run.sh [SUITE...] [OPTION of load.sh...]: tests that others wrote for their libraries, on
# plain TCP and fused, compared one by one (make foreign).  A test that differs runs again
# alone, RUNS times on each, as it may be flaky.  A difference may be a row of
# tests/semantics/differences.tsv; differences.tsv here says which.  Inside isolate.sh only.
#
# Environment: RUNS (5).
# Exit codes: 0 the same passes and failures, but for such rows, 1 others, 2 a suite could not run.
set -euo pipefail
# shellcheck source=tests/helpers.bash
. "$(dirname "$(readlink -f "$0")")/../helpers.bash"

SUITES=(go-net go-net/http go-net/http/httputil go-internal/poll
  python-test_socket python-test_asyncio python-test_ssl python-test_httplib libuv libevent)
RUNS=${RUNS:-5}
SUITE_SECONDS=400
TEST_SECONDS=30
ROOT=$here/tests/foreign/root
RESULTS=$ROOT/foreign/results # on the disk: to read when something differs
DIFFERENCES=$here/tests/foreign/differences.tsv
FORMAT='%-22s %6s %13s %13s %12s %15s\n'

suites=()
while (($#)) && [[ $1 != -* ]]; do
  suites+=("$1")
  shift
done
((${#suites[@]})) || suites=("${SUITES[@]}")

mount_root() {
  mount -t proc proc "$ROOT/proc"
  mount --rbind /dev "$ROOT/dev"
  mount -t tmpfs tmpfs "$ROOT/tmp"
  mount -t tmpfs tmpfs "$ROOT/run"
  chmod 1777 "$ROOT/tmp"
  mkdir -p "$RESULTS"
}

# in_root SECONDS DIRECTORY COMMAND...: what it prints is in the lines that the results are
# read from; how it exits says less than they do.
in_root() {
  timeout -k 1 "$1" chroot "$ROOT" env -i --chdir="$2" PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/tmp LC_ALL=C.UTF-8 UV_RUN_AS_ROOT=1 "${@:3}" </dev/null 2>&1 || true
}

# These print the outcome of each test, or of the one given, as "test TAB pass|fail|skip".

# go PACKAGE [TEST]: a subtest runs with the test that it is of
go() {
  in_root "$seconds" "/usr/lib/go/src/$1" "/foreign/go/$1.test" -test.v ${2:+-test.run "^${2%%/*}\$"} |
    tee "$log" | sed -nE 's/^.*--- (PASS|FAIL|SKIP): (\S+) \(.*s\)$/\2\t\L\1/p'
}

# python MODULE [TEST].  vsock knows no network namespace.  An outcome stands at the end of
# the line of its test, or of a later one.
python() {
  in_root "$seconds" /tmp python3.11 -m test --verbose --ignore '*VSOCK*' ${2:+--match "$2"} "$1" |
    tee "$log" | awk '
      match($0, /\(test\.[^ ]*\)/) && /^[a-z]/ { test = substr($0, RSTART + 1, RLENGTH - 2) }
      /(^|\.\.\. )(ok|expected failure)$/ { outcome = "pass" }
      /(^|\.\.\. )(FAIL|ERROR|unexpected success)$/ { outcome = "fail" }
      /(^|\.\.\. )skipped / { outcome = "skip" }
      test && outcome { print test "\t" outcome; test = "" }
      { outcome = "" }'
}

libuv() {
  in_root "$seconds" /foreign/libuv1 /foreign/libuv-build/uv_run_tests_a "$@" |
    tee "$log" | sed -nE '
      s/^ok [0-9]+ - (\S+) # SKIP.*/\1\tskip/p
      s/^ok [0-9]+ - (\S+)$/\1\tpass/p
      s/^not ok [0-9]+ - (\S+)$/\1\tfail/p'
}

libevent() {
  in_root "$seconds" /foreign/libevent /foreign/libevent-build/bin/regress "$@" |
    tee "$log" | awk '
      /^[a-z_0-9]+\/[^ ]+: / { test = substr($1, 1, length($1) - 1) }
      /OK$/ { print test "\tpass" }
      /(SKIPPED|DISABLED)$/ { print test "\tskip" }
      /\[.* FAILED\]$/ { print test "\tfail" }'
}

# outcomes PATH SUITE [TEST]
outcomes() (
  echo "$BASHPID" >"$CGROUP/$1/cgroup.procs"
  seconds=$SUITE_SECONDS log=$RESULTS/${2//\//-}.$1.log
  [[ ! ${3-} ]] || seconds=$TEST_SECONDS log=$RESULTS/alone.log
  case $2 in
    go-*) go "${2#*-}" "${@:3}" ;;
    python-*) python "${2#*-}" "${@:3}" ;;
    libuv) libuv "${@:3}" ;;
    libevent) libevent "${@:3}" ;;
  esac | sort -u
)

# alone PATH TEST: its outcomes in RUNS runs; none where it hangs or crashes
alone() {
  local run
  for ((run = 0; run < RUNS; run++)); do
    outcomes "$1" "$suite" "$2" | awk -F '\t' -v test="$2" '
      $1 == test { outcome = $2 }
      END { print outcome ? outcome : "none" }'
  done | sort
}

# in_words OUTCOME...
in_words() { uniq -c <"$1" | awk '{ printf "%s%d %s", (NR > 1 ? ", " : ""), $1, $2 }'; }

# judge TEST: whether it differs in more than half of the runs, and where that is allowed.  One
# that plain TCP fails at times, and that passes more often fused, is flaky.
judge() {
  local row verdict=flaky passed_plain passed_fused
  alone plain "$1" >"$work/alone.plain"
  alone fused "$1" >"$work/alone.fused"
  passed_plain=$(passed alone.plain)
  passed_fused=$(passed alone.fused)
  if (($(comm -23 "$work/alone.plain" "$work/alone.fused" | wc -l) * 2 > RUNS)) &&
    ((passed_plain == 0 || passed_fused < passed_plain)); then
    differences=$((differences + 1))
    row=$(awk -F '\t' -v suite="$suite" -v test="$1" '$1 == suite && $2 == test { print $3 }' "$DIFFERENCES")
    verdict="see $row in docs/semantics.md"
    [[ $row ]] || verdict="DIFFERS" code=1
  fi
  notes+=("# $suite $1: alone plain $(in_words "$work/alone.plain"); fused $(in_words "$work/alone.fused"): $verdict")
}

# passed PATH
passed() { grep -c 'pass$' "$work/$1" || true; }

# compare SUITE
compare() {
  local suite=$1 differences=0 notes=() fused test
  outcomes plain "$suite" >"$work/plain"
  fused=$(counter fused_messages)
  outcomes fused "$suite" >"$work/fused"
  fused=$(($(counter fused_messages) - fused))
  [[ -s $work/plain ]] || {
    echo "run.sh: no tests of $suite; see $RESULTS" >&2
    exit 2
  }
  join -t $'\t' -a 1 -a 2 -e none -o 0,1.2,2.2 "$work/plain" "$work/fused" >"$work/both"
  while read -r test <&3; do
    judge "$test"
  done 3< <(awk -F '\t' '$2 != $3 { print $1 }' "$work/both")
  # shellcheck disable=SC2059 # a constant
  printf "$FORMAT" "$suite" "$(wc -l <"$work/both")" "$(passed plain)" "$(passed fused)" "$differences" "$fused"
  ((${#notes[@]} == 0)) || printf '%s\n' "${notes[@]}"
  # Go is left out where there is no guard.
  [[ $suite == go-* ]] || ((fused)) || {
    echo "# $suite: nothing was fused"
    code=1
  }
}

unknown=$(comm -13 <(cut -f 1 "$here/tests/semantics/differences.tsv" | sort) <(cut -f 3 "$DIFFERENCES" | sort -u))
[[ ! $unknown ]] || {
  echo "run.sh: differences.tsv names what is no row of tests/semantics/differences.tsv: $unknown" >&2
  exit 2
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mount_root
mkdir -p "$CGROUP/plain" "$CGROUP/fused"
load --cgroup "$CGROUP/fused" "$@"
trap 'unload --quiet; rm -rf "$work"' EXIT
! "$BPFTOOL" cgroup show "$CGROUP/plain" effective | grep -q sock_ops || {
  echo "run.sh: plain TCP would be fused, as sockfuse is on in a cgroup above; try: ./unload.sh" >&2
  exit 2
}
code=0
# shellcheck disable=SC2059 # a constant
printf "$FORMAT" suite tests "passed plain" "passed fused" differences "fused messages"
for suite in "${suites[@]}"; do
  compare "$suite"
done
exit "$code"
