# shellcheck shell=bash
# Applications for run.sh, in a Debian of their own: for each mode its own servers, and
# clients that print what they measured.
# shellcheck disable=SC2154,SC2034 # run.sh has what is used here and not set, and the reverse
ROOT=$here/../tests/apps/root
POSTGRES=/usr/lib/postgresql/15/bin
declare -A FIRST_PORT=([plain]=10000 [fused]=20000 [unix]=30000)

# NAME CONNECTIONS BYTES UNIT MODES, what is one in per_second, and the modes that the client has
APPLICATIONS=(
  "redis-get 16 3 requests plain,fused,unix"
  "redis-get-pipeline-16 16 3 requests plain,fused,unix"
  "wrk-nginx 16 1000 requests plain,fused"
  "wrk-nginx-proxy 16 1000 requests plain,fused"
  "wrk-haproxy-nginx 16 1000 requests plain,fused"
  "wrk-nginx-sendfile 16 100000 requests plain,fused"
  "wrk-nginx-no-sendfile 16 100000 requests plain,fused"
  "wrk-nginx-close 16 1000 requests plain,fused"
  "ab-nginx-close 16 1000 requests plain,fused"
  "wrk-nginx-close-sendfile 16 100000 requests plain,fused"
  "wrk-nginx-close-no-sendfile 16 100000 requests plain,fused"
  "vsftpd 1 100000 requests plain,fused"
  "mosquitto-publish 1 128 messages plain,fused"
  "logger-rsyslog 1 128 messages plain,fused"
  "pgbench-select 4 100 requests plain,fused,unix"
  "iperf3-1 1 131072 bytes plain,fused"
  "iperf3-8 8 131072 bytes plain,fused"
  "sockperf 1 64 requests plain,fused"
)

# within MODE COMMAND...: as a process of the cgroup of the mode
within() (
  echo "$BASHPID" >"/sys/fs/cgroup/$1/cgroup.procs"
  shift
  exec chroot "$ROOT" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C.UTF-8 "$@"
)

nginx_configuration() {
  local port=${FIRST_PORT[$1]}
  cat <<END
worker_processes 1; user root; pid /tmp/$1/nginx.pid; error_log stderr; daemon off;
events { worker_connections 1024; }
http {
  access_log off; keepalive_requests 1000000000; open_file_cache max=10;
  client_body_temp_path /tmp/$1/t1; proxy_temp_path /tmp/$1/t2; fastcgi_temp_path /tmp/$1/t3; uwsgi_temp_path /tmp/$1/t4; scgi_temp_path /tmp/$1/t5;
  upstream files { server 127.0.0.1:$((port + 80)); keepalive 32; }
  server { listen 127.0.0.1:$((port + 80)); root /tmp/www; sendfile on; location /copied/ { alias /tmp/www/; sendfile off; } }
  server { listen 127.0.0.1:$((port + 81)); location / { proxy_pass http://files; proxy_http_version 1.1; proxy_set_header Connection ""; } }
}
END
}

haproxy_configuration() {
  local port=${FIRST_PORT[$1]}
  cat <<END
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
listen files
  bind 127.0.0.1:$((port + 90))
  http-reuse always
  server nginx 127.0.0.1:$((port + 80))
END
}

vsftpd_configuration() {
  printf '%s\n' listen=YES listen_address=127.0.0.1 listen_port=$((${FIRST_PORT[$1]} + 21)) anonymous_enable=YES anon_root=/tmp/www \
    "secure_chroot_dir=/tmp/$1/empty" seccomp_sandbox=NO background=NO
}

rsyslog_configuration() {
  printf '%s\n' 'module(load="imtcp")' "input(type=\"imtcp\" address=\"127.0.0.1\" port=\"$((${FIRST_PORT[$1]} + 14))\")" \
    '*.* action(type="omfile" file="/dev/null")'
}

mosquitto_configuration() {
  printf '%s\n' "listener $((${FIRST_PORT[$1]} + 83)) 127.0.0.1" "allow_anonymous true" "user root"
}

# serve MODE PORT COMMAND...: in the background, until it listens there
serve() {
  local port=$2
  within "$1" "${@:3}" </dev/null >"$ROOT/tmp/$1/$port" 2>&1 &
  for _ in {1..200}; do
    ! ss -Hltn "sport = :$port" | grep -q . || return 0
    sleep 0.1
  done
  cat "$ROOT/tmp/$1/$port" >&2
  return 1
}

# start_servers MODE
start_servers() {
  local mode=$1 port=${FIRST_PORT[$1]} directory=$ROOT/tmp/$1
  mkdir "$directory" "$directory/pg"
  chmod 777 "$directory"
  serve "$mode" $((port + 63)) redis-server --port $((port + 63)) --unixsocket "/tmp/$mode/redis" --save ''
  chroot "$ROOT" chown postgres "/tmp/$mode/pg"
  chroot --userspec=postgres "$ROOT" "$POSTGRES/initdb" -A trust -U postgres -D "/tmp/$mode/pg" >/dev/null
  serve "$mode" $((port + 54)) setpriv --reuid postgres --regid postgres --clear-groups "$POSTGRES/postgres" -D "/tmp/$mode/pg" -p $((port + 54)) \
    -c listen_addresses=127.0.0.1 -c "unix_socket_directories=/tmp/$mode" -c fsync=off
  within "$mode" "$POSTGRES/pgbench" -h "/tmp/$mode" -p $((port + 54)) -U postgres -i -q -s 5 postgres 2>/dev/null
  [[ $mode != unix ]] || return 0
  nginx_configuration "$mode" >"$directory/nginx.conf"
  haproxy_configuration "$mode" >"$directory/haproxy.conf"
  serve "$mode" $((port + 80)) nginx -c "/tmp/$mode/nginx.conf"
  serve "$mode" $((port + 90)) haproxy -f "/tmp/$mode/haproxy.conf"
  serve "$mode" $((port + 52)) iperf3 -s -p $((port + 52))
  serve "$mode" $((port + 11)) sockperf sr --tcp -i 127.0.0.1 -p $((port + 11))
  mkdir "$directory/empty"
  vsftpd_configuration "$mode" >"$directory/vsftpd.conf"
  rsyslog_configuration "$mode" >"$directory/rsyslog.conf"
  mosquitto_configuration "$mode" >"$directory/mosquitto.conf"
  serve "$mode" $((port + 21)) vsftpd "/tmp/$mode/vsftpd.conf"
  serve "$mode" $((port + 14)) rsyslogd -n -i NONE -f "/tmp/$mode/rsyslog.conf"
  serve "$mode" $((port + 83)) mosquitto -c "/tmp/$mode/mosquitto.conf"
  yes "url = ftp://127.0.0.1:$((port + 21))/100000" | head -n 1000 >"$directory/downloads"
}

start_applications() {
  local mode
  mount -t proc proc "$ROOT/proc"
  mount --rbind /dev "$ROOT/dev"
  mount -t tmpfs tmpfs "$ROOT/tmp"
  mount -t tmpfs tmpfs "$ROOT/run"
  chmod 1777 "$ROOT/tmp"
  mkdir "$ROOT/tmp/www"
  head -c 1000 /dev/urandom >"$ROOT/tmp/www/1000"
  head -c 100000 /dev/urandom >"$ROOT/tmp/www/100000"
  yes "$(printf '%0127d' 0)" | head -n 500000 >"$ROOT/tmp/lines"
  for mode in plain fused unix; do start_servers "$mode"; done
}

# requests_of MODE PORT PATH [OPTION...]: by wrk; those for files take 0.3 s to leave the map
requests_of() {
  local seconds=1
  [[ $3 != *100000 ]] || seconds=2
  within "$1" wrk -t 1 -c 16 -d $seconds "${@:4}" "http://127.0.0.1:$((${FIRST_PORT[$1]} + $2))/$3" | awk '/Requests\/sec/ { print $2 }'
}

redis_get() {
  local to=(-p $((${FIRST_PORT[$1]} + 63)))
  [[ $1 != unix ]] || to=(-s /tmp/unix/redis)
  within "$1" redis-benchmark "${to[@]}" --csv -t get -c 16 "${@:2}" | awk -F '","' 'END { print $2 }'
}

select_of() {
  local host=127.0.0.1
  [[ $1 != unix ]] || host=/tmp/unix
  within "$1" "$POSTGRES/pgbench" -h $host -p $((${FIRST_PORT[$1]} + 54)) -U postgres -S -n -M prepared -c 4 -T 1 postgres 2>/dev/null | awk '/^tps/ { print $3 }'
}

# rate_of N COMMAND...: N in the time that it takes, a second
rate_of() {
  local start=$EPOCHREALTIME
  "${@:2}" >/dev/null
  awk -v n="$1" -v start="$start" -v end="$EPOCHREALTIME" 'BEGIN { print n / (end - start) }'
}

# client MODE NAME: one a second
client() {
  case $2 in
    redis-get) redis_get "$1" -n 60000 ;;
    redis-get-pipeline-16) redis_get "$1" -n 500000 -P 16 ;;
    wrk-nginx) requests_of "$1" 80 1000 ;;
    wrk-nginx-proxy) requests_of "$1" 81 1000 ;;
    wrk-haproxy-nginx) requests_of "$1" 90 1000 ;;
    wrk-nginx-sendfile) requests_of "$1" 80 100000 ;;
    wrk-nginx-no-sendfile) requests_of "$1" 80 copied/100000 ;;
    wrk-nginx-close) requests_of "$1" 80 1000 -H 'Connection: close' ;;
    wrk-nginx-close-sendfile) requests_of "$1" 80 100000 -H 'Connection: close' ;;
    wrk-nginx-close-no-sendfile) requests_of "$1" 80 copied/100000 -H 'Connection: close' ;;
    ab-nginx-close) within "$1" ab -q -c 16 -n 20000 "http://127.0.0.1:$((${FIRST_PORT[$1]} + 80))/1000" 2>/dev/null | awk '/^Requests per second/ { print $4 }' ;;
    vsftpd) rate_of 1000 within "$1" curl -sS -K "/tmp/$1/downloads" ;;
    mosquitto-publish) rate_of 500000 within "$1" mosquitto_pub -p $((${FIRST_PORT[$1]} + 83)) -t t -l <"$ROOT/tmp/lines" ;;
    logger-rsyslog) rate_of 500000 within "$1" logger --server 127.0.0.1 --port $((${FIRST_PORT[$1]} + 14)) --tcp --file /tmp/lines ;;
    pgbench-select) select_of "$1" ;;
    iperf3-*) within "$1" iperf3 -J -c 127.0.0.1 -p $((${FIRST_PORT[$1]} + 52)) -t 1 -P "${2#iperf3-}" | jq '.end.sum_received.bits_per_second / 8' ;;
    sockperf)
      within "$1" sockperf pp --tcp -i 127.0.0.1 -p $((${FIRST_PORT[$1]} + 11)) -t 1 --msg-size 64 |
        sed -n 's/.*Valid Duration.*RunTime=\([0-9.]*\).*ReceivedMessages=\([0-9]*\).*/\2 \1/p' | awk '{ print $1 / $2 }'
      ;;
  esac
}

# Microseconds of processor time, of servers and clients of the mode.
processor_time() { sed -n 's/^usage_usec //p' "/sys/fs/cgroup/$1/cpu.stat"; }

# application MODE NAME UNIT: a JSON object as load prints it
application() {
  local before start rate end
  before=$(processor_time "$1")
  start=$EPOCHREALTIME
  rate=$(client "$1" "$2")
  end=$EPOCHREALTIME
  jq -cn --argjson rate "${rate:-null}" --arg unit "$3" --argjson us $(($(processor_time "$1") - before)) --argjson seconds "$(awk -v a="$start" -v b="$end" 'BEGIN { print b - a }')" \
    '{per_second: $rate, cpu_seconds: ($us / 1e6 / ($rate * $seconds) * (if $unit == "bytes" then 1e9 else 1e6 end))}'
}
