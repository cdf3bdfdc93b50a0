#!/usr/bin/env bash
# Installs what sockfuse needs and this host lacks (make deps).
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
. "$here/lib/common.sh"

usage() {
  cat <<EOF
Usage: deps.sh [load] [demo] [check] [apps] [vm] [arm64] [lint] [deb] [rpm] [bench] [recording]

Installs with apt, dnf, zypper or pacman what is missing to build and load
sockfuse (load), to show it (demo), to run its tests here (check), those with
other programs (apps), or those in a virtual machine (vm; arm64, too), to check
its style (lint), or to make packages (deb, rpm), the page of benchmarks (bench)
or the picture of the demo (recording).  The command is printed before it is run.

  --help    this text

Example: deps.sh load check

$EXIT_CODES
EOF
}

# What is needed, one a line: set, command or header, and its package with apt,
# dnf, zypper and pacman.
readonly NEEDED="\
load   clang                       clang         clang          clang           clang
load   /usr/include/bpf/bpf_helpers.h libbpf-dev libbpf-devel   libbpf-devel    libbpf
load   cc                          gcc           gcc            gcc             gcc
load   bpftool                     bpftool       bpftool        bpftool         bpf
load   jq                          jq            jq             jq              jq
load   flock                       util-linux    util-linux     util-linux      util-linux
load   tcpdump                     tcpdump       tcpdump        tcpdump         tcpdump
check  bats                        bats          bats           bats            bash-bats
load   ss                          iproute2      iproute        iproute2        iproute2
check  nft                         nftables      nftables       nftables        nftables
demo   iperf3                      iperf3        iperf3         iperf           iperf3
check  iperf3                      iperf3        iperf3         iperf           iperf3
check  curl                        curl          curl           curl            curl
check  openssl                     openssl       openssl        openssl         openssl
check  sysctl                      procps        procps-ng      procps          procps-ng
apps   debootstrap                 debootstrap   debootstrap    debootstrap     debootstrap
vm     debootstrap                 debootstrap   debootstrap    debootstrap     debootstrap
apps   systemd-nspawn              systemd-container systemd-container systemd-container systemd
apps   dpkg-deb                    dpkg          dpkg           dpkg            dpkg
apps   rpmbuild                    rpm           rpm-build      rpm-build       rpm-tools
apps   git                         git           git            git             git
deb    dpkg-deb                    dpkg          dpkg           dpkg            dpkg
deb    dpkg-shlibdeps              dpkg-dev      dpkg-dev       dpkg            dpkg
rpm    rpmbuild                    rpm           rpm-build      rpm-build       rpm-tools
bench  gnuplot                     gnuplot-nox   gnuplot        gnuplot         gnuplot
bench  perf                        linux-perf    perf           perf            perf
recording asciinema               asciinema     asciinema      asciinema       asciinema
recording npx                     npm           npm            npm             npm
vm     qemu-system-x86_64          qemu-system-x86 qemu-system-x86-core qemu-x86 qemu-system-x86
arm64  qemu-system-aarch64         qemu-system-arm qemu-system-aarch64-core qemu-arm qemu-system-aarch64
arm64  ld.lld                      lld           lld            lld             lld
vm     cpio                        cpio          cpio           cpio            cpio
lint   shellcheck                  shellcheck    ShellCheck     ShellCheck      shellcheck
lint   shfmt                       shfmt         shfmt          shfmt           shfmt
apps   mandoc                      mandoc        mandoc         mandoc          mandoc
lint   mandoc                      mandoc        mandoc         mandoc          mandoc
lint   clang-format                clang-format  clang-tools-extra clang-tools  clang"

# find_manager: sets MANAGER, empty if there is none, and COLUMN, the field of the package
find_manager() {
  COLUMN=0
  for MANAGER in apt-get dnf zypper pacman; do
    COLUMN=$((COLUMN + 1))
    ! command -v "$MANAGER" >/dev/null || return 0
  done
  MANAGER='' COLUMN=1
}

missing_packages() {
  local set need packages
  while read -r set need packages; do
    [[ " $* " == *" $set "* ]] || continue
    [[ -e $need ]] || command -v "$need" >/dev/null || cut -d ' ' -f "$COLUMN" <<<"${packages//+( )/ }"
  done <<<"$NEEDED" | sort -u
}

install_packages() {
  case $MANAGER in
    apt-get)
      run env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "$@" ||
        {
          run apt-get -q update
          run env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "$@"
        }
      ;;
    dnf) run dnf -y install "$@" ;;
    zypper) run zypper --non-interactive install "$@" ;;
    pacman) run pacman -S --needed --noconfirm "$@" ;;
  esac
}

shopt -s extglob
for argument; do
  case $argument in
    load | demo | check | apps | vm | arm64 | lint | deb | rpm | bench | recording) ;;
    -h | --help) last_option "$argument" ;;
    *) wrong "unknown argument: $argument" ;;
  esac
done
find_manager
mapfile -t missing < <(missing_packages "$@")
((${#missing[@]})) || exit 0
[[ $MANAGER ]] || die "$EX_HOST" "no apt, dnf, zypper or pacman here" "install by hand: ${missing[*]}"
need_root "$@"
install_packages "${missing[@]}" </dev/null >&2 ||
  die "$EX_FAILED" "not installed: ${missing[*]}" "see what $MANAGER says above"
