#!/usr/bin/env bash
# build.sh: builds the tests that run.sh runs, in the Debian that tests/debian.sh made.
set -euo pipefail
root=$(dirname "$(readlink -f "$0")")/root
[[ ! -e $root/foreign/.complete ]] || exit 0

sed -n 's/^deb /deb-src /p' "$root/etc/apt/sources.list" >"$root/etc/apt/sources.list.d/source.list"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
rm -rf "$root/foreign"
mkdir "$root/foreign"
echo "Building the tests of Go, libuv and libevent (some minutes)"
chroot "$root" env -i --chdir=/foreign PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C.UTF-8 \
  bash -euo pipefail -s <<'END' >"$root/foreign/build.log" 2>&1 || {
for package in net net/http net/http/httputil internal/poll; do
  go test -c -o "go/$package.test" "$package"
done
apt-get -q update
apt-get -q --download-only source libuv1 libevent
for source in libuv1 libevent; do
  dpkg-source --no-check -x "$source"_*.dsc "$source"
done
cmake -S libuv1 -B libuv-build
make -C libuv-build -j "$(nproc)" uv_run_tests_a
cmake -S libevent -B libevent-build -D EVENT__LIBRARY_TYPE=STATIC -D EVENT__DISABLE_SAMPLES=ON -D EVENT__DISABLE_BENCHMARK=ON
make -C libevent-build -j "$(nproc)" regress
END
  tail -n 5 "$root/foreign/build.log" >&2
  echo "build.sh: the tests were not built; see $root/foreign/build.log" >&2
  exit 1
}
touch "$root/foreign/.complete"
