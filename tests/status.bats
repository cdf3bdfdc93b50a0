#!/usr/bin/env bats
# status.sh: what it tells is what the kernel holds.

load helpers

teardown() {
  jobs -p | xargs -r kill 2>/dev/null || true
  wait
  unload --quiet
  assert_nothing_left
}

close_steps() {
  local pid=$STEPS_PID
  exec {STEPS[1]}>&-
  wait "$pid"
}

# The counters that moved since JSON, as "name=difference" in the order of their names.
moved() {
  jq -rn --argjson before "$1" --argjson now "$(status --json | jq -c .counters.fallback)" \
    '[$now | to_entries[] | select(.value != $before[.key]) | "\(.key)=\(.value - $before[.key])"] | join(" ")'
}

fallbacks() { status --json | jq -c .counters.fallback; }

# assert_moved JSON WHAT: of the reasons, this and nothing else
assert_moved() {
  local now
  now=$(moved "$1")
  [ "$now" = "$2" ] || { echo "moved: $now, expected: $2" && return 1; }
}

@test "five connections, one with 1,000 unread bytes: both forms tell of ten sockets, as ss does" {
  local json text
  load --account
  needs_list
  "$TRAFFIC" hold 4 300 >"$BATS_TEST_TMPDIR/held" 3>&- &
  open_steps
  step send 1000
  wait_for 30 grep -q connections "$BATS_TEST_TMPDIR/held"
  json=$(status --json)
  text=$(status)
  echo "$json" "$text"

  [ "$(jq '.connections | length' <<<"$json")" -eq 10 ]
  [ "$(jq .map.entries <<<"$json")" -eq 10 ]
  [ "$(jq -c '[.connections[].backlog_bytes | select(. > 0)]' <<<"$json")" = "[1000]" ]
  [ "$(jq -c '[.connections[].path] | unique' <<<"$json")" = '["fused"]' ]
  # four with 100 bytes each way
  [ "$(jq -c '.counters | [.tracked_connections, .fused_messages, .fused_bytes]' <<<"$json")" = "[5,9,1800]" ]
  [ "$(jq '[.counters.fallback[]] | add' <<<"$json")" -eq 0 ]
  [ "$(jq '[.connections[].fused_bytes_sent] | add' <<<"$json")" -eq 1800 ]
  [ "$(jq '[.connections[].fused_bytes_received] | add' <<<"$json")" -eq 1800 ]
  [ "$(jq -r '[.connections[].processes[].name] | unique[]' <<<"$json")" = traffic ]
  [ "$(jq -r '.connections[0].processes[0].pid' <<<"$json")" -eq "$STEPS_PID" ]

  diff <(ss -Htn state established | awk '{ print $3, $4 }' | sort) <(jq -r '.connections[] | "\(.local) \(.remote)"' <<<"$json" | sort)
  diff <(ss -Htn state established | awk '{ print $3, $4 }' | sort) \
    <(awk '/^local/ { table = 1; next } table { print $1, $2 }' <<<"$text" | sort)
  grep -qE '^  messages +100 % fused \(1.8 KB\)$' <<<"$text"
  grep -qE '^fused bytes +1800$' <<<"$text"
  grep -qE " fused +1000 +[3-9]s +0 +1000 .* traffic/$STEPS_PID$" <<<"$text"
  [ "$(status --json --top 2 | jq -c '[.connections[].backlog_bytes] | sort')" = "[0,1000]" ]
}

@test "IPv4, IPv6 and v4-mapped addresses read as in ss, whose network namespace and process it tells" {
  local json
  load
  needs_list
  ip netns add other
  ip -n other link set lo up
  ip netns exec other iperf3 -s -p 5001 >/dev/null 2>&1 3>&- &
  iperf3 -s -p 5001 >/dev/null 2>&1 3>&- &
  wait_for 30 listens 5001
  wait_for 30 ip netns exec other bash -c 'ss -Hltn | grep -q 5001'
  iperf3 -c 127.0.0.1 -p 5001 -t 120 -b 1M >/dev/null 3>&- &
  ip netns exec other iperf3 -c ::1 -p 5001 -t 120 -b 1M >/dev/null 3>&- &
  four() { [[ $(status --json | jq '.map.entries') -ge 8 ]]; }
  wait_for 30 four
  json=$(status --json)
  echo "$json"
  diff <({ ip netns exec other ss -Htn state established; ss -Htn state established; } | awk '{ print $3, $4 }' | sort) \
    <(jq -r '.connections[] | "\(.local) \(.remote)"' <<<"$json" | sort)
  [ "$(jq '[.connections[].netns] | unique | length' <<<"$json")" -eq 2 ]
  [ "$(jq -r '[.connections[].processes[].name] | unique[]' <<<"$json")" = iperf3 ]
  jobs -p | xargs kill 2>/dev/null || true # one may end with the other
  wait
  ip netns del other
}

# Then sock_ops_map is another than the programs were built with.
@test "bytes received are told in a load with networks and accounting, too" {
  load --account --net 10.1.0.0/16
  needs_list
  open_steps
  step send 1000
  [ "$(status --json | jq -c '[.connections[].fused_bytes_received] | add')" -eq 1000 ]
  close_steps
}

@test "bytes above 4 GB are told exactly" {
  local json
  load --account
  needs_list
  iperf3 -s -1 -p 5001 >/dev/null 2>&1 3>&- &
  wait_for 30 listens 5001
  iperf3 -c 127.0.0.1 -p 5001 -l 1M -t 300 >/dev/null 2>&1 3>&- &
  much() { [[ $(status --json | jq '[.connections[].fused_bytes_sent] | max') -gt 4500000000 ]]; }
  wait_for 200 much
  jobs -p | xargs kill -STOP
  json=$(status --json)
  jobs -p | xargs kill -CONT
  echo "$json"
  [ "$(jq '(.counters.fused_bytes - ([.connections[].fused_bytes_sent] | add)) | . == 0' <<<"$json")" = true ]
  [ "$(jq '([.connections[].fused_bytes_received] | add) == ([.connections[].fused_bytes_sent] | add)' <<<"$json")" = true ]
}

@test "connections of an earlier load are listed until they close" {
  load
  needs_list
  open_steps
  step send 10
  load
  [ "$(status --json | jq -c '[(.connections | length), .map.entries]')" = "[2,0]" ]
  step read 10
  close_steps
  load
  [ "$(find "$BPFFS/sockfuse/connections" -type f | wc -l)" -eq 1 ]
}

@test "switched off: counted as such, and no other reason" {
  local before
  load
  needs_list
  open_steps
  before=$(fallbacks)
  set_fuse 0
  step send 10
  [ "$(status --json | jq -c '[.connections[] | [.path, .reason]] | unique')" = '[["tcp","switched_off"]]' ]
  set_fuse 1
  assert_moved "$before" switched_off=1
}

@test "TCP bytes in flight: counted as such, and no other reason" {
  local before
  load
  needs_list
  open_steps
  set_fuse 0
  step send 10
  set_fuse 1
  before=$(fallbacks)
  step send 10
  assert_moved "$before" in_flight=1
  [ "$(status --json | jq -r '.connections[].reason // empty')" = in_flight ]
}

@test "a socket option: counted as such, and no other reason" {
  local before
  load
  open_steps
  before=$(fallbacks)
  step lowat 2
  step send 10
  assert_moved "$before" socket_option=1
}

@test "a closing socket: counted as such, and no other reason" {
  local before
  load
  before=$(fallbacks)
  "$TRAFFIC" shutdown 10
  assert_moved "$before" socket_state=1
}

# mark_reader: as the guard does with one that reads as only TCP can; sets bytes
mark_reader() {
  local cookie
  cookie=$(status --json | jq -r '.connections[] | select(.backlog_bytes == 10).cookie')
  mapfile -t bytes < <(printf '%016x' "0x$cookie" | grep -o .. | tac)
  "$BPFTOOL" map update pinned "$BPFFS/sockfuse/fuse_marks" key hex "${bytes[@]}" value hex 1 0 0 0 0 0 0 0
  change_settings '{"marks": 1}'
}

@test "a reader that the guard has marked: counted as such, and no other reason" {
  local before bytes
  load
  needs_list
  open_steps
  step send 10
  mark_reader
  before=$(fallbacks)
  step send 10
  assert_moved "$before" guarded=1
  "$BPFTOOL" map delete pinned "$BPFFS/sockfuse/fuse_marks" key hex "${bytes[@]}"
}

@test "a connection whose reader the guard has marked leaves the map" {
  local bytes
  load
  needs_list
  open_steps
  step send 10
  mark_reader
  step read 10
  step pace 10 3
  sleep 0.3
  step pace 10 3
  counters
  [ "$(counter ends_unfused)" -eq 2 ]
}

@test "marks that the guard had no room for: every message counts as guarded, and goes by TCP" {
  local before
  load
  change_settings '{"marks": 2}'
  open_steps
  before=$(fallbacks)
  step send 10
  step read 10
  assert_moved "$before" guarded=1
}

# A client in that cgroup, of a server that is not.
@test "a peer that is not tracked: counted as such, and no other reason" {
  local before
  mkdir -p "$CGROUP/client"
  load --cgroup "$CGROUP/client"
  before=$(fallbacks)
  iperf3 -s -1 -p 5001 >/dev/null 2>&1 3>&- &
  wait_for 30 listens 5001
  (echo "$BASHPID" >"$CGROUP/client/cgroup.procs" && exec iperf3 -c 127.0.0.1 -p 5001 -n 1M >/dev/null 3>&-)
  wait
  echo "$(moved "$before")"
  [[ $(moved "$before") =~ ^peer_unknown=[1-9][0-9]*$ ]]
}

@test "the backlog's limit in bytes: counted as such, and no other reason" {
  local before
  load
  open_steps
  step rcvbuf 100000 # the kernel doubles it, half of that may wait
  before=$(fallbacks)
  step send 60000
  assert_moved "$before" ""
  step send 60000
  assert_moved "$before" backlog_bytes=1
}

@test "the backlog's limit in messages: counted as such, and no other reason" {
  local before
  load
  open_steps
  before=$(fallbacks)
  step send 1 33
  assert_moved "$before" ""
  step send 1
  assert_moved "$before" backlog_number=1
  status | grep -E '^  messages +9[0-9.]+ % fused .*; by TCP: backlog_number [0-9.]+ %$'
}

@test "an edge-triggered reader of bulk: counted as such, and no other reason" {
  local before
  load
  open_steps
  step edge
  before=$(fallbacks)
  step send 70000
  assert_moved "$before" edge_triggered=1
  [ "$(status --json | jq .counters.unfused_sockets)" -eq 2 ]
}

@test "40,000 bytes of a file at once: counted as sendfile, and no other reason" {
  local before
  load
  open_steps
  before=$(fallbacks)
  step sendfile 32000
  assert_moved "$before" ""
  step sendfile 40000
  assert_moved "$before" sendfile=1
}

@test "a reader asleep inside TCP: counted as such, and no other reason" {
  local before
  load
  open_steps
  set_fuse 0
  step send 5
  set_fuse 1
  step waitall 20
  before=$(fallbacks)
  step send 5
  assert_moved "$before" blocked_reader=1
  step send 10
}

@test "what a client did concerns the connections of its user to that service, and nobody else's" {
  local before
  load
  remember 65534 2
  before=$(fallbacks)
  "$TRAFFIC" flagged 5001 1000 none
  "$TRAFFIC" flagged 5001 0 none
  "$TRAFFIC" flagged 5002 65534 none
  assert_moved "$before" ""
  "$TRAFFIC" flagged 5001 65534 none
  assert_moved "$before" guarded_service=2 # none of the two ends is alone in the map
  [ "$(status --json | jq -c '.guard.services[0] | [.port, .user, .reason]')" = '[5001,65534,"recv_flags"]' ]
  status | grep -q 'by TCP: port 5001 for user 65534 (recv_flags)'
}

@test "nobody fills the guard's memory of services for good" {
  load
  fill_services 20000
  remember "$ANYBODY" 1
  "$TRAFFIC" flagged 5001 0 none
  [ "$(counter ends_guarded)" -eq 2 ]
}

@test "the guard's memory of sockets has room for four at each connection, and outlives a load that needs no more" {
  local id
  marks() { "$BPFTOOL" -j map show pinned "$BPFFS/sockfuse/fuse_marks" | jq "$1"; }
  load --max-connections 1000
  [ "$(marks .max_entries)" -eq 4000 ]
  load --max-connections 2000
  [ "$(marks .max_entries)" -eq 8000 ]
  id=$(marks .id)
  load --max-connections 1000
  [ "$(marks .id)" -eq "$id" ]
}

@test "policy, the guard's memory of services, repair mode: sockets counted as left out, for that reason" {
  local before
  load --exclude-port 5001
  before=$(fallbacks)
  iperf3 -s -1 -p 5001 >/dev/null 2>&1 3>&- &
  wait_for 30 listens 5001
  iperf3 -c 127.0.0.1 -p 5001 -n 1M >/dev/null
  assert_moved "$before" excluded=4

  load
  before=$(fallbacks)
  remember "$ANYBODY" 1
  iperf3 -s -1 -p 5001 >/dev/null 2>&1 3>&- &
  wait_for 30 listens 5001
  iperf3 -c 127.0.0.1 -p 5001 -n 1M >/dev/null
  assert_moved "$before" guarded_service=4
  [ "$(status --json | jq -c '.guard.services[0] | [.port, .reason]')" = '[5001,"splice"]' ]
  status | grep -q 'by TCP: port 5001 (splice)'

  before=$(fallbacks)
  "$TRAFFIC" repair
  assert_moved "$before" left_out=1
}

@test "a full map: sockets counted as left out for that reason" {
  local before
  load --max-connections 1
  before=$(fallbacks)
  "$TRAFFIC" hold 3
  assert_moved "$before" map_full=4
}

@test "sockets that another sockfuse has taken: counted as refused" {
  local before
  load
  before=$(fallbacks)
  "$here/tests/isolate.sh" bash -c "'$here/load.sh' --quiet && '$TRAFFIC' echo 127.0.0.1 127.0.0.1 1000" 3>&-
  assert_moved "$before" refused=2
}

# damaged PATTERN: exit 4 and a line that tells it with the command that mends it
damaged() {
  run status
  echo "status $status: $output"
  [ "$status" -eq 4 ]
  [[ ${lines[0]} =~ ^"damaged: $1; try: "(.*/load.sh .*)$ ]]
  [ "$(status --json | jq '.damage | length')" -eq 1 ]
  # the command loads what was loaded
  bash -c "${BASH_REMATCH[1]} --quiet" 3>&-
  assert_on
  run status
  [ "$status" -eq 0 ]
  [ "$(status --json | jq -c '[.policy.excluded_ports, .map.max_entries]')" = '["80,6000-6010",2000]' ]
}

@test "each pin that is missing, a program detached, the switch: named, exit 4, mended by the command it gives" {
  local pin
  load --exclude-port 80,6000-6010 --max-connections 1000 --no-guard
  run status
  [ "$status" -eq 0 ]
  while read -r pin; do
    pin=${pin//connections\/[0-9]*/connections\/$("$BPFTOOL" -j map show pinned "$BPFFS/sock_ops_map" | jq .id)}
    rm "$pin"
    damaged "$pin is missing"
  done < <(find "$BPFFS" -type f ! -name '*.debug')
  "$BPFTOOL" cgroup detach "$CGROUP" sock_ops pinned "$BPFFS/bpf_sockops"
  damaged "bpf_sockops is not attached to any cgroup (nobody remembers to which it was)"
  if can_list; then # or nobody can tell
    "$BPFTOOL" prog detach pinned "$BPFFS/bpf_redir" msg_verdict pinned "$BPFFS/sock_ops_map"
    damaged "bpf_redir is not attached to sock_ops_map"
  fi
  set_fuse 0
  damaged "fusing is switched off"
  mkdir "$BPFFS/sockfuse/staging"
  damaged "a load was killed and left $BPFFS/sockfuse/staging"
}

@test "the mend has the options that were given and no others, with the guard or without" {
  local options
  for options in "" --no-guard --account; do
    # shellcheck disable=SC2086 # words
    load $options
    set_fuse 0
    run status
    echo "$output"
    [ "$status" -eq 4 ]
    [ "${lines[0]}" = "damaged: fusing is switched off; try: $here/load.sh${options:+ $options}" ]
  done
}

@test "off: exit 3; without root, wrong options: one line, exit 1 and 2" {
  run status
  [ "$status" -eq 3 ]
  [[ $output == "sockfuse is off; try: "*load.sh ]]
  [ "$(status --json | jq .loaded)" = false ]
  run setpriv --reuid 65534 --clear-groups "$here/status.sh" 3>&-
  [ "$status" -eq 1 ]
  [[ $output == *"root is needed"* ]]
  load
  for options in --jsn "--watch x" "--watch 0" "--top" "--top 0" "--json --watch" "--top 3"; do
    # shellcheck disable=SC2086 # words
    run status $options
    echo "$options: $status $output"
    [ "$status" -eq 2 ]
    [ "${#lines[@]}" -eq 1 ]
  done
}

@test "30,000 sockets are listed, each once" {
  local sockets
  load
  needs_list
  "$TRAFFIC" hold 15000 300 >"$BATS_TEST_TMPDIR/held" 3>&- &
  wait_for 60 grep -q connections "$BATS_TEST_TMPDIR/held"
  status --json >"$BATS_TEST_TMPDIR/json"
  sockets=$(jq '.connections | length' "$BATS_TEST_TMPDIR/json")
  echo "$sockets sockets"
  ((sockets > 29900)) # an end that is established late may stay out of the map
  [ "$(jq '[.connections[] | [.local, .remote]] | unique | length' "$BATS_TEST_TMPDIR/json")" -eq "$sockets" ]
  [ "$(status | grep -c ' fused ')" -ge 29900 ]
  [ "$(status --prometheus | sed -n 's/^sockfuse_map_entries //p')" -eq "$sockets" ]
}

@test "--watch on a terminal: lines end where it does, and the key q ends it" {
  local out=$BATS_TEST_TMPDIR/watch keys=$BATS_TEST_TMPDIR/keys
  load
  mkfifo "$keys"
  exec 7<>"$keys"
  timeout 120 script -qec "stty cols 40 && '$here/status.sh' --watch 1" /dev/null <"$keys" >"$out" 3>&- 7>&- &
  wait_for 60 grep -q 'fused messages' "$out"
  printf xq >&7
  wait $!
  exec 7>&-
  cat "$out"
  tr -d '\r' <"$out" | sed 's/\x1b\[[0-9]*[A-Z]//g' | awk 'length > 40 { exit 1 }'
}

# Others may take the processor for a part of the time, so one of five runs has to match.  Both
# snapshots have to be taken while iperf3 runs; on a busy machine each needs some 6 s.
@test "--watch shows rates that match iperf3's within 10 %" {
  local run rate received
  load
  for run in {1..5}; do
    iperf3 -s -1 -p 5001 >/dev/null 2>&1 3>&- &
    wait_for 30 listens 5001
    iperf3 -c 127.0.0.1 -p 5001 -t 20 -l 64k -b 800M -J >"$BATS_TEST_TMPDIR/iperf3" 3>&- &
    sleep 1
    rate=$(timeout 60 "$here/status.sh" --watch 3 3>&- | awk '/^fused bytes/ && NF == 4 { print $4; exit }')
    wait
    received=$(jq '.end.sum_received.bits_per_second / 8 | floor' "$BATS_TEST_TMPDIR/iperf3")
    echo "status.sh $rate, iperf3 $received bytes per second"
    ((rate * 10 <= received * 9 || rate * 10 >= received * 11)) || return 0
  done
  return 1
}

# why PORT: path and reason of the end that connects
why() { "$here/status.sh" --why "$1" 3>&- | awk -v port=":$1\$" '$2 ~ port { print $3, $4 }'; }

@test "status.sh --why tells of each connection whether it is fused, and if not, why" {
  local early excluded remote port
  plain_address
  for port in 5001 5002 5003; do
    iperf3 -s -p "$port" >/dev/null 2>&1 3>&- &
    wait_for 20 listens "$port"
  done
  exec {early}<>/dev/tcp/127.0.0.1/5001
  load --exclude-port 5002
  needs_list
  exec {excluded}<>/dev/tcp/127.0.0.1/5002
  exec {remote}<>"/dev/tcp/$PLAIN_ADDRESS/5003"
  [ "$(why 5001)" = "tcp: before" ]
  [ "$(why 5002)" = "tcp: excluded" ]
  [ "$(why 5003)" = "tcp: remote" ]
  open_steps
  step send 1000
  run "$here/status.sh" --why 3>&-
  echo "$output"
  grep -qE '^127.0.0.1:[0-9]+ +127.0.0.1:[0-9]+ +fused +its messages are fused; 1000 bytes wait for its reader, ' <<<"$output"
  grep -qE '^  plain TCP  3 connections within this host: before 1, excluded 1, remote 1; see: status.sh --why$' <<<"$(status)"
  [ "$("$here/status.sh" --why 127.0.0.1:7 3>&-)" = "no TCP connection is established that has 127.0.0.1:7 at an end" ]
  load --net 10.1.0.0/16
  [ "$(why 5003)" = "tcp: nets" ]
  load --net 192.0.0.0/19
  [ "$(why 5003)" = "tcp: elsewhere" ]
  load --cgroup "$(mktemp -d "$CGROUP/other.XXXX")"
  [ "$(why 5001)" = "tcp: cgroup" ]
  exec {early}>&- {excluded}>&- {remote}>&-
  unload --quiet
  rmdir "$CGROUP"/other.*
  run "$here/status.sh" --why
  [ "$status" -eq 3 ]
  run "$here/status.sh" --why 127.0.0.1
  [ "$status" -eq 2 ]
}

# stalled_line: what status.sh says of readers that have stalled
stalled_line() { status "$@" | sed -n 's/^  stalled *//p'; }

@test "where sockets cannot be listed no connection is said to be plain TCP" {
  load
  needs_list
  open_steps
  rm -r "$BPFFS/sockfuse/connections"
  ! status | grep '^  plain TCP' || return 1
}

@test "a reader that reads nothing for three seconds is named, with what waits, and --why says what to do" {
  local end
  load
  needs_list
  open_steps
  [ "$(stalled_line)" = "" ]
  ! status | grep '^  plain TCP' || return 1
  step send 1000
  run status
  echo "$output"
  end=$(grep -oP '^127.0.0.1:[0-9]+(?= .* 1000 )' <<<"$output")
  grep -qE "^  stalled    traffic/$STEPS_PID at $end has read nothing for [3-9] s, and 1 KB wait; see: status.sh --why [0-9]+$" <<<"$output"
  grep -qE "^local +remote +path +backlog +stalled +processes$" <<<"$output"
  grep -qE "^$end +127.0.0.1:[0-9]+ +fused +1000 +[3-9]s +traffic/$STEPS_PID$" <<<"$output"
  run "$here/status.sh" --why "$end" 3>&-
  echo "$output"
  grep -qE "^$end .*; 1000 bytes wait for its reader, which has read nothing for [3-9] s; see what it does: ps -o pid,stat,wchan:20,args -p $STEPS_PID$" <<<"$output"
  step read 1000
  [ "$(stalled_line)" = "" ]
}

@test "a reader that is at work has not stalled, however much waits" {
  load
  needs_list
  iperf3 -s -p 5001 >/dev/null 2>&1 3>&- &
  wait_for 30 listens 5001
  iperf3 -c 127.0.0.1 -p 5001 -l 64k -t 60 >/dev/null 2>&1 3>&- &
  "$here/bench/load" rr 64 60 0 0 >/dev/null 3>&- &
  wait_for 20 bash -c "'$here/status.sh' --json | jq -e '.connections | length >= 6'" 3>&-
  [ "$(stalled_line)" = "" ]
  [ "$(stalled_line)" = "" ]
}

@test "--watch tells for how long a reader has stalled, whatever --top leaves out" {
  load --account
  needs_list
  open_steps
  step send 1000
  "$here/status.sh" --watch 0.7 --top 1 >"$BATS_TEST_TMPDIR/watched" 3>&- &
  seen() { grep -qE 'has read nothing for ([6-9]|[1-9][0-9]) s, and 1 KB wait' "$BATS_TEST_TMPDIR/watched"; }
  wait_for 60 seen
  kill $!
  ! grep -q 'has read nothing for [0-2] s' "$BATS_TEST_TMPDIR/watched"
}

@test "the connections of each service are summed up: port, processes, by TCP, backlog, bytes" {
  local text
  load --account
  needs_list
  iperf3 -s -p 5001 >/dev/null 2>&1 3>&- &
  wait_for 30 listens 5001
  "$TRAFFIC" hold 4 300 >"$BATS_TEST_TMPDIR/held" 3>&- &
  iperf3 -c 127.0.0.1 -p 5001 -b 1M -t 60 >/dev/null 2>&1 3>&- &
  wait_for 30 grep -q connections "$BATS_TEST_TMPDIR/held"
  wait_for 30 bash -c "'$here/status.sh' --json | jq -e '.connections | length == 12'" 3>&-
  text=$(status)
  echo "$text"
  grep -qE '^ *port +connections +tcp +backlog +bytes +processes$' <<<"$text"
  grep -qE '^ *5001 +2 +0 +[0-9]+ +[0-9]+ +iperf3$' <<<"$text"
  grep -qE '^ *[0-9]+ +4 +0 +0 +800 +traffic$' <<<"$text"
}
