#!/usr/bin/env bash
# root.sh: makes tests/apps/root, a Debian of its own that holds the
# applications of tests/apps.bats: none is installed, and none of their daemons
# started, on this machine.  A mirror may be given: DEBIAN_MIRROR=URL.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
root=$here/root
packages="nginx-light haproxy redis-server postgresql curl openssl socat openssh-server openssh-client \
rsync python3 nodejs golang-go default-jdk-headless iperf3 git"

# What is built depends on this file alone.
! cmp -s "$0" "$root/.complete" || exit 0
((EUID == 0)) || {
  echo "root.sh: root is needed; try: sudo make check" >&2
  exit 3
}
if [[ ! ${SOCKFUSE_APPS_ROOT-} ]]; then
  # Mounts and whatever a package starts end with this script.
  SOCKFUSE_APPS_ROOT=1 exec unshare --mount --pid --fork --kill-child "$0"
fi
echo "Building $root (some minutes, 2 GB)"
rm -rf "$root"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed() {
  tail -n 5 "$log" >&2
  echo "root.sh: no Debian root; is the mirror reachable? try: DEBIAN_MIRROR=URL $0" >&2
  exit 1
}
debootstrap --variant=minbase bookworm "$root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$log" 2>&1 || failed
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # start no daemon
chmod +x "$root/usr/sbin/policy-rc.d"
mount -t proc proc "$root/proc"
# shellcheck disable=SC2086 # words
DEBIAN_FRONTEND=noninteractive chroot "$root" \
  apt-get -q -y --no-install-recommends install $packages </dev/null >"$log" 2>&1 || failed
rm -rf "$root"/var/cache/apt/archives/*.deb
cp "$0" "$root/.complete"
