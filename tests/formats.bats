#!/usr/bin/env bats
# What status.sh writes for other programs, as those read it.

load helpers

teardown() {
  [[ ! ${STEPS_PID-} ]] || kill "$STEPS_PID" 2>/dev/null || true
  unload --quiet
  assert_nothing_left
}

# In the Debian of the applications, with these files in its /tmp
in_root() {
  local root=$here/tests/apps/root
  [[ -e $root/.complete ]] || skip "no Debian root, see tests/debian.sh"
  mount -t tmpfs tmpfs "$root/tmp"
  cp "$BATS_TEST_TMPDIR"/* "$here/docs/status.schema.json" "$root/tmp"
  run chroot "$root" "$@"
  umount "$root/tmp"
}

@test "--json fits its schema, on, damaged and off" {
  local dir=$BATS_TEST_TMPDIR
  load --account --exclude-port 80,90-99
  open_steps
  step send 1000
  remember fe ff 0 0 value hex 2
  status --json >"$dir/on"
  rm "$BPFFS/bpf_redir"
  status --json >"$dir/damaged" || true
  unload --quiet
  status --json >"$dir/off" || true
  jq -c 'del(.connections[0].local)' "$dir/on" >"$dir/wrong"
  in_root bash -c 'for file in on damaged off; do jsonschema -i /tmp/$file /tmp/status.schema.json || exit; done'
  echo "$output"
  [ "$status" -eq 0 ]
  in_root jsonschema -i /tmp/wrong /tmp/status.schema.json
  [ "$status" -ne 0 ]
  [[ $output == *"'local' is a required property"* ]]
}

@test "--prometheus: promtool finds no fault, and the numbers are those of --json" {
  load --exclude-port 80
  open_steps
  step send 1000
  status --prometheus >"$BATS_TEST_TMPDIR/metrics"
  in_root bash -c 'promtool check metrics </tmp/metrics'
  echo "$output"
  [ "$status" -eq 0 ]
  [ "$output" = "" ]
  grep -qx 'sockfuse_fused_bytes_total 1000' "$BATS_TEST_TMPDIR/metrics"
  grep -qx 'sockfuse_fallback_messages_total{reason="in_flight"} 0' "$BATS_TEST_TMPDIR/metrics"
  grep -qx 'sockfuse_left_out_sockets_total{reason="excluded"} 0' "$BATS_TEST_TMPDIR/metrics"
}
