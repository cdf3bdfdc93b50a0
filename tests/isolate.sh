#!/usr/bin/env bash
# isolate.sh COMMAND...: runs it where nothing of this machine can be touched:
# in a cgroup of its own that looks like the root, with its own bpffs, network
# namespace, /run and processes.  Ends them all when the command ends.
set -euo pipefail

((EUID == 0)) || {
  echo "isolate.sh: root is needed; try: sudo make check" >&2
  exit 3
}
cgroup2=$(findmnt -n -t cgroup2 -o TARGET | head -n 1)
[[ $cgroup2 ]] || {
  echo "isolate.sh: no cgroup2 is mounted; try: mount -t cgroup2 none /mnt" >&2
  exit 1
}
home=$cgroup2$(sed -n 's/^0:://p' /proc/self/cgroup)
box=$cgroup2/sockfuse-test.$$

leave() {
  if [[ $unshare ]]; then # a signal came; unshare ignores it, and takes its child along
    kill -KILL "$unshare"
    wait "$unshare" 2>/dev/null || true
  fi
  echo $$ >"$home/cgroup.procs"
  # A process that was killed leaves its cgroup a moment later.
  for _ in {1..50}; do
    ! grep -q 'populated 1' "$box/cgroup.events" || sleep 0.1
  done
  find "$box" -depth -type d -exec rmdir {} +
}

for old in "$cgroup2"/sockfuse-test.*; do # of one that was killed
  [[ ! -d $old || -d /proc/${old##*.} ]] || find "$old" -depth -type d -exec rmdir {} +
done
mkdir "$box"
unshare=
trap leave EXIT
trap 'exit 143' TERM INT HUP
echo $$ >"$box/cgroup.procs"
exec 9</proc/self/ns/net # net.ipv4.tcp_mem can be reached from there alone
# shellcheck disable=SC2016 # expanded inside
unshare --mount --net --cgroup --ipc --pid --fork --kill-child --mount-proc bash -ec '
  mount --make-rprivate /
  umount --recursive --lazy /sys
  mount -t sysfs sysfs /sys
  mount -t cgroup2 none /sys/fs/cgroup
  mount -t tmpfs tmpfs /run
  touch /run/host-net
  mount --bind /proc/self/fd/9 /run/host-net
  exec 9<&-
  ip link set lo up
  "$@"
' isolate "$@" <&0 &
unshare=$!
code=0
wait "$unshare" || code=$?
unshare=
((code == 0)) || exit "$code"
