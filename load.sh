#!/usr/bin/env bash
# Starts sockfuse: loads both programs, pins them and attaches them.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
. "$here/lib/common.sh"
. "$here/lib/kernel.sh"

usage() {
  cat <<EOF
Usage: ${0##*/} [--cgroup PATH]... [--net CIDR]... [--port LIST]
               [--exclude-port LIST] [--max-connections N] [--refresh SECONDS]
               [--sidecar PORT [--sidecar-uid UID] [--sidecar-mark MARK]]
               [--adopt | --min-age SECONDS] [--nonblocking-only] [--account]
               [--no-guard | --careful]
               [--config FILE] [--check [--json] | --quiet]

Fuses local TCP connections: each one that is established from now on between
two loopback addresses, in every network namespace.  Running it again replaces
what is loaded; live connections go on.

  --cgroup PATH          only sockets of processes in this cgroup2 directory
                         (default: all, the root of the cgroup2 mount)
  --net CIDR             fuse between addresses of this network, too, if both ends
                         are on this host, in the same network namespace or not,
                         and through NAT; local: this host's own addresses
  --refresh SECONDS      with --net, send a message by TCP when no segment has
                         passed for so long, so that NAT and connection tracking
                         keep the connection (default 60, at most 255; 0: never)
  --port LIST            fuse only connections to services that listen on these
                         ports: numbers and ranges, as 80,443,6000-6010
  --exclude-port LIST    do not fuse connections to services on these ports; nor to
                         564,2049,3240,3260,4420,10809, which the kernel serves,
                         unless --port has them
  --max-connections N    connections that can be fused at a time (default
                         65536); those beyond go by TCP
  --sidecar PORT         send connections of the processes in --cgroup to the proxy
                         that listens on this port of their loopback address;
                         connections to loopback stay as they are.  The proxy asks
                         for the original destination with SO_ORIGINAL_DST
  --sidecar-uid UID      leave the connections of this user alone, or those with
  --sidecar-mark MARK    this SO_MARK: they are the proxy's own
  --adopt                fuse the connections that are established already, too
  --min-age SECONDS      fuse only connections that are so old (1 to 255), for as
                         long as $(name_of adopt) runs: short ones stay plain TCP
  --nonblocking-only     adopt only connections of which both ends are O_NONBLOCK
  --account              count bytes and age of each connection, for $(name_of status);
                         short connections pay for it
  --no-guard             do not watch for calls that only TCP serves (splice,
                         MSG_WAITALL, MSG_OOB, …); programs that may splice are
                         fused, too.  Without this option those in the list
                         splicers stay plain TCP; where the guard cannot attach,
                         Go programs do so, too, and a line says so
  --careful              fuse to a reader only after the guard has seen it read
                         with O_NONBLOCK and without flags as MSG_WAITALL
  --config FILE          take options from a file, too, one a line, as here; lines
                         that begin with # are comments
  --check                load nothing for good, and attach to no cgroup; say what
                         this host lacks (exit 1), what would be reduced, and which
                         faults of sockmap this kernel is known to have
  --json                 print what --check found as one JSON object
  --quiet                do not print the commands that change the system
  --help                 this text

Example: ${0##*/} --cgroup /sys/fs/cgroup/system.slice --exclude-port 8404,9000-9010

$EXIT_CODES
EOF
}

CGROUPS=()
NETWORKS=()
REFRESH=60
LISTED=
EXCLUDE=
MAX_CONNECTIONS=65536
ADOPTING=
MIN_AGE=
NONBLOCKING=
SIDECAR_PORT=
SIDECAR_UID=
SIDECAR_MARK=
ACCOUNT=
GUARD=1
CAREFUL=
CHECK=
JSON=
parse_arguments() {
  split_options "$@"
  set -- "${ARGUMENTS[@]}"
  while (($#)); do
    case $1 in
      --cgroup | --net | --refresh | --sidecar | --sidecar-uid | --sidecar-mark | --port | --exclude-port | --max-connections | --min-age | --config)
        [[ ${2-} ]] || die "$EX_USAGE" "$1 needs a value" "see: $0 --help"
        ;;&
      --cgroup)
        CGROUPS+=("$2")
        shift
        ;;
      --net)
        NETWORKS+=("$2")
        shift
        ;;
      --refresh)
        REFRESH=$2
        shift
        ;;
      --sidecar)
        SIDECAR_PORT=$2
        shift
        ;;
      --sidecar-uid)
        SIDECAR_UID=$2
        shift
        ;;
      --sidecar-mark)
        SIDECAR_MARK=$2
        shift
        ;;
      --port)
        LISTED+=,$2
        shift
        ;;
      --exclude-port)
        EXCLUDE+=,$2
        shift
        ;;
      --max-connections)
        MAX_CONNECTIONS=$2
        shift
        ;;
      --min-age)
        MIN_AGE=$2
        shift
        ;;
      --config)
        read_config "$2"
        shift
        ;;
      --adopt) ADOPTING=1 ;;
      --nonblocking-only) NONBLOCKING=1 ;;
      --account) ACCOUNT=1 ;;
      --no-guard) GUARD= ;;
      --careful) CAREFUL=1 ;;
      --check) CHECK=1 ;;
      --json) JSON=1 ;;
      --quiet) QUIET=1 ;;
      *) last_option "$1" ;;
    esac
    shift
  done
  [[ ! $JSON || $CHECK ]] || die "$EX_USAGE" "--json goes with --check" "see: $0 --help"
  [[ ! $CAREFUL || $GUARD ]] || die "$EX_USAGE" "--careful needs the guard" "see: $0 --help"
  # Each connection has two sockets; the kernel allocates the buckets at once.
  if [[ ! $MAX_CONNECTIONS =~ ^[1-9][0-9]{0,7}$ ]] || ((MAX_CONNECTIONS > 16777216)); then
    die "$EX_USAGE" "--max-connections: not a number from 1 to 16777216: $MAX_CONNECTIONS" "see: $0 --help"
  fi
  if [[ $MIN_AGE ]]; then
    [[ $MIN_AGE =~ ^[1-9][0-9]{0,2}$ && $MIN_AGE -le 255 ]] ||
      die "$EX_USAGE" "--min-age: not a number of seconds from 1 to 255: $MIN_AGE" "see: $0 --help"
    ADOPTING=1
  fi
  [[ ! $NONBLOCKING || $ADOPTING ]] ||
    die "$EX_USAGE" "--nonblocking-only goes with --adopt or --min-age" "see: $0 --help"
  [[ $REFRESH =~ ^(0|[1-9][0-9]{0,2})$ && $REFRESH -le 255 ]] ||
    die "$EX_USAGE" "--refresh: not a number of seconds from 0 to 255: $REFRESH" "see: $0 --help"
  # Who accepts is told from others by the packet that ends the handshake.
  ((${#NETWORKS[@]} == 0)) || [[ ! $MIN_AGE ]] || die "$EX_USAGE" "--net does not go with --min-age" "see: $0 --help"
  check_sidecar
  ports_of --port "$LISTED" >/dev/null
  ports_of --exclude-port "$EXCLUDE" >/dev/null
  network_keys >/dev/null
}

check_sidecar() {
  local option
  if [[ ! $SIDECAR_PORT ]]; then
    [[ ! $SIDECAR_UID$SIDECAR_MARK ]] || die "$EX_USAGE" "--sidecar-uid and --sidecar-mark go with --sidecar" "see: $0 --help"
    return 0
  fi
  [[ $SIDECAR_PORT =~ ^[1-9][0-9]{0,4}$ && $SIDECAR_PORT -le 65535 ]] || die "$EX_USAGE" "--sidecar: not a port: $SIDECAR_PORT" "see: $0 --help"
  ((${#CGROUPS[@]})) || die "$EX_USAGE" "--sidecar needs --cgroup: whose connections go to the proxy" "see: $0 --help"
  [[ $SIDECAR_UID$SIDECAR_MARK ]] ||
    die "$EX_USAGE" "--sidecar needs --sidecar-uid or --sidecar-mark, or the proxy would dial itself" "see: $0 --help"
  for option in "$SIDECAR_UID" "$SIDECAR_MARK"; do
    [[ $option =~ ^(0x[0-9a-fA-F]{1,8}|0|[1-9][0-9]{0,9})?$ && $((option)) -le 4294967295 ]] ||
      die "$EX_USAGE" "--sidecar-uid, --sidecar-mark: not a number of 32 bits: $option" "see: $0 --help"
  done
}

read_config() {
  local option value
  [[ -f $1 && -r $1 ]] || die "$EX_USAGE" "--config: cannot read $1" "see: $0 --help"
  while read -r option value || [[ $option ]]; do
    case $option in
      '' | '#'*) ;;
      --config) die "$EX_USAGE" "$1: --config cannot stand in a file" "see: $0 --help" ;;
      *) parse_arguments "$option" ${value:+"$value"} ;;
    esac
  done <"$1"
}

# ports_of OPTION LIST: one a line
ports_of() {
  local part first last
  for part in ${2//,/ }; do
    [[ $part =~ ^([1-9][0-9]{0,4})(-([1-9][0-9]{0,4}))?$ ]] ||
      die "$EX_USAGE" "$1: not a port or a range of ports: $part" "see: $0 --help"
    first=${BASH_REMATCH[1]} last=${BASH_REMATCH[3]:-${BASH_REMATCH[1]}}
    ((first <= last && last <= 65535)) ||
      die "$EX_USAGE" "$1: not a port or a range of ports: $part" "see: $0 --help"
    seq "$first" "$last"
  done
}

# bytes_of ADDRESS: its 16 bytes between spaces, IPv4 as ::ffff:a.b.c.d; nothing if
# it is none
bytes_of() {
  local address=$1 part left right=() filled=()
  if [[ $address =~ ^(.*:)?([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})$ ]]; then
    for part in "${BASH_REMATCH[@]:2}"; do
      ((10#$part <= 255)) || return 0
      filled+=($((10#$part)))
    done
    address=${BASH_REMATCH[1]:-::ffff:}$(printf '%02x%02x:%02x%02x' "${filled[@]}")
  fi
  [[ $address =~ ^[0-9a-fA-F:]+$ && $address != *:::* && $address != *::*::* && $address =~ ^(::|[^:]) && $address =~ (::|[^:])$ ]] || return 0
  IFS=: read -ra left <<<"${address%%::*}"
  if [[ $address == *::* ]]; then
    IFS=: read -ra right <<<"${address#*::}"
    while ((${#left[@]} + ${#right[@]} < 8)); do
      left+=(0)
    done
  fi
  filled=("${left[@]}" "${right[@]}")
  [[ ${#filled[@]} == 8 && ${filled[*]} =~ ^[0-9a-fA-F]{1,4}(\ [0-9a-fA-F]{1,4})*$ ]] || return 0
  for part in "${filled[@]}"; do
    printf '%d %d ' $((16#$part >> 8)) $((16#$part & 255))
  done
}

# Of --net: prefix length and address as the bytes of struct net_key, one a line
network_keys() {
  local network bytes length most
  for network in "${NETWORKS[@]}"; do
    if [[ $network == local ]]; then
      need_command ip iproute2
      ip -j address show | jq -r '.[].addr_info[] | .local // empty'
    else
      [[ $network == */* ]] ||
        die "$EX_USAGE" "--net: how long is the prefix of $network?" "try: $network/$([[ $network == *:* ]] && echo 128 || echo 32) for that address alone"
      echo "$network"
    fi
  done | while read -r network; do
    bytes=$(bytes_of "${network%%/*}")
    most=128
    [[ $network == *:* ]] || most=32
    length=$most
    [[ $network != */* ]] || length=${network#*/}
    [[ $bytes && $length =~ ^(0|[1-9][0-9]{0,2})$ && $length -le $most ]] ||
      die "$EX_USAGE" "--net: neither local nor a network as 10.244.0.0/16 or fd00::/64: $network" "see: $0 --help"
    echo "$(bytes_u32 $((length + 128 - most))) $bytes"
  done
}

# In the host's byte order, as keys are
little_endian() { [[ $(printf '\1\0' | od -An -t u2 | tr -d ' ') == 1 ]]; }
bytes_u16() { if little_endian; then echo "$(($1 % 256)) $(($1 / 256))"; else echo "$(($1 / 256)) $(($1 % 256))"; fi; }
bytes_u32() { if little_endian; then echo "$(bytes_u16 "$1") 0 0"; else echo "0 0 $(bytes_u16 "$1")"; fi; }

# fill MAP WHAT: lines of "KEY value VALUE" into it, all at once
fill() {
  sed "s|^|map update pinned $STAGING/maps/$1 key |" | "$BPFTOOL" batch file - >/dev/null 2>&1 ||
    die "$EX_FAILED" "the $2 were not taken" "try: $BPFTOOL map show pinned $STAGING/maps/$1"
}

# Services whose programs hand an established connection to the kernel, which then reads
# past what was fused: 9P, NFS, USB/IP, iSCSI, NVMe/TCP, NBD.
readonly KERNEL_PORTS=564,2049,3240,3260,4420,10809

# The policy is there before the program is attached.  Of two lines for a port the last counts.
set_policy() {
  say "+ $BPFTOOL map update pinned $STAGING/maps/$PORTS (ports${LISTED:+ ${LISTED#,}} but not $KERNEL_PORTS$EXCLUDE)"
  {
    ports_of KERNEL_PORTS "$KERNEL_PORTS" | sed 's/$/ 2/'
    ports_of --port "$LISTED" | sed 's/$/ 1/'
    ports_of --exclude-port "$EXCLUDE" | sed 's/$/ 0/'
  } | awk -v little="$(little_endian && echo 1)" '
    { high = int($1 / 256); low = $1 % 256; print (little ? low " " high : high " " low), "value", $2 }' | fill "$PORTS" ports
  if ((${#NETWORKS[@]})); then
    say "+ $BPFTOOL map update pinned $STAGING/maps/$NETS (${NETWORKS[*]})"
    network_keys | sed 's/$/ value 1/' | fill "$NETS" networks
  fi
}

need_bpffs() {
  grep -qw bpf /proc/filesystems ||
    die "$EX_HOST" "this kernel has no bpffs" "boot one with CONFIG_BPF_SYSCALL"
}

# Each once: a socket in two of them would be offered twice.
find_cgroups() {
  local cgroup inner outer kept=()
  if ((${#CGROUPS[@]} == 0)); then
    CGROUPS=("$(cgroup2_mount)")
    [[ ${CGROUPS[0]} ]] ||
      die "$EX_HOST" "no cgroup2 is mounted" "try: mkdir -p /run/cgroup2 && mount -t cgroup2 none /run/cgroup2"
  fi
  for cgroup in "${CGROUPS[@]}"; do
    [[ $(stat -f -c %T "$cgroup" 2>/dev/null) == cgroup2fs && -d $cgroup ]] ||
      die "$EX_USAGE" "not a cgroup2 directory: $cgroup" "see: findmnt -t cgroup2"
  done
  mapfile -t CGROUPS < <(readlink -f "${CGROUPS[@]}" | sort -u)
  for inner in "${CGROUPS[@]}"; do
    for outer in "${kept[@]}"; do
      [[ $inner/ != "$outer"/* ]] || continue 2
    done
    kept+=("$inner")
  done
  CGROUPS=("${kept[@]}")
}

# The objects, built if they are missing or older than what they are made of.
build() {
  local name source stale=
  [[ -e $here/Makefile ]] || return 0 # installed
  for name in bpf_contrack bpf_redirect bpf_adopt bpf_guard bpf_sidecar bpf_splicers bpf_status compat/bpf_contrack compat/bpf_redirect compat/bpf_splicers compat/bpf_status; do
    for source in "$here/bpf/${name#compat/}.bpf.c" "$here"/bpf/*.h "$here/vmlinux.h"; do
      [[ $here/bpf/$name.bpf.o -nt $source ]] || stale=1
    done
  done
  for name in autoattach fionread; do
    [[ $here/bpf/$name -nt $here/bpf/$name.c ]] || stale=1
  done
  [[ $stale ]] || return 0
  need_command make make
  need_command "${CC:-cc}" gcc
  need_command "${CLANG:-clang}" clang
  run make -s -C "$here" >&2 ||
    die "$EX_FAILED" "the BPF programs do not build (see above)" "try: make deps"
}

mount_bpffs() {
  is_bpffs && return
  run mount -t bpf -o mode=0700 bpf "$BPFFS" 2>/dev/null ||
    die "$EX_HOST" "cannot mount bpffs at $BPFFS" "try: mount -t bpf bpf $BPFFS"
  MOUNTED=1
}

# A name that another program has pinned is theirs.
refuse_foreign_pins() {
  local ours path
  ours=$(our_programs)
  # Where every user may create a directory, whoever owns it owns our pins.
  [[ ! -e $PIN_DIR || -O $PIN_DIR ]] ||
    die "$EX_FOREIGN" "$PIN_DIR belongs to another user" "rm -r $PIN_DIR"
  for path in "$PIN_SOCKOPS" "$PIN_REDIR"; do
    [[ -e $path ]] || continue
    jq -se --arg id "$(pinned_id "$path")" 'any(.[]; "\(.id)" == $id)' <<<"$ours" >/dev/null ||
      die "$EX_FOREIGN" "$path is pinned by another program" "unload that one, or: rm $path"
  done
  [[ ! -e $PIN_MAP ]] || jq -se --arg id "$("$BPFTOOL" -j map show pinned "$PIN_MAP" 2>/dev/null | jq -r .id)" \
    'any(.[]; "\(.map)" == $id)' <<<"$ours" >/dev/null ||
    die "$EX_FOREIGN" "$PIN_MAP is pinned by another program" "unload that one, or: rm $PIN_MAP"
}

# object NAME: the file that this bpftool can load
object() {
  if bpftool_is_at_least 5 16; then
    echo "$here/bpf/$1.bpf.o"
  else
    echo "$here/bpf/compat/$1.bpf.o"
  fi
}

# What the verifier ends with says why; without it, libbpf's first line does.
load_error() {
  awk '
    /-- END (PROG LOAD )?LOG --/ { inside = 0 }
    inside && !/^(processed|verification time|stack depth) / { reason = $0 }
    /-- BEGIN (PROG LOAD|DUMP) LOG --/ { inside = 1 }
    /^(libbpf|Error): / && !/Retrying/ && !first { first = $0 }
    END { print reason ? reason : first ? first : $0 ? $0 : "no reason given" }'
}

# load_program NAME TYPE bpftool-arguments...
load_program() {
  local type=$2 object log
  object=$(object "$1")
  shift 2
  say "+ $BPFTOOL prog load $object $1 type $type ${*:2}"
  log=$("$BPFTOOL" prog load "$object" "$1" type "$type" "${@:2}" 2>&1) || {
    [[ $log != *"failed to find valid kernel BTF"* ]] ||
      die "$EX_HOST" "$BPFTOOL is too old for this kernel: it cannot read its BTF" "$(install_hint) (package bpftool, the one of this kernel)"
    die "$EX_FAILED" "the kernel refused ${object##*/}: $(load_error <<<"$log")" \
      "sockfuse needs Linux 5.10 or later with CONFIG_BPF_STREAM_PARSER"
  }
}

# large_enough ENTRIES MAP_REFERENCE...: whether that map has room for so many
large_enough() {
  local now
  now=$("$BPFTOOL" -j map show "${@:2}" 2>/dev/null | jq '.max_entries // 0')
  ((now >= $1))
}

# same_size STRUCT MAP_REFERENCE...: whether that map holds what this version
# does.  Another version of sockfuse may have left it.
same_size() {
  local now
  now=$("$BPFTOOL" -j map show "${@:2}" 2>/dev/null | jq '.bytes_value')
  [[ $now == "$("$BPFTOOL" -j btf dump file "$here/bpf/bpf_contrack.bpf.o" |
    jq --arg name "$1" 'first(.types[] | select(.kind == "STRUCT" and .name == $name).size)')" ]]
}

# Everything is loaded into the staging directory first; commit() renames it once it works.
stage() {
  local settings reuse_settings=() reuse_counters=() marks=$STAGING/marks
  run mkdir -p "$STAGING"
  # Settings and counters stay: live connections keep the programs that they
  # have, and unload.sh must be able to switch those off too.
  settings=$(our_settings | head -n 1)
  if [[ $settings ]] && ! same_size settings id "$settings"; then
    OLD_SETTINGS=$settings
  elif [[ $settings ]]; then
    reuse_settings=(map name "$SETTINGS" id "$settings")
    SETTINGS_BEFORE=$(settings_in id "$settings" | jq -c '{fuse, careful, account, min_age, nets, listed, refresh, nonblocking, splicers}')
    SETTINGS_MAP=(id "$settings")
  fi
  ! same_size counters pinned "$PIN_DIR/$COUNTERS" ||
    reuse_counters=(map name "$COUNTERS" pinned "$PIN_DIR/$COUNTERS")

  run "$BPFTOOL" map create "$STAGING/sock_ops_map" type sockhash key 16 value 8 \
    entries $((MAX_CONNECTIONS * 2)) name sock_ops_map 2>/dev/null ||
    die "$EX_FAILED" "no room for a map of $MAX_CONNECTIONS connections" "try: $0 --max-connections 10000"
  # What the guard has seen of live connections stays.  Their marks have room beside those
  # of new ones.  The map takes 16 bytes an entry at once, and some 80 for each mark.
  if same_size marks pinned "$PIN_DIR/$MARKS" && large_enough $((MAX_CONNECTIONS * 4)) pinned "$PIN_DIR/$MARKS"; then
    marks=$PIN_DIR/$MARKS
  else
    run "$BPFTOOL" map create "$marks" type hash key 8 value 8 entries $((MAX_CONNECTIONS * 4)) name "$MARKS" flags 1 2>/dev/null ||
      die "$EX_FAILED" "no room for the marks of $MAX_CONNECTIONS connections" "try: $0 --max-connections 10000"
  fi
  load_program bpf_contrack sockops "$STAGING/bpf_sockops" pinmaps "$STAGING/maps" \
    map name sock_ops_map pinned "$STAGING/sock_ops_map" "${reuse_settings[@]}" "${reuse_counters[@]}" \
    map name "$MARKS" pinned "$marks"
  load_program bpf_redirect sk_msg "$STAGING/bpf_redir" \
    map name sock_ops_map pinned "$STAGING/sock_ops_map" \
    map name "$SETTINGS" pinned "$STAGING/maps/$SETTINGS" \
    map name "$COUNTERS" pinned "$STAGING/maps/$COUNTERS" \
    map name "$DIRECTIONS" pinned "$STAGING/maps/$DIRECTIONS" \
    map name "$MARKS" pinned "$STAGING/maps/$MARKS"
  SETTINGS_MAP=(pinned "$STAGING/maps/$SETTINGS")
}

# guard_refused COMMAND...: loads and attaches the guard; prints why it could not, else
# nothing.  bpftool pins links, or programs in their place if it cannot attach.
guard_refused() {
  local log pin
  command -v "$1" >/dev/null || {
    echo "this bpftool cannot attach it, nor is $1 here: install sockfuse again, or bpftool 7.5"
    return
  }
  log=$("$@" 2>&1) || {
    load_error <<<"$log"
    return
  }
  for pin in "$STAGING"/guard/*; do
    # bpftool 7.5 shows a link, then an error
    [[ $("$BPFTOOL" link show pinned "$pin" 2>/dev/null || true) == *prog* ]] || echo "$BPFTOOL did not attach ${pin##*/}"
  done
}

# The optional third object.  bpftool attaches it since 7.5.
guard() {
  local name command why arguments
  [[ $GUARD ]] || return 0
  SPLICERS=1 # who does not read where splice is refused
  arguments=("$here/bpf/bpf_guard.bpf.o" "$STAGING/guard" map name sock_ops_map pinned "$STAGING/sock_ops_map")
  for name in "$SETTINGS" "$COUNTERS" "$MARKS" "$GUARDED" "$DIRECTIONS"; do
    arguments+=(map name "$name" pinned "$STAGING/maps/$name")
  done
  if [[ $("$BPFTOOL" prog help 2>&1) == *autoattach* ]]; then
    command=("$BPFTOOL" prog loadall "${arguments[@]}" autoattach)
  else
    command=("$here/bpf/autoattach" "${arguments[@]}")
  fi
  say "+ ${command[*]}"
  why=$(guard_refused "${command[@]}")
  [[ $why ]] || return 0
  GUARD=
  rm -rf "$STAGING/guard"
  [[ ! $CAREFUL ]] ||
    die "$EX_HOST" "--careful needs the guard, which was not attached: $why" "leave it out"
  UNGUARDED=$why SPLICERS=2
}

# Names of programs whose sockets stay out, as they may splice: the project's list, and the
# administrator's
splicer_names() {
  { cat "$here/lib/splicers" /etc/sockfuse.splicers 2>/dev/null || true; } | sed 's/[[:space:]]*\(#.*\)\?$//; /^$/d'
}

# pin_iterator OBJECT NAME: at $STAGING/NAME; sets log if it fails.  libbpf finds maps by
# their names in /sys/fs/bpf, so ours are mounted there for this one command.
pin_iterator() {
  local how
  how="mount --bind $STAGING/maps $BPFFS && $(printf '%q iter pin %q' "$BPFTOOL" "$1") $BPFFS/$2"
  say "+ unshare --mount bash -c '$how'"
  log=$(unshare --mount bash -c "$how" 2>&1) || return
  run mv "$STAGING/maps/$2" "$STAGING/$2"
}

# Programs that may splice stay out: tells the BPF programs their names (the empty name
# stands for those in Go), and marks those that run already.
set_splicers() {
  local names name bytes log
  [[ $SPLICERS ]] || return 0
  names=$(splicer_names)
  say "+ $BPFTOOL map update pinned $STAGING/maps/$PROGRAMS (${names//$'\n'/ })"
  while IFS= read -r name; do
    [[ $name ]] || continue # no name at all
    read -ra bytes < <(printf %s "$name" | od -An -v -t u1 -N 15)
    bytes+=(0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0)
    echo "${bytes[*]:0:16} value 1"
  done <<<"$names" | { cat && { [[ ! $UNGUARDED ]] || echo '0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 value 1'; }; } | fill "$PROGRAMS" "names of programs"
  pin_iterator "$(object bpf_splicers)" splicers || {
    [[ ! $UNGUARDED ]] ||
      die "$EX_HOST" "who may splice cannot be told here: $(load_error <<<"$log")" "if nobody does: $0 --no-guard"
    # What may not mount, in a container.  Programs that are started later are told by their names.
    echo "${0##*/}: programs of the list splicers that run already are not known to sockfuse ($(load_error <<<"$log")): start them again" >&2
    return 0
  }
  mark_splicers
}

# Before the programs are attached, and again after it for who has come meanwhile
mark_splicers() {
  [[ $SPLICERS && -e $STAGING/splicers ]] || return 0
  say "+ cat $STAGING/splicers"
  cat "$STAGING/splicers"
}

# The iterator that status.sh reads, optional too.
iterator() {
  local log id pin object
  object=$(object bpf_status)
  id=$("$BPFTOOL" -j map show pinned "$STAGING/sock_ops_map" | jq .id)
  pin=$STAGING/connections/$id
  run mkdir "$STAGING/connections"
  say "+ $BPFTOOL iter pin $object $pin map id $id"
  log=$("$BPFTOOL" iter pin "$object" "$pin" map id "$id" 2>&1) || {
    rm -rf "$STAGING/connections"
    say "$(name_of status) lists no connections here: $(load_error <<<"$log")"
  }
}

# The iterator that adopts
adopter() {
  local log
  [[ $ADOPTING ]] || return 0
  run "$BPFTOOL" map create "$STAGING/maps/$ADOPTERS" type array_of_maps key 4 value 4 entries 1 \
    name "$ADOPTERS" inner_map pinned "$STAGING/sock_ops_map"
  run "$BPFTOOL" map update pinned "$STAGING/maps/$ADOPTERS" key 0 0 0 0 value pinned "$STAGING/sock_ops_map"
  pin_iterator "$here/bpf/bpf_adopt.bpf.o" adopt ||
    die "$EX_FAILED" "--adopt: $(load_error <<<"$log")" "leave it out"
  say "+ $BPFTOOL map update pinned $STAGING/maps/$CGROUPS_MAP (${CGROUPS[*]})"
  cgroup_ids | sed 's/$/ value 1/' | fill "$CGROUPS_MAP" cgroups
}

# little NUMBER BYTES: the lowest byte first
little() {
  local byte
  for ((byte = 0; byte < $2; byte++)); do
    printf '%d ' $(($1 >> 8 * byte & 255))
  done
}

# cgroup_ids: of each cgroup, its bytes, the lowest first
cgroup_ids() {
  local id
  stat -c %i "${CGROUPS[@]}" | while read -r id; do
    little "$id" 8
    echo
  done
}

# The programs of --sidecar, and struct sidecar
sidecar() {
  local log maps=(map name sock_ops_map pinned "$STAGING/sock_ops_map") name bytes
  [[ $SIDECAR_PORT ]] || return 0
  for name in "$SETTINGS" "$COUNTERS" "$MARKS" "$GUARDED" "$DIRECTIONS"; do
    maps+=(map name "$name" pinned "$STAGING/maps/$name")
  done
  for name in fuse_originals fuse_sources; do # what live connections have there
    [[ ! -e $SIDECAR/$name ]] || maps+=(map name "$name" pinned "$SIDECAR/$name")
  done
  say "+ $BPFTOOL prog loadall $here/bpf/bpf_sidecar.bpf.o $STAGING/sidecar ${maps[*]} pinmaps $STAGING/sidecar-maps"
  log=$("$BPFTOOL" prog loadall "$here/bpf/bpf_sidecar.bpf.o" "$STAGING/sidecar" "${maps[@]}" pinmaps "$STAGING/sidecar-maps" 2>&1) ||
    die "$EX_HOST" "--sidecar: $(load_error <<<"$log")" "leave it out; it needs Linux 5.15"
  read -ra bytes <<<"$(little "$SIDECAR_PORT" 2)$(little "${SIDECAR_UID:-0}" 4)$(little "${SIDECAR_MARK:-0}" 4)"
  run "$BPFTOOL" map update pinned "$STAGING/sidecar-maps/$SIDECAR_MAP" key 0 0 0 0 value "${bytes[@]}" \
    $((${#SIDECAR_UID} > 0)) $((${#SIDECAR_MARK} > 0))
  run mv "$STAGING"/sidecar-maps/{"$SIDECAR_MAP",fuse_originals,fuse_sources} "$STAGING/sidecar"
}

# Each where its name says, in each cgroup
attach_sidecar() {
  local cgroup program
  [[ $SIDECAR_PORT ]] || return 0
  for cgroup in "${CGROUPS[@]}"; do
    for program in connects:sock_ops original_dst:getsockopt getpeername4:getpeername4 getpeername6:getpeername6 connect4:connect4 connect6:connect6; do
      run "$BPFTOOL" cgroup attach "$cgroup" "${program#*:}" pinned "$STAGING/sidecar/sidecar_${program%:*}" multi 2>/dev/null ||
        die "$EX_FOREIGN" "the kernel did not attach to $cgroup: is a program of type ${program#*:} there, or above, attached without multi?" \
          "see: $BPFTOOL cgroup show $cgroup effective"
    done
  done
}

attach_verdict() {
  run "$BPFTOOL" prog attach pinned "$STAGING/bpf_redir" msg_verdict pinned "$STAGING/sock_ops_map" 2>/dev/null ||
    die "$EX_FAILED" "the kernel did not attach the verdict program" "is CONFIG_BPF_STREAM_PARSER set?"
}

# remember_attachments: notes where the new programs will be attached, before they are.
# Where an older version kept no such list, notes where its programs are, all or none.
remember_attachments() {
  local program cgroup id list=$ATTACHED
  NEW_ID=$(pinned_id "$STAGING/bpf_sockops")
  NEW_IDS=$NEW_ID
  for program in "$STAGING"/sidecar/sidecar_*; do
    [[ ! -e $program ]] || NEW_IDS+=" $(pinned_id "$program")"
  done
  [[ -d $ATTACHED ]] || {
    list=$STAGING/attached
    mkdir "$list"
    our_attachments | while read -r id _ cgroup; do
      mkdir -p "$list/$(stat -c %i "$cgroup")-$id"
    done
  }
  for cgroup in "${CGROUPS[@]}"; do
    for id in $NEW_IDS; do
      mkdir -p "$list/$(stat -c %i "$cgroup")-$id"
    done
  done
  [[ $list == "$ATTACHED" ]] || mv -T "$list" "$ATTACHED"
}

# The verdict program first: a socket gets it when it enters the map.  The new
# sockops program joins the old one, which goes last, so no connection finds
# neither; a socket that one of them has taken is refused to the other.
attach() {
  local cgroup
  OLD_IDS=$(our_attachments | cut -d ' ' -f 1)
  remember_attachments
  attach_verdict
  [[ ! $CAREFUL ]] || set_settings "${SETTINGS_MAP[@]}" '{"marks": 1}'
  set_settings "${SETTINGS_MAP[@]}" "{\"fuse\": 1, \"account\": ${ACCOUNT:-0}, \"careful\": ${CAREFUL:-0},
    \"min_age\": ${MIN_AGE:-0}, \"nets\": $((${#NETWORKS[@]} > 0)), \"listed\": $((${#LISTED} > 0)), \"refresh\": $((${#NETWORKS[@]} ? REFRESH : 0)),
    \"nonblocking\": ${NONBLOCKING:-0}, \"splicers\": ${SPLICERS:-0}}"
  for cgroup in "${CGROUPS[@]}"; do
    run "$BPFTOOL" cgroup attach "$cgroup" sock_ops pinned "$STAGING/bpf_sockops" multi 2>/dev/null ||
      die "$EX_FOREIGN" "the kernel did not attach to $cgroup: is a sockops program there, or above, attached without multi?" \
        "see: $BPFTOOL cgroup show $cgroup effective"
  done
  attach_sidecar
}

# Asks what the kernel holds, not what bpftool said.  Only the iterator can tell which
# program a sockhash has; every kernel can tell that the program uses this map.
check() {
  local map cgroup
  for cgroup in "${CGROUPS[@]}"; do
    attachments <<<"$cgroup" | grep -q "^$NEW_ID [^ ]*sock_ops " ||
      die "$EX_FAILED" "the sockops program is not attached to $cgroup" "try: $0 again"
  done
  map=$("$BPFTOOL" -j map show pinned "$STAGING/sock_ops_map" | jq .id)
  "$BPFTOOL" -j prog show pinned "$STAGING/bpf_redir" | jq -e --argjson id "$map" \
    '.type == "sk_msg" and any(.map_ids[]; . == $id)' >/dev/null ||
    die "$EX_FAILED" "the verdict program does not use the map" "try: $0 again"
  [[ ! -e $STAGING/connections ]] || grep -qx "verdict"$'\t'"$(pinned_id "$STAGING/bpf_redir")" "$STAGING"/connections/* ||
    die "$EX_FAILED" "the verdict program is not attached to the map" "try: $0 again"
}

# The iterators of earlier loads stay for as long as one of their sockets lives.
commit_iterator() {
  local pin
  for pin in "$CONNECTIONS"/*; do
    [[ ! -e $pin ]] || grep -qvm 1 '^verdict' "$pin" || run rm -f "$pin"
  done
  [[ -e $STAGING/connections ]] || {
    run rm -rf "$CONNECTIONS" # of a load that could
    return
  }
  run mkdir -p "$CONNECTIONS"
  run mv "$STAGING/connections"/* "$CONNECTIONS"
}

commit() {
  trap '' INT TERM HUP
  run mv -fT "$STAGING/sock_ops_map" "$PIN_MAP"
  run mv -fT "$STAGING/bpf_redir" "$PIN_REDIR"
  run mv -fT "$STAGING/bpf_sockops" "$PIN_SOCKOPS"
  run mv -fT "$STAGING/maps/$SETTINGS" "$PIN_DIR/$SETTINGS"
  run mv -fT "$STAGING/maps/$COUNTERS" "$PIN_DIR/$COUNTERS"
  run mv -fT "$STAGING/maps/$MARKS" "$PIN_DIR/$MARKS"
  run mv -fT "$STAGING/maps/$GUARDED" "$PIN_DIR/$GUARDED"
  [[ ! -e $PIN_DIR/guard ]] || run rm -rf "$PIN_DIR/guard"
  [[ ! $GUARD ]] || run mv -T "$STAGING/guard" "$PIN_DIR/guard"
  [[ ! -e $SIDECAR ]] || run rm -rf "$SIDECAR"
  [[ ! $SIDECAR_PORT ]] || run mv -T "$STAGING/sidecar" "$SIDECAR"
  [[ ! -e $ADOPT || $ADOPTING ]] || run rm -f "$ADOPT"
  [[ ! $ADOPTING ]] || run mv -fT "$STAGING/adopt" "$ADOPT"
  commit_iterator
  # Settings that are replaced are switched off now, since nobody could reach them later.
  [[ ! $OLD_SETTINGS ]] || set_settings id "$OLD_SETTINGS" '{"fuse": 0}'
  detach_all_but "$NEW_IDS"
  run rm -rf "$STAGING"
  trap - EXIT
}

undo() {
  local code=$?
  trap '' INT TERM HUP
  set +e
  [[ ! $NEW_ID ]] || detach_all_but "$OLD_IDS" >/dev/null
  if ((${#SETTINGS_MAP[@]})); then
    set_settings "${SETTINGS_MAP[@]}" "${SETTINGS_BEFORE:-{\"fuse\": 0\}}" 2>/dev/null
  fi
  rm -rf "$STAGING"
  rmdir "$ATTACHED" "$PIN_DIR" 2>/dev/null # only if nothing was loaded before
  [[ ! $MOUNTED ]] || umount "$BPFFS"
  exit "$code"
}

# The programs know sleepers and pollers by the kernel's addresses, taken at load.
readonly SYMBOLS_HIDDEN="Kernel addresses are hidden: clients that wait for their connection stay with TCP; else: sysctl kernel.kptr_restrict=1, and load again"
symbols_hidden() {
  ! grep -q '[1-9a-f][0-9a-f]* . woken_wake_function$' /proc/kallsyms
}

# Connections that are there already: the first read notes them, the second adopts them.
adopt() {
  [[ $ADOPTING ]] || return 0
  say "+ cat $ADOPT (twice, in each network namespace)"
  read_adopt
  read_adopt
}

report() {
  ! symbols_hidden || say "$SYMBOLS_HIDDEN"
  local which="from now on"
  [[ ! $ADOPTING ]] || which="old and new"
  # --quiet does not hide these lines.
  report_faults
  [[ ! $UNGUARDED ]] ||
    echo "${0##*/}: no guard here ($UNGUARDED): Go programs and those named in $here/lib/splicers stay plain TCP, as they may splice; see docs/semantics.md" >&2
  [[ ! $MIN_AGE ]] || which="from an age of $MIN_AGE s on, while $(path_to adopt) runs"
  say "sockfuse is on: loopback TCP connections${NETWORKS[*]:+ and those between ${NETWORKS[*]}} in ${CGROUPS[*]} $which, up to $MAX_CONNECTIONS at a time."
  say "Look at it: $(path_to status), $(path_to trace_bpf_output), $(path_to trace_lo_traffic)"
}

MOUNTED='' SPLICERS='' UNGUARDED='' SETTINGS_BEFORE='' NEW_ID='' NEW_IDS='' OLD_IDS='' OLD_SETTINGS='' SETTINGS_MAP=()
parse_arguments "$@"
need_root "$@"
if [[ $CHECK ]]; then
  # What it mounts and pins ends with it, however it ends.
  [[ ${SOCKFUSE_CHECKING-} ]] || SOCKFUSE_CHECKING=1 exec unshare --mount "$0" "$@"
  . "$here/lib/preflight.sh"
fi
ulimit -l unlimited 2>/dev/null || true # before Linux 5.11 maps are charged to it
if [[ $CHECK ]]; then
  preflight || exit "$EX_FAILED"
  exit
fi
need_bpftool
need_bpffs
need_btf
need_adoption
find_cgroups
build
take_lock
trap undo EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
mount_bpffs
refuse_foreign_pins
rm -rf "$STAGING" # of a load that was killed
stage
set_policy
guard
set_splicers
iterator
adopter
sidecar
attach
mark_splicers
check
commit
adopt
report
