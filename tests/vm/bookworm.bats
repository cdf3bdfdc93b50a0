#!/usr/bin/env bats
# The guard on Debian 12 as it comes: Linux 6.1, and a bpftool that cannot attach it (make guardcheck).

load ../helpers

teardown() {
  unload --quiet
  assert_nothing_left
  [ -z "$("$BPFTOOL" link show)" ]
}

# Every way in, from the first connection on
splice_is_refused() {
  local how
  for how in call sendfile ia32 uring; do
    run "$TRAFFIC" splice "$how"
    echo "$how: $output"
    [ "$output" = "first=-22 second=100" ]
  done
}

@test "make load, which builds the guard and what attaches it: it is on, and splice from a fused socket answers EINVAL" {
  "$BPFTOOL" version
  [[ $("$BPFTOOL" prog help 2>&1) != *autoattach* ]]
  rm "$here"/bpf/{bpf_guard.bpf.o,autoattach}
  run make -C "$here" load 3>&-
  echo "$output"
  [ "$status" -eq 0 ]
  [[ $output == *"+ $here/bpf/autoattach $here/bpf/bpf_guard.bpf.o $BPFFS/sockfuse/staging/guard "* && $output != *"no guard here"* ]]
  run "$here/status.sh" 3>&-
  echo "$output"
  [ "$status" -eq 0 ]
  grep -qx "  guard      on" <<<"$output"
  splice_is_refused
  load --no-guard
  [ ! -e "$BPFFS/sockfuse/guard" ]
}

# systemd is the first process of a PID namespace; it ends with its job.
@test "the .deb's service: the guard is on, and splice from a fused socket answers EINVAL" {
  dpkg -i "$here"/dist/sockfuse_*.deb
  mkdir -p /etc/systemd/system/multi-user.target.wants
  cat >/etc/systemd/system/job.service <<'END'
[Unit]
Requires=sockfuse.service
After=sockfuse.service
[Service]
Type=oneshot
StandardOutput=append:/run/job
StandardError=inherit
ExecStart=sockfuse-status
ExecStart=/src/tests/traffic splice call
ExecStart=/src/tests/traffic splice uring
ExecStopPost=systemctl --no-block exit
END
  unshare --mount --pid --fork --mount-proc --kill-child bash -c 'mount -t tmpfs tmpfs /tmp &&
    exec env container=other /lib/systemd/systemd --system --show-status=0 --unit=job.service' </dev/null >/dev/null 2>&1 3>&- || true
  cat /run/job
  grep -qx "  guard      on" /run/job
  [ "$(grep -cx "first=-22 second=100" /run/job)" -eq 2 ]
}
