#!/usr/bin/env bash
# run.sh CALLS [SEED]: random calls on plain TCP and fused, compared (make fuzz).
# Inside isolate.sh only.
set -euo pipefail
# shellcheck source=tests/helpers.bash
. "$(dirname "$(readlink -f "$0")")/../helpers.bash"

plain_address
load --port 1-65535 # whatever its many short connections teach
trap 'unload --quiet' EXIT
"$here/tests/fuzz/fuzz" "$PLAIN_ADDRESS" 127.0.0.1 "$@"
