#!/usr/bin/env bats
# Real applications, each doing its own kind of work fused.  They run in a
# Debian of their own, tests/apps/root.

load helpers

ROOT=$here/tests/apps/root
POSTGRES=/usr/lib/postgresql/15/bin

setup_file() {
  [[ -e $ROOT/.complete ]] || return 0
  mount -t proc proc "$ROOT/proc"
  mount --rbind /dev "$ROOT/dev"
  mount -t tmpfs tmpfs "$ROOT/tmp"
  mount -t tmpfs tmpfs "$ROOT/run"
  chmod 1777 "$ROOT/tmp"
  mkdir "$ROOT/tmp/www" "$ROOT/tmp/put" "$ROOT/run/sshd"
  cp "$here"/tests/apps/{proxy.go,Echo.java,echo.js} "$ROOT/tmp"
  head -c 1000 /dev/urandom >"$ROOT/tmp/www/small"
  head -c 100000 /dev/urandom >"$ROOT/tmp/www/middle"
  head -c 30000000 /dev/urandom >"$ROOT/tmp/www/large"
  chmod -R a+rwX "$ROOT/tmp/www" "$ROOT/tmp/put"
  nginx_configuration >"$ROOT/tmp/nginx.conf"
}

setup() {
  [[ -e $ROOT/.complete ]] || skip "no Debian root for the applications, see tests/debian.sh"
}

# Servers that the test started end with it, and those that they started.
teardown() {
  local pid
  for pid in $(ls -1 /proc | grep -E '^[0-9]+$'); do
    [[ $(readlink "/proc/$pid/root") != "$ROOT" ]] || kill -9 "$pid" 2>/dev/null || true
  done
  [[ ! ${PASTA-} ]] || kill "$PASTA" 2>/dev/null || true
  wait
  unload --quiet
  ip netns del inner 2>/dev/null || true
  ip link del outside 2>/dev/null || true
}

app() {
  timeout "${APP_SECONDS:-120}" chroot "$ROOT" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C.UTF-8 "$@"
}

# serve PORT COMMAND...: in the background, until it listens there
serve() {
  local port=$1
  shift
  app "$@" >"$BATS_TEST_TMPDIR/server.$port" 2>&1 3>&- </dev/null &
  wait_for 30 listens "$port" || { cat "$BATS_TEST_TMPDIR/server.$port" && return 1; }
}

same() { cmp "$ROOT$1" "$ROOT$2"; }

# fused BYTES: so many at the least, or the test was of plain TCP.  How many more
# is up to the machine: a stream that its reader once fell behind of may stay
# on TCP to its end, and one of small writes does.
fused() {
  counters
  (($(counter fused_bytes) >= $1))
}

nginx_configuration() {
  cat <<'END'
worker_processes 2; user root; pid /tmp/nginx.pid; error_log stderr; daemon off;
events { worker_connections 1024; }
http {
  access_log off; client_max_body_size 0; sendfile on; keepalive_requests 100000;
  client_body_temp_path /tmp/t1; proxy_temp_path /tmp/t2; fastcgi_temp_path /tmp/t3; uwsgi_temp_path /tmp/t4; scgi_temp_path /tmp/t5;
  server { listen 8080; root /tmp/www; location /put/ { root /tmp; dav_methods PUT; } }
  server { listen 127.0.0.1:8081; location / { proxy_pass http://127.0.0.1:8080; proxy_http_version 1.1; proxy_request_buffering off; } }
}
END
}

go_proxy() {
  [[ -e $ROOT/tmp/proxy ]] || app env GOCACHE=/tmp/go GO111MODULE=off CGO_ENABLED=0 go build -o /tmp/proxy /tmp/proxy.go ||
    cp "$here/tests/vm/proxy" "$ROOT/tmp" # no Go there: make guardcheck
}

nginx() { serve 8080 nginx -c /tmp/nginx.conf; }

# Sets address, where a service that load.sh excludes is on plain TCP.  A
# sockfuse that is on in a cgroup above knows nothing of the exclusion; only
# what is not loopback is left out by both.
excluded_address() {
  address=127.0.0.1
  ! "$BPFTOOL" cgroup show "$CGROUP" effective | grep -qw cgroup_sock_ops || {
    address=$PLAIN_ADDRESS
    plain_address
  }
}

# haproxy_configuration ADDRESS OPTION [MODE]: with a MODE, also at port 7100
haproxy_configuration() {
  cat <<END
global
  maxconn 2000
defaults
  mode tcp
  timeout connect 5s
  timeout client 30s
  timeout server 30s
  $2
listen plain
  bind $1:8090
  server nginx $1:8080
listen tls
  bind $1:8443 ssl crt /tmp/pem
  server nginx $1:8080
${3:+listen $3
  mode $3
  bind $1:7100
  server server $1:8080}
END
}

certificate() {
  app openssl req -x509 -newkey rsa:2048 -nodes -keyout /tmp/key -out /tmp/cert -subj /CN=localhost -days 2 2>/dev/null
  cat "$ROOT/tmp/key" "$ROOT/tmp/cert" >"$ROOT/tmp/pem"
}

# fetch URL: the three files, each by a connection of its own and then all by one
fetch() {
  local file
  for file in small middle large; do
    app curl -sSfk --max-time 30 "$1/$file" -o /tmp/got
    same /tmp/got "/tmp/www/$file"
  done
  app curl -sSfk --max-time 60 "$1/{small,large,middle}" -o '/tmp/got.#1'
  for file in small middle large; do
    same "/tmp/got.$file" "/tmp/www/$file"
  done
}

# answers FILE COUNT ADDRESS:PORT: each by a connection of its own
answers() {
  app curl -sSf --max-time 120 -H 'Connection: close' "http://$3/$1?[1-$2]" >"$ROOT/tmp/all"
  yes "$ROOT/tmp/www/$1" | head -n "$2" | xargs cat | cmp - "$ROOT/tmp/all"
  rm "$ROOT/tmp/all"
}

# proxied ADDRESS:PORT: 1 GB and 10,000 short connections
proxied() {
  [[ -e $ROOT/tmp/www/huge ]] ||
    app bash -c 'head -c 1G /dev/zero | openssl enc -aes-128-ctr -pass pass:x -nosalt 2>/dev/null >/tmp/www/huge'
  app bash -c "set -o pipefail; curl -sSf --max-time 120 http://$1/huge | cmp - /tmp/www/huge"
  answers small 10000 "$1"
}

kept_out() {
  counters
  [ "$(counter ends_tracked)" -eq 0 ]
  [[ $address != 127.0.0.1 ]] || (($(counter ends_excluded) >= 40000))
}

@test "nginx: static files with sendfile, keep-alive, a proxy, uploads" {
  local file port round
  load
  nginx
  for port in 8080 8081; do
    fetch "http://127.0.0.1:$port"
    for round in 1 2 3; do
      for file in small middle large; do
        app curl -sSf --max-time 30 -T "/tmp/www/$file" "http://127.0.0.1:$port/put/$file.$port.$round"
        same "/tmp/www/$file" "/tmp/put/$file.$port.$round"
      done
    done
  done
  fused 100000
}

@test "HAProxy, plain and TLS, before nginx" {
  load --no-guard # it does not splice here
  nginx
  certificate
  haproxy_configuration 127.0.0.1 '' >"$ROOT/tmp/haproxy.conf"
  serve 8443 haproxy -f /tmp/haproxy.conf
  fetch http://127.0.0.1:8090
  fetch https://127.0.0.1:8443
  fused 100000
}

@test "HAProxy with splice, its ports excluded: 1 GB and 10,000 short connections" {
  local address
  excluded_address
  load --exclude-port 8080,8090
  nginx
  certificate
  haproxy_configuration "$address" 'option splice-auto' >"$ROOT/tmp/haproxy.conf"
  serve 8090 haproxy -f /tmp/haproxy.conf
  proxied "$address:8090"
  kept_out
}

# How much goes through each program that splices; make check-apps FULL=1: 1 GB and 2,000 exchanges
BULK=50000000 EXCHANGES=200
[[ ! ${FULL-} ]] || BULK=1000000000 EXCHANGES=2000

# exchanged SERVER [connect]: small and large answers, and bulk both ways at once, through port 7100
exchanged() {
  "$TRAFFIC" through "$1" 7100 $((EXCHANGES / 2)) 500 "${@:2}"
  "$TRAFFIC" through "$1" 7100 $((EXCHANGES / 2)) 100000 "${@:2}"
  "$TRAFFIC" through "$1" 7100 1 $BULK "${@:2}"
}

# downloaded: the same from nginx, through port 7100
downloaded() {
  [[ -e $ROOT/tmp/www/bulk ]] || head -c $BULK /dev/urandom >"$ROOT/tmp/www/bulk"
  app bash -c "set -o pipefail; curl -sSf --max-time 120 http://127.0.0.1:7100/bulk | cmp - /tmp/www/bulk"
  answers small $((EXCHANGES / 2)) 127.0.0.1:7100
  answers middle $((EXCHANGES / 2)) 127.0.0.1:7100
}

uploaded() {
  app curl -sSf --max-time 120 -T /tmp/www/bulk http://127.0.0.1:7100/put/bulk
  same /tmp/www/bulk /tmp/put/bulk
}

# With the guard Go programs are fused, and read.
stays_plain() {
  counters
  [[ -e $BPFFS/sockfuse/guard && ${GO-} ]] || (($(counter fused_messages) == 0 && $(counter ends_may_splice) > EXCHANGES && $(counter ends_tracked) == 0))
}

# on_and_before COMMAND...: what goes through a program that listens at port 7100 stays
# whole, and so it does in a load that finds it there
on_and_before() {
  "$@"
  stays_plain
  load
  "$@"
  stays_plain
}

@test "docker-proxy, in the default load" {
  local GO=yes
  load
  serve 7100 sh -c 'exec docker-proxy -proto tcp -host-ip 127.0.0.1 -host-port 7100 -container-ip 127.0.0.1 -container-port 8080 3>/dev/null'
  on_and_before exchanged 8080
}

@test "systemd-socket-proxyd, activated by its socket, in the default load" {
  load
  serve 7100 systemd-socket-activate -l 127.0.0.1:7100 /lib/systemd/systemd-socket-proxyd 127.0.0.1:8080
  on_and_before exchanged 8080
}

@test "a Go proxy with io.Copy, in the default load" {
  local GO=yes
  load
  go_proxy
  serve 7100 /tmp/proxy 127.0.0.1:7100 127.0.0.1:8080
  on_and_before exchanged 8080
}

@test "a Go proxy for HTTP's CONNECT, in the default load" {
  local GO=yes
  load
  go_proxy
  serve 7100 /tmp/proxy 127.0.0.1:7100 connect
  on_and_before exchanged 8080 connect
}

@test "a Go server that sends back what comes with io.Copy, in the default load" {
  local GO=yes
  load
  go_proxy
  serve 7100 /tmp/proxy 127.0.0.1:7100 echo
  on_and_before exchanged 0
}

@test "HAProxy with splice, TCP, in the default load" {
  load
  certificate
  haproxy_configuration 127.0.0.1 'option splice-auto' tcp >"$ROOT/tmp/haproxy.conf"
  serve 7100 haproxy -f /tmp/haproxy.conf
  on_and_before exchanged 8080
}

@test "HAProxy with splice, HTTP, in the default load" {
  load
  nginx
  certificate
  haproxy_configuration 127.0.0.1 'option splice-auto' http >"$ROOT/tmp/haproxy.conf"
  serve 7100 haproxy -f /tmp/haproxy.conf
  on_and_before downloaded
  on_and_before uploaded
}

# pasta_to NETNS: forwards port 7100 to port 8080 there.  It wants a network outside to copy,
# and a root that is none of chroot(2).
pasta_to() {
  ip link add outside type veth peer name outside.peer
  ip address add 198.51.100.9/24 dev outside
  ip link set outside up
  ip link set outside.peer up
  ip route add default via 198.51.100.1 dev outside
  mkdir "$ROOT/run/netns"
  mount --rbind /run/netns "$ROOT/run/netns"
  # shellcheck disable=SC2016 # expanded inside
  unshare --mount bash -c 'mount --rbind "$1" "$1" && cd "$1" && pivot_root . mnt && exec chroot . "${@:2}"' - "$ROOT" \
    pasta --foreground --runas 0 --ipv4-only -t 7100:8080 -u none -T none -U none --netns-only --netns "/run/netns/$1" \
    >"$BATS_TEST_TMPDIR/pasta" 2>&1 3>&- </dev/null &
  PASTA=$!
  wait_for 60 listens 7100 || { cat "$BATS_TEST_TMPDIR/pasta" && return 1; }
}

@test "pasta that forwards a port, in the default load" {
  ip netns add inner
  load
  ip netns exec inner chroot "$ROOT" nginx -c /tmp/nginx.conf >"$BATS_TEST_TMPDIR/nginx" 2>&1 3>&- &
  wait_for 30 ip netns exec inner bash -c "$(declare -f listens); listens 8080"
  pasta_to inner
  on_and_before downloaded
}

@test "a Go proxy with io.Copy, its ports excluded: 1 GB and 10,000 short connections" {
  local address
  excluded_address
  load --exclude-port 8080,7100
  nginx
  go_proxy
  serve 7100 /tmp/proxy "$address:7100" "$address:8080"
  proxied "$address:7100"
  kept_out
}

@test "a Go proxy that copies, fused: 1 GB and 10,000 short connections" {
  load --no-guard
  nginx
  go_proxy
  serve 7100 /tmp/proxy 127.0.0.1:7100 127.0.0.1:8080 copy
  proxied 127.0.0.1:7100
  fused 100000
}

@test "redis: a pipeline, large values, publish and subscribe, replication" {
  load
  serve 6379 redis-server --port 6379 --save '' --dir /tmp --enable-debug-command yes
  seq 100000 | awk '{ printf "SET key:%d value:%d\r\n", $1, $1 * 7 }' | app redis-cli --pipe
  [ "$(app redis-cli dbsize)" = 100000 ]
  [ "$(app redis-cli get key:99999)" = value:699993 ]
  app redis-cli -x set large <"$ROOT/tmp/www/large"
  app redis-cli --raw get large | head -c 30000000 | cmp - "$ROOT/tmp/www/large"

  serve 6380 redis-server --port 6380 --save '' --dir /tmp --enable-debug-command yes --replicaof '127.0.0.1 6379'
  wait_for 30 replicated
  seq 100001 150000 | awk '{ printf "SET key:%d value:%d\r\n", $1, $1 * 7 }' | app redis-cli --pipe
  wait_for 30 replicated

  app redis-cli subscribe news >"$BATS_TEST_TMPDIR/news" 3>&- &
  wait_for 30 grep -q subscribe "$BATS_TEST_TMPDIR/news"
  seq 1000 | awk '{ printf "PUBLISH news item:%d\r\n", $1 }' | app redis-cli --pipe
  wait_for 30 grep -q '^item:1000$' "$BATS_TEST_TMPDIR/news"
  [ "$(grep -c '^item:' "$BATS_TEST_TMPDIR/news")" -eq 1000 ]
  fused 100000
}

replicated() {
  [ "$(app redis-cli -p 6379 debug digest)" = "$(app redis-cli -p 6380 debug digest)" ]
}

# interrupt PROGRAM: as Ctrl-Z and fg do, once it sleeps in recv
interrupt() {
  local pid
  wait_for 30 waits_in_recv "$1" ||
    { echo "$1 does not wait in recv: $(pgrep -ax "$1"); it said: $(cat "$BATS_TEST_TMPDIR/answer")" && return 1; }
  pid=$(pgrep -x "$1")
  kill -STOP "$pid"
  wait_for 30 grep -q '^State:.T' "/proc/$pid/status"
  kill -CONT "$pid"
}

# In poll it would be poll_schedule_timeout, or the like.
waits_in_recv() { [[ $(cat "/proc/$(pgrep -x "$1")/wchan" 2>/dev/null) == wait_woken ]]; }

# docs/semantics.md, "Readers that are interrupted"
@test "redis-cli that waits and is interrupted gives up, and not with the port excluded" {
  local client code=0
  load
  serve 6379 redis-server --port 6379 --save '' --dbfilename none
  app redis-cli blpop list 0 >"$BATS_TEST_TMPDIR/answer" 2>&1 3>&- &
  client=$!
  interrupt redis-cli
  wait "$client" || code=$?
  [ "$code" -eq 1 ]
  grep 'Resource temporarily unavailable' "$BATS_TEST_TMPDIR/answer"

  load --exclude-port 6379
  app redis-cli blpop list 0 >"$BATS_TEST_TMPDIR/answer" 2>&1 3>&- &
  client=$!
  interrupt redis-cli
  app redis-cli lpush list 'it works'
  wait "$client"
  grep 'it works' "$BATS_TEST_TMPDIR/answer"
}

sql() { app psql -h 127.0.0.1 -U postgres -qAt -v ON_ERROR_STOP=1 "$@"; }

@test "PostgreSQL: pgbench, a large COPY both ways, LISTEN" {
  load
  mkdir -p "$ROOT/tmp/pg"
  chroot "$ROOT" chown postgres /tmp/pg
  chroot --userspec=postgres "$ROOT" "$POSTGRES/initdb" -A trust -U postgres -D /tmp/pg >/dev/null
  chroot --userspec=postgres "$ROOT" "$POSTGRES/postgres" -D /tmp/pg -p 5432 \
    -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off >"$BATS_TEST_TMPDIR/pg" 2>&1 3>&- &
  wait_for 30 sql -c 'select 1'

  app "$POSTGRES/pgbench" -h 127.0.0.1 -U postgres -i -q -s 5 postgres
  run app "$POSTGRES/pgbench" -h 127.0.0.1 -U postgres -c 4 -T 3 -M prepared postgres
  echo "$output"
  [ "$status" -eq 0 ]
  [[ $output == *"number of failed transactions: 0"* ]]
  [ "$(sql -c 'select sum(abalance) = (select sum(bbalance) from pgbench_branches) from pgbench_accounts')" = t ]

  sql -c 'create table sent as select i, md5(i::text) as sum, repeat(i::text, 20) as fill from generate_series(1, 200000) i'
  sql -c '\copy sent to /tmp/copy'
  sql -c 'create table back (like sent)' -c '\copy back from /tmp/copy'
  [ "$(sql -c 'select count(*) from sent natural join back')" = 200000 ]

  (
    echo 'listen news;'
    sleep 2
    echo 'select 1;'
  ) | sql >"$BATS_TEST_TMPDIR/news" 3>&- &
  sleep 1
  sql -c 'notify news, $$it works$$'
  wait_for 30 grep -q 'it works' "$BATS_TEST_TMPDIR/news"
  fused 100000
}

@test "openssl s_client to s_server and back" {
  load
  certificate
  serve 7443 openssl s_server -accept 7443 -key /tmp/key -cert /tmp/cert -quiet -rev
  seq 100000 200000 >"$BATS_TEST_TMPDIR/lines"
  (
    cat "$BATS_TEST_TMPDIR/lines"
    sleep 2
  ) | app openssl s_client -connect 127.0.0.1:7443 -quiet -no_ign_eof >"$BATS_TEST_TMPDIR/reversed" 2>/dev/null
  rev "$BATS_TEST_TMPDIR/lines" | cmp - "$BATS_TEST_TMPDIR/reversed"
  fused 1000
}

@test "socat: a file one way, and there and back" {
  load
  serve 7000 socat -u TCP-LISTEN:7000,bind=127.0.0.1,reuseaddr CREATE:/tmp/got
  app socat -u FILE:/tmp/www/large TCP:127.0.0.1:7000
  wait_for 30 same /tmp/www/large /tmp/got
  serve 7001 socat TCP-LISTEN:7001,bind=127.0.0.1,reuseaddr EXEC:cat
  app bash -c 'socat -t 10 STDIO TCP:127.0.0.1:7001 </tmp/www/large >/tmp/got'
  same /tmp/www/large /tmp/got
  fused 10000
}

@test "OpenSSH: a terminal session and scp both ways" {
  local options="-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -i /tmp/id"
  load
  rm -f "$ROOT"/tmp/{id,host}*
  app ssh-keygen -q -t ed25519 -N '' -f /tmp/id
  app ssh-keygen -q -t ed25519 -N '' -f /tmp/host
  cp "$ROOT/tmp/id.pub" "$ROOT/tmp/authorized"
  serve 2222 /usr/sbin/sshd -D -e -p 2222 -h /tmp/host -o ListenAddress=127.0.0.1 -o StrictModes=no \
    -o UsePAM=no -o PermitRootLogin=yes -o AuthorizedKeysFile=/tmp/authorized
  # shellcheck disable=SC2086 # words
  printf 'tty\nstty size\nseq 20000\nexit 7\n' | app ssh $options -tt -p 2222 root@127.0.0.1 >"$BATS_TEST_TMPDIR/session" || [ $? -eq 7 ]
  grep -q /dev/pts "$BATS_TEST_TMPDIR/session"
  [ "$(tr -d '\r' <"$BATS_TEST_TMPDIR/session" | grep -cE '^[0-9]+$')" -eq 20000 ]
  # shellcheck disable=SC2086
  app scp $options -P 2222 /tmp/www/large root@127.0.0.1:/tmp/got
  same /tmp/www/large /tmp/got
  # shellcheck disable=SC2086
  app scp $options -P 2222 root@127.0.0.1:/tmp/www/large /tmp/got2
  same /tmp/www/large /tmp/got2
  fused 1000
}

@test "an rsync daemon, both ways" {
  load
  mkdir -p "$ROOT/tmp/module"
  printf 'use chroot = no\nuid = root\ngid = root\n[module]\npath = /tmp/module\nread only = no\n' >"$ROOT/tmp/rsyncd.conf"
  serve 8730 rsync --daemon --no-detach --config=/tmp/rsyncd.conf --port=8730 --address=127.0.0.1
  app rsync -r --whole-file /tmp/www/small /tmp/www/middle /tmp/www/large rsync://127.0.0.1:8730/module/
  app rsync -r --whole-file rsync://127.0.0.1:8730/module/ /tmp/back
  for file in small middle large; do
    same "/tmp/www/$file" "/tmp/back/$file"
  done
  fused 1000
}

@test "Python's http.server" {
  load
  serve 8000 python3 -m http.server --directory /tmp/www --bind 127.0.0.1 8000
  fetch http://127.0.0.1:8000
  fused 100000
}

@test "Node, dual-stack: bodies there and back by IPv4 and IPv6" {
  local host
  load
  serve 8100 node /tmp/echo.js 8100
  for host in 127.0.0.1 '[::1]'; do
    for file in small middle large; do
      app curl -sSf --max-time 60 --data-binary "@/tmp/www/$file" "http://$host:8100/" -o /tmp/got
      same "/tmp/www/$file" /tmp/got
    done
  done
  fused 100000
}

@test "Java: blocking sockets and NIO channels, each with each" {
  load
  run app timeout 120 java /tmp/Echo.java
  echo "$output"
  [ "$status" -eq 0 ]
  [[ $output == *"echoed 4 times"* ]]
  fused 100000
}

@test "iperf3: forward, reverse, both at once, eight streams" {
  local options
  load
  for options in "" -R --bidir "-P 8"; do
    serve 5001 iperf3 -s -1 -p 5001
    # shellcheck disable=SC2086 # words
    app iperf3 -c 127.0.0.1 -p 5001 -t 1 $options >/dev/null
    wait_for 30 eval '! listens 5001'
  done
  fused 100000
}

@test "a git daemon: clone and push" {
  load
  app bash -ec 'git config --global user.email a@b; git config --global user.name a
    mkdir -p /tmp/git/r && cd /tmp/git/r && git init -q && cp /tmp/www/{small,middle,large} . && git add . && git commit -qm one
    git config receive.denyCurrentBranch ignore'
  serve 9418 git daemon --base-path=/tmp/git --export-all --enable=receive-pack --listen=127.0.0.1 --port=9418
  app bash -ec 'git clone -q git://127.0.0.1/r /tmp/clone && cd /tmp/clone && git fsck && cmp large /tmp/www/large
    head -c 10000000 /dev/urandom >more && git add . && git commit -qm two && git push -q'
  [ "$(app git -C /tmp/git/r rev-parse HEAD)" = "$(app git -C /tmp/clone rev-parse HEAD)" ]
  fused 1000
}
