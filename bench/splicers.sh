#!/usr/bin/env bash
# splicers.sh ROUNDS [PROGRAM...]: how fast programs forward that splice, in the default load
# and without it, by turns: 1,000 exchanges of 500 bytes, 1,000 of 100,000 bytes, and 1 GB;
# medians of the ratios of the rounds.  Inside isolate.sh only; tests/apps/root must be there:
# tests/isolate.sh bench/splicers.sh 7
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
# shellcheck source=bench/helpers.bash
. "$here/helpers.bash"

rounds=$1
shift
(($#)) || set -- docker-proxy systemd-socket-proxyd go connect echo haproxy-tcp haproxy-http pasta
root=$here/../tests/apps/root traffic=$here/../tests/traffic
root=$(readlink -f "$root")
declare -A port=([plain]=7100 [fused]=7200)

make_cgroups
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/run"
mkdir "$root/tmp/www" "$root/run/netns"
cp "$here/../tests/apps/proxy.go" "$root/tmp"
chroot "$root" env HOME=/tmp GOCACHE=/tmp/go GO111MODULE=off CGO_ENABLED=0 go build -o /tmp/proxy /tmp/proxy.go
head -c 500 /dev/urandom >"$root/tmp/www/small"
head -c 100000 /dev/urandom >"$root/tmp/www/large"
head -c 1000000000 /dev/urandom >"$root/tmp/www/bulk"
# Of this network namespace.  What waits after its close would make each later run slower.
sysctl -q net.ipv4.ip_local_port_range="10000 65535" net.ipv4.tcp_max_tw_buckets=1000
"$here/../load.sh" --quiet --cgroup "$FUSED"
results=$(mktemp -d)
trap 'rm -rf "$results"; "$here/../unload.sh" --quiet' EXIT

in_root() { in_cgroup "$1" chroot "$root" env HOME=/tmp "${@:2}"; }

await() { until ss -Hltn "sport = :$1" | grep -q .; do sleep 0.05; done; }

# nginx MODE PORT [PREFIX...]: the server of what goes by HTTP
nginx() {
  cat >"$root/tmp/nginx.$1.conf" <<END
pid /tmp/nginx.$1.pid; user root; daemon off; error_log stderr; worker_processes 2;
events { worker_connections 1024; }
http { access_log off; sendfile on; server { listen $2; root /tmp/www; } }
END
  in_cgroup "$1" "${@:3}" chroot "$root" nginx -c "/tmp/nginx.$1.conf" &
}

haproxy() {
  cat >"$root/tmp/haproxy.$1.conf" <<END
defaults
  mode $2
  option splice-auto
  timeout connect 5s
  timeout client 30s
  timeout server 30s
listen l
  bind 127.0.0.1:${port[$1]}
  server s 127.0.0.1:$((${port[$1]} + 1))
END
  in_root "$1" haproxy -f "/tmp/haproxy.$1.conf" &
}

# pasta MODE: forwards to a namespace of its own, where nginx is
pasta() {
  ip netns add "$1"
  nginx "$1" 8080 ip netns exec "$1"
  [[ -e /sys/class/net/outside ]] || {
    ip link add outside type veth peer name outside.peer
    ip address add 192.0.2.9/24 dev outside
    ip link set outside up
    ip link set outside.peer up
    ip route add default via 192.0.2.1
    mount --rbind /run/netns "$root/run/netns"
  }
  # shellcheck disable=SC2016 # expanded inside
  in_cgroup "$1" unshare --mount bash -c 'mount --rbind "$1" "$1" && cd "$1" && pivot_root . mnt && exec chroot . "${@:2}"' - "$root" \
    pasta --foreground --runas 0 --ipv4-only -t "${port[$1]}:8080" -u none -T none -U none --netns-only --netns "/run/netns/$1" 2>/dev/null &
}

# start MODE PROGRAM: at the port of that mode; its server is at the next one
start() {
  local listen=127.0.0.1:${port[$1]} server=127.0.0.1:$((${port[$1]} + 1))
  case $2 in
    docker-proxy)
      in_root "$1" sh -c "exec docker-proxy -proto tcp -host-ip 127.0.0.1 -host-port ${port[$1]} -container-ip 127.0.0.1 -container-port ${server#*:} 3>/dev/null" &
      ;;
    systemd-socket-proxyd) in_root "$1" systemd-socket-activate -l "$listen" /lib/systemd/systemd-socket-proxyd "$server" 2>/dev/null & ;;
    go) in_root "$1" /tmp/proxy "$listen" "$server" & ;;
    connect | echo) in_root "$1" /tmp/proxy "$listen" "$2" & ;;
    haproxy-tcp) haproxy "$1" tcp ;;
    haproxy-http) haproxy "$1" http ;;
    pasta) pasta "$1" ;;
  esac
  case $2 in
    echo | pasta | connect) ;; # through is its server, or nginx is there already
    haproxy-http) nginx "$1" "${server#*:}" ;;
    *) in_cgroup "$1" "$traffic" server "${server#*:}" & ;;
  esac
  await "${port[$1]}"
  [[ $2 =~ echo|pasta|connect ]] || await "${server#*:}"
}

# exchange MODE PROGRAM COUNT FILE: milliseconds
exchange() {
  local size tunnel=() start
  size=$(stat -c %s "$root/tmp/www/$4")
  case $2 in
    haproxy-http | pasta)
      start=$(date +%s%N)
      in_root "$1" curl -sSf --max-time 120 -H 'Connection: close' "http://127.0.0.1:${port[$1]}/$4?[1-$3]" | cat >"$root/tmp/got"
      echo "$((($(date +%s%N) - start) / 1000)) / 1000" | bc -l
      { yes "$root/tmp/www/$4" || true; } | head -n "$3" | xargs cat | cmp - "$root/tmp/got" >&2
      ;;
    *)
      [[ $2 != connect ]] || tunnel=(connect)
      in_cgroup "$1" "$traffic" through "$([[ $2 == connect ]] && echo $((${port[$1]} + 1)) || echo 0)" "${port[$1]}" "$3" "$size" "${tunnel[@]}" | sed 's/.*ms=//'
      ;;
  esac
}

# What start() started
finish() {
  local mode
  for mode in plain fused; do
    echo 1 >"/sys/fs/cgroup/$mode/cgroup.kill"
    ip netns del "$mode" 2>/dev/null || true
  done
  wait
  sleep 0.2
}

printf '%s, default load over plain TCP, median of %d rounds\n\n| | 1,000 of 500 bytes | 1,000 of 100,000 bytes | 1 GB |\n|---|---:|---:|---:|\n' "Linux $(uname -r)" "$rounds"
for program; do
  for mode in plain fused; do start "$mode" "$program"; done
  for ((round = 0; round < rounds; round++)); do
    for case in "1000 small" "1000 large" "1 bulk"; do
      for mode in plain fused fused plain; do # who comes first must not matter
        # shellcheck disable=SC2086 # two words
        exchange "$mode" "$program" $case >>"$results/$program.${case#* }.$mode"
      done
    done
  done
  finish 2>/dev/null
  printf '| %s |' "$program"
  for case in small large bulk; do
    printf ' %.3f |' "$(paste "$results/$program.$case".{plain,fused} | awk '{ plain += $1; fused += $2 } NR % 2 == 0 { print plain / fused; plain = fused = 0 }' | median)"
  done
  echo
done
