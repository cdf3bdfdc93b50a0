# shellcheck shell=bash disable=SC2034,SC2154 # here: set by who sources this
# What every command sources first: names of pins and maps, exit codes, how a command is
# announced, how an error reads, what a host must have, and the lock.  Promises them that to
# source it needs bash alone and changes nothing.  No command uses all of it (SC2034).

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
# Names of maps.  Those of the first line outlive a reload; that of the settings says that a
# program is ours.
readonly SETTINGS=fuse_settings COUNTERS=fuse_counters MARKS=fuse_marks CAPTURE=fuse_capture
readonly SERVICES=fuse_services FLOWS=fuse_flows DIRECTIONS=fuse_directions
readonly PROGRAMS=fuse_programs PORTS=fuse_ports NETS=fuse_nets CGROUPS_MAP=fuse_cgroups
readonly ADOPTERS=fuse_adopters SIDECAR_MAP=fuse_sidecar
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

BPFTOOL=${BPFTOOL:-bpftool} # from the environment
QUIET=                      # set by --quiet of each command; say reads it

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

# warn TEXT: one line on stderr, with --quiet, too
warn() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
}

# die CODE WHAT [MEND]: one line on stderr, what is wrong and what mends it.
die() {
  warn "$2${3:+; $3}"
  exit "$1"
}

# wrong WHAT: the command line is
wrong() {
  die "$EX_USAGE" "$1" "see: $0 --help"
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
  [[ $1 == -h || $1 == --help ]] || wrong "unknown option: $1"
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
  (umask 077 && : >>"$LOCK") # or any user could open it and hold it
  exec 9>"$LOCK"
  flock -w "$LOCK_WAIT" 9 ||
    die "$EX_BUSY" "another sockfuse script has been at work for $LOCK_WAIT s" "see: fuser -v $LOCK"
}

# with_jq MODULE FILTER [ARGUMENT...]: jq with the functions of that file here
with_jq() {
  jq -L "$here/lib" "include \"$1\"; $2" "${@:3}"
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
