#!/usr/bin/env bash
# Ends sockfuse: live connections go on by TCP at once, nothing stays pinned.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
. "$here/lib/common.sh"
. "$here/lib/attachments.sh"
. "$here/lib/settings.sh"

usage() {
  cat <<EOF
Usage: ${0##*/} [--quiet]

Switches fusing off, detaches the programs and removes every pin.  Live
connections go on by TCP; bytes that wait to be read are still delivered.  Any
state that a killed $(name_of load) or a removed pin left behind is put in order.

  --quiet    do not print the commands that change the system
  --help     this text

Example: ${0##*/} --quiet && echo off

$EXIT_CODES
EOF
}

parse_arguments() {
  split_options "$@"
  set -- "${ARGUMENTS[@]}"
  while (($#)); do
    case $1 in
      --quiet) QUIET=1 ;;
      *) last_option "$1" ;;
    esac
    shift
  done
}

# The kernel keeps programs and maps for as long as a socket uses them, so the
# switch is what ends fusing for connections that live on.
switch_off() {
  local id
  for id in "${settings[@]}"; do
    say "+ fuse = 0 in map $id"
    set_settings id "$id" '{"fuse": 0}'
  done
}

# Connections with both ends in a map, of this load and of those before it.
live_connections() {
  local id total=0
  for id in "${maps[@]}"; do
    total=$((total + $("$BPFTOOL" -j map dump id "$id" 2>/dev/null | jq '[.[]? | select(.value | type == "array")] | length')))
  done
  echo $(((total + 1) / 2))
}

# Only what is ours: a foreign program under the same name stays.
unpin() {
  local path
  for path in "$PIN_SOCKOPS" "$PIN_REDIR"; do
    [[ ! -e $path ]] || ! is_ours .id "$(pinned_id "$path")" || run rm -f "$path"
  done
  [[ ! -e $PIN_MAP ]] || ! is_ours .map "$("$BPFTOOL" -j map show pinned "$PIN_MAP" | jq .id)" || run rm -f "$PIN_MAP"
  [[ ! -e $PIN_DIR ]] || run rm -rf "$PIN_DIR"
}

# is_ours JQ_FIELD ID
is_ours() {
  jq -se --arg id "$2" "any(.[]; \"\\($1)\" == \$id)" <<<"$ours" >/dev/null
}

parse_arguments "$@"
need_root "$@"
need_bpftool
take_lock
ours=$(our_programs)
mapfile -t settings < <(our_settings)
if ((${#settings[@]} == 0)) && [[ ! -e $PIN_DIR ]]; then
  say "sockfuse is off: nothing is loaded."
  exit 0
fi
mapfile -t maps < <(
  printf '%s\n' "${settings[@]}" | while read -r id; do
    jq -r --arg id "$id" 'select("\(.settings)" == $id) | .map // empty' <<<"$ours"
  done | sort -un
)
switch_off
detach_all_but ''
live=$(live_connections)
unpin
if ((live)); then
  say "sockfuse is off: $live live connections go on by TCP and leave the map as they close."
else
  say "sockfuse is off: no live connection is left."
fi
