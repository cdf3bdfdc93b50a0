# shellcheck shell=bash disable=SC2154 # output: set by bats
# What the tests share.  They run inside isolate.sh: /sys/fs/cgroup is a cgroup
# of their own, /sys/fs/bpf and the network are theirs alone.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BPFTOOL=${BPFTOOL:-bpftool}
BPFFS=/sys/fs/bpf
CGROUP=/sys/fs/cgroup
TRAFFIC=$here/tests/traffic

load() { "$here/load.sh" --quiet "$@" 3>&-; }
# Nothing is learned of services: of a client's many connections none is left on TCP.
load_always() { load --port 1-65535 "$@"; }
unload() { "$here/unload.sh" "$@" 3>&-; }
status() { "$here/status.sh" "$@" 3>&-; }

# counters: those of the loaded sockfuse, summed over processors, as JSON
counters() {
  "$BPFTOOL" -j map dump pinned "$BPFFS/sockfuse/fuse_counters" | jq -c '
    [.[0].formatted.values[].value] | map(to_entries[]) | group_by(.key)
    | map({(.[0].key): (map(.value) | add)}) | add'
}

# counter NAME [JSON]
counter() { jq ".$1" <<<"${2:-$(counters)}"; }

# An address of this host that is not loopback: what goes there is plain TCP,
# whatever is on, in a cgroup above too.
readonly PLAIN_ADDRESS=192.0.2.1
plain_address() { ip address replace "$PLAIN_ADDRESS/32" dev lo; }

# change_settings JSON: members of struct settings, as the scripts do
change_settings() {
  # shellcheck disable=SC2016 # expanded inside
  bash -c '. "$1/lib/common.sh" && . "$1/lib/settings.sh" && set_settings pinned "$PIN_DIR/$SETTINGS" "$2"' - "$here" "$1"
}

# set_fuse 0|1: the fuse switch
set_fuse() { change_settings "{\"fuse\": $1}"; }

# What load.sh --adopt needs: Linux 6.12
can_adopt() { grep -q TCP_BPF_SOCK_OPS_CB_FLAGS /sys/kernel/btf/vmlinux; }

# After load: some kernels refuse the iterator of a map.
can_list() { [[ -e $BPFFS/sockfuse/connections ]]; }
needs_list() { can_list || skip "this kernel lists no sockets of a map"; }

# What the whole machine has one of, and only the first network namespace shows.
host_sysctl() { nsenter --net=/run/host-net sysctl "$@"; }

# value NAME: of the name=value words in $output
value() { grep -oP "(?<=\b$1=)[-0-9]+" <<<"$output"; }

# wait_for SECONDS COMMAND...: until it succeeds
wait_for() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.05
  done
}

# listens PORT
listens() { ss -Hltn "sport = :$1" | grep -q .; }

# What a test may not leave: pins, attachments.
assert_nothing_left() {
  local left
  left=$(find "$BPFFS" -mindepth 1 ! -name '*.debug')
  [[ ! $left ]] || { echo "pins are left: $left" && return 1; }
  left=$("$BPFTOOL" cgroup tree | grep -w sock_ops) || return 0
  echo "attachments are left: $left"
  return 1
}

assert_on() {
  local id
  for pin in bpf_sockops bpf_redir sock_ops_map sockfuse/fuse_settings sockfuse/fuse_counters; do
    [[ -e $BPFFS/$pin ]] || { echo "not pinned: $pin" && return 1; }
  done
  [[ ! -e $BPFFS/sockfuse/staging ]] || { echo "staging is left" && return 1; }
  id=$("$BPFTOOL" -j prog show pinned "$BPFFS/bpf_sockops" | jq .id)
  [[ $(ours_attached) == "$id" ]] || { echo "attached: $(ours_attached), pinned: $id" && return 1; }
  [[ $("$BPFTOOL" -j map dump pinned "$BPFFS/sockfuse/fuse_settings" | jq '.[0].formatted.value.fuse') == 1 ]]
  # and it works
  local before
  before=$(counter fused_bytes)
  "$TRAFFIC" echo 127.0.0.1 127.0.0.1 1000
  (($(counter fused_bytes) - before == 2000)) || { echo "loaded, but a new connection is not fused" && return 1; }
}

ours_attached() {
  "$BPFTOOL" -j cgroup show "$CGROUP" 2>/dev/null | jq -r '.[]? | select(.name == "bpf_sockops") | .id'
}

# Segments with data in a capture file
data_segments() { tcpdump -r "$1" -n 'tcp' 2>/dev/null | grep -cvE 'length 0$' || true; }

# capture FILE FILTER...: in the background, until stop_capture
capture() {
  local file=$1
  CAPTURE_FILE=$file
  shift
  set -- "$*" or tcp port 1
  tcpdump -i lo -n -U --immediate-mode -s 128 -B 65536 -w "$file" "$@" 3>&- 2>"$file.log" &
  CAPTURE=$!
  wait_for 30 grep -q 'listening on' "$file.log"
}

# Sends a last connection to port 1 after everything else, and stops when that
# has been captured: a capture that saw nothing must not pass for silence.
stop_capture() {
  local file=$CAPTURE_FILE
  : 2>/dev/null <>/dev/tcp/127.0.0.1/1 || true
  wait_for 30 bash -c "tcpdump -r '$file' -n 'tcp dst port 1' 2>/dev/null | grep -q ."
  kill -INT "$CAPTURE"
  wait "$CAPTURE" || true
  CAPTURE=
}

# A connection that does what step says.
open_steps() {
  coproc STEPS { exec "$TRAFFIC" steps 3>&-; }
  step send 0 0 # it is connected
}

# pace_until_left: small messages until both ends have left the map; on a busy machine there
# are pauses between them, and it is no stream
pace_until_left() {
  for _ in {1..10}; do
    step pace 64 2000
    sleep 0.3
    step pace 64
    (($(counter ends_unfused) < 2)) || return 0
  done
  counters
  return 1
}

close_steps() {
  local pid=$STEPS_PID requests=${STEPS[1]}
  exec {requests}>&-
  wait "$pid"
}

step() {
  local answer
  echo "$*" >&"${STEPS[1]}"
  read -r -t 30 answer <&"${STEPS[0]}"
  [ "$answer" = ok ]
}

# service FILTER [PORT]: what status.sh tells of the service at that port
service() { "$here/status.sh" --json 3>&- | jq -c ".services[] | select(.port == ${2:-5001}) | $1"; }

# bytes NUMBER: its four, the lowest first
bytes() { echo "$(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24 & 255))"; }
# shellcheck disable=SC2034 # the tests use it
readonly ANYBODY=4294967295
# struct known of bpf/services.h; its reason is at 16
mapfile -t ZEROS < <(printf '0\n%.0s' {1..40})
readonly ZEROS

# remember USER REASON [PORT]: as the guard does, of the service at port 5001, or that one
remember() {
  # shellcheck disable=SC2046 # a word a byte
  "$BPFTOOL" map update pinned "$BPFFS/sockfuse/fuse_services" key $(bytes "$(stat -L -c %i /proc/self/ns/net)") \
    $(bytes "$("$TRAFFIC" cookie)") $(bytes "${3-5001}") $(bytes "$1") value "${ZEROS[@]:0:16}" "$2" "${ZEROS[@]:0:23}"
}

# fill_services N [TIMES]: with so many others, which are used twice, or so often; on each processor,
# since each keeps its last ones to itself
fill_services() {
  local cpu
  for ((cpu = 0; cpu < $(nproc); cpu++)); do
    seq "$1" | awk -v map="$BPFFS/sockfuse/fuse_services" -v zeros="${ZEROS[*]}" -v times="${2-2}" -v cpu="$cpu" '{
      for (i = 0; i < times; i++) print "map update pinned", map, "key 1 0 0 0 0 0 0 0", $1 % 256, int($1 / 256), cpu, 0, 1, 0, 0, 0, "value", zeros
    }' | taskset -c "$cpu" "$BPFTOOL" batch file - >/dev/null
  done
}
