# shellcheck shell=bash disable=SC2034,SC2154 # set for load.sh, and by common.sh and options.sh
# What is done about calls that only TCP serves: the guard, and the programs that may splice.
# Promises load.sh that who may splice stays plain TCP or is guarded, unless --no-guard was
# given.  Needs staging.sh and iterators.sh.

# Set by stage_guard; load.sh and preflight.sh read them, too.
SPLICERS=  # who stays out: nobody; 1: programs in the list; 2: those in Go, too.  In struct settings
UNGUARDED= # why the guard is not attached, if it should be

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

# The guard is optional.  bpftool attaches it since 7.5.
stage_guard() {
  local command arguments
  [[ $GUARD ]] || return 0
  SPLICERS=1 # who does not read where splice is refused
  shared_maps "$SETTINGS" "$COUNTERS" "$MARKS" "$SERVICES" "$DIRECTIONS"
  arguments=("$here/bpf/bpf_guard.bpf.o" "$STAGING/guard" "${MAPS[@]}")
  if [[ $("$BPFTOOL" prog help 2>&1) == *autoattach* ]]; then
    command=("$BPFTOOL" prog loadall "${arguments[@]}" autoattach)
  else
    command=("$here/bpf/autoattach" "${arguments[@]}")
  fi
  say "+ ${command[*]}"
  UNGUARDED=$(guard_refused "${command[@]}")
  [[ $UNGUARDED ]] || return 0
  GUARD=
  rm -rf "$STAGING/guard"
  [[ ! $CAREFUL ]] || die "$EX_HOST" "--careful needs the guard, which was not attached: $UNGUARDED" "leave it out"
  SPLICERS=2
}

# Names of programs whose sockets stay out, as they may splice: the project's list, and the
# administrator's
splicer_names() {
  { cat "$here/lib/splicers" /etc/sockfuse.splicers 2>/dev/null || true; } | sed 's/[[:space:]]*\(#.*\)\?$//; /^$/d'
}

# Programs that may splice stay out: tells the BPF programs their names, 15 bytes and a 0 (the
# empty name stands for those in Go), and notes those that run already.
stage_splicers() {
  local names log
  [[ $SPLICERS ]] || return 0
  names=$(splicer_names)
  say "+ $BPFTOOL map update pinned $STAGING/maps/$PROGRAMS (${names//$'\n'/ })"
  {
    splicer_names
    [[ ! $UNGUARDED ]] || echo
  } | LC_ALL=C sed 's/$/\x0\x0\x0\x0\x0\x0\x0\x0\x0\x0\x0\x0\x0\x0\x0\x0/; s/^\(.\{15\}\).*/\1\x0/' | tr -d '\n' |
    od -An -v -w16 -t u1 | sed 's/$/ value 1/' | fill "$PROGRAMS" "names of programs"
  pin_iterator "$(object bpf_splicers)" splicers || {
    [[ ! $UNGUARDED ]] ||
      die "$EX_HOST" "who may splice cannot be told here: $(load_error <<<"$log")" "if nobody does: $0 --no-guard"
    # What may not mount, in a container.  Programs that are started later are told by their names.
    warn "programs of the list splicers that run already are not known to sockfuse ($(load_error <<<"$log")): start them again"
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
