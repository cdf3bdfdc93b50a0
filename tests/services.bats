#!/usr/bin/env bats
# Services teach: what gains nothing is left on TCP, and is tried again; what gains is not.
# What depends on how fast connections or messages follow upon each other is tried several
# times: others have the processors, too.

load helpers

teardown() {
  [[ ! ${BACKGROUND-} ]] || kill "$BACKGROUND" 2>/dev/null || true
  unload --quiet
  ip netns del other 2>/dev/null || true
  [[ ! -e $CGROUP/apart ]] || rmdir "$CGROUP/apart"
  assert_nothing_left
}

# visits UID CONNECTIONS HOW N: to a service at port 5001; sets tracked and left_out, the
# connections that entered the map with both ends, and those of which none did
visits() {
  local before after
  before=$(counters)
  "$TRAFFIC" visits 5001 "$@" >/dev/null
  after=$(counters)
  tracked=$(($(counter ends_tracked "$after") - $(counter ends_tracked "$before")))
  left_out=$(($(counter ends_no_gain "$after") - $(counter ends_no_gain "$before")))
  echo "$*: $tracked ends tracked, $left_out left out"
  ((tracked % 2 == 0 && left_out % 2 == 0 && (tracked + left_out) / 2 == $2)) || return
  tracked=$((tracked / 2)) left_out=$((left_out / 2))
}

forget() { "$here/load.sh" --reset-services --quiet 3>&-; }

# at_last COMMAND...: until it succeeds, from nothing known each time
at_last() {
  for _ in {1..10}; do
    forget
    ! "$@" || return 0
  done
  return 1
}

# left_after N HOW N: N such connections, and of 40 more none is fused
left_after() { visits 1000 "$@" && ((tracked == $1)) && visits 1000 40 "${@:2}" && ((tracked == 0)); }
# learn HOW N: until such connections are left out
learn() { at_last left_after 16 "${@:-talk}" ${2-1}; }

# ends FILTER: of user 1000's connections
ends() { service "select(.user == 1000) | $1"; }

@test "of a service whose connections are short the first 16 are fused, and then none, at either end" {
  load
  at_last left_after 16 talk 1
  [ "$(ends '[.path, .reason, .connections, .short, .gained]')" = '["tcp","short",16,16,0]' ]
  (($(ends .left_out) == 40))
  status | grep -qE '^ *5001 +1000 +16 +0 % +tcp: short +20'
}

@test "connections that say nothing are short, too, and so are those of three requests" {
  load
  at_last left_after 16 talk 0
  at_last left_after 16 talk 3
}

@test "status.sh --why tells of a connection that its service is left on TCP" {
  why() {
    for _ in {1..30}; do
      exec 4<>/dev/tcp/127.0.0.1/5001
    done
    "$here/status.sh" --why 5001 3>&- | grep -q ':5001 *tcp: no_gain '
  }
  load
  "$TRAFFIC" server 5001 3>&- &
  BACKGROUND=$!
  wait_for 30 listens 5001
  at_last why
  exec 4>&-
}

@test "connections of four requests and more gain, and all of them are fused" {
  load
  visits 1000 50 talk 4
  ((left_out == 0))
  [ "$(ends '[.path, .reason, .connections, .gained]')" = '["fused",null,50,50]' ]
}

@test "16 have to be short in a row" {
  load
  visits 1000 64 mixed 10
  ((left_out == 0))
  [ "$(ends '[.connections, .short, .gained]')" = '[64,60,4]' ]
}

@test "and one upon the other: connections with pauses between them pay nothing that counts, and are fused" {
  load
  visits 1000 25 apart 1
  ((left_out == 0))
  [ "$(ends '[.path, .short]')" = '["fused",25]' ]
}

@test "every 64th connection of a service that is left out is tried, and for as long as that is short no other" {
  each_64th() { left_after 16 talk 1 && visits 1000 600 talk 1 && ((tracked == 10)); }
  load
  at_last each_64th
}

@test "after a second without a connection all begins anew" {
  after_pause() {
    left_after 16 talk 1 || return
    sleep 1.1
    visits 1000 20 talk 1 && ((tracked == 16))
  }
  load
  at_last after_pause
}

@test "the first one that gains brings the service back, before it has closed" {
  load
  learn
  sleep 1.1
  coproc VISIT { exec "$TRAFFIC" visits 5001 1000 1 talk 10 open 3>&-; }
  BACKGROUND=$VISIT_PID
  read -r -t 30 <&"${VISIT[0]}"
  [ "$(ends '[.path, .gained]')" = '["fused",1]' ]
  echo >&"${VISIT[1]}"
  wait "$BACKGROUND"
  BACKGROUND=
  visits 1000 100 talk 10
  ((left_out == 0))
}

@test "what a user's connections teach concerns his own, and nobody else's" {
  load
  learn
  visits 65534 16 talk 1
  ((left_out == 0))
  visits 0 16 talk 1
  ((left_out == 0))
}

# add_netns [INODE]: "other", with that inode number if it is given out again
add_netns() {
  for _ in {1..30}; do
    ip netns add other
    [[ ${1-} && $(stat -L -c %i /run/netns/other) != "$1" ]] || return 0
    ip netns del other
    sleep 0.1 # the kernel clears up later
  done
  ip netns add other
}

@test "the same port of another network namespace is another service, and so is that of the one after it" {
  local left inode=
  load
  learn
  left=$(counter ends_no_gain)
  for _ in 1 2; do
    add_netns "$inode"
    inode=$(stat -L -c %i /run/netns/other)
    ip -n other link set lo up
    ip netns exec other "$TRAFFIC" visits 5001 1000 16 talk 1 >/dev/null
    ip netns del other
  done
  [ "$(counter ends_no_gain)" -eq "$left" ]
  [ "$(ends .connections | paste -sd ' ')" = "16 16 16" ]
  [[ $(status) == *" since "*" netns"* ]]
}

@test "bulk gains, one message of it, whichever end sends it" {
  local how
  load
  for how in upload download; do
    visits 1000 20 "$how" 1
    ((left_out == 0))
  done
  [ "$(ends '[.connections, .gained]')" = "[40,40]" ]
}

@test "while a connection goes on that gains, its service is fused, however many short ones there are" {
  say() { for ((i = 0; i < $1; i++)); do echo one >&"$2" && read -r -t 10 <&"$2"; done; }
  short_ones() {
    for _ in {1..20}; do
      exec 5<>/dev/tcp/127.0.0.1/5001
      say 1 5
      exec 5>&-
    done
    [ "$(service 'select(.user == 0) | .path')" = '"tcp"' ]
  }
  load
  "$TRAFFIC" server 5001 3>&- &
  BACKGROUND=$!
  wait_for 30 listens 5001
  exec 4<>/dev/tcp/127.0.0.1/5001
  say 10 4
  for _ in {1..10}; do ! short_ones || break; done
  [ "$(service 'select(.user == 0) | .path')" = '"tcp"' ]
  say 600 4
  [ "$(service 'select(.user == 0) | .path')" = '"fused"' ]
  exec 4>&-
}

@test "a stream of small writes leaves the map within 1 ms, and a service of such is left out" {
  streams() { left_after 16 stream 3000 && [ "$(ends '[.path, .reason, .stream]')" = '["tcp","stream",16]' ]; }
  load
  visits 1000 1 stream 30000
  counters
  (($(counter ends_unfused) == 2 && $(counter fused_messages) < 10000)) # some 300 where nobody else is at work
  at_last streams
}

@test "so does a slow one whose writer does not sleep: to wake its reader may take so long" {
  load
  visits 1000 1 busy 3000
  counters
  (($(counter ends_unfused) == 2 && $(counter fused_messages) < 1000))
}

@test "so does one whose writer sleeps for some microseconds after each message" {
  load
  visits 1000 1 naps 10000
  counters
  (($(counter ends_unfused) == 2))
}

@test "so does one with an answer to each eight messages, later" {
  load
  for _ in {1..10}; do # unless others have the processor
    visits 1000 1 sparse 60000
    (($(counter ends_unfused) == 0)) || break
  done
  counters
  (($(counter ends_unfused) >= 2))
}

@test "one-way messages with pauses are no stream, and gain" {
  load
  visits 1000 1 slow 300
  [ "$(counter fused_messages)" -eq 300 ]
  [ "$(counter ends_unfused)" -eq 0 ]
  [ "$(ends '[.gained, .short, .stream]')" = "[1,0,0]" ]
}

@test "a dialogue is no stream: not with 60 messages one way, nor with 16 times as many as it has had turns" {
  local begun
  load
  open_steps
  BACKGROUND=$STEPS_PID
  for _ in {1..10}; do
    step pace 64 60
    step talk 64
  done
  step pace 64 300
  step talk 64 500
  begun=$(counter ends_unfused)
  step pace 64 15000
  sleep 0.2
  step talk 64
  counters
  [ "$begun" -eq 0 ]
  [ "$(counter ends_unfused)" -eq 0 ]
  for _ in {1..10}; do # unless others have the processor
    step pace 64 20000
    sleep 0.2
    step talk 64
    (($(counter ends_unfused) == 0)) || break
  done
  [ "$(counter ends_unfused)" -eq 2 ]
  [ "$(status --json | jq -c '.services[0] | [.gained, .stream]')" = "[1,0]" ] # counted once
}

@test "a dialogue that begins with 500 requests of which its reader has not read one is no stream" {
  load
  open_steps
  BACKGROUND=$STEPS_PID
  step send 64 500
  step read 32000
  step answer 64
  step take 64
  step talk 64 100
  counters
  [ "$(counter ends_unfused)" -eq 0 ]
  (($(counter fused_messages) >= 200))
}

@test "files gain nothing, though what asks for them is fused, and the header before them" {
  local how
  load
  for how in files pages; do
    forget
    visits 1000 1 "$how" 20
    [ "$(ends '[.gained, .short, .files]')" = "[0,0,1]" ]
    (($(counter ends_unfused) % 2 == 0))
    at_last left_after 16 "$how" 5
    [ "$(ends '[.path, .reason, .files]')" = '["tcp","files",16]' ]
  done
}

@test "a dialogue that sends files, too, stays in the map" {
  load
  open_steps
  BACKGROUND=$STEPS_PID
  step talk 64 200
  step sendfile 60000 100
  sleep 0.2
  step talk 64
  [ "$(counter ends_unfused)" -eq 0 ]
}

@test "a client that does not close teaches as well, by the server's end, and when it closes not again" {
  load
  coproc VISIT { exec "$TRAFFIC" visits 5001 1000 10 talk 1 open 3>&-; }
  BACKGROUND=$VISIT_PID
  read -r -t 30 <&"${VISIT[0]}"
  [ "$(ends .short)" -eq 10 ]
  echo >&"${VISIT[1]}"
  wait "$BACKGROUND"
  BACKGROUND=
  [ "$(ends .connections)" -eq 10 ]
}

@test "connections whose ends close at once on two processors count once each" {
  local ended entered
  load
  "$TRAFFIC" burst 3000 8 >/dev/null
  ended=$(status --json | jq '[.services[].connections] | add')
  entered=$(($(counter ends_tracked) / 2))
  echo "$entered entered, $ended ended"
  ((ended <= entered && ended > entered * 9 / 10))
}

@test "with --port its services are always fused, and nothing is learned of them" {
  load --port 5001
  visits 1000 40 talk 1
  ((left_out == 0))
  [ -z "$(service .)" ]
  at_last eval 'visits 1000 3 stream 30000 && (($(counter ends_unfused) >= 6))' # left to TCP all the same
  ((left_out == 0))
  [ -z "$(service .)" ]
}

@test "a port that is excluded teaches nothing, and is counted as excluded" {
  load --exclude-port 5001
  "$TRAFFIC" visits 5001 1000 40 talk 1
  [ "$(counter ends_excluded)" -eq 80 ]
  [ "$(counter ends_no_gain)" -eq 0 ]
  [ -z "$(service .)" ]
}

# in_cgroup NAME COMMAND...: in place of this shell
in_cgroup() {
  # shellcheck disable=SC2016 # expanded inside
  exec bash -c 'echo $$ >"$1/cgroup.procs" && exec "${@:2}"' - "$CGROUP/$1" "${@:2}" 3>&-
}

# talk_to ADDRESS: 17 connections of three requests to a server at port 5001
talk_to() {
  for _ in {1..17}; do
    exec 4<>"/dev/tcp/$1/5001"
    for _ in {1..3}; do echo one >&4 && read -r -t 10 <&4; done
    exec 4>&-
  done
}
export -f talk_to

@test "with --net, connections to other hosts teach nothing of the same port on this one" {
  plain_address
  mkdir "$CGROUP/apart"
  load --net "$PLAIN_ADDRESS/32" --cgroup "$CGROUP/apart"
  "$TRAFFIC" server 5001 "$PLAIN_ADDRESS" 3>&- & # in no cgroup that is known: elsewhere
  BACKGROUND=$!
  wait_for 30 listens 5001
  (in_cgroup apart bash -c "talk_to $PLAIN_ADDRESS")
  counters
  [ "$(counter ends_tracked)" -eq 17 ]
  [ "$(counter ends_remote)" -eq 17 ]
  [ -z "$(service .)" ]
}

@test "an end whose peer is in no cgroup of the load teaches nothing, and one that accepts stays out" {
  mkdir "$CGROUP/apart"
  load --cgroup "$CGROUP/apart"
  "$TRAFFIC" server 5001 3>&- &
  BACKGROUND=$!
  wait_for 30 listens 5001
  (in_cgroup apart bash -c "talk_to 127.0.0.1")
  [ "$(counter ends_tracked)" -eq 17 ]
  [ -z "$(service .)" ]
  kill "$BACKGROUND"
  wait "$BACKGROUND" || true
  in_cgroup apart "$TRAFFIC" server 5001 &
  BACKGROUND=$!
  wait_for 30 listens 5001
  talk_to 127.0.0.1
  counters
  [ "$(counter ends_tracked)" -eq 17 ]
  [ "$(counter ends_remote)" -eq 17 ]
  [ -z "$(service .)" ]
  kill "$BACKGROUND"
  wait "$BACKGROUND" || true
  BACKGROUND=
}

@test "load.sh --reset-services forgets what connections taught and what the guard saw, not who may splice" {
  load
  learn
  remember "$ANYBODY" 2
  remember 65534 7
  run forget
  echo "$output"
  [ "$status" -eq 0 ]
  [ -z "$output" ]
  [ "$(status --json | jq -c '[.services, .guard.services | map(.reason)]')" = '[["may_splice"],["may_splice"]]' ]
  visits 1000 16 talk 1
  ((left_out == 0))
  run "$here/load.sh" --reset-services --port 80 3>&-
  [ "$status" -eq 2 ]
  [ "${lines[*]}" = "load.sh: --reset-services goes with --quiet alone; see: $here/load.sh --help" ]
  unload --quiet
  run "$here/load.sh" --reset-services 3>&-
  [ "$status" -eq 1 ]
  [ "${lines[*]}" = "load.sh: sockfuse is not loaded; try: $here/load.sh" ]
}

@test "loading again begins anew" {
  load
  learn
  load
  [ -z "$(service .)" ]
  visits 1000 16 talk 1
  ((left_out == 0))
}

@test "who fills the table makes a service forgotten that is not used, and it is learned anew" {
  load
  learn
  fill_services 60000
  [ -z "$(service .)" ]
  forget
  learn
}

@test "services of one connection each, however many, make nothing forgotten that was seen and is used" {
  load
  remember "$ANYBODY" 1
  "$TRAFFIC" visits 5001 1000 1 talk 10
  fill_services 60000 1
  [ "$(status --json | jq -c '[.guard.services[] | .reason]')" = '["splice"]' ]
}

@test "a service of which something was seen once is not forgotten for services of one connection each" {
  load
  "$TRAFFIC" half_close 1 1000 1
  [ "$(status --json | jq -c '[.guard.services[] | .reason]')" = '["interrupted"]' ]
  fill_services 60000 1
  [ "$(status --json | jq -c '[.guard.services[] | .reason]')" = '["interrupted"]' ]
}

# The client's message to a server that sleeps in send would be another reason.  Of the two ports
# one is the service's.
@test "the first reason that was seen of a service stays" {
  local port
  load
  open_steps
  BACKGROUND=$STEPS_PID
  step fill 20971520
  for port in $(ss -Htn state established | awk '{ sub(".*:", "", $3); print $3 }'); do
    remember 0 7 "$port"
  done
  step send 100
  [ "$(status --json | jq -c '[.guard.services[] | .reason]')" = '["may_splice","may_splice"]' ]
  step take 65536 320
  step read 100
}

@test "connections of which all messages go by TCP for a capture teach nothing" {
  local capture
  load
  "$here/trace_lo_traffic.sh" --all 5001 >"$BATS_TEST_TMPDIR/capture" 2>&1 3>&- &
  capture=$!
  wait_for 20 grep -q 'listening on lo' "$BATS_TEST_TMPDIR/capture"
  visits 1000 40 talk 10
  kill "$capture"
  wait "$capture"
  ((left_out == 0))
  [ "$(counter fused_messages)" -eq 0 ]
  [ -z "$(service .)" ]
}

@test "a service that was seen to do what differs is told with its reason, whatever its connections taught" {
  load
  visits 1000 3 talk 10
  remember "$ANYBODY" 1
  [ "$(ends '[.path, .reason, .gained]')" = '["tcp","splice",3]' ]
}

# Its place is another's, as after many later ones.
@test "a connection that has lost its place teaches nothing, and is still seen to be a stream" {
  local flows zeros
  load
  open_steps
  BACKGROUND=$STEPS_PID
  flows=$("$BPFTOOL" -j map show | jq -c 'last(.[] | select(.name == "fuse_flows")) | [.id, .bytes_value]')
  zeros=$(printf '0 %.0s' $(seq "$(jq '.[1]' <<<"$flows")"))
  "$BPFTOOL" -j map dump id "$(jq '.[0]' <<<"$flows")" | jq -r '.[] | select(.formatted.value.id > 0) | .key | join(" ")' |
    while read -r key; do
      # shellcheck disable=SC2086 # bytes
      "$BPFTOOL" map update id "$(jq '.[0]' <<<"$flows")" key $key value $zeros
    done
  left() {
    step pace 64 5000
    sleep 0.2
    step pace 64
    (($(counter ends_unfused) == 2))
  }
  wait_for 60 left
  [ "$(status --json | jq -c .services)" = "[]" ]
}
