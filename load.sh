#!/usr/bin/env bash
# Starts sockfuse: pins new programs in a directory of their own, attaches and checks them, then
# renames their pins over the old ones.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
. "$here/lib/common.sh"
. "$here/lib/attachments.sh"
. "$here/lib/settings.sh"
. "$here/lib/kernel.sh"
. "$here/lib/policy.sh"
. "$here/lib/options.sh"
. "$here/lib/staging.sh"
. "$here/lib/iterators.sh"
. "$here/lib/guard.sh"
. "$here/lib/sidecar.sh"

# --check: what it mounts and pins ends with its mount namespace, however it ends.
check_host() {
  [[ ${SOCKFUSE_CHECKING-} ]] || SOCKFUSE_CHECKING=1 exec unshare --mount "$0" "$@"
  . "$here/lib/preflight.sh"
  preflight || exit "$EX_FAILED"
  exit
}

need_host() {
  need_bpftool
  need_bpffs
  need_btf
  need_adoption
}

# The verdict program first: a socket gets it when it enters the map.  The new sockops program
# runs beside the old one, which commit detaches, so each connection meets one or both.  A socket
# that one of them has put into its map the other leaves alone.
attach() {
  local cgroup program
  OLD_IDS=$(our_attachments | cut -d ' ' -f 1)
  NEW_IDS=$(pinned_id "$STAGING/bpf_sockops")
  for program in "$STAGING"/sidecar/sidecar_*; do
    [[ ! -e $program ]] || NEW_IDS+=" $(pinned_id "$program")"
  done
  remember_attachments "$NEW_IDS"
  attach_verdict
  switch_on
  for cgroup in "${CGROUPS[@]}"; do
    attach_to "$cgroup" sock_ops "$STAGING/bpf_sockops" "sockops program"
  done
  attach_sidecar
}

# With --careful the programs look at the marks before they fuse anything.
switch_on() {
  [[ ! $CAREFUL ]] || set_settings "${SETTINGS_MAP[@]}" '{marks: 1}'
  set_settings "${SETTINGS_MAP[@]}" "{fuse: 1, account: ${ACCOUNT:-0}, careful: ${CAREFUL:-0}, nets: $((${#NETWORKS[@]} > 0)), listed: $((${#LISTED} > 0)),
    refresh: $(refresh_seconds), splicers: ${SPLICERS:-0}}"
}

report() {
  local which="from now on"
  ! symbols_hidden || say "$SYMBOLS_HIDDEN"
  # --quiet does not hide these lines.
  report_faults
  [[ ! $UNGUARDED ]] ||
    warn "no guard here ($UNGUARDED): Go programs and those named in $here/lib/splicers stay plain TCP, as they may splice; see docs/semantics.md"
  [[ ! $ADOPTING ]] || which="old and new"
  say "sockfuse is on: loopback TCP connections${NETWORKS[*]:+ and those of --net ${NETWORKS[*]}} in ${CGROUPS[*]} $which, up to $MAX_CONNECTIONS at a time."
  say "Look at it: $(path_to status), $(path_to trace_bpf_output), $(path_to trace_lo_traffic)"
}

# What the guard saw goes, too; who may splice is known by its program, and stays.
reset_services() {
  local pin=$PIN_DIR/$SERVICES keys
  take_lock
  [[ -e $pin ]] || die "$EX_FAILED" "sockfuse is not loaded" "try: $0"
  say "+ $BPFTOOL map delete pinned $pin (what was seen of services)"
  # bpftool ends with the first key that has gone meanwhile.
  for _ in {1..10}; do
    mapfile -t keys < <("$BPFTOOL" -j map dump pinned "$pin" |
      with_jq status '.[] | select(.formatted.value | may_be_forgotten) | .key | join(" ")' -r || echo failed)
    [[ ${keys[*]} != *failed ]] || die "$EX_FAILED" "the services cannot be read" "see: $BPFTOOL map dump pinned $pin"
    ((${#keys[@]})) || return 0
    printf "map delete pinned $pin key %s\n" "${keys[@]}" | "$BPFTOOL" batch file - >/dev/null 2>&1 || true
  done
  die "$EX_FAILED" "some services cannot be forgotten" "see: $BPFTOOL map dump pinned $pin"
}

main() {
  parse_arguments "$@"
  need_root "$@"
  ulimit -l unlimited 2>/dev/null || true # before Linux 5.11 maps are charged to it
  [[ ! $CHECK ]] || check_host "$@"
  if [[ $RESET ]]; then
    need_bpftool
    reset_services
    exit
  fi
  need_host
  find_cgroups
  build
  take_lock
  undo_on_exit
  mount_bpffs
  refuse_foreign_pins
  rm -rf "$STAGING" # of a load that was killed
  stage_programs
  stage_policy
  stage_guard
  stage_splicers
  stage_status
  stage_adopter
  stage_sidecar
  attach
  mark_splicers
  check
  commit
  adopt
  report
}

main "$@"
