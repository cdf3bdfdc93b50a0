#!/usr/bin/env bats
# A reader that does not read costs what it costs with plain TCP, and no send
# fails that plain TCP would not fail.  Sets net.ipv4.tcp_mem, which is the whole machine's.
# bats file_tags=alone

load helpers

MIB=1024 # KiB

setup() {
  tcp_mem=$(host_sysctl -n net.ipv4.tcp_mem)
}

set_tcp_mem() { host_sysctl -q "net.ipv4.tcp_mem=$*"; }

teardown() {
  [[ ! ${BACKGROUND-} ]] || kill "$BACKGROUND" 2>/dev/null || true
  set_tcp_mem "$tcp_mem"
  # bats itself may have been moved
  [[ ! ${memory_cgroup-} ]] || {
    echo $$ >"$memory_mount/cgroup.procs"
    rmdir "$memory_cgroup"
    umount "$memory_mount"
  }
  unload --quiet
  assert_nothing_left
}

# stall CONNECTIONS SIZE [RCVBUF]: fails if a send fails with anything but EAGAIN, if a
# byte is lost, or if the writers never block.
stall() {
  run "$TRAFFIC" stall "$1" "$2" 8192 "${@:3}"
  echo "$1 connections, $2-byte writes: $output; $(counters 2>/dev/null)"
  [ "$status" -eq 0 ]
}

# stalled_reader SIZE: against plain TCP.  Others can take the processor, or memory, so one
# of six runs has to show that nothing else does.
stalled_reader() {
  local plain_kib wait_ms run
  stall 1 "$1"
  plain_kib=$(value memory_kib) wait_ms=$((2 * $(value longest_wait_ms)))
  ((wait_ms >= 100)) || wait_ms=100
  load
  for run in {1..6}; do
    stall 1 "$1"
    (($(counter fused_bytes) > 0))
    (($(value memory_kib) - plain_kib > 64 * MIB || $(value longest_wait_ms) >= wait_ms)) || return 0
  done
  return 1
}

@test "a stalled reader of 1-byte writes: memory is bounded, the writer blocks, the reader resumes at once" {
  stalled_reader 1
}

@test "a stalled reader of 1,000-byte writes: memory is bounded, the writer blocks, the reader resumes at once" {
  stalled_reader 1000
}

@test "a stalled reader of 64 KB writes: memory is bounded, the writer blocks, the reader resumes at once" {
  stalled_reader 65536
  (($(counter tcp_backlog_bytes) > 0))
}

# Two programs that both write first and read then would wait for each other if it got less in.
@test "a writer gets as far ahead of a reader that does not read as with TCP, and not twice as far" {
  local case cases=("64 0" "1000 0" "8192 0" "65536 0" "1000000 0" "8192 1000000" "65536 1000000") plain=()
  for case in "${cases[@]}"; do
    # shellcheck disable=SC2086 # two words
    stall 1 $case
    plain+=("$(value accepted)")
  done
  load
  for case in "${cases[@]}"; do
    # shellcheck disable=SC2086
    stall 1 $case
    ((plain[0] * 95 / 100 < $(value accepted) && $(value accepted) < plain[0] * 2))
    plain=("${plain[@]:1}")
  done
}

# TCP takes 4.3 MB, and each is 3.6 MB ahead of the other at the most.
@test "two ends that each write before they read go on, as with TCP" {
  local chunks woken=0
  sysctl -q net.ipv4.tcp_rmem="4096 131072 6291456" net.ipv4.tcp_wmem="4096 16384 4194304"
  load
  for chunks in "1800000 2 30" "1200000 3 30" "900000 4 30" "400000 9 30"; do
    for _ in 1 2 3; do
      # shellcheck disable=SC2086 # words
      run "$TRAFFIC" ahead $chunks
      echo "$chunks: $output; $(counters)"
      # Not blocked, but woken by room in its send buffer: docs/semantics.md, "A single thread"
      if [[ $output == "recv returned -1 "*"(Resource temporarily unavailable)" ]]; then
        woken=$((woken + 1))
      else
        [ "$output" = "rounds=30" ]
      fi
    done
  done
  ((woken <= 2)) # of 12; of 750 it was 3
  (($(counter tcp_backlog_bytes) > 0))
}

@test "tcp_mem at 2,000 pages more than others use: no send fails" {
  local pages
  load
  pages=$((2000 + $(awk '/^TCP:/ { print $NF }' /proc/net/sockstat))) # of the whole host
  set_tcp_mem "$pages" "$pages" "$pages"
  stall 1 65536
  stall 20 1000
  (($(counter fused_bytes) > 0))
  (($(counter tcp_memory) > 0))
}

@test "TCP's memory near its limit: counted as such, and no other reason" {
  load
  open_steps
  BACKGROUND=$STEPS_PID
  set_tcp_mem 100 2000 3000
  step send 10
  [ "$(counters | jq -c 'with_entries(select((.key | startswith("tcp_")) and .value > 0))')" = '{"tcp_memory":1}' ]
}

@test "1,000 stalled connections at once: no send fails" {
  load
  stall 1000 65536
  (($(counter fused_bytes) > 0))
  (($(counter tcp_memory) > 0))
}

@test "1,000 stalled connections at once with tcp_mem at 20,000 pages: no send fails" {
  load
  set_tcp_mem 20000 20000 20000
  stall 1000 16384
  (($(counter tcp_memory) > 0))
}

# Version 1 charges sockets to memory.kmem.tcp, version 2 to memory.
enter_memory_cgroup() {
  memory_mount=$CGROUP
  if [[ ! -e $CGROUP/cgroup.controllers || $(<"$CGROUP/cgroup.controllers") != *memory* ]]; then
    memory_mount=$BATS_TEST_TMPDIR/memory
    mkdir "$memory_mount"
    mount -t cgroup -o memory none "$memory_mount"
  fi
  memory_cgroup=$memory_mount/sockfuse-test
  mkdir "$memory_cgroup"
  if [[ -e $memory_cgroup/memory.kmem.tcp.limit_in_bytes ]]; then
    echo "$1" >"$memory_cgroup/memory.kmem.tcp.limit_in_bytes"
  else
    echo "$1" >"$memory_cgroup/memory.max"
  fi
}

@test "a memory cgroup with a low limit: no send fails" {
  load
  enter_memory_cgroup 16M
  stall_inside() {
    echo "$BASHPID" >"$memory_cgroup/cgroup.procs"
    exec "$TRAFFIC" stall 20 65536 8192
  }
  run stall_inside
  echo "$output; $(counters)"
  [ "$status" -eq 0 ]
  (($(counter fused_bytes) > 0))
  (($(counter tcp_memory) > 0))
}
