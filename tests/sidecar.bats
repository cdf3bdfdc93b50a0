#!/usr/bin/env bats
# load.sh --sidecar: connections of a cgroup go to a proxy in their network namespace,
# which learns where they wanted to go.

load helpers

NETS=$here/tests/nets
ROOT=$here/tests/apps/root
POD=$CGROUP/pod
PROXY_UID=1337

setup_file() {
  ip netns add pod
  ip netns add server
  ip link add eth0 netns pod type veth peer name eth0 netns server
  ip -n pod address add 10.244.0.1/24 dev eth0
  ip -n server address add 10.244.0.2/24 dev eth0
  ip -n pod address add fd00:244::1/64 dev eth0 nodad
  ip -n server address add fd00:244::2/64 dev eth0 nodad
  for ns in pod server; do
    ip -n "$ns" link set lo up
    ip -n "$ns" link set eth0 up
  done
  printf '127.0.0.1 localhost\n10.244.0.2 four.example\nfd00:244::2 six.example\n' >"$BATS_FILE_TMPDIR/hosts"
  mount --bind "$BATS_FILE_TMPDIR/hosts" /etc/hosts
  [[ ! -e $ROOT/.complete ]] || start_nginx
}

# In the server's namespace, for both families
start_nginx() {
  cat >"$ROOT/tmp/nginx-sidecar.conf" <<END
worker_processes 1;
pid /tmp/nginx-sidecar.pid;
error_log /dev/null;
daemon off;
events { worker_connections 4096; }
http {
  access_log off;
  server {
    listen 8080;
    listen [::]:8080;
    location / { return 200 "hello\n"; }
  }
}
END
  ip netns exec server chroot "$ROOT" nginx -c /tmp/nginx-sidecar.conf >/dev/null 2>&1 </dev/null 3>&- &
  wait_for 30 ip netns exec server bash -c 'ss -Hltn "sport = :8080" | grep -q .'
}

teardown_file() {
  [[ ! -e $ROOT/tmp/nginx-sidecar.pid ]] || kill "$(cat "$ROOT/tmp/nginx-sidecar.pid")" || true
  umount /etc/hosts || true
  ip netns delete pod || true
  ip netns delete server || true
}

setup() {
  [[ -e $ROOT/.complete ]] || skip "no Debian root, see tests/debian.sh"
  mkdir -p "$POD"
}

teardown() {
  [[ -d $POD ]] || return 0 # skipped
  echo 1 >"$POD/cgroup.kill"
  unload --quiet
  wait_for 30 rmdir "$POD" 2>/dev/null
  assert_nothing_left
}

# in_pod COMMAND...: in the pod's cgroup and namespace
in_pod() { (echo "$BASHPID" >"$POD/cgroup.procs" && exec ip netns exec pod "$@") 3>&-; }

sidecar() { load --cgroup "$POD" --net 10.244.0.0/16 --net fd00:244::/32 --sidecar 15001 --sidecar-uid "$PROXY_UID" "$@"; }

start_proxy() {
  in_pod "$NETS" proxy 15001 "$PROXY_UID" >"$BATS_TEST_TMPDIR/proxy" 2>&1 &
  wait_for 30 grep -q listening "$BATS_TEST_TMPDIR/proxy"
}

@test "connections of the cgroup go to the proxy, which learns the destination; getpeername tells it, too; reloaded under it" {
  start_proxy
  sidecar
  for turn in 1 2; do
    [[ $(in_pod "$NETS" peername 10.244.0.2 8080 </dev/null) == "peer 10.244.0.2 8080"* ]]
    [[ $(in_pod "$NETS" peername fd00:244::2 8080 </dev/null) == "peer fd00:244::2 8080"* ]]
    [[ $(in_pod "$NETS" peername ::ffff:10.244.0.2 8080 </dev/null) == "peer ::ffff:10.244.0.2 8080"* ]]
    sidecar --quiet
  done
  cat "$BATS_TEST_TMPDIR/proxy"
  [ "$(grep -c '^to 10.244.0.2 8080$' "$BATS_TEST_TMPDIR/proxy")" -eq 4 ]
  [ "$(grep -c '^to fd00:244::2 8080$' "$BATS_TEST_TMPDIR/proxy")" -eq 2 ]
  # not of others, nor to loopback, nor once it is off
  ip netns exec pod "$NETS" peername 10.244.0.2 8080
  run in_pod "$NETS" peername 127.0.0.1 9
  [ "$status" -ne 0 ]
  "$here/status.sh" --json | jq -r .load_command | grep -F -- "--sidecar 15001 --sidecar-uid $PROXY_UID"
  unload --quiet
  in_pod "$NETS" peername 10.244.0.2 8080
  [ "$(grep -c '^to ' "$BATS_TEST_TMPDIR/proxy")" -eq 6 ]
}

@test "10,000 connections of curl through the proxy, by name and by address, IPv4 and IPv6: each where it wanted to go" {
  local i
  start_proxy
  sidecar --port 1-65535
  for i in {1..2500}; do
    printf 'url = http://%s:8080/\noutput = /dev/null\n' four.example six.example 10.244.0.2 '[fd00:244::2]'
  done >"$BATS_TEST_TMPDIR/urls"
  in_pod curl -s --fail -H 'Connection: close' -w '%{http_code} %{remote_ip}\n' -K "$BATS_TEST_TMPDIR/urls" >"$BATS_TEST_TMPDIR/answers"
  sort "$BATS_TEST_TMPDIR/answers" | uniq -c
  sort "$BATS_TEST_TMPDIR/proxy" | uniq -c
  counters
  [ "$(grep -c '^200 10.244.0.2$' "$BATS_TEST_TMPDIR/answers")" -eq 5000 ]
  [ "$(grep -c '^200 fd00:244::2$' "$BATS_TEST_TMPDIR/answers")" -eq 5000 ]
  [ "$(grep -c '^to 10.244.0.2 8080$' "$BATS_TEST_TMPDIR/proxy")" -eq 5000 ]
  [ "$(grep -c '^to fd00:244::2 8080$' "$BATS_TEST_TMPDIR/proxy")" -eq 5000 ]
  # both ends of curl's leg are in the cgroup: fused
  (($(counter fused_messages) > 10000))
}

@test "HAProxy as a transparent proxy (examples/haproxy-sidecar.cfg)" {
  local uid
  uid=$(chroot "$ROOT" id -u haproxy)
  cp "$here/examples/haproxy-sidecar.cfg" "$ROOT/tmp/haproxy-sidecar.cfg"
  in_pod chroot "$ROOT" haproxy -f /tmp/haproxy-sidecar.cfg >"$BATS_TEST_TMPDIR/haproxy" 2>&1 &
  wait_for 30 ip netns exec pod bash -c 'ss -Hltn "sport = :15001" | grep -q .'
  load_always --no-guard --cgroup "$POD" --net 10.244.0.0/16 --sidecar 15001 --sidecar-uid "$uid"
  for _ in {1..50}; do
    in_pod curl -s --fail http://10.244.0.2:8080/ http://10.244.0.2:8080/ | uniq -c | grep -q '2 hello'
  done
  counters
  (($(counter fused_messages) >= 200))
  [ "$(grep -c '^to 10.244.0.2:8080$' "$BATS_TEST_TMPDIR/haproxy")" -eq 50 ]
}

@test "a sidecar without a cgroup, or without a way to tell the proxy: one line, exit 2" {
  local options
  for options in "--sidecar 15001 --sidecar-uid 1" "--cgroup $POD --sidecar 15001" "--cgroup $POD --sidecar 70000 --sidecar-uid 1" \
    "--cgroup $POD --sidecar-mark 1" "--cgroup $POD --sidecar 1 --sidecar-mark x"; do
    # shellcheck disable=SC2086 # several words
    run "$here/load.sh" --quiet $options 3>&-
    echo "$options: $status: $output"
    [ "$status" -eq 2 ]
    [ "${#lines[@]}" -eq 1 ]
  done
}
