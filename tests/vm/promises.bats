#!/usr/bin/env bats
# What sockfuse promises, on the kernel of an emulated machine and on its root cgroup
# (make vmcheck).  Loaded once: everything takes twenty times as long there.

load ../helpers

setup_file() {
  if [[ ! -e /sys/fs/cgroup/unified ]]; then # as the suite has it: check.sh
    BPFTOOL=$(echo "$BATS_TEST_DIRNAME"/../bpftools/*/bpftool)
    [[ -x $BPFTOOL ]] || BPFTOOL=bpftool
    export BPFTOOL
  fi
  "$BATS_TEST_DIRNAME/../../load.sh" --no-guard --port 1-65535 >"$BATS_FILE_TMPDIR/load" 2>&1 3>&- || {
    cat "$BATS_FILE_TMPDIR/load"
    return 1
  }
  grep -v '^+\|^sockfuse is on\|^Look at it' "$BATS_FILE_TMPDIR/load" | sed 's/^/# load: /' >&3
}

# The guard has tests of its own (guard.bats).
teardown_file() { "$BATS_TEST_DIRNAME/../../unload.sh" --quiet 3>&-; }

setup() { before=$(counters); }

# since NAME: what that counter has counted in this test
since() { echo $(($(counter "$1") - $(counter "$1" "$before"))); }

@test "every loopback connection is fused: IPv4, IPv6, v4-mapped" {
  "$TRAFFIC" echo 127.0.0.1 127.0.0.1 10000
  "$TRAFFIC" echo ::1 ::1 10000
  "$TRAFFIC" echo :: 127.0.0.1 10000
  counters
  [ "$(since fused_bytes)" -eq 60000 ]
}

@test "a late peer costs no byte: connections with rps_cpus on lo" {
  echo 3 >/sys/class/net/lo/queues/rx-0/rps_cpus
  run timeout 100 "$TRAFFIC" burst 400 8
  echo 0 >/sys/class/net/lo/queues/rx-0/rps_cpus
  echo "$output; $(counters)"
  [ "$status" -eq 0 ]
  [ "$(value messages)" -eq 3200 ]
}

@test "random writes, pauses and partial reads, both ways at once, arrive as they were sent" {
  run timeout 100 "$TRAFFIC" mix 60000000 7
  echo "$output; $(counters)"
  [ "$status" -eq 0 ]
  (($(since tcp_in_flight) > 0)) # both paths; on 5.10 nothing may be fused to who polls
}

@test "a stalled reader blocks its writer within 128 MB: writes of 1 byte and of 64 KB" {
  local size tcp_rmem tcp_wmem
  tcp_rmem=$(sysctl -n net.ipv4.tcp_rmem) tcp_wmem=$(sysctl -n net.ipv4.tcp_wmem)
  for size in 65536 1; do
    run timeout 200 "$TRAFFIC" stall 1 "$size" 1000
    echo "$size: $output; $(counters)"
    [ "$status" -eq 0 ]
    (($(value memory_kib) < 128 * 1024))
    # for the bytes one by one, of which it would take millions
    sysctl -q net.ipv4.tcp_rmem="4096 65536 65536" net.ipv4.tcp_wmem="4096 16384 16384"
  done
  sysctl -q net.ipv4.tcp_rmem="$tcp_rmem" net.ipv4.tcp_wmem="$tcp_wmem"
}

@test "a reader in recv(MSG_WAITALL) across a fallback neither hangs nor reads out of order" {
  run timeout 60 "$TRAFFIC" waitall
  echo "$output; $(counters)"
  [ "$status" -eq 0 ]
}

@test "a reader that went to sleep before its connection was established is woken" {
  run timeout 60 "$TRAFFIC" early
  echo "$output; $(counters)"
  [ "$status" -eq 0 ]
  [ "$(since ends_left_out)" -eq 2 ]
}

@test "edge-triggered readers get an edge for every byte" {
  run timeout 200 "$TRAFFIC" edge 15
  echo "$output; $(counters)"
  [ "$status" -eq 0 ]
}

@test "the same addresses and ports in two network namespaces: no byte crosses" {
  run timeout 60 "$TRAFFIC" tuples
  echo "$output; $(counters)"
  [ "$status" -eq 0 ]
}

@test "a stream of small writes that lasts leaves the map; no byte is lost or out of order" {
  run timeout 200 "$TRAFFIC" leave 2 60000
  echo "$output; $(counters)"
  [ "$status" -eq 0 ]
}

@test "with the guard, splice from a fused socket answers EINVAL: the call, sendfile, io_uring" {
  local how
  "$here/load.sh" --quiet 3>&- 2>"$BATS_TEST_TMPDIR/errors"
  [[ -e $BPFFS/sockfuse/guard ]] || skip "$(grep -o '(.*)' "$BATS_TEST_TMPDIR/errors")"
  for how in call sendfile uring; do
    run timeout 60 "$TRAFFIC" splice "$how"
    echo "$how: $output"
    [ "$output" = "first=-22 second=100" ]
  done
}

# It takes EAGAIN for an error, which fused bytes can make of a wake-up.
@test "nothing is fused to a socket that the kernel itself reads: a network block device" {
  [[ -b /dev/nbd0 ]] && grep -qa sk_use_task_frag /sys/kernel/btf/vmlinux || skip "no nbd, or the kernel does not show who reads"
  timeout 60 "$TRAFFIC" nbd
  counters
  [ "$(since fused_messages)" -eq 1 ]
  [ "$(since tcp_socket_option)" -eq 1 ]
}

# iscsid makes the connection, and gives the kernel its socket.
@test "a disk by iSCSI: nothing is fused, and no connection of it stays behind" {
  local dir target=iqn.2026-01.test:disk
  modprobe iscsi_tcp && modprobe sd_mod || skip "this kernel has no iscsi_tcp"
  load
  before=$(counters)
  dir=$(mktemp -d)
  truncate -s 64M "$dir/disk"
  head -c 8M /dev/urandom >"$dir/data"
  mkdir -p /etc/iscsi /run/lock/iscsi
  echo InitiatorName=iqn.2026-01.test:me >/etc/iscsi/initiatorname.iscsi
  dmesg --clear
  tgtd --iscsi portal=127.0.0.1:4260 3>&-
  wait_for 20 tgtadm --op new --mode target --tid 1 -T "$target"
  tgtadm --op new --mode logicalunit --tid 1 --lun 1 -b "$dir/disk"
  tgtadm --op bind --mode target --tid 1 -I ALL
  iscsid 3>&-
  wait_for 20 iscsiadm -m node -o new -T "$target" -p 127.0.0.1:4260
  timeout 60 iscsiadm -m node -T "$target" -p 127.0.0.1:4260 --login
  wait_for 20 test -b /dev/sda
  timeout 60 dd if="$dir/data" of=/dev/sda bs=1M oflag=direct
  timeout 60 dd if=/dev/sda bs=1M count=8 iflag=direct | cmp - "$dir/data"
  timeout 60 iscsiadm -m node -T "$target" --logout
  counters
  dmesg
  (($(counter ends_may_splice) > $(counter ends_may_splice "$before")))
  [ "$(since fused_messages)" -eq 0 ]
  ! dmesg | grep sock_map_close
  wait_for 20 eval '[[ ! $(ss -Htn state established "sport = :4260") ]]'
  load_always --no-guard
}

# An emulated machine is slow, and connections are not always one upon the other.
@test "a service whose connections gain nothing is left on TCP, and is tried again" {
  left_out() { "$TRAFFIC" visits 5001 1000 80 talk 1 >/dev/null && (($(since ends_no_gain) >= 40)); }
  "$here/load.sh" --quiet --no-guard 3>&-
  before=$(counters)
  wait_for 100 left_out
  (($(since ends_no_gain) % 2 == 0 && $(since ends_tracked) % 2 == 0)) # both ends or none
  "$TRAFFIC" visits 5001 1000 130 talk 10
  [ "$(service '[.path, .gained > 0]')" = '["fused",true]' ]
}

# found_missing: what load.sh --check finds missing in a mount namespace where $1 was run
found_missing() {
  unshare --mount bash -c "$1 && $here/load.sh --check --json" >"$BATS_TEST_TMPDIR/json" && return 1
  jq -r '[.findings[] | select(.result == "missing").subject] | join(" ")' "$BATS_TEST_TMPDIR/json"
}

# The last test: lockdown cannot be taken back.
@test "load.sh --check names exactly what lacks: BTF, cgroup2, lockdown" {
  mount -t securityfs securityfs /sys/kernel/security 2>/dev/null || true
  [ "$(found_missing 'mount -t tmpfs none /sys/kernel/btf')" = BTF ]
  # of a kernel that keeps fused bytes elsewhere
  [ "$(found_missing 'LC_ALL=C sed "s/\x00ingress_msg\x00/\x00backlog_msg\x00/" /sys/kernel/btf/vmlinux >/tmp/btf && mount --bind /tmp/btf /sys/kernel/btf/vmlinux')" = BTF ]
  [ "$(found_missing 'umount -t cgroup2 -a')" = cgroup2 ]
  if [[ ! -e /sys/kernel/security/lockdown ]]; then
    skip "this kernel has no lockdown"
  fi
  echo confidentiality >/sys/kernel/security/lockdown
  [ "$(found_missing true)" = lockdown ]
}
