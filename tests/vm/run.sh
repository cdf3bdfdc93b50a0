#!/usr/bin/env bash
# run.sh KERNEL COMMAND...: runs it in this project, as root, on a KERNEL of kernel.sh
# in a virtual machine, emulated unless ACCEL=kvm is given.  Ends with the command's exit
# code, or 70 if the machine did not come to its end in SECONDS_MAX.
#
# Environment: ROOT, its system (tests/vm/root, or tests/vm/root-arm64 for an arm64 kernel);
# CGROUP=hybrid: cgroup2 beside version 1; QEMU_OPTIONS for QEMU: with
# "-icount shift=0,sleep=off" the machine's clock counts instructions, and two runs measure
# the same; SWITCH_ROOT=1: the system is on a file system that pivot_root(2) can leave.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
project=$(cd "$here/../.." && pwd)
# shellcheck source=tests/suite.bash
. "$here/../suite.bash"
kernel=$1
shift
SECONDS_MAX=${SECONDS_MAX:-1500}

boot=$("$here/kernel.sh" "$kernel")
release=${boot##*/}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/over/src" "$work/over/usr/lib/modules"
tar -C "$project" -cf - --exclude=.git --exclude=tests/apps/root --exclude=tests/foreign/root --exclude='tests/vm/root*' \
  --exclude=tests/vm/arm64 --exclude=tests/vm/kernels --exclude=tests/bpftools . | tar -C "$work/over/src" -xf -
find "$work/over/src" \( -name '*.bpf.o' -o -name autoattach -o -name fionread \) -exec touch {} + # or load.sh would build them
case $release in
  *-amd64)
    root=${ROOT:-$here/root} console=ttyS0
    machine=(qemu-system-x86_64 -accel "${ACCEL:-tcg}" -cpu max)
    bpftool=tests/bpftools/$(suite_of "$kernel")
    [[ ! -x $project/$bpftool/bpftool ]] || (cd "$project" && tar -cf - "$bpftool") | tar -C "$work/over/src" -xf -
    ;;
  *-arm64) # its pointer authentication as QEMU can do it fast
    root=${ROOT:-$here/root-arm64} console=ttyAMA0
    machine=(qemu-system-aarch64 -M virt -accel "${ACCEL:-tcg}" -cpu "max,pauth-impdef=on")
    cp -R "$here/arm64/." "$work/over/src/"
    ;;
esac
cgroups='mount -t cgroup2 none /sys/fs/cgroup'
[[ ${CGROUP-} != hybrid ]] || cgroups='mount -t tmpfs none /sys/fs/cgroup
mkdir /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
mount -t cgroup -o none,name=systemd none /sys/fs/cgroup/systemd
mount -t cgroup2 none /sys/fs/cgroup/unified'
switch=
# shellcheck disable=SC2016 # expanded in the machine
[[ ! ${SWITCH_ROOT-} ]] || switch='[ -e /switched ] || {
mkdir /new
mount -t tmpfs -o size=100% tmpfs /new
cp -ax /. /new
touch /new/switched
exec switch_root /new /init
}'
# kTLS and what it needs, for guard.bats; what pasta needs, and its test; readers in the kernel;
# what containers need
modules=$(dirname "$(find "$boot" -path "*/lib/modules/$release")")
[[ $release == *-arm64 ]] ||
  (cd "$modules" && tar --ignore-failed-read -cf - "$release"/modules.* "$release"/kernel/{net/tls,crypto,lib,arch/x86/crypto,drivers/net/veth.ko*,drivers/net/tun.ko*,drivers/block/nbd.ko*,drivers/scsi/{*iscsi*,scsi_*,sd_mod*},net/{802,bridge,llc,netfilter,ipv4/netfilter,ipv6/netfilter},fs/overlayfs}) 2>/dev/null |
  tar -C "$work/over/usr/lib/modules" -xf -
cat >"$work/over/init" <<END
#!/bin/bash
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
$switch
mkdir -p /proc /sys /dev /run /tmp /root /var/lib/nginx /var/log/nginx
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
$cgroups
mount -t bpf bpf /sys/fs/bpf
ln -s /proc/self/fd /dev/fd
ip link set lo up
[ ! -e "/lib/modules/$release" ] || { depmod && modprobe -a tls gcm veth tun nbd iscsi_tcp sd_mod; }
cd /src
$(printf '%q ' "$@") </dev/null
echo "vm: exit \$?"
echo o >/proc/sysrq-trigger
sleep 9
END
chmod +x "$work/over/init"
archive() { (cd "$1" && shift && find . -xdev "$@" -print0 | cpio -0 -o -H newc --quiet); }
{
  archive "$root" \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./var/cache -o -path ./var/lib/apt \
    -o -path ./usr/share/doc -o -path ./usr/share/locale -o -path ./usr/share/man \) -prune -o
  archive "$work/over"
} >"$work/initramfs"

read -ra options <<<"${QEMU_OPTIONS-}"
timeout "$SECONDS_MAX" "${machine[@]}" -smp 2 -m 6G "${options[@]}" -nographic -no-reboot -nic none \
  -kernel "$(find "$boot" -name 'vmlinuz*' -type f | head -n 1)" -initrd "$work/initramfs" \
  -append "console=$console panic=-1 quiet loglevel=3 rdinit=/init" </dev/null 2>&1 | sed -u 's/\r$//' | tee "$work/log" | sed -u '/^vm: exit/d' || true
code=$(sed -n 's/^vm: exit //p' "$work/log")
[[ $code ]] || {
  echo "run.sh: Linux $release did not come to the end" >&2
  exit 70
}
exit "$code"
