# shellcheck shell=bash disable=SC2034,SC2154 # log; the rest: set by common.sh and options.sh
# BPF iterators: programs that run when their pin is read.  One lists the sockets of a sockhash
# for status.sh, one adopts established connections.  Promises load.sh that it goes on without
# the first where that does not load, and that a read concerns each network namespace.
# stage_… needs staging.sh and policy.sh.

# pin_iterator OBJECT NAME: at $STAGING/NAME; sets log, of its caller, if it fails.  libbpf finds maps by
# their names in /sys/fs/bpf, so ours are mounted there for this one command.
pin_iterator() {
  local how
  how="mount --bind $STAGING/maps $BPFFS && $(printf '%q iter pin %q' "$BPFTOOL" "$1") $BPFFS/$2"
  say "+ unshare --mount bash -c '$how'"
  log=$(unshare --mount bash -c "$how" 2>&1) || return
  run mv "$STAGING/maps/$2" "$STAGING/$2"
}

# The one that status.sh reads, optional too
stage_status() {
  local log id pin object
  object=$(object bpf_status)
  id=$(pinned_id "$STAGING/sock_ops_map" map)
  pin=$STAGING/connections/$id
  run mkdir "$STAGING/connections"
  say "+ $BPFTOOL iter pin $object $pin map id $id"
  log=$("$BPFTOOL" iter pin "$object" "$pin" map id "$id" 2>&1) || {
    rm -rf "$STAGING/connections"
    say "$(name_of status) lists no connections here: $(load_error <<<"$log")"
  }
}

# Those of earlier loads stay for as long as one of their sockets lives.
commit_status() {
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

# The one that adopts
stage_adopter() {
  local log id
  [[ $ADOPTING ]] || return 0
  run "$BPFTOOL" map create "$STAGING/maps/$ADOPTERS" type array_of_maps key 4 value 4 entries 1 \
    name "$ADOPTERS" inner_map pinned "$STAGING/sock_ops_map"
  run "$BPFTOOL" map update pinned "$STAGING/maps/$ADOPTERS" key 0 0 0 0 value pinned "$STAGING/sock_ops_map"
  pin_iterator "$here/bpf/bpf_adopt.bpf.o" adopt ||
    die "$EX_FAILED" "--adopt: $(load_error <<<"$log")" "leave it out"
  say "+ $BPFTOOL map update pinned $STAGING/maps/$CGROUPS_MAP (${CGROUPS[*]})"
  stat -c %i "${CGROUPS[@]}" | while read -r id; do
    echo "$(little "$id" 8)value 1"
  done | fill "$CGROUPS_MAP" cgroups
}

# read_adopt: notes new connections, adopts those that a read before has noted
read_adopt() {
  in_each_netns cat "$ADOPT" 2>/dev/null
}

# Connections that are there already: the first read notes them, the second adopts them.
adopt() {
  [[ $ADOPTING ]] || return 0
  say "+ cat $ADOPT (twice, in each network namespace)"
  read_adopt
  read_adopt
}
