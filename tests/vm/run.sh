#!/usr/bin/env bash
# run.sh KERNEL COMMAND...: runs it in this project, as root, on a KERNEL of kernel.sh
# in a virtual machine, emulated unless ACCEL=kvm is given.
# Ends with the command's exit code.  tests/vm/root is its system.  QEMU_OPTIONS
# are given to QEMU: with "-icount shift=0,sleep=off" the machine's clock counts
# instructions, and two runs measure the same.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
project=$(cd "$here/../.." && pwd)
kernel=$1
shift
SECONDS_MAX=${SECONDS_MAX:-1500}

die() {
  echo "run.sh: $1" >&2
  exit 1
}

boot=$("$here/kernel.sh" "$kernel")
release=${boot##*/}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/over/src" "$work/over/usr/lib/modules"
tar -C "$project" -cf - --exclude=.git --exclude=tests/apps/root --exclude=tests/vm/root --exclude=tests/vm/kernels . |
  tar -C "$work/over/src" -xf -
find "$work/over/src" -name '*.bpf.o' -exec touch {} + # or load.sh would build them
# kTLS and what it needs
modules=$(dirname "$(find "$boot" -path "*/lib/modules/$release")")
(cd "$modules" && tar --ignore-failed-read -cf - "$release"/modules.* "$release"/kernel/{net/tls,crypto,lib,arch/x86/crypto}) 2>/dev/null |
  tar -C "$work/over/usr/lib/modules" -xf -
cat >"$work/over/init" <<END
#!/bin/bash
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mkdir -p /proc /sys /dev /run /tmp /var/lib/nginx /var/log/nginx
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 none /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ln -s /proc/self/fd /dev/fd
ip link set lo up
depmod
modprobe -a tls gcm
cd /src
$(printf '%q ' "$@") </dev/null
echo "vm: exit \$?"
echo o >/proc/sysrq-trigger
sleep 9
END
chmod +x "$work/over/init"
archive() { (cd "$1" && shift && find . -xdev "$@" -print0 | cpio -0 -o -H newc --quiet); }
{
  archive "$here/root" \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./var -o -path ./usr/share/doc \
    -o -path ./usr/share/locale -o -path ./usr/share/man \) -prune -o
  archive "$work/over"
} >"$work/initramfs"

read -ra options <<<"${QEMU_OPTIONS-}"
timeout "$SECONDS_MAX" qemu-system-x86_64 -accel "${ACCEL:-tcg}" -cpu max -smp 2 -m 6G "${options[@]}" -nographic -no-reboot -nic none \
  -kernel "$(find "$boot" -name 'vmlinuz*' -type f | head -n 1)" -initrd "$work/initramfs" \
  -append "console=ttyS0 panic=-1 quiet loglevel=3 rdinit=/init" </dev/null 2>&1 | sed -u 's/\r$//' | tee "$work/log" | sed -u '/^vm: exit/d'
code=$(sed -n 's/^vm: exit //p' "$work/log")
[[ $code ]] || die "Linux $release did not come to the end"
exit "$code"
