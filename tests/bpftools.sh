#!/usr/bin/env bash
# bpftools.sh: fetches the bpftool of other Debian suites, with the libraries that it
# needs, into tests/bpftools/SUITE, each with a script bpftool that runs it there.
# Exit code 75 if one cannot be reached.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
# shellcheck source=tests/suite.bash
. "$here/suite.bash"

# fetch SUITE
fetch() {
  local root=$here/bpftools/$1 loader
  [[ ! -x $root/bpftool ]] || return 0
  echo "Fetching the bpftool of Debian $1"
  open_suite "$here/bpftools" "$1" "$(dpkg --print-architecture 2>/dev/null || uname -m)"
  unpack "$root" base-files bpftool
  loader=$(cd "$root" && find lib*/ usr/lib*/ -name 'ld-linux-*.so.*' | head -n 1)
  cat >"$root/bpftool" <<END
#!/bin/sh
root=\$(dirname "\$(readlink -f "\$0")")
exec "\$root/$loader" --library-path "\$(echo "\$root"/lib/*-linux-gnu "\$root"/usr/lib/*-linux-gnu | tr ' ' :)" "\$root/usr/sbin/bpftool" "\$@"
END
  chmod +x "$root/bpftool"
}

code=0
for suite in bullseye bookworm trixie sid; do
  (fetch "$suite") || code=$?
done
exit "$code"
