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
  local option
  split_options "$@"
  for option in "${ARGUMENTS[@]}"; do
    [[ $option == --quiet ]] || last_option "$option"
    QUIET=1
  done
}

# The kernel keeps programs and maps for as long as a socket uses them, so the
# switch is what ends fusing for connections that live on.
# switch_off MAP_ID...: of settings
switch_off() {
  local id
  for id; do
    say "+ fuse = 0 in map $id"
    set_settings id "$id" '{fuse: 0}'
  done
}

# live_connections MAP_ID...: those with both ends in one of these maps, of this load and of those
# before it
live_connections() {
  local id total=0
  for id; do
    total=$((total + $("$BPFTOOL" -j map dump id "$id" 2>/dev/null | jq '[.[]? | select(.value | type == "array")] | length')))
  done
  echo $(((total + 1) / 2))
}

# unpin FOREIGN_PINS: only what is ours; a foreign program under the same name stays.
unpin() {
  local path
  for path in "$PIN_SOCKOPS" "$PIN_REDIR" "$PIN_MAP"; do
    [[ ! -e $path ]] || grep -qxF "$path" <<<"$1" || run rm -f "$path"
  done
  [[ ! -e $PIN_DIR ]] || run rm -rf "$PIN_DIR"
}

parse_arguments "$@"
need_root "$@"
need_bpftool
take_lock
ours=$(our_programs)
foreign=$(foreign_pins "$ours")
mapfile -t settings < <(our_settings)
if ((${#settings[@]} == 0)) && [[ ! -e $PIN_DIR ]]; then
  say "sockfuse is off: nothing is loaded."
  exit 0
fi
mapfile -t maps < <(jq -s '[.[] | select(.settings | tostring | IN($ARGS.positional[])).map // empty] | unique[]' --args "${settings[@]}" <<<"$ours")
switch_off "${settings[@]}"
detach_all_but ''
live=$(live_connections "${maps[@]}")
unpin "$foreign"
if ((live)); then
  say "sockfuse is off: $live live connections go on by TCP and leave the map as they close."
else
  say "sockfuse is off: no live connection is left."
fi
