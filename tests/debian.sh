#!/usr/bin/env bash
# debian.sh SUITE DIRECTORY PACKAGE...: makes a Debian of its own in DIRECTORY for
# tests; no package is installed, and no daemon started, on this machine.  A
# mirror may be given: DEBIAN_MIRROR=URL.
set -euo pipefail
suite=$1 root=$2
shift 2

# What is built depends on these alone.
built="$suite $*"
[[ $(cat "$root/.complete" 2>/dev/null) != "$built" ]] || exit 0
((EUID == 0)) || {
  echo "debian.sh: root is needed; try: sudo make check-apps" >&2
  exit 3
}
if [[ ! ${SOCKFUSE_DEBIAN-} ]]; then
  # Mounts and whatever a package starts end with this script.
  SOCKFUSE_DEBIAN=1 exec unshare --mount --pid --fork --kill-child "$0" "$suite" "$root" "$@"
fi
echo "Building $root, Debian $suite (some minutes)"
rm -rf "$root"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed() {
  tail -n 5 "$log" >&2
  echo "debian.sh: no Debian root; is the mirror reachable? try: DEBIAN_MIRROR=URL $0 $built" >&2
  exit 1
}
debootstrap --variant=minbase "$suite" "$root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$log" 2>&1 || failed
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # start no daemon
chmod +x "$root/usr/sbin/policy-rc.d"
mount -t proc proc "$root/proc"
DEBIAN_FRONTEND=noninteractive chroot "$root" \
  apt-get -q -y --no-install-recommends install "$@" </dev/null >"$log" 2>&1 || failed
rm -rf "$root"/var/cache/apt/archives/*.deb
echo "$built" >"$root/.complete"
