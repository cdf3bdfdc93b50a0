#!/usr/bin/env bats
# This version loaded over others.

load helpers

teardown() {
  [[ ! ${BACKGROUND-} ]] || kill "$BACKGROUND" 2>/dev/null || true
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

# older_sockfuse DIRECTORY: one whose settings have another layout
older_sockfuse() {
  mkdir "$1"
  cp -r "$here"/{Makefile,vmlinux.h,bpf,lib,*.sh} "$1"
  sed -i 's/^struct settings {$/&\n\tu8 older[9];/' "$1/bpf/maps.h"
  make -s -C "$1"
}

@test "an upgrade from another layout of the settings: the new one is on, live connections go by TCP" {
  local before
  older_sockfuse "$BATS_TEST_TMPDIR/older"
  "$BATS_TEST_TMPDIR/older/load.sh" --quiet 3>&-
  assert_on
  load # nobody holds the old settings but the old programs
  assert_on
  unload --quiet
  "$BATS_TEST_TMPDIR/older/load.sh" --quiet 3>&-
  open_steps
  BACKGROUND=$STEPS_PID
  step send 10
  before=$(counters)
  (($(counter fused_messages "$before") > 0))
  load
  step send 10
  step read 20
  counters
  [ "$(counter tcp_switched_off)" -eq 1 ]
  [ "$(counter fused_messages)" -eq "$(counter fused_messages "$before")" ]
  assert_on
}
