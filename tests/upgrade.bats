#!/usr/bin/env bats
# This version loaded over each of the last that changed what a load leaves.

load helpers

teardown() {
  unload --quiet
  assert_nothing_left
}

history() { git -C "$here" -c safe.directory='*' "$@"; }

# build COMMIT DIRECTORY: the objects and scripts of that version
build() {
  mkdir "$2"
  history archive "$1" | tar -x -C "$2"
  make -s -j "$(nproc)" -C "$2" objects 3>&-
}

@test "loaded over each of the last 30 versions that changed bpf/ or load.sh: on; unloaded: nothing left" {
  local commit commits older=$BATS_TEST_TMPDIR/older
  mapfile -t commits < <(history rev-list -n 30 HEAD -- bpf load.sh 2>/dev/null)
  ((${#commits[@]} == 30)) || skip "no history of 30 versions here, as in a shallow clone"
  for commit in "${commits[@]}"; do
    history log -1 --format='%h %s' "$commit"
    build "$commit" "$older"
    "$older/load.sh" --quiet 3>&-
    load
    assert_on
    "$here/status.sh" >/dev/null 3>&-
    unload --quiet
    assert_nothing_left
    rm -r "$older"
  done
}
