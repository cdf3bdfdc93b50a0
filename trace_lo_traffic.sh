#!/usr/bin/env bash
# Shows with tcpdump what still passes through the loopback device.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
# shellcheck source=common.sh
. "$here/common.sh"

usage() {
  cat <<EOF
Usage: ${0##*/} [PORT | FILTER...]

Runs tcpdump on lo, by default for port 5001.  FILTER is in the language of
pcap-filter(7).  Ends with Ctrl-C.

  --help    this text

Example: ${0##*/} tcp port 8080 and host 127.0.0.2

$EXIT_CODES
EOF
}

case ${1-} in
  -*) last_option "$1" ;;
esac
need_root "$@"
need_command tcpdump tcpdump
if (($# == 0)); then
  filter=(port 5001)
elif (($# == 1)) && [[ $1 =~ ^[0-9]+$ ]]; then
  filter=(port "$1")
else
  filter=("$@")
fi
cat >&2 <<EOF
Capturing on lo: ${filter[*]}
Fused connections show the three packets of the handshake and, at the end, the
teardown.  A packet with a length above 0 carries data that went by TCP.
EOF
exec tcpdump -i lo -n -l "${filter[@]}"
