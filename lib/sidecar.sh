# shellcheck shell=bash disable=SC2154 # set by common.sh and options.sh
# --sidecar: the programs that send connections of a cgroup to its proxy.  Promises load.sh that,
# once attached, they know the proxy and what the load before noted of live connections.
# Needs staging.sh, policy.sh and attachments.sh.

# The programs, and struct sidecar: port, UID and mark, the lowest byte first; whether there is
# a UID, and a mark
stage_sidecar() {
  local log name bytes arguments
  [[ $SIDECAR_PORT ]] || return 0
  shared_maps "$SETTINGS" "$COUNTERS" "$MARKS" "$DIRECTIONS"
  for name in fuse_originals fuse_sources; do # what live connections have there
    [[ ! -e $SIDECAR/$name ]] || MAPS+=(map name "$name" pinned "$SIDECAR/$name")
  done
  arguments=("$here/bpf/bpf_sidecar.bpf.o" "$STAGING/sidecar" "${MAPS[@]}" pinmaps "$STAGING/sidecar-maps")
  say "+ $BPFTOOL prog loadall ${arguments[*]}"
  log=$("$BPFTOOL" prog loadall "${arguments[@]}" 2>&1) ||
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
      attach_to "$cgroup" "${program#*:}" "$STAGING/sidecar/sidecar_${program%:*}" "program of type ${program#*:}"
    done
  done
}
