#!/usr/bin/env bats
# load.sh --net, --port and --cgroup: which connections are fused that are not
# between loopback addresses.  Pods a and b behind a router r, which has NAT; a third, c,
# on a bridge with a.

load helpers

NETS=$here/tests/nets
PODS=(--net 10.244.0.0/16 --net 10.96.0.0/12 --net fd00:244::/32)

setup_file() {
  local pod n=0
  for pod in r a b c; do
    ip netns add "$pod"
    ip -n "$pod" link set lo up
    [[ $pod == r ]] || join "$pod" $((++n))
  done
  ip netns exec r sysctl -q net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
  # a and c, without the router between them
  ip -n r link add bridge type bridge
  ip -n r link set bridge up
  for pod in a c; do
    ip link add bridged netns "$pod" type veth peer name "bridged-$pod" netns r
    ip -n r link set "bridged-$pod" master bridge up
    ip -n "$pod" link set bridged up
  done
  ip -n a address add 10.244.100.1/24 dev bridged
  ip -n c address add 10.244.100.3/24 dev bridged
  # Services: 10.96.0.1 by DNAT, 10.96.0.2 by DNAT and masquerading, 10.96.0.9 by
  # REDIRECT to a sidecar
  ip netns exec r nft -f - <<END
table ip nat {
  chain prerouting {
    type nat hook prerouting priority -100;
    ip daddr { 10.96.0.1, 10.96.0.2 } tcp dport 80 dnat to 10.244.2.2:8080
  }
  chain postrouting {
    type nat hook postrouting priority 100;
    ct original ip daddr 10.96.0.2 masquerade
  }
}
table ip6 nat {
  chain prerouting {
    type nat hook prerouting priority -100;
    ip6 daddr fd00:244:ff::1 tcp dport 80 dnat to [fd00:244:2::2]:8080
  }
}
END
  ip netns exec a nft -f - <<END
table ip nat {
  chain output {
    type nat hook output priority -100;
    ip daddr 10.96.0.9 tcp dport 80 redirect to :15001
  }
}
END
}

# join POD N: to the router, as 10.244.N.2
join() {
  ip link add eth0 netns "$1" type veth peer name "to-$1" netns r
  ip -n "$1" address add "10.244.$2.2/24" dev eth0
  ip -n r address add "10.244.$2.1/24" dev "to-$1"
  ip -n "$1" address add "fd00:244:$2::2/64" dev eth0 nodad
  ip -n r address add "fd00:244:$2::1/64" dev "to-$1" nodad
  ip -n "$1" link set eth0 up
  ip -n r link set "to-$1" up
  ip -n "$1" route add default via "10.244.$2.1"
  ip -n "$1" route add default via "fd00:244:$2::1"
}

teardown_file() {
  local pod
  for pod in r a b c; do
    ip netns delete "$pod" 2>/dev/null || true
  done
}

teardown() {
  [[ ! ${BACKGROUND-} ]] || kill "$BACKGROUND" 2>/dev/null || true
  [[ ! ${TCPDUMP-} ]] || kill "$TCPDUMP" 2>/dev/null || true
  unload --quiet
  find "$CGROUP" -mindepth 1 -depth -type d -exec rmdir {} + 2>/dev/null || true
  assert_nothing_left
}

# talk FROM TO LISTEN PORT DIAL PORT MESSAGES [PAUSE_MS]
talk() {
  timeout 120 ip netns exec "$1" "$NETS" talk "/run/netns/$2" "${@:3}" 3>&-
}

# handshakes_repeated POD...: SYNs and SYN-ACKs that were sent again in them
handshakes_repeated() {
  local pod
  for pod; do
    ip netns exec "$pod" nstat --json --noupdate --zeros TcpExtTCPSynRetrans
  done | jq -s 'map(.kernel.TcpExtTCPSynRetrans) | add'
}

# fused_talk ...: as talk; every message is fused, and the pods' interfaces see at most
# two segments with data.  A connection whose SYN or SYN-ACK was sent again, as on a
# machine that stands still for a second, is TCP's (nets.h): then it talks again.
fused_talk() {
  local attempt before remote repeated pcap=$BATS_TEST_TMPDIR/pcap
  for attempt in {1..5}; do
    before=$(counter fused_messages)
    remote=$(counter ends_remote)
    repeated=$(handshakes_repeated "$1" "$2")
    captured_talk "$pcap" "$@"
    repeated=$(($(handshakes_repeated "$1" "$2") - repeated))
    echo "$*: attempt $attempt, handshakes repeated: $repeated, $(counters)"
    ((repeated)) || break
  done
  (($(counter fused_messages) - before >= 2 * $7 - 2))
  (($(counter ends_remote) == remote))
  # "any" sees each of them where it comes in and where it goes out
  (($(data_segments "$pcap") <= 4))
}

# captured_talk PCAP ...: as talk, with all packets that the pods send in PCAP
captured_talk() {
  ip netns exec r tcpdump -i any -n -U --immediate-mode -s 128 -w "$1" tcp 2>"$1.log" 3>&- &
  TCPDUMP=$!
  wait_for 30 grep -q 'listening on' "$1.log"
  talk "${@:2}"
  sleep 0.3
  kill -INT "$TCPDUMP"
  wait "$TCPDUMP" || true
  TCPDUMP=
}

@test "pod to pod, routed and bridged, IPv4 and IPv6: fused from the handshake on" {
  load "${PODS[@]}"
  fused_talk a b 10.244.2.2 8080 10.244.2.2 8080 200
  fused_talk a b fd00:244:2::2 8080 fd00:244:2::2 8080 200
  fused_talk a b :: 8080 10.244.2.2 8080 200
  fused_talk a c 10.244.100.3 8080 10.244.100.3 8080 200
}

@test "services behind DNAT, DNAT with masquerading and REDIRECT are fused" {
  load "${PODS[@]}"
  fused_talk a b 10.244.2.2 8080 10.96.0.1 80 200
  fused_talk a b 10.244.2.2 8080 10.96.0.2 80 200
  fused_talk a a 0.0.0.0 15001 10.96.0.9 80 200
  fused_talk a b fd00:244:2::2 8080 fd00:244:ff::1 80 200
}

@test "without --net none of these is fused, and loopback of each namespace is, for itself" {
  load
  talk a b 10.244.2.2 8080 10.244.2.2 8080 20
  talk a b fd00:244:2::2 8080 fd00:244:2::2 8080 20
  talk a b 10.244.2.2 8080 10.96.0.1 80 20
  talk a a 0.0.0.0 15001 10.96.0.9 80 20
  [ "$(counter ends_tracked)" -eq 0 ]
  talk a a 127.0.0.1 8080 127.0.0.1 8080 20
  talk b b ::1 8080 ::1 8080 20
  [ "$(counter fused_messages)" -eq 80 ]
}

@test "--net of one end only: not fused; the host's own addresses with --net local" {
  plain_address
  load --net 10.244.1.0/24 --net local
  talk a b 10.244.2.2 8080 10.244.2.2 8080 20
  [ "$(counter ends_tracked)" -eq 0 ]
  ip netns attach here $$
  talk here here 0.0.0.0 8080 "$PLAIN_ADDRESS" 8080 20
  ip netns delete here
  [ "$(counter fused_messages)" -eq 40 ]
}

# iperf CLIENT_CGROUP SERVER_CGROUP: from a to b, in the background, until stop_iperf
iperf() {
  (echo "$BASHPID" >"$2/cgroup.procs" && exec ip netns exec b iperf3 -s -1 -p 5001) >/dev/null 2>&1 3>&- &
  wait_for 30 ip netns exec b bash -c 'ss -Hltn "sport = :5001" | grep -q .'
  (echo "$BASHPID" >"$1/cgroup.procs" && exec ip netns exec a iperf3 -c 10.244.2.2 -p 5001 -t 60 -b 100M) >/dev/null 2>&1 3>&- &
  BACKGROUND=$!
}

stop_iperf() {
  jobs -p | xargs -r kill 2>/dev/null || true # one may end with the other
  wait
  BACKGROUND=
}

remote() { (($(counter ends_remote) == $1)); }

@test "a connection to another host: out of the map after its first exchange; who accepts one never enters" {
  mkdir -p "$CGROUP/here" "$CGROUP/elsewhere"
  load "${PODS[@]}" --cgroup "$CGROUP/here" # the other end is no business of this sockfuse
  iperf "$CGROUP/here" "$CGROUP/elsewhere"
  wait_for 30 remote 2
  counters
  [ "$(counter ends_tracked)" -eq 2 ]
  [ "$("$here/status.sh" --json | jq .map.entries)" -eq 0 ]
  [ "$("$BPFTOOL" -j map dump id "$(dialled)" | jq length)" -eq 0 ]
  stop_iperf
  iperf "$CGROUP/elsewhere" "$CGROUP/here"
  wait_for 30 remote 4
  counters
  [ "$(counter ends_tracked)" -eq 2 ]
  stop_iperf
}

# The map of those that connected, by id
dialled() { "$BPFTOOL" -j prog show pinned "$BPFFS/bpf_sockops" | jq '.map_ids[]' | while read -r id; do
  "$BPFTOOL" -j map show id "$id" | jq 'select(.name == "fuse_dialled").id'
done; }

@test "an adversary with the victim's sequence numbers, raw packets and TCP_REPAIR gets no byte" {
  load "${PODS[@]}"
  ip netns exec a "$NETS" steal /run/netns/b 10.244.2.2 8081 10.244.2.2 connected 3>&-
  ip netns exec a "$NETS" steal /run/netns/b 10.244.2.2 8082 10.244.2.2 accepted 3>&-
  ip netns exec a "$NETS" steal /run/netns/b 10.244.2.2 8083 10.244.2.2 returned 3>&-
  "$NETS" impostor 3>&-
  counters
  (($(counter fused_messages) >= 70)) # the victims' own
}

# One in some thousands of a victim's connections has a hash that the adversary can send.
@test "an adversary who sees the hash of a victim's packets, and sends one with that hash, gets no byte" {
  load "${PODS[@]}"
  "$NETS" forge flow 3>&-
  "$NETS" forge socket 3>&-
  counters
  [ "$(counter ends_tracked)" -eq 2 ] # the victims
  [ "$(counter ends_remote)" -eq 2 ]  # the adversaries
  [ "$(counter fused_messages)" -eq 0 ]
}

refresh_seconds() { "$here/status.sh" --json | jq .policy.refresh_seconds; }

@test "NAT keeps its entry: a connection that talks for longer than conntrack remembers falls back and closes properly" {
  ip netns exec r sysctl -q net.netfilter.nf_conntrack_tcp_timeout_established=3 net.netfilter.nf_conntrack_tcp_loose=0
  load "${PODS[@]}"
  [ "$(refresh_seconds)" -eq 1 ]
  talk a b 10.244.2.2 8080 10.96.0.2 80 80 100
  counters
  (($(counter tcp_refresh) >= 4 && $(counter fused_messages) > 100))
  change_settings '{refresh: 60}' # as if nobody had read it
  run talk a b 10.244.2.2 8080 10.96.0.2 80 80 100
  ip netns exec r sysctl -q net.netfilter.nf_conntrack_tcp_timeout_established=432000 net.netfilter.nf_conntrack_tcp_loose=1
  echo "$output"
  [ "$status" -ne 0 ]
  load "${PODS[@]}"
  [ "$(refresh_seconds)" -eq 60 ]
}

@test "policy changed under load: new connections follow it, live ones are unharmed" {
  local i
  load "${PODS[@]}"
  talk a b 10.244.2.2 8080 10.96.0.1 80 400 10 >"$BATS_TEST_TMPDIR/live" &
  BACKGROUND=$!
  tracked() { (($(counter ends_tracked) == 2)); }
  wait_for 30 tracked
  for i in 1 2; do
    load --port 9000
    talk a c 10.244.100.3 8080 10.244.100.3 8080 20
    [ "$(counter ends_tracked)" -eq $((2 * i)) ] # the live one's, and those of the next turn
    load "${PODS[@]}" --port 8000-9000 --exclude-port 8081
    talk a c 10.244.100.3 8081 10.244.100.3 8081 20
    talk a c 10.244.100.3 7999 10.244.100.3 7999 20
    [ "$(counter ends_tracked)" -eq $((2 * i)) ]
    talk a c 10.244.100.3 8080 10.244.100.3 8080 20
  done
  wait "$BACKGROUND"
  BACKGROUND=
  grep messages=400 "$BATS_TEST_TMPDIR/live"
}

@test "--cgroup twice: connections between the two, and one inside the other counts once" {
  mkdir -p "$CGROUP/one/inside" "$CGROUP/two" "$CGROUP/three"
  load --cgroup "$CGROUP/one" --cgroup "$CGROUP/two" --cgroup "$CGROUP/one/inside"
  between() {
    (echo "$BASHPID" >"$CGROUP/$1/cgroup.procs" && exec iperf3 -s -1 -p 5001 >/dev/null 3>&-) &
    wait_for 30 listens 5001
    (echo "$BASHPID" >"$CGROUP/$2/cgroup.procs" && exec iperf3 -c 127.0.0.1 -p 5001 -n 1M >/dev/null 3>&-)
    wait
  }
  between one/inside two
  counters
  [ "$(counter ends_tracked)" -eq 4 ]
  [ "$(counter ends_refused)" -eq 0 ]
  (($(counter fused_bytes) > 1000000))
  between three two
  [ "$(counter ends_tracked)" -eq 6 ]
  [ "$("$here/status.sh" --json | jq -c '.cgroups | sort')" = "[\"$CGROUP/one\",\"$CGROUP/two\"]" ]
  "$here/status.sh" --json | jq -r .load_command | grep -F -- "--cgroup '$CGROUP/one'" | grep -F -- "--cgroup '$CGROUP/two'"
}

@test "what is no network or port: one line, exit 2" {
  local option
  for option in "--net 10.0.0.0/33" "--net fd00::/129" "--net fd00:::/64" "--net 10.0.0" "--net pods" "--net 1.2.3.4/" "--port 0" "--port 1-70000"; do
    # shellcheck disable=SC2086 # several words
    run "$here/load.sh" --quiet $option 3>&-
    echo "$option: $status: $output"
    [ "$status" -eq 2 ]
    [ "${#lines[@]}" -eq 1 ]
  done
}
