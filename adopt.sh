#!/usr/bin/env bash
# Fuses connections that are established already.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
. "$here/lib/common.sh"
. "$here/lib/iterators.sh"

usage() {
  cat <<EOF
Usage: ${0##*/} [--every SECONDS] [--quiet]

Fuses the connections that are established already, in every network namespace that
a process is in: for $(name_of load) --min-age, those that have reached that age.

  --every SECONDS  again every so many seconds, until sockfuse is unloaded
  --quiet          do not print the commands that change the system
  --help           this text

Example: ${0##*/} --every 1 &

$EXIT_CODES
EOF
}

EVERY=
parse_arguments() {
  split_options "$@"
  set -- "${ARGUMENTS[@]}"
  while (($#)); do
    case $1 in
      --every)
        [[ ${2-} =~ ^[0-9]+(\.[0-9]+)?$ && $2 =~ [1-9] ]] || wrong "--every: not a number of seconds: ${2-}"
        EVERY=$2
        shift
        ;;
      --quiet) QUIET=1 ;;
      *) last_option "$1" ;;
    esac
    shift
  done
}

parse_arguments "$@"
need_root "$@"
[[ -e $ADOPT ]] || die "$EX_FAILED" "sockfuse is not loaded for this" "try: $(path_to load) --adopt"
say "+ cat $ADOPT (in each network namespace)"
read_adopt
while [[ -e $ADOPT ]]; do
  read_adopt
  [[ $EVERY ]] || exit 0
  sleep "$EVERY"
done
