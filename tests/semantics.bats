#!/usr/bin/env bats
# What an application can see, on plain TCP and fused.

load helpers

setup_file() {
  "$BATS_TEST_DIRNAME/semantics/run.sh" "$BATS_FILE_TMPDIR" 3>&-
}

# differing: names of the behaviours whose transcripts are not the same
differing() {
  join -t $'\t' <(sort plain.tsv) <(sort fused.tsv) | awk -F '\t' '$2 != $3 { print $1 }'
}

# known: those that may differ on this kernel; the others name one that they are of
known() { awk -F '\t' 'NF == 3 { print $1 }' "$here/tests/semantics/differences.tsv" | sort; }

# both NAME...: the two transcripts of each
both() {
  local name
  for name; do
    grep -P "^$name\t" plain.tsv fused.tsv
  done
}

setup() { cd "$BATS_FILE_TMPDIR"; }

teardown() { unload --quiet; }

@test "no behaviour differs from plain TCP but those in differences.tsv" {
  local more
  more=$(comm -13 <(known) <(differing))
  # shellcheck disable=SC2086 # words
  [ -z "$more" ] || { both $more && false; }
}

@test "every behaviour in differences.tsv differs still" {
  local less
  less=$(comm -23 <(known) <(differing))
  # shellcheck disable=SC2086 # words
  [ -z "$less" ] || { both $less && false; }
}

@test "the catalogue is whole, and what is not about falling back was fused" {
  [ "$(wc -l <plain.tsv)" -ge 60 ]
  [ "$(cut -f 1 plain.tsv)" = "$(cut -f 1 fused.tsv)" ]
  # At the least the four bytes each way that most cases begin with.
  [ "$(counter fused_messages "$(cat counters.json)")" -gt 400 ]
}

@test "docs/semantics.md lists every behaviour" {
  [ "$(cut -f 1 plain.tsv | sort)" = \
    "$(grep -oP '^\| `\K[a-z_0-9]+' "$here/docs/semantics.md" | sort)" ]
}

# kernels.tsv is from make semantics-kernels: "differs", kernel, mode, behaviours.
@test "on other kernels and with the guard nothing differs that differences.tsv does not tell" {
  local kernel mode names
  while IFS=$'\t' read -r _ kernel mode names; do
    echo "$kernel $mode: $names"
    # shellcheck disable=SC2086 # words
    [ -z "$(comm -23 <(printf '%s\n' $names | sort) <(cut -f 1 "$here/tests/semantics/differences.tsv" | sort))" ]
    # Half of them no hook of the guard sees: what waits for a reader, and a reader that a
    # reset wakes, as that takes its socket out of the map before the guard asks whose it is.
    [[ $kernel != 6.12* || $mode != again ]] || [ "$(wc -w <<<"$names")" -le 8 ]
  done <"$here/tests/semantics/kernels.tsv"
}

@test "1,000,000 random calls return on fused connections what they return on plain TCP" {
  plain_address
  load
  run "$here/tests/fuzz/fuzz" "$PLAIN_ADDRESS" 127.0.0.1 1000000
  echo "$output"
  [ "$status" -eq 0 ]
  (($(counter fused_messages) > 50000))
  (($(counter tcp_in_flight) > 5000)) # and both ways over the seam
}

@test "a connection to another host is as without sockfuse, with its address in --net, too" {
  local remote=$BATS_TEST_TMPDIR/remote
  mkdir "$remote"
  "$here/tests/semantics/run.sh" "$remote" --remote 3>&-
  [ "$(wc -l <"$remote/fused.tsv")" -ge 60 ]
  (($(counter ends_remote "$(cat "$remote/counters.json")") >= 100))
  diff "$remote/plain.tsv" "$remote/fused.tsv"
}
