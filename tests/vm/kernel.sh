#!/usr/bin/env bash
# kernel.sh KERNEL: fetches Debian's newest KERNEL for cloud machines (5.10, 6.1, 6.12;
# newest: that of sid) into kernels/, and prints where it is.  Suites that this host does
# not use are reached through the mirror that it does; DEBIAN_MIRROR=URL names another.
# Exit code 75 if there is none to reach.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
kernel=$1

case $kernel in
  5.10) suite=bullseye ;;
  6.1) suite=bookworm ;;
  6.12) suite=trixie ;;
  newest) suite=sid kernel= ;;
  *)
    echo "kernel.sh: not 5.10, 6.1, 6.12 or newest: $kernel" >&2
    exit 2
    ;;
esac

unreachable() {
  echo "kernel.sh: no Linux ${kernel:-of the newest kind} to fetch from Debian $suite: $1" >&2
  exit 75
}

# What apt knows of that suite alone, apart from what it knows for this host.
apt=$here/kernels/apt-$suite
# shellcheck disable=SC2016 # apt's own variables
known() { apt-get indextargets --format '$(ORIGIN) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' | awk "\$1 == \"Debian\" && \$2 $1 { print \$3; exit }"; }
mirror=${DEBIAN_MIRROR:-$(known '!~ /-/')}
security=$(known '~ /-security$/')
[[ $mirror ]] || unreachable "no mirror of Debian is in use here; try: DEBIAN_MIRROR=URL $0 $1"
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
{
  echo "deb $mirror $suite main"
  [[ ! $security || $suite == sid ]] || echo "deb $security $suite-security main"
} >"$apt/sources.list"
with_apt() {
  "$@" -o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null -o "Dir::State::Lists=$apt/lists" \
    -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root
}
[[ $(find "$apt/lists" -maxdepth 1 -name '*_Packages*' -mtime -1) ]] || with_apt apt-get -qq update >"$apt/log" 2>&1 ||
  unreachable "$(grep -m 1 '^[EW]:' "$apt/log")"

# The package, unpacked into kernels/NAME once.
package=$(with_apt apt-cache search --names-only "^linux-image-${kernel:+${kernel//./\\.}\.}[.0-9+a-z-]*-cloud-amd64\$" | cut -d ' ' -f 1 | sort -V | tail -n 1)
[[ $package ]] || unreachable "no such package"
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
