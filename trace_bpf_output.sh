#!/usr/bin/env bash
# Shows a line for each end of each connection as it is established.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
. "$here/lib/common.sh"
. "$here/lib/settings.sh"

usage() {
  cat <<EOF
Usage: ${0##*/}

Turns the trace lines of sockfuse on, follows the kernel's trace pipe, and turns
them off again when it ends (Ctrl-C).  op = 4 is the end that connected, op = 5
the end that accepted.

  --help    this text

Example: ${0##*/} | grep sockfuse

$EXIT_CODES
EOF
}

# find_tracefs: sets TRACEFS, where it is mounted
find_tracefs() {
  for TRACEFS in /sys/kernel/tracing /sys/kernel/debug/tracing; do
    [[ ! -e $TRACEFS/trace_pipe ]] || return 0
  done
  QUIET='' run mount -t tracefs tracefs /sys/kernel/tracing >&2 ||
    die "$EX_HOST" "tracefs cannot be mounted" "boot a kernel with CONFIG_FTRACE"
  TRACEFS=/sys/kernel/tracing
}

set_trace() {
  (
    take_lock
    [[ ! -e $PIN_DIR/$SETTINGS ]] || set_settings pinned "$PIN_DIR/$SETTINGS" "{trace: $1}"
  )
}

stop() {
  local code=$?
  trap '' INT TERM HUP PIPE
  set +e
  [[ ! ${reader-} ]] || kill "$reader" 2>/dev/null
  set_trace 0 2>/dev/null
  exit "$code"
}

[[ ! ${1-} ]] || last_option "$1"
need_root "$@"
need_bpftool
[[ -e $PIN_DIR/$SETTINGS ]] || die "$EX_FAILED" "sockfuse is not loaded" "try: $(path_to load)"
find_tracefs
[[ $(<"$TRACEFS/tracing_on") == 1 ]] ||
  die "$EX_HOST" "tracing is switched off on this host" "try: echo 1 > $TRACEFS/tracing_on"

exec 8>"$LOCK.trace"
flock -n 8 || die "$EX_BUSY" "another $(name_of trace_bpf_output) is running" "see: fuser -v $LOCK.trace"
# The kernel lets one program read it at a time.
true 2>/dev/null 7<"$TRACEFS/trace_pipe" ||
  die "$EX_BUSY" "another program reads the trace pipe" "see: fuser -v $TRACEFS/trace_pipe"
trap stop EXIT
trap 'exit 0' INT TERM HUP PIPE
set_trace 1
# In the background, so that a signal ends the wait at once; a closed pipe ends
# cat at its next line.
cat "$TRACEFS/trace_pipe" 8>&- &
reader=$!
wait "$reader" || true
