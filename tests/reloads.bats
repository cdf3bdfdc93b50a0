#!/usr/bin/env bats
# Loads and unloads in great number: at once, killed at any line, under traffic.

load helpers

teardown() {
  [[ ! ${BACKGROUND-} ]] || kill "$BACKGROUND" 2>/dev/null || true
  unload --quiet
  assert_nothing_left
}

@test "five loads at once end with one loaded" {
  local i pids=()
  for i in {1..5}; do
    load &
    pids+=($!)
  done
  wait "${pids[@]}"
  assert_on
}

# kill_script SIGNAL MILLISECONDS COMMAND...: returns what the script returned
kill_script() {
  local signal=$1 after=$2
  shift 2
  "$@" >/dev/null 2>&1 3>&- &
  sleep "$((after / 1000)).$(printf '%03d' $((after % 1000)))"
  kill "-$signal" $! 2>/dev/null || true
  wait $! 2>/dev/null
}

# milliseconds COMMAND...: what it took
milliseconds() {
  local start=${EPOCHREALTIME/./}
  "$@"
  echo $(((${EPOCHREALTIME/./} - start) / 1000))
}

# A load or an unload puts in order whatever there is.
put_in_order() {
  if ((RANDOM % 2)); then
    load
    assert_on
    "$here/status.sh" >/dev/null 3>&- # it is whole
  else
    unload --quiet
    assert_nothing_left
  fi
}

@test "load.sh killed at a random moment of each eighth of its run: a load or an unload puts everything in order" {
  local i length options=()
  ! can_adopt || options=(--adopt)
  length=$(milliseconds load "${options[@]}")
  for i in {0..7}; do
    kill_script KILL $(((i * length + RANDOM % length) / 8)) "$here/load.sh" "${options[@]}" || true
    put_in_order
  done
}

@test "unload.sh killed at a random moment of each eighth of its run: a load or an unload puts everything in order" {
  local i length
  load
  length=$(milliseconds unload --quiet)
  for i in {0..7}; do
    load
    kill_script KILL $(((i * length + RANDOM % length) / 8)) "$here/unload.sh" || true
    put_in_order
  done
}

@test "load.sh ended by a signal at any time leaves nothing" {
  local i length
  length=$(milliseconds load)
  unload --quiet
  for i in {1..8}; do
    ! kill_script TERM $((i * length / 8)) "$here/load.sh" || unload --quiet # it had done its work
    assert_nothing_left
  done
}

@test "missing pins, pins without attachment: a load or an unload mends each" {
  local pin
  for pin in bpf_sockops bpf_redir sock_ops_map sockfuse/fuse_settings sockfuse/fuse_counters; do
    load
    rm "$BPFFS/$pin"
    load
    assert_on
    rm "$BPFFS/$pin"
    unload --quiet
    assert_nothing_left
  done
  load
  "$BPFTOOL" cgroup detach "$CGROUP" sock_ops pinned "$BPFFS/bpf_sockops"
  load
  assert_on
  "$BPFTOOL" cgroup detach "$CGROUP" sock_ops pinned "$BPFFS/bpf_sockops"
  unload --quiet
  assert_nothing_left
}

@test "unload and load 20 times under a running transfer: no byte is lost" {
  local i before
  load
  "$TRAFFIC" mix 3000000000 11 >"$BATS_TEST_TMPDIR/out" 2>&1 3>&- &
  BACKGROUND=$!
  for i in {1..20}; do
    unload --quiet
    load
  done
  wait "$BACKGROUND" || { cat "$BATS_TEST_TMPDIR/out" && return 1; }
  BACKGROUND=
  assert_on
}

@test "loading again under traffic: no message and no connection fails" {
  local i runs=0
  load_always
  (
    while [[ ! -e $BATS_TEST_TMPDIR/stop ]]; do
      "$TRAFFIC" burst 2000 8 || exit 1
    done
  ) >"$BATS_TEST_TMPDIR/out" 2>&1 3>&- &
  BACKGROUND=$!
  "$TRAFFIC" mix 1000000000 3 >"$BATS_TEST_TMPDIR/mix" 2>&1 3>&- &
  local mix=$!
  for i in {1..8}; do
    load_always
  done
  touch "$BATS_TEST_TMPDIR/stop"
  wait "$mix" || { cat "$BATS_TEST_TMPDIR/mix" && return 1; }
  wait "$BACKGROUND" || { cat "$BATS_TEST_TMPDIR/out" && return 1; }
  BACKGROUND=
  (($(grep -c connections= "$BATS_TEST_TMPDIR/out") > 1))
  assert_on
}
