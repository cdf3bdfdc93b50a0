#!/usr/bin/env bats
# The scripts with the bpftool of each Debian suite (tests/bpftools.sh).

load helpers

teardown() {
  unload --quiet
  assert_nothing_left
}

# works_with SUITE: every script does what it does with this host's
works_with() {
  local suites=$here/tests/bpftools options=()
  [[ -x $suites/$1/bpftool ]] || skip "the bpftool of Debian $1 could not be fetched"
  ! can_adopt || options=(--adopt)
  export BPFTOOL=$suites/$1/bpftool
  "$BPFTOOL" version
  if ! "$BPFTOOL" btf dump file /sys/kernel/btf/vmlinux >/dev/null 2>&1; then
    run "$here/load.sh" --quiet 3>&-
    echo "$status: $output"
    [ "$status" -eq 4 ]
    [ "${#lines[@]}" -eq 1 ]
    [[ $output == *"is too old for this kernel: it cannot read its BTF; "* ]]
    return
  fi
  load --account --exclude-port 7777 "${options[@]}"
  assert_on
  "$here/status.sh" --json | jq -e '.policy.excluded_ports == "7777" and .policy.accounting'
  load
  assert_on
  "$here/status.sh" --json | jq -e '.policy.excluded_ports == "" and (.policy.accounting | not)'
  unload
  assert_nothing_left
  "$here/load.sh" --check 3>&-
}

@test "load, status, load again, unload: with the bpftool of Debian 11" { works_with bullseye; }

@test "load, status, load again, unload: with the bpftool of Debian 12" { works_with bookworm; }

@test "load, status, load again, unload: with the bpftool of Debian 13" { works_with trixie; }

@test "load, status, load again, unload: with the bpftool of Debian sid" { works_with sid; }
