#!/usr/bin/env bats
# What status.sh writes for other programs, as those read it, and what deploy/ has for them.

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

# told FORMAT OPTION...: what status.sh tells of a load with these options, one connection of
# which 1,000 bytes wait and a remembered service: on, damaged and off
told() {
  load "${@:2}"
  needs_list
  open_steps
  step send 1000
  remember 65534 2
  status "$1" >"$BATS_TEST_TMPDIR/on"
  rm "$BPFFS/bpf_redir"
  status "$1" >"$BATS_TEST_TMPDIR/damaged" || true
  unload --quiet
  status "$1" >"$BATS_TEST_TMPDIR/off" || true
}

@test "--json fits its schema, on, damaged and off" {
  local dir=$BATS_TEST_TMPDIR
  told --json --account --exclude-port 80,90-99
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
  told --prometheus --exclude-port 80 --max-connections 1000
  in_root bash -c 'for file in on damaged off; do promtool check metrics </tmp/$file || exit; done'
  echo "$output"
  [ "$status" -eq 0 ]
  [ "$output" = "" ]
  while read -r line; do
    echo "$line"
    grep -qxF "$line" "$dir/on"
  done <<END
sockfuse_info{version="$(sed -n 's/^readonly VERSION=\([^ ]*\).*/\1/p' "$here/lib/common.sh")"} 1
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

@test "the alert rules: promtool finds no fault, and each comes when it should" {
  mkdir -p "$BATS_TEST_TMPDIR"/{deploy,tests}
  cp -r "$here/deploy/prometheus" "$BATS_TEST_TMPDIR/deploy"
  cp "$here/tests/sockfuse.rules.test.yml" "$BATS_TEST_TMPDIR/tests"
  in_root bash -c 'promtool check rules /tmp/deploy/prometheus/*.yml && promtool test rules /tmp/tests/*.yml'
  echo "$output"
  [ "$status" -eq 0 ]
  diff <(sed -n 's/.*- alert: //p' "$here/deploy/prometheus/sockfuse.rules.yml" | sort) \
    <(sed -n 's/.*alertname: \([A-Za-z]*\)$/\1/p' "$here/tests/sockfuse.rules.test.yml" | sort)
}

named() { grep -ohE '\bsockfuse_[a-z_]+' "$@" | sort -u; }

@test "the rules and the dashboard name only metrics that status.sh prints, and docs/operations.md has each" {
  load
  needs_list
  status --prometheus | sed -n 's/^# TYPE \([^ ]*\) .*/\1/p' | sort >"$BATS_TEST_TMPDIR/printed"
  [ "$(wc -l <"$BATS_TEST_TMPDIR/printed")" -ge 10 ]
  [ "$(named "$here/deploy/prometheus/sockfuse.rules.yml" "$here/deploy/grafana/sockfuse.json" | comm -23 - "$BATS_TEST_TMPDIR/printed")" = "" ]
  # the dashboard shows all of them
  diff <(named "$here/deploy/grafana/sockfuse.json") "$BATS_TEST_TMPDIR/printed"
  diff <(sed -n '/^| metric /,/^$/p' "$here/docs/operations.md" | named) "$BATS_TEST_TMPDIR/printed"
}

@test "the dashboard is sound: ids differ, panels do not overlap, each asks the chosen data source and the chosen hosts" {
  jq -e '
    [.panels[].gridPos] as $places
    | (.uid == "sockfuse")
      and ([.panels[].id] | length == (unique | length))
      and ([$places[] | . as $place | range(.x; .x + .w) as $x | range(.y; .y + .h) as $y | "\($x) \($y)"] | length == (unique | length))
      and all($places[]; .x + .w <= 24)
      and all(.panels[]; .title != "" and (.targets | length > 0) and .datasource.uid == "${datasource}")
      and all(.panels[].targets[]; .datasource.uid == "${datasource}" and (.expr | contains("instance=~\"$instance\"")))
      and ([.templating.list[].name] == ["datasource", "instance"])' "$here/deploy/grafana/sockfuse.json"
}

@test "in a Prometheus that scrapes status.sh each query of the dashboard has data, and each rule is evaluated" {
  local dir=$BATS_TEST_TMPDIR
  load
  needs_list
  open_steps
  status --prometheus >"$dir/earlier"
  step send 1000
  status --prometheus >"$dir/later"
  cp "$here/deploy/prometheus/sockfuse.rules.yml" "$dir"
  jq -r '.panels[].targets[].expr | gsub("\\$instance"; ".*") | gsub("\\$__rate_interval"; "1m")' \
    "$here/deploy/grafana/sockfuse.json" >"$dir/queries"
  cat >"$dir/prometheus.yml" <<'END'
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [sockfuse.rules.yml]
scrape_configs:
  - job_name: sockfuse
    metrics_path: /now
    static_configs: [{targets: ["127.0.0.1:9100"]}]
END
  cat >"$dir/job" <<'END'
cd /tmp
trap 'kill $(jobs -p); wait' EXIT
cp earlier now
python3 -m http.server --bind 127.0.0.1 9100 >/dev/null 2>&1 &
prometheus --config.file=prometheus.yml --storage.tsdb.path=data --web.listen-address=127.0.0.1:9090 >log 2>&1 &
asked() { [[ $(curl -s "http://127.0.0.1:9090/api/v1/$1" "${@:3}" | jq "$2") == true ]]; }
has_data() { asked query '.data.result | length > 0' --data-urlencode "query=$1"; }
until has_data sockfuse_loaded; do sleep 0.2; done
mv later now
while read -r query; do
  echo "no data yet: $query"
  until has_data "$query"; do sleep 0.2; done
done <queries
echo "all have data"
until asked rules '[.data.groups[].rules[]] | length > 0 and all(.[]; .health == "ok")'; do sleep 0.2; done
echo "all are evaluated"
END
  in_root timeout 60 bash /tmp/job
  echo "$output"
  [ "$status" -eq 0 ]
  [ "${lines[-1]}" = "all are evaluated" ]
}
