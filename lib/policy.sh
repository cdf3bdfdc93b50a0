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
      wrong "--net: neither local nor a network as 10.244.0.0/16 or fd00::/64: $network"
    echo "$(bytes_u32 $((length + 128 - most))) $bytes"
  done
}

# In the host's byte order, as keys are
little_endian() { [[ $(printf '\1\0' | od -An -t u2 | tr -d ' ') == 1 ]]; }
bytes_u16() { if little_endian; then echo "$(($1 % 256)) $(($1 / 256))"; else echo "$(($1 / 256)) $(($1 % 256))"; fi; }
bytes_u32() { if little_endian; then echo "$(bytes_u16 "$1") 0 0"; else echo "0 0 $(bytes_u16 "$1")"; fi; }

# little NUMBER BYTES: the lowest byte first
little() {
  local byte
  for ((byte = 0; byte < $2; byte++)); do
    printf '%d ' $(($1 >> 8 * byte & 255))
  done
}

# find_cgroups: sets CGROUPS, each once: a socket in two of them would be offered twice.  What
# lies in another goes; the slash at the end sorts it right behind that.
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
  } | awk -v little="$(little_endian && echo 1)" '
    { high = int($1 / 256); low = $1 % 256; print (little ? low " " high : high " " low), "value", $2 }' | fill "$PORTS" ports
  ((${#NETWORKS[@]})) || return 0
  say "+ $BPFTOOL map update pinned $STAGING/maps/$NETS (${NETWORKS[*]})"
  network_keys | sed 's/$/ value 1/' | fill "$NETS" networks
}
