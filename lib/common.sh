# shellcheck shell=bash disable=SC2034,SC2154 # here: set by who sources this
# What the scripts of sockfuse share: where things are pinned, how a command is
# announced, how an error reads, and how our programs are told from others.
# Sourced, never run; no script uses all of it (SC2034).

readonly VERSION=0.4.0 # of the package, too
readonly BPFFS=/sys/fs/bpf
readonly PIN_SOCKOPS=$BPFFS/bpf_sockops
readonly PIN_REDIR=$BPFFS/bpf_redir
readonly PIN_MAP=$BPFFS/sock_ops_map
readonly PIN_DIR=$BPFFS/sockfuse
readonly CONNECTIONS=$PIN_DIR/connections # an iterator for each sockhash, by its id
readonly ADOPT=$PIN_DIR/adopt             # the iterator that puts older ones in
readonly SIDECAR=$PIN_DIR/sidecar         # the programs of --sidecar
readonly STAGING=$PIN_DIR/staging
# A directory CGROUP-PROGRAM (inode number and id) for each place where a program of this
# bpffs may be attached.
readonly ATTACHED=$PIN_DIR/attached
# Names of maps.  The first three outlive a reload; that of the settings says that a program
# is ours.
readonly SETTINGS=fuse_settings
readonly COUNTERS=fuse_counters
readonly MARKS=fuse_marks
readonly GUARDED=fuse_guarded
readonly DIRECTIONS=fuse_directions
readonly PROGRAMS=fuse_programs
readonly SIDECAR_MAP=fuse_sidecar
readonly PORTS=fuse_ports
readonly NETS=fuse_nets
readonly CGROUPS_MAP=fuse_cgroups
readonly ADOPTERS=fuse_adopters
readonly LOCK=/run/sockfuse.lock
readonly LOCK_WAIT=60 # seconds

# Exit codes, the same in every script; --help lists them.
readonly EX_FAILED=1 EX_USAGE=2 EX_ROOT=3 EX_HOST=4 EX_FOREIGN=5 EX_BUSY=6
readonly EXIT_CODES="\
Exit codes:
  0  done
  1  a command failed; what had been changed was put back
  2  the command line is wrong
  3  root is needed, or this root may not use BPF
  4  this host lacks something that sockfuse needs
  5  another program stands where sockfuse would
  6  another sockfuse script held the lock for $LOCK_WAIT s, or another program
     reads the trace pipe"

BPFTOOL=${BPFTOOL:-bpftool}
QUIET=

# name_of SCRIPT: load.sh in a clone, sockfuse-load where it is installed
name_of() {
  if [[ $0 == *.sh ]]; then
    echo "$1.sh"
  else
    echo "sockfuse-${1//_/-}"
  fi
}

# path_to SCRIPT: how to call it, as this one was called; quoted for a shell
path_to() {
  printf '%q\n' "${0%"${0##*/}"}$(name_of "$1")"
}

# die CODE WHAT [MEND]: one line on stderr, what is wrong and what mends it.
die() {
  printf '%s: %s%s\n' "${0##*/}" "$2" "${3:+; $3}" >&2
  exit "$1"
}

# split_options ARGUMENT...: sets ARGUMENTS, with --option=value as two words
split_options() {
  local word
  ARGUMENTS=()
  for word; do
    if [[ $word =~ ^(--[a-z-]+)=(.*)$ ]]; then
      ARGUMENTS+=("${BASH_REMATCH[@]:1}")
    else
      ARGUMENTS+=("$word")
    fi
  done
}

# last_option OPTION: what every script takes, after its own: --help, and no other
last_option() {
  [[ $1 == -h || $1 == --help ]] || die "$EX_USAGE" "unknown option: $1" "see: $0 --help"
  usage
  exit 0
}

say() {
  [[ $QUIET ]] || printf '%s\n' "$*"
}

# run COMMAND...: a command that changes the system is printed, then run.
run() {
  say "+ $*"
  "$@"
}

need_root() {
  ((EUID == 0)) || die "$EX_ROOT" "root is needed" "try: sudo$(printf ' %q' "$0" "$@")"
}

install_hint() {
  if [[ -e $here/lib/deps.sh ]]; then
    echo "try: make deps"
  else
    echo "install it"
  fi
}

# need_command NAME PACKAGE
need_command() {
  command -v "$1" >/dev/null ||
    die "$EX_HOST" "$1 is missing" "$(install_hint) (package $2)"
}

# "7.1.0"; those that came with a kernel carried its version.
bpftool_version() {
  "$BPFTOOL" version 2>/dev/null | sed -n 's/^.*bpftool v\([0-9.]*\).*/\1/p' || true
}

bpftool_is_at_least() {
  local major minor
  IFS=. read -r major minor _ < <(bpftool_version)
  ((${major:-0} > $1 || (${major:-0} == $1 && ${minor:-0} >= $2)))
}

# What the scripts use besides bpftool; <( ) needs /dev/fd, which an initramfs may lack.
need_tools() {
  need_command jq jq
  need_command flock util-linux
  need_command findmnt util-linux
  [[ -e /dev/fd/0 || -e /dev/fd/2 ]] || die "$EX_HOST" "/dev/fd is missing" "try: ln -s /proc/self/fd /dev/fd"
}

need_bpftool() {
  need_command "$BPFTOOL" bpftool
  need_tools
  bpftool_is_at_least 5 10 ||
    die "$EX_HOST" "$BPFTOOL is too old or does not run here (version $(bpftool_version | grep . || echo unknown), 5.10 needed)" \
      "$(install_hint) (package bpftool, the one of this kernel)"
  "$BPFTOOL" prog show >/dev/null 2>&1 ||
    die "$EX_ROOT" "this root may not use BPF: $("$BPFTOOL" prog show 2>&1 | sed -n 's/^Error: //p' | head -n 1)" \
      "run it on the host, or give the container CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, or CAP_SYS_ADMIN"
}

# One script at a time.  The lock goes with the last process that holds it, so
# a killed script leaves none behind.
take_lock() {
  local umask_before
  umask_before=$(umask)
  umask 077 # or any user could open it and hold it
  exec 9>"$LOCK"
  umask "$umask_before"
  flock -w "$LOCK_WAIT" 9 ||
    die "$EX_BUSY" "another sockfuse script has been at work for $LOCK_WAIT s" "see: fuser -v $LOCK"
}

is_bpffs() {
  [[ $(stat -f -c %T "$BPFFS" 2>/dev/null) == bpf_fs ]]
}

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

# pinned_id PATH: the id of the program pinned there, nothing if there is none.
pinned_id() {
  "$BPFTOOL" -j prog show pinned "$1" 2>/dev/null | jq -r '.id // empty'
}

# "ID TYPE CGROUP" of each program attached to the cgroups on standard input, one a line.
# On kernels before 6.0 a bpftool of after that can only ask what is effective, so also
# inherited.
attachments() {
  local cgroup effective=()
  "$BPFTOOL" cgroup show "$(cgroup2_mount)" >/dev/null 2>&1 || effective=(effective)
  while IFS= read -r cgroup; do
    { "$BPFTOOL" -j cgroup show "$cgroup" "${effective[@]}" 2>/dev/null || true; } |
      jq -r --arg cgroup "$cgroup" '.[]? | "\(.id) \(.attach_type) \($cgroup)"'
  done
}

# Our programs where this bpffs has attached them: another sockfuse may run in a container.
# An older version kept no list $ATTACHED; then all cgroups are looked at.
our_attachments() {
  local root id type cgroup record any=()
  root=$(cgroup2_mount)
  if [[ -d $ATTACHED ]]; then
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
  fi | jq -Rr --slurpfile ours <(our_programs) 'select(split(" ")[0] | tonumber | IN($ours[].id))'
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

# Map ids of the settings that pins and attachments of ours lead to; several
# only after a load that was killed.
our_settings() {
  local path
  {
    for path in "$PIN_SOCKOPS" "$PIN_REDIR" "$STAGING/bpf_sockops" "$STAGING/bpf_redir"; do
      "$BPFTOOL" -j prog show pinned "$path" 2>/dev/null || true
    done
    for path in "$PIN_DIR/$SETTINGS" "$STAGING/maps/$SETTINGS"; do
      "$BPFTOOL" -j map show pinned "$path" 2>/dev/null || true
    done
  } | jq -rs --slurpfile ours <(our_programs) --rawfile attached <(our_attachments) '
    map(select(.id)) | map(select(.bytes_key).id) as $maps
    | (map(select(.bytes_key | not).id) + [$attached | split("\n")[] | split(" ")[0] // empty | tonumber]) as $programs
    | $maps + [$ours[] | select(.id | IN($programs[])).settings]
    | unique[]'
}

# settings_in MAP_REFERENCE...: struct settings as a JSON object
settings_in() {
  "$BPFTOOL" -j map dump "$@" | jq -c '.[0].formatted.value'
}

# set_settings MAP_REFERENCE... JSON: changes the members of struct settings that
# are in the object; all of it is bytes, and the map's BTF says in which order.
set_settings() {
  local map=("${@:1:$#-1}") changes=${*: -1} bytes
  read -ra bytes < <(settings_in "${map[@]}" | jq -r --argjson changes "$changes" '. + $changes | [.[]] | flatten | join(" ")')
  "$BPFTOOL" map update "${map[@]}" key 0 0 0 0 value "${bytes[@]}"
}

# in_each_netns COMMAND...: runs it here, and in every other network namespace that a
# process is in
in_each_netns() {
  local own ns pid
  "$@" </dev/null || true
  command -v lsns nsenter >/dev/null || return 0
  own=$(readlink /proc/self/ns/net)
  lsns -n -t net -o NS,PID | while read -r ns pid; do
    [[ "net:[$ns]" == "$own" ]] || nsenter --net="/proc/$pid/ns/net" "$@" </dev/null || true
  done
}

# One read of the iterator, everywhere: notes new connections, adopts those noted before.
read_adopt() {
  in_each_netns cat "$ADOPT" 2>/dev/null
}
