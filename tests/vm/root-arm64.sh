#!/usr/bin/env bash
# root-arm64.sh: makes root-arm64/, a Debian trixie for arm64 that is unpacked and not
# installed, since this machine cannot run its programs; and arm64/, our helper programs
# for it.  Exit code 75 if there is none to reach.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
project=$here/../..
root=$here/root-arm64
# shellcheck source=tests/suite.bash
. "$here/../suite.bash"

# What every Debian has, what helper programs are linked with, what promises.bats needs
packages="base-files bash coreutils dash diffutils findutils gawk grep gzip hostname libc-bin mount sed tar util-linux
  libc6-dev libgcc-14-dev
  bats bpftool iproute2 jq procps"

"$project/lib/deps.sh" arm64
if [[ $(cat "$root/.complete" 2>/dev/null) != "$packages" ]]; then
  echo "Unpacking $root"
  mkdir -p "$here/kernels"
  open_suite "$here/kernels" trixie arm64
  # shellcheck disable=SC2086 # several
  unpack "$root" $packages
  # What maintainer scripts do elsewhere
  ln -sf gawk "$root/usr/bin/awk"
  echo root:x:0:0:root:/root:/bin/bash >"$root/etc/passwd"
  echo root:x:0: >"$root/etc/group"
  echo "$packages" >"$root/.complete"
fi
for program in tests/traffic bench/load; do
  [[ $here/arm64/$program -nt $project/$program.c ]] || {
    mkdir -p "$here/arm64/${program%/*}"
    clang --target=aarch64-linux-gnu --sysroot="$root" -fuse-ld=lld -std=gnu11 -O2 -pthread "$project/$program.c" -o "$here/arm64/$program"
  }
done
