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
  cp -r "$BATS_TEST_TMPDIR"/* "$here/docs/status.schema.json" "$root/tmp"
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

@test "--prometheus: promtool finds no fault, on, damaged and off, and the numbers are those of --json" {
  local dir=$BATS_TEST_TMPDIR
  load --exclude-port 80 --max-connections 1000
  open_steps
  step send 1000
  remember fe ff 0 0 value hex 2
  status --prometheus >"$dir/on"
  rm "$BPFFS/bpf_redir"
  status --prometheus >"$dir/damaged" || true
  unload --quiet
  status --prometheus >"$dir/off" || true
  in_root bash -c 'for file in on damaged off; do promtool check metrics </tmp/$file || exit; done'
  echo "$output"
  [ "$status" -eq 0 ]
  [ "$output" = "" ]
  while read -r line; do
    echo "$line"
    grep -qxF "$line" "$dir/on"
  done <<END
sockfuse_info{version="$(sed -n 's/^readonly VERSION=\([^ ]*\).*/\1/p' "$here/common.sh")"} 1
sockfuse_loaded 1
sockfuse_damages 0
sockfuse_guard{state="nothing"} 0
sockfuse_remembered_services{reason="recv_flags"} 1
sockfuse_remembered_services{reason="splice"} 0
sockfuse_map_entries 2
sockfuse_map_max_entries 2000
sockfuse_backlog_sockets 1
sockfuse_backlog_bytes 1000
sockfuse_backlog_largest_bytes 1000
sockfuse_fused_bytes_total 1000
sockfuse_fallback_messages_total{reason="in_flight"} 0
sockfuse_left_out_sockets_total{reason="excluded"} 0
END
  grep -qx 'sockfuse_damages 1' "$dir/damaged"
  grep -qx 'sockfuse_loaded 0' "$dir/off"
}
