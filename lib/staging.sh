# shellcheck shell=bash disable=SC2153,SC2154 # set by common.sh and options.sh
# A load pins what is new in $STAGING, checks it, and renames it over what is old.  Promises
# load.sh that what was loaded before works on until commit, that undo puts everything back until
# then, and that the next load clears what a killed one left.  preflight.sh uses it, too.  Needs
# attachments.sh, settings.sh and iterators.sh.

# What commit and undo read.
MOUNTED=         # set by mount_bpffs if it has mounted one
OLD_SETTINGS=    # set by keep_settings: map id of settings that this version cannot read
SETTINGS_BEFORE= # set by keep_settings: what stood in those that it can, as JSON
SETTINGS_MAP=()  # set by keep_settings and stage_programs: reference to ours; load.sh reads it
OLD_IDS=         # set by attach of load.sh: programs that were attached, one a line
NEW_IDS=         # set by attach of load.sh: those that are to be, with spaces, sockops first
MAPS=()          # set by shared_maps; whoever called that reads it

# build: makes the objects if one is missing or older than what it is made of
build() {
  local name source stale=
  [[ -e $here/Makefile ]] || return 0 # installed
  for name in bpf_{contrack,redirect,adopt,guard,sidecar,splicers,status} compat/bpf_{contrack,redirect,splicers,status}; do
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
  [[ $(stat -f -c %T "$BPFFS" 2>/dev/null) != bpf_fs ]] || return 0
  run mount -t bpf -o mode=0700 bpf "$BPFFS" 2>/dev/null ||
    die "$EX_HOST" "cannot mount bpffs at $BPFFS" "try: mount -t bpf bpf $BPFFS"
  MOUNTED=1
}

# A name that another program has pinned is theirs.
refuse_foreign_pins() {
  local foreign
  # Where every user may create a directory, whoever owns it owns our pins.
  [[ ! -e $PIN_DIR || -O $PIN_DIR ]] ||
    die "$EX_FOREIGN" "$PIN_DIR belongs to another user" "rm -r $PIN_DIR"
  read -r foreign < <(foreign_pins "$(our_programs)") || return 0
  die "$EX_FOREIGN" "$foreign is pinned by another program" "unload that one, or: rm $foreign"
}

# object NAME: the file that this bpftool can load
object() {
  local compat=compat/
  ! bpftool_is_at_least 5 16 || compat=
  echo "$here/bpf/$compat$1.bpf.o"
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

# shared_maps NAME...: sets MAPS, how bpftool is told that a program shares the staged sockhash
# and these maps
shared_maps() {
  local name
  MAPS=(map name sock_ops_map pinned "$STAGING/sock_ops_map")
  for name; do
    MAPS+=(map name "$name" pinned "$STAGING/maps/$name")
  done
}

# same_size STRUCT MAP_REFERENCE...: whether that map holds what this version
# does.  Another version of sockfuse may have left it.
same_size() {
  local now
  now=$("$BPFTOOL" -j map show "${@:2}" 2>/dev/null | jq '.bytes_value')
  [[ $now == "$("$BPFTOOL" -j btf dump file "$here/bpf/bpf_contrack.bpf.o" |
    jq --arg name "$1" 'first(.types[] | select(.kind == "STRUCT" and .name == $name).size)')" ]]
}

# keep_settings: sets kept, of its caller: the maps of the load before that this one uses, too.
# Live connections keep their programs, and unload.sh must be able to switch those off.
keep_settings() {
  local settings
  kept=()
  settings=$(our_settings | head -n 1)
  if [[ $settings ]] && ! same_size settings id "$settings"; then
    OLD_SETTINGS=$settings
  elif [[ $settings ]]; then
    kept=(map name "$SETTINGS" id "$settings")
    SETTINGS_BEFORE=$(settings_in id "$settings" | jq -c '{fuse, careful, account, nets, listed, refresh, splicers}')
    SETTINGS_MAP=(id "$settings")
  fi
  ! same_size counters pinned "$PIN_DIR/$COUNTERS" || kept+=(map name "$COUNTERS" pinned "$PIN_DIR/$COUNTERS")
}

# create_map WHAT PIN bpftool-arguments...
create_map() {
  run "$BPFTOOL" map create "${@:2}" 2>/dev/null ||
    die "$EX_FAILED" "no room for $1 of $MAX_CONNECTIONS connections" "try: $0 --max-connections 10000"
}

# keep_marks: sets marks, of its caller: where they are pinned.  What the guard has seen of live
# connections stays if there is room for new ones beside it.  Else the map is a new one: 16 bytes
# an entry at once, and some 80 for each mark.
keep_marks() {
  local entries=$((MAX_CONNECTIONS * 4))
  marks=$PIN_DIR/$MARKS
  if ! same_size marks pinned "$marks" || (($("$BPFTOOL" -j map show pinned "$marks" | jq .max_entries) < entries)); then
    marks=$STAGING/marks
    create_map "the marks" "$marks" type hash key 8 value 8 entries "$entries" name "$MARKS" flags 1
  fi
}

# stage_programs: both of them, and the maps that they share
stage_programs() {
  local kept marks
  run mkdir -p "$STAGING"
  keep_settings
  create_map "a map" "$STAGING/sock_ops_map" type sockhash key 16 value 8 entries $((MAX_CONNECTIONS * 2)) name sock_ops_map
  keep_marks
  load_program bpf_contrack sockops "$STAGING/bpf_sockops" pinmaps "$STAGING/maps" \
    map name sock_ops_map pinned "$STAGING/sock_ops_map" "${kept[@]}" map name "$MARKS" pinned "$marks"
  # One for all loads, so that connections of an earlier one are captured, too.
  run "$BPFTOOL" map pin pinned "$PIN_DIR/$CAPTURE" "$STAGING/maps/$CAPTURE" 2>/dev/null ||
    create_map "what is captured" "$STAGING/maps/$CAPTURE" type array key 4 value 8 entries 1 name "$CAPTURE"
  shared_maps "$SETTINGS" "$COUNTERS" "$DIRECTIONS" "$MARKS" "$CAPTURE" "$SERVICES" "$FLOWS"
  load_program bpf_redirect sk_msg "$STAGING/bpf_redir" "${MAPS[@]}"
  SETTINGS_MAP=(pinned "$STAGING/maps/$SETTINGS")
}

attach_verdict() {
  run "$BPFTOOL" prog attach pinned "$STAGING/bpf_redir" msg_verdict pinned "$STAGING/sock_ops_map" 2>/dev/null ||
    die "$EX_FAILED" "the kernel did not attach the verdict program" "is CONFIG_BPF_STREAM_PARSER set?"
}

# Asks what the kernel holds, not what bpftool said.  Only the iterator can tell which
# program a sockhash has; every kernel can tell that the program uses this map.
check() {
  local map cgroup
  for cgroup in "${CGROUPS[@]}"; do
    attachments <<<"$cgroup" | grep -q "^${NEW_IDS%% *} [^ ]*sock_ops " ||
      die "$EX_FAILED" "the sockops program is not attached to $cgroup" "try: $0 again"
  done
  map=$(pinned_id "$STAGING/sock_ops_map" map)
  "$BPFTOOL" -j prog show pinned "$STAGING/bpf_redir" | jq -e --argjson id "$map" \
    '.type == "sk_msg" and any(.map_ids[]; . == $id)' >/dev/null ||
    die "$EX_FAILED" "the verdict program does not use the map" "try: $0 again"
  [[ ! -e $STAGING/connections ]] || grep -qx "verdict"$'\t'"$(pinned_id "$STAGING/bpf_redir")" "$STAGING"/connections/* ||
    die "$EX_FAILED" "the verdict program is not attached to the map" "try: $0 again"
}

# commit: each name in one step from the old to the new; no signal ends it half-way
commit() {
  local map
  trap '' INT TERM HUP
  run mv -fT "$STAGING/sock_ops_map" "$PIN_MAP"
  run mv -fT "$STAGING/bpf_redir" "$PIN_REDIR"
  run mv -fT "$STAGING/bpf_sockops" "$PIN_SOCKOPS"
  for map in "$SETTINGS" "$COUNTERS" "$MARKS" "$CAPTURE" "$SERVICES"; do
    run mv -fT "$STAGING/maps/$map" "$PIN_DIR/$map"
  done
  [[ ! -e $PIN_DIR/fuse_guarded ]] || run rm -f "$PIN_DIR/fuse_guarded" # of an older version
  [[ ! -e $PIN_DIR/guard ]] || run rm -rf "$PIN_DIR/guard"
  [[ ! $GUARD ]] || run mv -T "$STAGING/guard" "$PIN_DIR/guard"
  [[ ! -e $SIDECAR ]] || run rm -rf "$SIDECAR"
  [[ ! $SIDECAR_PORT ]] || run mv -T "$STAGING/sidecar" "$SIDECAR"
  [[ ! -e $ADOPT || $ADOPTING ]] || run rm -f "$ADOPT"
  [[ ! $ADOPTING ]] || run mv -fT "$STAGING/adopt" "$ADOPT"
  commit_status
  # Settings that are replaced are switched off now, since nobody could reach them later.
  [[ ! $OLD_SETTINGS ]] || set_settings id "$OLD_SETTINGS" '{fuse: 0}'
  detach_all_but "$NEW_IDS"
  run rm -rf "$STAGING"
  trap - EXIT
}

# undo_on_exit: from here to commit the script does not end without
undo_on_exit() {
  trap undo EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
}

undo() {
  local code=$?
  trap '' INT TERM HUP
  set +e
  [[ ! $NEW_IDS ]] || detach_all_but "$OLD_IDS" >/dev/null
  if ((${#SETTINGS_MAP[@]})); then
    set_settings "${SETTINGS_MAP[@]}" "${SETTINGS_BEFORE:-{fuse: 0\}}" 2>/dev/null
  fi
  rm -rf "$STAGING"
  rmdir "$ATTACHED" "$PIN_DIR" 2>/dev/null # only if nothing was loaded before
  [[ ! $MOUNTED ]] || umount "$BPFFS"
  exit "$code"
}
