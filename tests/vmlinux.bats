#!/usr/bin/env bats
# vmlinux.h against the running kernel.

load helpers

setup() {
  "$BPFTOOL" -j btf dump file /sys/kernel/btf/vmlinux >"$BATS_TEST_TMPDIR/kernel.json"
}

missing() {
  "$BPFTOOL" -j btf dump file "$1" >"$BATS_TEST_TMPDIR/header.json"
  jq -rs -f "$here/tests/btf_missing.jq" "$BATS_TEST_TMPDIR"/{header,kernel}.json
}

@test "every type and field of vmlinux.h is in this kernel's BTF" {
  run missing "$here/tests/vmlinux.bpf.o"
  [ "$status" -eq 0 ]
  # tcpmem is compiled in only where memory cgroups of version 1 are.
  [ "$(grep -v '^struct mem_cgroup.tcpmem$' <<<"$output")" = "" ]
}

@test "a typo in vmlinux.h is found, at any depth" {
  local dir=$BATS_TEST_TMPDIR
  mkdir "$dir/tests"
  sed 's/u32 copied_seq;/u32 copied_sek;/; s/atomic_t rmem_alloc;/atomic_t rmem_aloc;/; s/int owned;/int owner;/' \
    "$here/vmlinux.h" >"$dir/vmlinux.h"
  make -s -C "$dir" -f "$here/Makefile" tests/vmlinux.bpf.o
  run missing "$dir/tests/vmlinux.bpf.o"
  [ "$status" -eq 0 ]
  [[ $output == *"tcp_sock.copied_sek"* ]]
  [[ $output == *rmem_aloc* ]]
  [[ $output == *owner* ]]
}

@test "vmlinux.h stays a list of what is read, a few hundred lines at most" {
  [ "$(wc -l <"$here/vmlinux.h")" -lt 500 ]
}

@test "the programs compile for big-endian machines, too" {
  local source
  for source in "$here"/bpf/*.bpf.c; do
    "${CLANG:-clang}" -O2 -g -target bpfeb -Wall -Wextra -Werror -idirafter "/usr/include/$(uname -m)-linux-gnu" -c "$source" \
      -o "$BATS_TEST_TMPDIR/big.o"
    [[ $(readelf -h "$BATS_TEST_TMPDIR/big.o") == *"big endian"* ]]
  done
}
