#!/usr/bin/env bats
# make compare: what it measures is what it says, and its page tells all of it.

load helpers

setup_file() {
  export RESULTS=$BATS_FILE_TMPDIR/results.json
  ROUNDS=1 SLICE=0.2 ADVERSARY_SECONDS=0.3 ADVERSARIES="refused_connect closing_peer" \
    "$here/tests/isolate.sh" "$here/bench/compare.sh" "$RESULTS" 3>&-
}

# result MODE ROW
result() { jq -r --arg mode "$1" --arg row "$2" '.results[] | select(.mode == $mode and .row == $row).value' "$RESULTS"; }

@test "each way has a speed in each case" {
  local mode row
  for mode in plain fused tutorial unix; do
    for row in {rr,stream,connect}-{one,two}; do
      [[ $row == *-two && $(nproc) == 1 ]] || (($(result "$mode" "$row") > 0)) || { echo "$mode $row: $(result "$mode" "$row")" && return 1; }
    done
  done
}

@test "plain TCP's data passes lo, that of the two pairs of programs and of Unix sockets does not" {
  (($(result plain rr-one-segments) > 900))
  (($(result tutorial rr-one-segments) < 100))
  (($(result unix rr-one-segments) == 0))
  (($(result fused rr-one-segments) < 100))
}

@test "a reader that does not read stops its writer, but for the tutorial's programs" {
  (($(result plain unread) < 100000000))
  (($(result fused unread) < 100000000))
  (($(result unix unread) < 100000000))
  (($(result tutorial unread) > 100000000)) # what got in within a second, 256000000 at most
}

@test "a dual-stack server, and equal addresses in two namespaces: as on TCP, but for the tutorial's programs" {
  [ "$(result plain dual-stack) $(result fused dual-stack) $(result tutorial dual-stack)" = "yes yes no" ]
  [ "$(result plain namespaces) $(result fused namespaces) $(result tutorial namespaces)" = "yes yes no" ]
}

@test "adversaries run on each, and no entry is left" {
  (($(result plain refused_connect-rounds) > 0))
  (($(result fused refused_connect-rounds) > 0))
  (($(result tutorial refused_connect-rounds) > 0))
  [ "$(result fused refused_connect-lost)" -eq 0 ]
  [ "$(result fused entries)" -eq 0 ]
}

@test "the page has a number for each way in each row, and a plot" {
  command -v gnuplot >/dev/null || skip "no gnuplot"
  "$here/bench/comparison.sh" "$RESULTS" "$BATS_TEST_TMPDIR" 3>&-
  cat "$BATS_TEST_TMPDIR/comparison.md"
  ! grep -E '^\|.*(null|NaN|\|  *\|)' "$BATS_TEST_TMPDIR/comparison.md" || return 1
  ! grep -E '^.{101}' "$BATS_TEST_TMPDIR/comparison.md" | grep -v '^|' || return 1
  [ -s "$BATS_TEST_TMPDIR/comparison-speed.svg" ]
  [ -s "$BATS_TEST_TMPDIR/comparison-speed.png" ]
}
