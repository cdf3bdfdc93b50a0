#!/usr/bin/env bash
# proxies.sh: the programs of tests/apps.bats that splice, in a virtual machine of
# tests/vm/run.sh, whose own system stands for tests/apps/root.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
mkdir -p tests/apps/root
mount --rbind / tests/apps/root
export APP_SECONDS=1200 # emulated, all is slow
bats --formatter tap -f 'in the default load' tests/apps.bats
