#!/usr/bin/env bats
# bpf_guard.bpf.c, in a machine whose kernel takes it (make guardcheck).

load ../helpers

# A machine without hardware makes random bytes slowly: 17 MB of them, again and again.
files() {
  local _
  [[ ! -e /tmp/www/huge ]] || return 0
  mkdir -p /tmp/www
  head -c 1000 /dev/urandom >/tmp/www/small
  head -c 17000000 /dev/urandom >/tmp/part
  for _ in {1..60}; do cat /tmp/part; done >/tmp/www/huge
  cat >/tmp/nginx.conf <<'END'
user root; worker_processes 2; pid /tmp/nginx.pid; error_log stderr; daemon off;
events {}
http { access_log off; sendfile on; keepalive_requests 100000; server { listen 8080; root /tmp/www; } }
END
  cat >/tmp/haproxy.conf <<'END'
global
  maxconn 2000
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option splice-auto
listen plain
  bind 127.0.0.1:8090
  server nginx 127.0.0.1:8080
END
}

teardown() {
  local pid
  for pid in ${SERVERS-}; do
    kill "$pid" 2>/dev/null || true
  done
  wait
  unload --quiet
  assert_nothing_left
  [ -z "$("$BPFTOOL" link show)" ]
}

# serve PORT COMMAND...: in the background, until it listens there
serve() {
  local port=$1
  shift
  "$@" >"$BATS_TEST_TMPDIR/server.$port" 2>&1 3>&- </dev/null &
  SERVERS="${SERVERS-} $!"
  wait_for 20 listens "$port" || { cat "$BATS_TEST_TMPDIR/server.$port" && return 1; }
}

# The links of the guard's programs, that of the iterator apart.
guard_links() { "$BPFTOOL" -j link show | jq '[.[] | select(.type == "tracing")] | length'; }

no_marks() { [ -z "$("$BPFTOOL" -j map dump pinned "$BPFFS/sockfuse/fuse_marks" | jq -r '.[]')" ]; }

# guarded: "PORT USER REASON" of each service that is remembered
guarded() {
  "$BPFTOOL" -j map dump pinned "$BPFFS/sockfuse/fuse_services" |
    jq -r '.[].formatted | select(.value.reason > 0) | "\(.key.port) \(.key.user) \(.value.reason)"'
}

# proxied PORT: 1 GB and 10,000 short connections
proxied() {
  curl -sSf --max-time 600 "http://127.0.0.1:$1/small" | cmp - /tmp/www/small # the first connection
  curl -sSf --max-time 600 "http://127.0.0.1:$1/huge" | cmp - /tmp/www/huge
  curl -sSf --max-time 600 -H 'Connection: close' "http://127.0.0.1:$1/small?[1-10000]" >/tmp/all
  yes /tmp/www/small | head -n 10000 | xargs cat | cmp - /tmp/all
}

@test "where nothing may be mounted a load goes on with the guard, and says in one line what is not known" {
  mkdir "$BATS_TEST_TMPDIR/bin"
  printf '#!/bin/sh\necho "unshare: unshare failed: Operation not permitted" >&2\nexit 1\n' >"$BATS_TEST_TMPDIR/bin/unshare"
  chmod +x "$BATS_TEST_TMPDIR/bin/unshare"
  PATH=$BATS_TEST_TMPDIR/bin:$PATH "$here/load.sh" --quiet 3>&- 2>"$BATS_TEST_TMPDIR/errors"
  cat "$BATS_TEST_TMPDIR/errors"
  [ -e "$BPFFS/sockfuse/guard" ]
  [ "$(wc -l <"$BATS_TEST_TMPDIR/errors")" -eq 1 ]
  grep -q 'of the list splicers that run already are not known .*Operation not permitted' "$BATS_TEST_TMPDIR/errors"
  assert_on
}

@test "the guard is attached by load.sh, left out by --no-guard, replaced by a second load" {
  load
  [ "$(guard_links)" -eq 6 ]
  load
  [ "$(guard_links)" -eq 6 ]
  load --no-guard
  [ "$(guard_links)" -eq 0 ]
}

@test "status.sh: the guard, what it has learned, a link of it that is missing, and the connections" {
  local json
  run "$here/load.sh" 3>&-
  [[ $output != *"lists no connections"* ]]
  "$TRAFFIC" waitall
  "$TRAFFIC" hold 2 600 >/dev/null 3>&- &
  SERVERS=$!
  four() { [ "$("$here/status.sh" --json 3>&- | jq .map.entries)" -eq 4 ]; }
  wait_for 200 four
  json=$("$here/status.sh" --json 3>&-)
  echo "$json"
  [ "$(jq -c '[.damage, .guard.loaded, .guard.services[0].reason]' <<<"$json")" = '[[],true,"recv_flags"]' ]
  [ "$(jq -c '[.connections[] | .path, .backlog_bytes] | unique' <<<"$json")" = '[0,"fused"]' ]
  kill "$SERVERS"
  rm "$BPFFS/sockfuse/guard/guard_splice"
  run "$here/status.sh" 3>&-
  echo "$output"
  [ "$status" -eq 4 ]
  [ "${lines[0]}" = "damaged: $BPFFS/sockfuse/guard/guard_splice is missing; try: $here/load.sh" ]
  load
  "$here/status.sh" 3>&-
  [ "$(guard_links)" -eq 6 ]
}

@test "a load that is killed while it attaches the guard: unload leaves nothing, the next load is whole" {
  local victim
  load
  "$here/load.sh" --quiet 3>&- &
  victim=$!
  wait_for 120 test -e "$BPFFS/sockfuse/staging/guard"
  kill -KILL "$victim"
  wait "$victim" || true
  unload --quiet
  assert_nothing_left
  [ -z "$("$BPFTOOL" link show)" ]
  load
  [ "$(guard_links)" -eq 6 ]
}

@test "a service that reads with MSG_WAITALL is remembered, and its next connection is plain TCP" {
  local before
  load
  "$TRAFFIC" waitall
  echo "guarded: $(guarded)"
  [[ $(guarded) == *" 2" ]]
  # Loading again clears the list.
  load
  [ -z "$(guarded)" ]
}

# flagged UID END: what moved in a connection to port 5001, "GUARDED FUSED"
flagged() {
  local before
  before=$(counters)
  "$TRAFFIC" flagged 5001 "$@"
  echo "$(($(counter ends_guarded) - $(counter ends_guarded "$before"))) $(($(counter fused_messages) - $(counter fused_messages "$before")))"
}

@test "what a connection from before a second load does is seen and learned, too" {
  load
  open_steps
  SERVERS=$STEPS_PID
  step pace 10 3
  load
  step send 10
  step waitall 10
  guarded
  [[ $(guarded) == *" 2"* ]]
}

@test "a client that reads with MSG_WAITALL changes its own user's next connections, a server that does everybody's" {
  load
  [ "$(flagged 65534 client)" = "0 2" ]
  [ "$(guarded)" = "5001 65534 2" ]
  [ "$(flagged 65534 none)" = "2 0" ]
  [ "$(flagged 1000 none)" = "0 2" ]
  [ "$(flagged 1000 server)" = "0 2" ]
  [ "$(guarded | sort)" = "5001 4294967295 2
5001 65534 2" ]
  [ "$(flagged 0 none)" = "2 0" ]
}

@test "no room for what is seen of a socket: messages go by TCP" {
  local key
  load --max-connections 2
  for key in {1..8}; do
    "$BPFTOOL" map update pinned "$BPFFS/sockfuse/fuse_marks" key 0 0 0 0 0 0 0 "$key" value 0 0 0 0 0 0 0 0
  done
  "$TRAFFIC" flagged 5001 65534 client
  [ "$(counter tcp_guarded)" -gt 0 ]
  "$TRAFFIC" flagged 5002 65534 none
  [ "$(counter tcp_guarded)" -ge 3 ]
}

@test "the marks of a socket go when it closes, is reset or is no longer in the map" {
  load
  "$TRAFFIC" flagged 5001 0 client
  "$TRAFFIC" flagged 5002 0 server
  wait_for 10 no_marks
}

# Refused once, remembered, and the next connection is TCP's.
@test "splice by a program of 32 bits, by sendfile into a pipe and by io_uring is refused, and learned" {
  local how
  load
  for how in call sendfile ia32 uring; do
    run "$TRAFFIC" splice "$how"
    echo "$how: $output; guarded: $(guarded)"
    [ "$output" = "first=-22 second=100" ]
  done
  [ "$(guarded | grep -c ' 1$')" -eq 4 ]
}

@test "a read by a worker of io_uring is no splice: fused, and nothing is learned" {
  load
  run "$TRAFFIC" splice uring_read
  echo "$output; guarded: $(guarded); $(counters)"
  [ "$output" = "first=100 second=100" ]
  [ -z "$(guarded)" ]
  [ "$(counter fused_messages)" -eq 2 ]
}

@test "nothing is fused past a reader that is on its way to TCP's bytes, which another has taken" {
  load
  "$BPFTOOL" prog loadall "$here/tests/late.bpf.o" "$BPFFS/late" autoattach
  run "$TRAFFIC" late
  rm -r "$BPFFS/late"
  echo "$output; $(counters)"
  [ "$output" = "late=6" ]
  (($(counter tcp_blocked_reader) > 0))
}

@test "a named program stays plain TCP" {
  local size
  load
  cp "$TRAFFIC" "$BATS_TEST_TMPDIR/pasta"
  serve 7100 "$BATS_TEST_TMPDIR/pasta" proxy 7100 8080
  for size in 500 900000; do
    timeout 120 "$TRAFFIC" through 8080 7100 20 "$size"
  done
  counters
  (($(counter ends_tracked) == 0 && $(counter ends_may_splice) > 0))
}

@test "HAProxy with splice: 1 GB and 10,000 short connections, plain TCP" {
  files
  load
  serve 8080 nginx -c /tmp/nginx.conf
  serve 8090 haproxy -f /tmp/haproxy.conf
  proxied 8090
  (($(counter ends_tracked) == 0 && $(counter ends_may_splice) >= 20000))
}

@test "a Go proxy with io.Copy: 1 GB and 10,000 short connections, from the first connection on" {
  files
  load
  serve 8080 nginx -c /tmp/nginx.conf
  serve 7100 "$here/tests/vm/proxy" 127.0.0.1:7100 127.0.0.1:8080
  proxied 7100
  [[ $(guarded) == *" 1"* ]]
}

@test "--adopt: what a Go proxy splices already stays TCP, and its next connections are fused" {
  local client tracked
  files
  serve 8080 nginx -c /tmp/nginx.conf
  serve 7100 "$here/tests/vm/proxy" 127.0.0.1:7100 127.0.0.1:8080
  (curl -sSf --limit-rate 100M --max-time 600 "http://127.0.0.1:7100/huge" | cmp - /tmp/www/huge) 3>&- &
  client=$!
  sleep 2
  load --adopt
  kill -0 "$client" # not over yet
  wait "$client"
  [ -z "$(guarded)" ]
  tracked=$(counter ends_tracked)
  curl -sSf "http://127.0.0.1:7100/small" | cmp - /tmp/www/small
  (($(counter ends_tracked) > tracked))
}

@test "an end that sends or receives with kTLS: its peer's TCP reader never gets plaintext" {
  run "$TRAFFIC" ktls
  echo "plain TCP: $output"
  [ "$output" = "at_once=3 later=3" ]
  load
  run "$TRAFFIC" ktls
  echo "$output"
  [ "$status" -eq 0 ]
  (($(counter fused_messages) > 0))
  # The kernel refuses it to a socket in a map, so the next one stays out.
  [ "$(value later)" -eq 3 ]
}

@test "--careful: fused only for readers that were seen to read without waiting" {
  load --careful
  "$TRAFFIC" echo 127.0.0.1 127.0.0.1 1000
  (($(counter tcp_guarded) >= 2 && $(counter fused_bytes) == 0))
  files
  serve 8080 nginx -c /tmp/nginx.conf
  curl -sSf "http://127.0.0.1:8080/small?[1-20]" | wc -c # two that wait in epoll and poll
  (($(counter fused_bytes) >= 15000))
  # Whoever has left the map or closed is forgotten.
  pkill nginx
  wait_for 10 no_marks
}
