# shellcheck shell=bash
# What the benchmarks share.

median() {
  sort -g | awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'
}

# Sockets of processes in these are plain TCP, fused, and none; nothing may be on above.
PLAIN=/sys/fs/cgroup/plain FUSED=/sys/fs/cgroup/fused UNIX=/sys/fs/cgroup/unix
make_cgroups() {
  mkdir "$PLAIN" "$FUSED" "$UNIX"
  if "${BPFTOOL:-bpftool}" cgroup show "$PLAIN" effective | grep -qw cgroup_sock_ops; then
    echo "${0##*/}: sockfuse is on in a cgroup above, so nothing here is plain TCP; try: sudo ./unload.sh" >&2
    exit 6
  fi
}

# in_cgroup MODE COMMAND...
in_cgroup() (
  echo "$BASHPID" >"/sys/fs/cgroup/$1/cgroup.procs"
  exec "${@:2}"
)

# modes_of ROUND MODE...: them, another first each round
modes_of() {
  local n=$(($# - 1)) i
  for ((i = 0; i < n; i++)); do echo "${@:$((2 + ($1 + i) % n)):1}"; done
}

# iperf3_stream BYTES SECONDS: bytes per second that iperf3 received, which writes so many at a time
iperf3_stream() {
  local server
  iperf3 -s -1 -p 5001 >/dev/null &
  server=$!
  until ss -Hltn 'sport = :5001' | grep -q .; do sleep 0.05; done
  iperf3 -J -c 127.0.0.1 -p 5001 -l "$1" -t "${2%.*}" | jq '.end.sum_received.bits_per_second / 8 | floor'
  wait "$server"
}
