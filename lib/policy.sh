# shellcheck shell=bash disable=SC2154 # set by common.sh and options.sh
# Which connections are fused: the ports, networks and cgroups of the options, and their bytes in
# maps.  Promises options.sh that what is no port, network or cgroup ends the script with one
# line, and load.sh that the maps hold the whole policy after stage_policy.

# Services whose programs hand an established connection to the kernel, which then reads
# past what was fused: 9P, NFS, USB/IP, iSCSI, NVMe/TCP, NBD.
readonly KERNEL_PORTS=564,2049,3240,3260,4420,10809

# ports_of OPTION LIST: one a line
ports_of() {
  local part
  for part in ${2//,/ }; do
    [[ $part =~ ^[1-9][0-9]{0,4}(-[1-9][0-9]{0,4})?$ && ${part%-*} -le ${part#*-} && ${part#*-} -le 65535 ]] ||
      wrong "$1: not a port or a range of ports: $part"
    seq "${part%-*}" "${part#*-}"
  done
}

# to_bytes FILTER: lines as lines of bytes, with the functions of addresses.jq
to_bytes() {
  with_jq addresses "$1" -Rr --argjson one "$(printf '\1\0' | od -An -t u2)"
}

# network_keys: the keys of --net, one a line
network_keys() {
  local network keys
  ((${#NETWORKS[@]})) || return 0
  need_command jq jq
  keys=$(for network in "${NETWORKS[@]}"; do
    if [[ $network == local ]]; then
      need_command ip iproute2
      ip -j address show | jq -r '.[].addr_info[] | .local // empty'
    else
      [[ $network == */* ]] ||
        die "$EX_USAGE" "--net: how long is the prefix of $network?" "try: $network/$([[ $network == *:* ]] && echo 128 || echo 32) for that address alone"
      echo "$network"
    fi
  done | to_bytes '(net_key | join(" ")) // "none: \(.)"')
  [[ $keys != *"none: "* ]] ||
    wrong "--net: neither local nor a network as 10.244.0.0/16 or fd00::/64: $(sed -n '/^none: /{s///p;q}' <<<"$keys")"
  [[ ! $keys ]] || echo "$keys"
}

# refresh_seconds: after so long without a segment a message goes by TCP again, so that NAT and
# connection tracking keep the connection.  60, which is half of the shortest time in the kernel
# (NF_FLOWTABLE_TCP_PICKUP_TIMEOUT), or half of what a namespace has set; 0 without --net.  A
# router's namespace may have a name and no process.
refresh_seconds() {
  local timeout=/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established netns
  ((${#NETWORKS[@]})) || {
    echo 0
    return
  }
  {
    in_each_netns cat "$timeout"
    for netns in /run/netns/*; do
      nsenter --net="$netns" cat "$timeout" || true
    done
  } 2>/dev/null | awk 'BEGIN { least = 120 } $1 < least { least = $1 } END { print least < 2 ? 1 : int(least / 2) }'
}

# little NUMBER BYTES: the lowest byte first
little() {
  local byte
  for ((byte = 0; byte < $2; byte++)); do
    printf '%d ' $(($1 >> 8 * byte & 255))
  done
}

# find_cgroups: sets CGROUPS, without those that lie in another one: their sockets would be
# offered twice.  The slash at the end sorts such a one right behind the other.
find_cgroups() {
  local cgroup
  if ((${#CGROUPS[@]} == 0)); then
    CGROUPS=("$(cgroup2_mount)")
    [[ ${CGROUPS[0]} ]] ||
      die "$EX_HOST" "no cgroup2 is mounted" "try: mkdir -p /run/cgroup2 && mount -t cgroup2 none /run/cgroup2"
  fi
  for cgroup in "${CGROUPS[@]}"; do
    [[ $(stat -f -c %T "$cgroup" 2>/dev/null) == cgroup2fs && -d $cgroup ]] ||
      die "$EX_USAGE" "not a cgroup2 directory: $cgroup" "see: findmnt -t cgroup2"
  done
  mapfile -t CGROUPS < <(readlink -f "${CGROUPS[@]}" | sed 's|$|/|' | LC_ALL=C sort |
    awk 'kept == "" || index($0, kept) != 1 { kept = $0; sub("/$", ""); print }' | sort)
}

# fill MAP WHAT: lines of "KEY value VALUE" into it, all at once
fill() {
  sed "s|^|map update pinned $STAGING/maps/$1 key |" | "$BPFTOOL" batch file - >/dev/null 2>&1 ||
    die "$EX_FAILED" "the $2 were not taken" "try: $BPFTOOL map show pinned $STAGING/maps/$1"
}

# Of two lines for a port the last counts.
stage_policy() {
  say "+ $BPFTOOL map update pinned $STAGING/maps/$PORTS (ports${LISTED:+ ${LISTED#,}} but not $KERNEL_PORTS$EXCLUDE)"
  {
    ports_of KERNEL_PORTS "$KERNEL_PORTS" | sed 's/$/ 2/'
    ports_of --port "$LISTED" | sed 's/$/ 1/'
    ports_of --exclude-port "$EXCLUDE" | sed 's/$/ 0/'
  } | to_bytes 'split(" ") | map(tonumber) | "\(.[0] | port_key | join(" ")) value \(.[1])"' | fill "$PORTS" ports
  ((${#NETWORKS[@]})) || return 0
  say "+ $BPFTOOL map update pinned $STAGING/maps/$NETS (${NETWORKS[*]})"
  network_keys | sed 's/$/ value 1/' | fill "$NETS" networks
}
