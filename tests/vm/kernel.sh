#!/usr/bin/env bash
# kernel.sh KERNEL: fetches Debian's newest KERNEL for cloud machines (5.10, 6.1, 6.12;
# newest: that of sid; with -arm64 behind it, for that) into kernels/, and prints where
# it is.  Exit code 75 if there is none to reach.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
# shellcheck source=tests/suite.bash
. "$here/../suite.bash"

architecture=amd64
[[ $1 != *-arm64 ]] || architecture=arm64
kernel=${1%-arm64}
suite=$(suite_of "$1")
[[ $kernel != newest ]] || kernel=
open_suite "$here/kernels" "$suite" "$architecture"

# The package, unpacked into kernels/NAME once.
package=$(with_apt apt-cache search --names-only "^linux-image-${kernel:+${kernel//./\\.}\.}[.0-9+a-z-]*-cloud-$architecture\$" |
  cut -d ' ' -f 1 | sort -V | tail -n 1)
[[ $package ]] || unreachable "no Linux ${kernel:-} for cloud machines"
release=${package#linux-image-}
if [[ ! -e $here/kernels/$release ]]; then
  rm -rf "$here/kernels/$release.part"
  mkdir "$here/kernels/$release.part"
  # Since 7.0 that package is empty, and depends on those that hold the kernel.
  mapfile -t parts < <(with_apt apt-cache depends "$package" | sed -n "s/^ *Depends: \(linux-.*-$release\)\$/\1/p")
  (cd "$here/kernels/$release.part" && with_apt apt-get -q download "$package" "${parts[@]}" >"$apt/log" 2>&1 &&
    for deb in ./*.deb; do dpkg-deb -x "$deb" .; done && rm ./*.deb) ||
    unreachable "$(tail -n 1 "$apt/log")"
  mv "$here/kernels/$release.part" "$here/kernels/$release"
fi
echo "$here/kernels/$release"
