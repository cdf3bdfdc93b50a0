#!/usr/bin/env bats
# load.sh --adopt: connections enter the map after they were
# established, both ends or none, and while they carry traffic.

load helpers

setup() { can_adopt || skip "this kernel cannot adopt"; }

teardown() {
  local pid
  for pid in ${BUSY-} ${STEPS_PID-} ${IPERF-}; do # gone, or the next test would adopt theirs
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  unload --quiet
  ip netns del other 2>/dev/null || true
  assert_nothing_left
}

adopt() { cat "$BPFFS/sockfuse/adopt"; }

# by_tcp [JSON]: messages that went by TCP
by_tcp() { jq '[to_entries[] | select(.key | startswith("tcp_")).value] | add' <<<"${1:-$(counters)}"; }

@test "--adopt on 1,000 busy connections, blocking and edge-triggered readers: fused soon, no byte lost" {
  local before
  "$TRAFFIC" busy 1000 >"$BATS_TEST_TMPDIR/busy" 2>&1 3>&- &
  BUSY=$!
  wait_for 30 grep -q connected "$BATS_TEST_TMPDIR/busy"
  load --adopt
  needs_list
  most_fused() { (($("$here/status.sh" --json 3>&- | jq '[.connections[] | select(.path == "fused")] | length') >= 1900)); } # of 2,000 ends
  wait_for 30 most_fused
  before=$(counters)
  many_fused() { (($(counter fused_messages) - $(counter fused_messages "$before") > 10000)); }
  wait_for 30 many_fused
  kill -TERM "$BUSY"
  wait "$BUSY" || { cat "$BATS_TEST_TMPDIR/busy" && return 1; }
  BUSY=
  echo "$before $(counters)" "$(cat "$BATS_TEST_TMPDIR/busy")"
  (($(by_tcp) - $(by_tcp "$before") < ($(counter fused_messages) - $(counter fused_messages "$before")) / 100))
}

@test "a reader that was asleep in TCP when it was adopted gets the next message, and then fused ones" {
  open_steps
  step await 10
  load --adopt
  [ "$(counter ends_tracked)" -eq 2 ]
  step send 10
  [ "$(counter tcp_blocked_reader)" -eq 1 ]
  [ "$(counter fused_messages)" -eq 0 ]
  step await 20
  step send 20
  step send 30
  step read 30
  counters
  [ "$(counter fused_messages)" -eq 2 ]
}

@test "a reader in MSG_WAITALL when it was adopted reads in order, by TCP for as long as it waits" {
  open_steps
  step waitall 30
  load --adopt
  step send 10
  sleep 0.2
  step send 10
  [ "$(counter fused_messages)" -eq 0 ]
  step send 10
  sleep 1 # the reader has returned
  step send 10
  counters
  [ "$(counter fused_messages)" -eq 1 ]
  step read 10
}

@test "which end connected is told right, after data both ways and of every address family" {
  local ends server client
  for ends in "127.0.0.1 127.0.0.1" "::1 ::1" ":: 127.0.0.1"; do
    read -r server client <<<"$ends"
    iperf3 -s -1 -p 5001 -B "$server" >/dev/null 3>&- &
    wait_for 30 listens 5001
    iperf3 -c "$client" -p 5001 -t 600 -b 10M --bidir >"$BATS_TEST_TMPDIR/log" 2>&1 3>&- &
    BUSY=$!
    wait_for 30 established 6
    load --adopt
    established 6
    counters
    [ "$(counter ends_tracked)" -eq 6 ]
    fused() { (($(counter fused_messages) > 100)); }
    wait_for 30 fused
    kill "$BUSY"
    wait "$BUSY" || true
    unload --quiet
  done
}

established() { [[ $(ss -Htn state established | wc -l) == "$1" ]]; }

@test "both ends or none: not with one end in another cgroup, nor by excluded ports" {
  local before
  mkdir -p "$CGROUP/inside"
  open_steps
  "$TRAFFIC" hold 3 600 >"$BATS_TEST_TMPDIR/held" 3>&- &
  BUSY=$!
  iperf3 -s -1 -p 5001 >/dev/null 2>&1 3>&- &
  IPERF=$!
  wait_for 30 listens 5001
  bash -c "echo \$\$ >$CGROUP/inside/cgroup.procs; exec iperf3 -c 127.0.0.1 -p 5001 -t 600 -b 1M" >/dev/null 2>&1 3>&- &
  IPERF="$! $IPERF"
  wait_for 30 grep -q connections "$BATS_TEST_TMPDIR/held"
  wait_for 30 established 12
  load --adopt --cgroup "$CGROUP/inside"
  [ "$(counter ends_tracked)" -eq 0 ]
  unload --quiet
  load --adopt --exclude-port 5001
  counters
  [ "$(counter ends_tracked)" -eq 8 ]
}

@test "a stream that has left the map is not adopted again" {
  load --adopt
  open_steps
  pace_until_left
  adopt
  adopt
  counters
  [ "$(counter ends_tracked)" -eq 2 ]
}

@test "connections of other network namespaces are adopted there" {
  ip netns add other
  ip -n other link set lo up
  ip netns exec other "$TRAFFIC" hold 5 600 >"$BATS_TEST_TMPDIR/held" 3>&- &
  BUSY=$!
  wait_for 30 grep -q connections "$BATS_TEST_TMPDIR/held"
  load --adopt
  [ "$(counter ends_tracked)" -eq 10 ]
}

@test "on a kernel that cannot: one line, exit 4, nothing changed" {
  sed 's/TCP_BPF_SOCK_OPS_CB_FLAGS/TCP_BPF_SOCK_OPS_CB_FLAGZ/' /sys/kernel/btf/vmlinux >"$BATS_TEST_TMPDIR/btf"
  run unshare --mount bash -c "mount --bind $BATS_TEST_TMPDIR/btf /sys/kernel/btf/vmlinux; $here/load.sh --quiet --adopt" 3>&-
  [ "$status" -eq 4 ]
  [ "${#lines[@]}" -eq 1 ]
  [[ $output == *"--adopt needs Linux 6.12; leave it out" ]]
}
