#!/usr/bin/env bash
# run.sh CALLS [SEED]: random calls on plain TCP and fused, compared (make fuzz).
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)

((EUID == 0)) || {
  echo "run.sh: root is needed; try: sudo make fuzz" >&2
  exit 3
}
[[ ${SOCKFUSE_ISOLATED-} ]] || SOCKFUSE_ISOLATED=1 exec "$here/../isolate.sh" "$0" "$@"
ip address add 192.0.2.1/32 dev lo # not loopback, so plain TCP
"$here/../../load.sh" --quiet
trap '"$here/../../unload.sh" --quiet' EXIT
"$here/fuzz" 192.0.2.1 127.0.0.1 "$@"
