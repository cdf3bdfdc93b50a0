#!/usr/bin/env bats
# Services teach: what gains nothing is left on TCP, and is tried again; what gains is not.

load helpers

teardown() {
  [[ ! ${BACKGROUND-} ]] || kill "$BACKGROUND" 2>/dev/null || true
  unload --quiet
  ip netns del other 2>/dev/null || true
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
  ((tracked % 2 == 0 && left_out % 2 == 0 && (tracked + left_out) / 2 == $2))
  tracked=$((tracked / 2)) left_out=$((left_out / 2))
}

# ends FILTER: of user 1000's connections
ends() { service "select(.user == 1000) | $1"; }

@test "of a service whose connections are short the first 16 are fused, and then none, at either end" {
  load
  visits 1000 16 talk 1
  ((tracked == 16))
  [ "$(ends '[.path, .reason, .connections, .short, .gained]')" = '["tcp","short",16,16,0]' ]
  visits 1000 40 talk 1
  ((tracked == 0))
  status | grep -qE '^ *5001 +1000 +16 +0 % +tcp: short +20'
}

@test "connections that say nothing are short, too" {
  load
  visits 1000 17 talk 0
  ((tracked == 16))
}

@test "connections of four requests and more gain, and all of them are fused" {
  load
  visits 1000 50 talk 4
  ((left_out == 0))
  [ "$(ends '[.path, .reason, .connections, .gained]')" = '["fused",null,50,50]' ]
  visits 1000 17 talk 3
  ((tracked == 16))
}

@test "16 have to be short in a row" {
  load
  for _ in {1..4}; do
    visits 1000 15 talk 1
    visits 1000 1 talk 10
    ((left_out == 0))
  done
  [ "$(ends '[.connections, .short, .gained]')" = '[64,60,4]' ]
}

@test "every 64th connection of a service that is left out is tried, and for as long as that is short no other" {
  load
  visits 1000 16 talk 1
  visits 1000 640 talk 1
  ((tracked == 10))
}

@test "the first one that gains brings the service back, before it has closed" {
  load
  visits 1000 16 talk 1
  visits 1000 63 talk 10
  ((tracked == 0))
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
  visits 1000 20 talk 1
  ((left_out == 4))
  visits 65534 16 talk 1
  ((left_out == 0))
  visits 0 16 talk 1
  ((left_out == 0))
}

@test "the same port of another network namespace is another service" {
  load
  visits 1000 20 talk 1
  ((left_out == 4))
  ip netns add other
  ip -n other link set lo up
  ip netns exec other "$TRAFFIC" visits 5001 1000 16 talk 1
  [ "$(counter ends_no_gain)" -eq 8 ]
  [ "$(ends .connections | paste -sd ' ')" = "16 16" ]
  [[ $(status) == *" since "*" netns"* ]]
}

@test "bulk gains, whichever end sends it" {
  local how
  load
  for how in upload download; do
    visits 1000 20 "$how" 10
    ((left_out == 0))
  done
  [ "$(ends '[.connections, .gained]')" = "[40,40]" ]
}

@test "a stream of small writes is recognized within 64 messages, and after the second one the service is left out" {
  load
  visits 1000 2 stream 1000
  ((tracked == 2))
  counters
  (($(counter fused_messages) <= 128))
  (($(counter ends_unfused) == 4))
  [ "$(ends '[.path, .reason, .connections, .stream, .short]')" = '["tcp","stream",2,2,0]' ]
  visits 1000 10 stream 1000
  ((tracked == 0))
}

@test "one-way messages with pauses are no stream" {
  load
  visits 1000 1 slow 300
  [ "$(counter fused_messages)" -eq 300 ]
  [ "$(counter ends_unfused)" -eq 0 ]
}

@test "a dialogue is no stream: not with 60 messages one way, nor with as many as it has had turns" {
  load
  open_steps
  BACKGROUND=$STEPS_PID
  for _ in {1..10}; do
    step pace 64 60
    step talk 64
  done
  step talk 64 200
  step pace 64 300
  sleep 0.2
  step talk 64
  counters
  [ "$(counter ends_unfused)" -eq 0 ]
  for _ in {1..10}; do # unless others have the processor
    step pace 64 500
    sleep 0.2
    step talk 64
    (($(counter ends_unfused) == 0)) || break
  done
  [ "$(counter ends_unfused)" -eq 2 ]
  [ "$(status --json | jq -c '.services[0] | [.gained, .stream]')" = "[1,0]" ] # counted once
}

@test "files gain nothing, though what asks for them is fused" {
  load
  visits 1000 16 files 20
  [ "$(ends '[.path, .reason, .gained]')" = '["tcp","short",0]' ]
  "$here/load.sh" --reset-services --quiet 3>&-
  visits 1000 3 files 100
  ((tracked == 2))
  [ "$(ends '[.path, .reason, .files]')" = '["tcp","files",2]' ]
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

@test "with --port its services are always fused, and nothing is learned of them" {
  load --port 5001
  visits 1000 40 talk 1
  ((left_out == 0))
  visits 1000 3 stream 300
  ((left_out == 0))
  [ -z "$(service .)" ]
  (($(counter ends_unfused) == 6)) # the stream's connections are left to TCP all the same
}

@test "with --net, connections to other hosts teach nothing of the same port on this one" {
  plain_address
  mkdir "$CGROUP/here"
  load --net "$PLAIN_ADDRESS/32" --cgroup "$CGROUP/here"
  "$TRAFFIC" server 5001 "$PLAIN_ADDRESS" 3>&- & # in no cgroup that is known: elsewhere
  BACKGROUND=$!
  wait_for 30 listens 5001
  # shellcheck disable=SC2016 # expanded inside
  bash -c 'echo $$ >"$1/cgroup.procs"
    for _ in {1..17}; do
      exec 4<>"/dev/tcp/$2/5001"
      for _ in {1..3}; do echo one >&4 && read -r -t 10 <&4; done
      exec 4>&-
    done' - "$CGROUP/here" "$PLAIN_ADDRESS" 3>&-
  counters
  [ "$(counter ends_tracked)" -eq 17 ]
  [ "$(counter ends_remote)" -eq 17 ]
  [ -z "$(service .)" ]
  kill "$BACKGROUND"
  wait "$BACKGROUND" || true
  BACKGROUND=
  unload --quiet
  rmdir "$CGROUP/here"
}

@test "load.sh --reset-services forgets what connections taught and what the guard saw, not who may splice" {
  load
  visits 1000 20 talk 1
  remember ff ff ff ff value hex 2
  remember fe ff 0 0 value hex 6
  [ "$(service .user | wc -l)" -eq 3 ]
  run "$here/load.sh" --reset-services 3>&-
  echo "$output"
  [ "$status" -eq 0 ]
  [ "${#lines[@]}" -eq 1 ]
  [ "$(service .reason)" = '"may_splice"' ]
  visits 1000 16 talk 1
  ((left_out == 0))
  unload --quiet
  run "$here/load.sh" --reset-services 3>&-
  [ "$status" -eq 1 ]
  [ "${lines[*]}" = "load.sh: sockfuse is not loaded; try: $here/load.sh" ]
}

@test "loading again begins anew" {
  load
  visits 1000 20 talk 1
  load
  [ -z "$(service .)" ]
  visits 1000 16 talk 1
  ((left_out == 0))
}

@test "who fills the table makes a service forgotten that is not used, and it is learned anew" {
  load
  visits 1000 17 talk 1
  fill_services 60000
  [ -z "$(service .)" ]
  visits 1000 17 talk 1
  ((tracked == 16))
}

# Its place is another's, as after some thousand later ones.
@test "a connection that has lost its place teaches nothing, and is still seen to be a stream" {
  local flows
  load
  open_steps
  BACKGROUND=$STEPS_PID
  flows=$("$BPFTOOL" -j map show | jq 'last(.[] | select(.name == "fuse_flows")).id')
  "$BPFTOOL" -j map dump id "$flows" | jq -r '.[] | select(.formatted.value.id > 0) | .key | join(" ")' |
    while read -r key; do
      # shellcheck disable=SC2086 # bytes
      "$BPFTOOL" map update id "$flows" key $key value "${RECORD[@]}" 0 0 0 0 0 0 0 0 0
    done
  left() {
    step pace 64 300
    sleep 0.2
    step pace 64
    (($(counter ends_unfused) == 2))
  }
  wait_for 30 left
  [ "$(status --json | jq -c .services)" = "[]" ]
}
