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

# lines_of FILE: how many a reader gets of it
lines_of() {
  local lines
  mapfile -t lines <"$1"
  echo "${#lines[@]}"
}

@test "--prometheus FILE: who reads it sees whole files only, whatever happens to who writes" {
  local dir=$BATS_TEST_TMPDIR/textfiles file reader delay
  mkdir "$dir"
  mount -t tmpfs -o size=64k tmpfs "$dir"
  file=$dir/sockfuse.prom
  load
  (umask 077 && status --prometheus "$file")
  [ "$(stat -c %a "$file")" = 644 ]
  while true; do lines_of "$file"; done >"$BATS_TEST_TMPDIR/seen" 3>&- &
  reader=$!
  for delay in 0.{1..9} 1; do
    timeout "$delay" "$here/status.sh" --prometheus "$file" 3>&- || true
  done
  kill "$reader"
  wait "$reader" || true
  sort "$BATS_TEST_TMPDIR/seen" | uniq -c
  [ "$(sort -u "$BATS_TEST_TMPDIR/seen")" = "$(status --prometheus | wc -l)" ]
  [ "$(ls -A "$dir")" = sockfuse.prom ]

  cp "$file" "$BATS_TEST_TMPDIR/before"
  head -c 1M /dev/zero >"$dir/full" 2>/dev/null || true
  run status --prometheus "$file"
  echo "$output"
  [ "$status" -eq 1 ]
  [ "$output" = "status.sh: cannot write into $dir; see: df -h $dir" ]
  cmp "$file" "$BATS_TEST_TMPDIR/before"
  rm "$dir/full"
  [ "$(ls -A "$dir")" = sockfuse.prom ]

  set_fuse 0
  run status --prometheus "$file"
  [ "$status" -eq 4 ]
  grep -qx 'sockfuse_damages 1' "$file"
  unload --quiet
  (cd "$dir" && run status --prometheus sockfuse.prom && [ "$status" -eq 3 ])
  grep -qx 'sockfuse_loaded 0' "$file"
  run status --prometheus "$dir/none/sockfuse.prom"
  [ "$status" -eq 1 ]
  [ "$output" = "status.sh: cannot write into $dir/none; see: ls -ld $dir/none" ]
  run status --prometheus "$dir"
  [ "$status" -eq 2 ]
  umount "$dir"
}
