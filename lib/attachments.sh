# shellcheck shell=bash disable=SC2154 # names: set by common.sh
# Which programs are ours, and where they are attached.  Promises load.sh, unload.sh and
# status.sh that no program of others is taken for ours, or detached.  The kernel is asked; the
# name of a pin proves nothing.

# Where cgroup2 is mounted and can be reached: hybrid hosts have it beside
# version 1.  Nothing if nowhere.
cgroup2_mount() {
  local path
  { findmnt -n -r -t cgroup2 -o TARGET || true; } | while read -r path; do
    [[ $(stat -f -c %T "$path" 2>/dev/null) != cgroup2fs ]] || {
      echo "$path"
      break
    }
  done
}

# Our programs: those that use a map named like our settings, as JSON objects
# with id, type, settings (map id) and map (id of the sockhash).
our_programs() {
  "$BPFTOOL" -j prog show | jq -c --arg settings "$SETTINGS" --slurpfile maps <("$BPFTOOL" -j map show) '
    def named($name): [$maps[0][] | select(.name == $name).id];
    named($settings) as $settings | named("sock_ops_map") as $maps
    | .[] | .map_ids as $ids
    | {id, type, name,
       settings: first(($ids // [])[] | select(IN($settings[]))),
       map: first((($ids // [])[] | select(IN($maps[]))), null)}'
}

# pinned_id PATH [map]: the id of the program or the map pinned there, nothing if there is
# none.
pinned_id() {
  "$BPFTOOL" -j "${2:-prog}" show pinned "$1" 2>/dev/null | jq -r '.id // empty'
}

# foreign_pins PROGRAMS: the pins outside $PIN_DIR that lead to none of these of our_programs,
# one a line
foreign_pins() {
  local path kind=prog
  for path in "$PIN_SOCKOPS" "$PIN_REDIR" "$PIN_MAP"; do
    [[ $path != "$PIN_MAP" ]] || kind=map
    [[ ! -e $path ]] ||
      jq -se --arg kind "$kind" --arg id "$(pinned_id "$path" "$kind")" 'any(.[]; "\(if $kind == "map" then .map else .id end)" == $id)' <<<"$1" >/dev/null ||
      echo "$path"
  done
}

# "ID TYPE CGROUP" of each program attached to the cgroups on standard input, one a line.
# On kernels before 6.0 a bpftool of after that can only ask what is effective, so also
# inherited.
attachments() {
  local cgroup shown
  while IFS= read -r cgroup; do
    shown=$("$BPFTOOL" -j cgroup show "$cgroup" 2>/dev/null) ||
      shown=$("$BPFTOOL" -j cgroup show "$cgroup" effective 2>/dev/null) || continue
    jq -r --arg cgroup "$cgroup" '.[]? | "\(.id) \(.attach_type) \($cgroup)"' <<<"$shown"
  done
}

# Our programs where this bpffs has attached them: another sockfuse may run in a container.
# An older version kept no list $ATTACHED; then all cgroups are looked at.
our_attachments() {
  local root id type cgroup record any=() found
  root=$(cgroup2_mount)
  found=$(if [[ -d $ATTACHED ]]; then
    for record in "$ATTACHED"/*-*; do
      record=${record##*/}
      [[ $record == '*-*' ]] || any+=(-o -inum "${record%-*}")
    done
    find "$root" -type d \( -false "${any[@]}" \) | attachments | while read -r id type cgroup; do
      [[ ! -e $ATTACHED/$(stat -c %i "$cgroup")-$id ]] || echo "$id $type $cgroup"
    done
  elif [[ -e $PIN_SOCKOPS || -e $PIN_DIR/$SETTINGS ]]; then
    find "$root" -type d | attachments |
      awk '{ cgroup = $0; sub("^[^ ]* [^ ]* ", "", cgroup); parent = cgroup; sub("/[^/]*$", "", parent); seen[$1, cgroup] } !(($1, parent) in seen)'
  fi)
  [[ ! $found ]] || jq -Rr --slurpfile ours <(our_programs) 'select(split(" ")[0] | tonumber | IN($ours[].id))' <<<"$found"
}

# remember_attachments IDS: notes that these programs may be attached to $CGROUPS, before they
# are.  Where an older version kept no such list, notes where its programs are, all or none.
remember_attachments() {
  local cgroup id list=$ATTACHED
  [[ -d $ATTACHED ]] || {
    list=$STAGING/attached
    mkdir "$list"
    our_attachments | while read -r id _ cgroup; do
      mkdir -p "$list/$(stat -c %i "$cgroup")-$id"
    done
  }
  for cgroup in "${CGROUPS[@]}"; do
    for id in $1; do
      mkdir -p "$list/$(stat -c %i "$cgroup")-$id"
    done
  done
  [[ $list == "$ATTACHED" ]] || mv -T "$list" "$ATTACHED"
}

# attach_to CGROUP TYPE PIN WHAT: that program, beside others; WHAT names it in the error
attach_to() {
  run "$BPFTOOL" cgroup attach "$1" "$2" pinned "$3" multi 2>/dev/null ||
    die "$EX_FOREIGN" "the kernel did not attach to $1: is a $4 there, or above, attached without multi?" \
      "see: $BPFTOOL cgroup show $1 effective"
}

# detach_all_but IDS: every attachment of ours but these.  Only what is seen
# attached is detached: where a program stands without multi, the kernel takes
# that one off, whichever it is told (find_detach_entry).
detach_all_but() {
  local id type cgroup record
  our_attachments | while read -r id type cgroup; do
    grep -qwF "$id" <<<"$1" || run "$BPFTOOL" cgroup detach "$cgroup" "$type" id "$id"
  done
  for record in "$ATTACHED"/*-*; do
    [[ ! -e $record ]] || grep -qwF "${record##*-}" <<<"$1" || rmdir "$record"
  done
}
