#!/usr/bin/env bats
# Programs that splice from their sockets, where no guard keeps them from it.

load helpers

teardown() {
  local pid
  for pid in ${SERVERS-}; do
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  unload --quiet
  umount "$here/lib/splicers" 2>/dev/null || true
  assert_nothing_left
}

# serve PORT COMMAND...: in the background, until it listens there
serve() {
  local port=$1
  shift
  "$@" >/dev/null 2>&1 3>&- </dev/null &
  SERVERS="${SERVERS-} $!"
  wait_for 30 listens "$port"
}

nothing_fused() {
  counters
  [ "$(counter ends_tracked)" -eq 0 ]
  (($("$here/status.sh" --json 3>&- | jq .counters.fallback.may_splice) > 0))
}

# through: a little and much, there and back through the proxy at port 7100
through() {
  local size
  for size in 500 900000; do
    timeout 60 "$TRAFFIC" through 8080 7100 20 "$size"
  done
}

# on_and_before PROXY...: a proxy at port 7100 of which the connections stay whole, whether it
# listened before the load or not
on_and_before() {
  load
  serve 7100 "$@"
  through
  nothing_fused
  load
  through
  nothing_fused
}

@test "a program with Go's signal handlers that splices gets every byte, without the guard" {
  on_and_before "$TRAFFIC" proxy 7100 8080 go
}

@test "a program named in the list that splices gets every byte, without the guard" {
  cp "$TRAFFIC" "$BATS_TEST_TMPDIR/haproxy"
  on_and_before "$BATS_TEST_TMPDIR/haproxy" proxy 7100 8080
}

@test "systemd-socket-proxyd, activated by its socket, delivers every byte, without the guard" {
  local proxyd=/lib/systemd/systemd-socket-proxyd
  [[ -x $proxyd ]] && command -v systemd-socket-activate >/dev/null || skip "no systemd-socket-proxyd here"
  on_and_before systemd-socket-activate -l 127.0.0.1:7100 "$proxyd" 127.0.0.1:8080
}

@test "a name with spaces and quotes is a name" {
  local name="a \"b' 1"
  cp "$TRAFFIC" "$BATS_TEST_TMPDIR/$name"
  { cat "$here/lib/splicers" && echo "$name"; } >"$BATS_TEST_TMPDIR/splicers"
  mount --bind "$BATS_TEST_TMPDIR/splicers" "$here/lib/splicers"
  on_and_before "$BATS_TEST_TMPDIR/$name" proxy 7100 8080
}

@test "nobody makes sockfuse forget a service from before the load" {
  serve 7100 "$TRAFFIC" proxy 7100 8080 go
  load
  fill_services 60000
  through
  counters
  [ "$(counter fused_messages)" -eq 0 ]
}

@test "a connection from before the load of a program that splices is not adopted" {
  local client answer
  can_adopt || skip "this kernel cannot adopt"
  serve 8080 "$TRAFFIC" server 8080
  serve 7100 "$TRAFFIC" proxy 7100 8080 go
  exec {client}<>/dev/tcp/127.0.0.1/7100
  echo one >&"$client"
  read -r -t 10 answer <&"$client"
  load --adopt
  [ "$(counter ends_tracked)" -eq 0 ]
  echo two >&"$client"
  read -r -t 10 answer <&"$client"
  [ "$answer" = two ]
  exec {client}>&-
}

@test "with --no-guard who may splice is fused like all others" {
  load --no-guard
  serve 7100 "$TRAFFIC" proxy 7100 8080 go
  "$TRAFFIC" echo 127.0.0.1 127.0.0.1 1000
  counters
  [ "$(counter ends_may_splice)" -eq 0 ]
  [ "$(counter fused_bytes)" -eq 2000 ]
}

@test "a port that another program listens on now is fused again" {
  load
  serve 7100 "$TRAFFIC" proxy 7100 8080 go
  kill "${SERVERS##* }"
  wait "${SERVERS##* }" || true
  iperf3 -s -1 -p 7100 >/dev/null 2>&1 3>&- &
  wait_for 30 listens 7100
  iperf3 -c 127.0.0.1 -p 7100 -n 10M >/dev/null
  counters
  (($(counter fused_messages) > 0))
}

@test "a program that listens at another address of the port makes the service forgotten for one connection" {
  load
  serve 7100 "$TRAFFIC" proxy 7100 8080 go
  iperf3 -s -B 127.0.0.2 -p 7100 >/dev/null 2>&1 3>&- &
  SERVERS+=" $!"
  wait_for 30 eval '[ "$(ss -Hltn "sport = :7100" | wc -l)" -eq 2 ]'
  through
  counters
  (($(counter ends_tracked) <= 1))
}

@test "load.sh --quiet says in one line of stderr that there is no guard, and what that leaves out" {
  "$here/load.sh" --quiet 3>&- 2>"$BATS_TEST_TMPDIR/errors" >"$BATS_TEST_TMPDIR/output"
  cat "$BATS_TEST_TMPDIR/errors"
  [ ! -s "$BATS_TEST_TMPDIR/output" ]
  if [[ -e $BPFFS/sockfuse/guard ]]; then
    [ ! -s "$BATS_TEST_TMPDIR/errors" ]
  else
    [ "$(wc -l <"$BATS_TEST_TMPDIR/errors")" -eq 1 ]
    grep -q "no guard here (.*): Go programs and those named in" "$BATS_TEST_TMPDIR/errors"
  fi
  load --no-guard
}

@test "load.sh --check names the programs that run here and may splice" {
  cp "$(command -v sleep)" "$BATS_TEST_TMPDIR/haproxy"
  "$BATS_TEST_TMPDIR/haproxy" 60 3>&- &
  run "$here/load.sh" --check 3>&-
  kill $!
  echo "$output"
  if [[ $output != *"ok       guard"* ]]; then # else splice is refused
    [[ $output == *"reduced  guard"*"stay plain TCP (here now: "*haproxy* ]]
  fi
}
