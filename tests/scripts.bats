#!/usr/bin/env bats
# load.sh, unload.sh and the trace scripts, in every order, and on hosts that lack
# something.

load helpers

teardown() {
  [[ ! ${BACKGROUND-} ]] || kill "$BACKGROUND" 2>/dev/null || true
  unload --quiet
  [[ ! ${NEIGHBOUR-} ]] || "$BPFTOOL" cgroup detach "$CGROUP" sock_ops pinned "$BPFFS/foreign/$NEIGHBOUR"
  rm -rf "$BPFFS"/foreign* "$BPFFS"/bpf_sockops "$BPFFS"/bpf_redir "$BPFFS"/sock_ops_map
  local id
  for id in $(foreign_attached); do
    "$BPFTOOL" cgroup detach "$CGROUP" sock_ops id "$id"
  done
  assert_nothing_left
}

foreign_attached() {
  "$BPFTOOL" -j cgroup show "$CGROUP" | jq -r '.[]? | select(.attach_type | test("sock_ops")) | .id' |
    while read -r id; do
      "$BPFTOOL" -j prog show id "$id" | jq -r 'select((.map_ids // []) == []) | .id'
    done
}

load_foreign() { "$BPFTOOL" prog load "$here/tests/foreign.bpf.o" "$1" type sockops; }

# In a mount namespace where something of this host is hidden.
hidden() {
  local hide=$1
  shift
  unshare --mount bash -c "$hide"' && shift && exec "$@"' - "$hide" "$@"
}

# refused CODE PATTERN COMMAND...: one line on stderr, nothing changed
refused() {
  local code=$1 pattern=$2 before after
  shift 2
  before=$(find "$BPFFS"; ours_attached)
  run "$@" 3>&-
  echo "status $status: $output"
  [ "$status" -eq "$code" ]
  [ "${#lines[@]}" -eq 1 ]
  [[ $output =~ $pattern ]]
  after=$(find "$BPFFS"; ours_attached)
  [ "$before" = "$after" ]
}

@test "load, load, unload, unload" {
  run load
  [ "$status" -eq 0 ]
  assert_on
  run load
  [ "$status" -eq 0 ]
  assert_on
  run unload
  [ "$status" -eq 0 ]
  assert_nothing_left
  run unload
  echo "$output"
  [ "$status" -eq 0 ]
  [ "$output" = "sockfuse is off: nothing is loaded." ]
  assert_nothing_left
}

@test "load.sh prints each command that changes the system and ends with two lines; --quiet prints at most that there is no guard" {
  run "$here/load.sh" 3>&-
  echo "$output"
  [[ $output == *"+ $BPFTOOL prog attach "* ]]
  [[ $output == *"+ $BPFTOOL cgroup attach $CGROUP sock_ops "* ]]
  [[ ${lines[-2]} == "sockfuse is on: "* ]]
  [[ ${lines[-1]} == "Look at it: "* ]]
  run load
  [[ ! $output || ${#lines[@]} == 1 && $output == *": no guard here ("* ]]
}

@test "a foreign sockops program, attached before and after, is never touched" {
  load_foreign "$BPFFS/foreign1"
  load_foreign "$BPFFS/foreign2"
  "$BPFTOOL" cgroup attach "$CGROUP" sock_ops pinned "$BPFFS/foreign1" multi
  load
  "$BPFTOOL" cgroup attach "$CGROUP" sock_ops pinned "$BPFFS/foreign2" multi
  load
  [ "$(foreign_attached | wc -l)" -eq 2 ]
  "$TRAFFIC" echo 127.0.0.1 127.0.0.1 1000
  (($(counter fused_bytes) == 2000))
  unload --quiet
  [ "$(foreign_attached | wc -l)" -eq 2 ]
  [ -e "$BPFFS/foreign1" ] && [ -e "$BPFFS/foreign2" ]
}

# attach_neighbour NAME: that sockops program of tests/neighbour.bpf.c
attach_neighbour() {
  "$BPFTOOL" prog loadall "$here/tests/neighbour.bpf.o" "$BPFFS/foreign" pinmaps "$BPFFS/foreign_maps"
  "$BPFTOOL" cgroup attach "$CGROUP" sock_ops pinned "$BPFFS/foreign/$1" multi
  NEIGHBOUR=$1
}

segments() { "$BPFTOOL" -j map dump pinned "$BPFFS/foreign_maps/segments" | jq '.[0].formatted.value'; }

@test "a foreign program that asked for every segment is told of each, when a stream has left the map, too" {
  local before
  attach_neighbour counts
  load
  open_steps
  BACKGROUND=$STEPS_PID
  pace_until_left
  before=$(segments)
  step pace 64 100
  echo "$before $(segments)"
  (($(segments) - before >= 100))
}

@test "a connection that the kernel reads for a foreign program stays out" {
  attach_neighbour takes
  "$BPFTOOL" prog attach pinned "$BPFFS/foreign/reads" stream_verdict pinned "$BPFFS/foreign_maps/sockets"
  load
  "$TRAFFIC" echo 127.0.0.1 127.0.0.1 1000
  counters
  [ "$(counter ends_left_out)" -eq 2 ]
  [ "$(counter ends_tracked)" -eq 0 ]
}

# seen_by_neighbour: bytes that its verdict program was shown
seen_by_neighbour() { "$BPFTOOL" -j map dump pinned "$BPFFS/foreign_maps/seen" | jq '.[0].formatted.value'; }

# neighbour_reads: from now on its map has a verdict program
neighbour_reads() {
  "$BPFTOOL" prog attach pinned "$BPFFS/foreign/reads" stream_verdict pinned "$BPFFS/foreign_maps/sockets"
}

@test "a socket that a foreign map has taken first stays out, and is counted" {
  attach_neighbour takes
  load
  "$TRAFFIC" echo 127.0.0.1 127.0.0.1 1000
  counters
  [ "$(counter ends_refused)" -eq 2 ]
  [ "$(counter ends_tracked)" -eq 0 ]
}

@test "a socket that a foreign map takes afterwards is fused no more, and its program sees every byte" {
  local how
  load
  attach_neighbour takes
  for how in alone reads; do
    [[ $how != reads ]] || neighbour_reads
    before=$(seen_by_neighbour)
    "$TRAFFIC" echo 127.0.0.1 127.0.0.1 1000
    counters
    [ "$(counter fused_messages)" -eq 0 ]
  done
  (($(counter tcp_socket_state) >= 4))
  [ "$(seen_by_neighbour)" -eq 2000 ]
}

@test "a connection that a foreign map takes under traffic goes by TCP from then on, in order" {
  local end reads fused
  "$BPFTOOL" prog loadall "$here/tests/neighbour.bpf.o" "$BPFFS/foreign" pinmaps "$BPFFS/foreign_maps"
  load
  for reads in '' neighbour_reads; do
    $reads
    for end in 0 1; do
      open_steps
      BACKGROUND=$STEPS_PID
      step pace 1000 20
      step send 1000 3
      fused=$(counter fused_messages)
      ((fused > 0))
      step share "$end"
      step send 1000 3
      step read 6000
      step pace 1000 20
      step answer 1000
      step take 1000
      [ "$(counter fused_messages)" -eq "$fused" ]
      close_steps
    done
  done
}

@test "a second load that fails at its end leaves the first as it was, its settings too" {
  local settings
  cat >"$BATS_TEST_TMPDIR/bpftool" <<END
#!/bin/bash
[[ "\$*" != *"cgroup attach"* ]] || exit 255
exec $BPFTOOL "\$@"
END
  chmod +x "$BATS_TEST_TMPDIR/bpftool"
  load
  settings=$("$BPFTOOL" -j map dump pinned "$BPFFS/sockfuse/fuse_settings")
  BPFTOOL=$BATS_TEST_TMPDIR/bpftool refused 5 "did not attach" "$here/load.sh" --quiet --account
  [ "$("$BPFTOOL" -j map dump pinned "$BPFFS/sockfuse/fuse_settings")" = "$settings" ]
  assert_on
}

@test "a foreign program attached without multi is in the way: said so, nothing changed" {
  load_foreign "$BPFFS/foreign1"
  "$BPFTOOL" cgroup attach "$CGROUP" sock_ops pinned "$BPFFS/foreign1"
  run "$here/load.sh" --quiet 3>&-
  echo "$status: $output"
  [ "$status" -eq 5 ]
  [ "${#lines[@]}" -eq 1 ]
  [[ $output == *"without multi"* ]]
  [ "$(foreign_attached | wc -l)" -eq 1 ]
  [ ! -e "$BPFFS/sockfuse" ]
}

@test "a name that another program has pinned stays theirs" {
  load_foreign "$BPFFS/bpf_sockops"
  refused 5 'bpf_sockops is pinned by another program; .*rm ' "$here/load.sh" --quiet
  run unload
  [ "$status" -eq 0 ]
  [ -e "$BPFFS/bpf_sockops" ]
  rm "$BPFFS/bpf_sockops"
  "$BPFTOOL" map create "$BPFFS/sock_ops_map" type hash key 4 value 4 entries 1 name other
  refused 5 'sock_ops_map is pinned by another program' "$here/load.sh" --quiet
}

@test "counters of another version: the load begins to count anew" {
  local counters=$BPFFS/sockfuse/fuse_counters
  load
  "$TRAFFIC" echo 127.0.0.1 127.0.0.1 1000
  load
  [ "$(counter fused_bytes)" -eq 2000 ] # those of this one go on
  rm "$counters"
  "$BPFTOOL" map create "$counters" type percpu_array key 4 value 8 entries 1 name fuse_counters
  load
  [ "$(counter fused_bytes)" -eq 0 ]
  assert_on
}

@test "--cgroup limits it to that cgroup; unload finds it there; another cgroup takes over" {
  mkdir "$CGROUP/one" "$CGROUP/two"
  load --cgroup "$CGROUP/one"
  "$TRAFFIC" echo 127.0.0.1 127.0.0.1 1000
  [ "$(counter ends_tracked)" -eq 0 ]
  (echo "$BASHPID" >"$CGROUP/one/cgroup.procs" && exec "$TRAFFIC" echo 127.0.0.1 127.0.0.1 1000)
  [ "$(counter ends_tracked)" -eq 2 ]
  load --cgroup "$CGROUP/two"
  [ "$("$BPFTOOL" -j cgroup show "$CGROUP/one" | jq -s 'flatten | length')" -eq 0 ]
  [ "$("$BPFTOOL" -j cgroup show "$CGROUP/two" | jq -s 'flatten | length')" -eq 1 ]
  unload --quiet
  assert_nothing_left
  rmdir "$CGROUP/one" "$CGROUP/two"
}

@test "cgroups with a backslash or a space in their name, programs of others on them: load, status, unload" {
  local odd=$CGROUP/'machine-qemu\x2d1.scope' spaced="$CGROUP/with a space"
  mkdir "$odd" "$spaced"
  load_foreign "$BPFFS/foreign"
  "$BPFTOOL" cgroup attach "$odd" sock_ops pinned "$BPFFS/foreign" multi
  load
  "$here/status.sh" >/dev/null
  load --cgroup "$spaced"
  [ "$("$here/status.sh" --json | jq -r '.cgroups[]')" = "$spaced" ]
  [ -z "$(ours_attached)" ]
  load --cgroup "$odd"
  [ "$("$here/status.sh" --json | jq -r '.cgroups[]')" = "$odd" ]
  unload --quiet
  [ "$("$BPFTOOL" -j cgroup show "$odd" | jq length)" -eq 1 ]
  [ -z "$("$BPFTOOL" cgroup show "$spaced")" ]
  "$BPFTOOL" cgroup detach "$odd" sock_ops pinned "$BPFFS/foreign"
  rmdir "$odd" "$spaced"
}

@test "a sockfuse in a container, with a bpffs of its own, is not touched by that of the host" {
  local inner=$CGROUP/inner container
  mkdir "$inner"
  unshare --mount bash -c 'mount -t bpf bpf /sys/fs/bpf && touch "$1" && exec sleep 600' - "$BATS_TEST_TMPDIR/up" 3>&- &
  container=$!
  wait_for 30 [ -e "$BATS_TEST_TMPDIR/up" ]
  nsenter --mount --target "$container" "$here/load.sh" --quiet --cgroup "$inner" 3>&-
  load
  assert_on
  load
  unload --quiet
  [ -z "$(ours_attached)" ]
  run nsenter --mount --target "$container" "$here/status.sh"
  echo "$output"
  [ "$status" -eq 0 ]
  nsenter --mount --target "$container" "$here/unload.sh" --quiet
  [ -z "$("$BPFTOOL" cgroup show "$inner")" ]
  kill "$container"
  rmdir "$inner"
}

@test "a hybrid host: cgroup2 beside version 1 is found" {
  # shellcheck disable=SC2016
  run hidden 'umount /sys/fs/cgroup && mount -t tmpfs tmpfs /sys/fs/cgroup &&
    mkdir /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified' "$here/load.sh"
  echo "$output"
  [ "$status" -eq 0 ]
  [[ $output == *"cgroup attach /sys/fs/cgroup/unified sock_ops"* ]]
}

# A connection with 20,000 unread bytes; finish_unread has them read, and more.
start_unread() {
  mkfifo "$BATS_TEST_TMPDIR/in"
  "$TRAFFIC" unread <"$BATS_TEST_TMPDIR/in" >"$BATS_TEST_TMPDIR/out" 2>&1 3>&- &
  BACKGROUND=$!
  exec 7>"$BATS_TEST_TMPDIR/in"
  wait_for 30 grep -q ready "$BATS_TEST_TMPDIR/out"
}

finish_unread() {
  echo go >&7
  exec 7>&-
  wait "$BACKGROUND" || { cat "$BATS_TEST_TMPDIR/out" && return 1; }
  BACKGROUND=
  grep -q read=31000 "$BATS_TEST_TMPDIR/out"
}

@test "connections of an earlier load are switched off by unload, and counted as live" {
  load
  start_unread
  load
  run unload
  echo "$output"
  [[ ${lines[-1]} == "sockfuse is off: 1 live connections "* ]]
  assert_nothing_left
  capture "$BATS_TEST_TMPDIR/pcap" tcp
  finish_unread
  stop_capture
  # A message each way after the unload, decided by programs that live on.
  (($(data_segments "$BATS_TEST_TMPDIR/pcap") >= 2))
}

@test "an unload with unread fused bytes loses none of them" {
  load
  start_unread
  [ "$(counter fused_bytes)" -eq 20000 ]
  unload --quiet
  finish_unread
}

@test "wrong options: one line, exit 2" {
  refused 2 'needs the guard' "$here/load.sh" --careful --no-guard
  local script
  for script in load unload trace_bpf_output trace_lo_traffic; do
    refused 2 'unknown option: --nonsense; see: .*--help' "$here/$script.sh" --nonsense
  done
  refused 2 'needs a value' "$here/load.sh" --cgroup
  refused 2 'not a number' "$here/load.sh" --max-connections 0
  refused 2 'not a number' "$here/load.sh" --max-connections 12x
  refused 2 'not a port or a range of ports: 70000' "$here/load.sh" --exclude-port 80,70000
  refused 2 'not a port or a range of ports: 9-3' "$here/load.sh" --exclude-port 9-3
  refused 2 'not a port or a range of ports: http' "$here/load.sh" --exclude-port http
  refused 2 'not a cgroup2 directory: /tmp' "$here/load.sh" --cgroup /tmp
  refused 2 'prefix of 10.0.0.0\?; try: 10.0.0.0/32 for' "$here/load.sh" --net 10.0.0.0
  refused 2 'not a number from 1 .*: 0;' "$here/load.sh" --max-connections=0
}

@test "an option and its value may be one word; -h is --help" {
  run "$here/load.sh" --max-connections=77 --net=10.0.0.0/8 --quiet 3>&-
  [ "$status" -eq 0 ]
  [ "$("$BPFTOOL" -j map show pinned "$BPFFS/sock_ops_map" | jq .max_entries)" -eq 154 ]
  "$here/status.sh" | grep -F 10.0.0.0/8
  local script
  for script in load unload status trace_bpf_output trace_lo_traffic; do
    run "$here/$script.sh" -h
    [ "$status" -eq 0 ]
    [[ $output == "Usage: $script.sh"* ]]
  done
}

# without_trampolines [CASE]: sets tool, a bpftool that cannot attach the guard, nor what CASE says
without_trampolines() {
  tool=$BATS_TEST_TMPDIR/bpftool
  cat >"$tool" <<END
#!/bin/bash
case "\$*" in
  "prog help") echo autoattach ;;
  *autoattach) echo "Error: no trampolines" >&2 && exit 1 ;;
  ${1-}
  *) exec $BPFTOOL "\$@" ;;
esac
END
  chmod +x "$tool"
}

@test "without the guard: load.sh says so and goes on; --careful is refused, nothing changed" {
  local tool
  without_trampolines
  BPFTOOL=$tool run "$here/load.sh" 3>&-
  [ "$status" -eq 0 ]
  [[ $output == *"no guard here (Error: no trampolines): "*"stay plain TCP"* ]]
  assert_on
  unload --quiet
  BPFTOOL=$tool refused 4 'needs the guard' "$here/load.sh" --quiet --careful
}

# old_bpftool: one that cannot attach the guard, as before 7.5
old_bpftool() {
  printf '#!/bin/bash\n[[ $* != "prog help" ]] || exit 0\nexec %s "$@"\n' "$BPFTOOL" >"$BATS_TEST_TMPDIR/bpftool"
  chmod +x "$BATS_TEST_TMPDIR/bpftool"
  BPFTOOL=$BATS_TEST_TMPDIR/bpftool
}

@test "a bpftool that cannot attach the guard: autoattach does, or says why not" {
  old_bpftool
  BPFTOOL=$BPFTOOL run "$here/load.sh" 3>&-
  echo "$output"
  [ "$status" -eq 0 ]
  [[ $output == *"+ $here/bpf/autoattach $here/bpf/bpf_guard.bpf.o $BPFFS/sockfuse/staging/guard map name "* ]]
  [[ -e $BPFFS/sockfuse/guard || $output == *"no guard here (libbpf: prog 'guard_"* ]]
  assert_on
}

@test "a bpftool that cannot attach the guard, and no autoattach: load.sh says what to install" {
  local dir=$BATS_TEST_TMPDIR/root
  make -s -C "$here" install DESTDIR="$dir" PREFIX=/usr 3>&-
  rm "$dir/usr/lib/sockfuse/bpf/autoattach"
  old_bpftool
  BPFTOOL=$BPFTOOL run "$dir/usr/sbin/sockfuse-load" --quiet 3>&-
  echo "$output"
  [ "$status" -eq 0 ]
  [ "${#lines[@]}" -eq 1 ]
  [[ $output == *"no guard here (this bpftool cannot attach it, nor is $dir/"*"/autoattach here: install sockfuse again, or bpftool 7.5): "* ]]
  assert_on
}

# attach ARGUMENT...: autoattach fails with the last line "Error: WHAT: WHY", and leaves nothing
attach() {
  run "$here/bpf/autoattach" "$@"
  echo "$output"
  [ "$status" -eq 1 ]
  [ ! -e "$BATS_TEST_TMPDIR/links" ]
}

@test "autoattach names the file, the map or the pin that is not there, or not what it should be" {
  local object=$here/bpf/bpf_guard.bpf.o links=$BATS_TEST_TMPDIR/links
  run "$here/bpf/autoattach" "$object"
  [ "$status" -eq 2 ]
  [[ ${#lines[@]} -eq 1 && $output == "Usage: autoattach "* ]]
  attach "$here/none.bpf.o" "$links"
  [ "${lines[-1]}" = "Error: $here/none.bpf.o: No such file or directory" ]
  attach "$here/load.sh" "$links"
  [[ ${lines[-1]} == "Error: $here/load.sh: "* ]]
  load --no-guard
  attach "$object" "$links" map name fuse_none pinned "$BPFFS/sockfuse/fuse_marks"
  [ "${lines[-1]}" = "Error: fuse_none: No such file or directory" ]
  attach "$object" "$links" map name fuse_marks pinned "$BPFFS/sockfuse/fuse_none"
  [ "${lines[-1]}" = "Error: $BPFFS/sockfuse/fuse_none: No such file or directory" ]
}

@test "with hidden kernel addresses: load.sh says what mends it; a client that waits for its connection stays with TCP" {
  sed 's/^[0-9a-f]*/0000000000000000/' /proc/kallsyms >"$BATS_TEST_TMPDIR/kallsyms"
  run hidden "mount --bind $BATS_TEST_TMPDIR/kallsyms /proc/kallsyms" "$here/load.sh" 3>&-
  echo "$output"
  [ "$status" -eq 0 ]
  [[ $output == *"addresses are hidden: "*"; else: sysctl kernel.kptr_restrict=1, and load again"* ]]
  "$here/bench/load" --epoll rr 100 1 0 0 >/dev/null
  counters
  (($(counter ends_left_out) > 0 && $(counter fused_messages) == 0))
  unload --quiet
  run "$here/load.sh" 3>&-
  [[ $output != *hidden* ]]
}

@test "--help has an example and the exit codes" {
  local script
  for script in load unload trace_bpf_output trace_lo_traffic lib/deps; do
    run "$here/$script.sh" --help
    [ "$status" -eq 0 ]
    [[ $output == *"Usage: ${script##*/}.sh"* ]]
    [[ $output == *Example:* ]]
    [[ $output == *"Exit codes:"* ]]
  done
}

@test "without root: one line that says so, exit 3" {
  local script
  for script in load unload trace_bpf_output trace_lo_traffic; do
    refused 3 "root is needed; try: sudo .*/$script.sh" \
      setpriv --reuid 65534 --regid 65534 --clear-groups bash "$here/$script.sh"
  done
}

@test "without BTF, bpffs, cgroup2 or bpftool: one line that names what lacks, exit 4" {
  refused 4 'has no BTF' hidden 'mount -t tmpfs tmpfs /sys/kernel/btf' "$here/load.sh" --quiet
  refused 4 'has no bpffs' hidden 'mount --bind /dev/null /proc/filesystems' "$here/load.sh" --quiet
  refused 4 'no cgroup2 is mounted; try: .*mount -t cgroup2' hidden 'umount /sys/fs/cgroup' "$here/load.sh" --quiet
  refused 4 '/nonexistent is missing; try: make deps' env BPFTOOL=/nonexistent "$here/load.sh" --quiet
  printf '#!/bin/sh\necho bpftool v5.4.0\n' >"$BATS_TEST_TMPDIR/bpftool"
  chmod +x "$BATS_TEST_TMPDIR/bpftool"
  refused 4 'too old .*5\.4\.0' env BPFTOOL="$BATS_TEST_TMPDIR/bpftool" "$here/load.sh" --quiet
}

@test "without flock, findmnt, jq or /dev/fd: one line that names it, exit 4" {
  local tool directory bin=$BATS_TEST_TMPDIR/bin
  for tool in flock findmnt jq; do
    mkdir "$bin"
    for directory in /sbin /bin /usr/sbin /usr/bin; do
      ln -sf "$directory"/* "$bin"
    done
    rm "$bin/$tool"
    refused 4 "$tool is missing; try: make deps" env PATH="$bin" "$here/load.sh" --quiet
    rm -r "$bin"
  done
  refused 4 '/dev/fd is missing; try: ln -s /proc/self/fd /dev/fd' hidden 'mount -t tmpfs tmpfs /dev && mknod -m 666 /dev/null c 1 3' "$here/load.sh" --quiet
}

@test "root without the capabilities that BPF needs: one line, exit 3" {
  local script
  for script in load unload; do
    refused 3 'this root may not use BPF: .*CAP_BPF' setpriv --bounding-set=-bpf,-sys_admin "$here/$script.sh" --quiet
  done
  refused 1 'this root may not use BPF' setpriv --bounding-set=-bpf,-sys_admin "$here/status.sh"
}

@test "bpffs that cannot be mounted: one line, exit 4, nothing mounted" {
  printf '#!/bin/sh\nexit 32\n' >"$BATS_TEST_TMPDIR/mount"
  chmod +x "$BATS_TEST_TMPDIR/mount"
  umount "$BPFFS" 2>/dev/null || true
  run env PATH="$BATS_TEST_TMPDIR:$PATH" "$here/load.sh" --quiet 3>&-
  echo "$output"
  [ "$status" -eq 4 ]
  [[ $output == *"cannot mount bpffs at $BPFFS; try: mount -t bpf bpf $BPFFS" ]]
}

@test "a program that the verifier refuses: its reason in one line, everything put back" {
  local copy=$BATS_TEST_TMPDIR/copy
  mkdir "$copy"
  cp -r "$here"/{Makefile,vmlinux.h,bpf,lib,*.sh} "$copy"
  sed -i '/^int bpf_redir(/{n;s/$/ (void)*(volatile u32 *)((char *)msg + 4096);/}' "$copy/bpf/bpf_redirect.bpf.c"
  rm "$copy"/bpf/*.o
  make -s -C "$copy"
  refused 1 'the kernel refused bpf_redirect.bpf.o: .*invalid bpf_context access' "$copy/load.sh" --quiet
  load
  refused 1 'the kernel refused bpf_redirect.bpf.o' "$copy/load.sh" --quiet
  assert_on
}

@test "a program that does not compile: exit 1, nothing changed; one that is older than its source is built" {
  local copy=$BATS_TEST_TMPDIR/copy
  mkdir "$copy"
  cp -r "$here"/{Makefile,vmlinux.h,bpf,lib,*.sh} "$copy"
  rm "$copy"/bpf/*.o
  run "$copy/load.sh" --quiet 3>&-
  [ "$status" -eq 0 ]
  assert_on
  echo "#error broken" >>"$copy/bpf/bpf_redirect.bpf.c"
  run "$copy/load.sh" --quiet 3>&-
  echo "$output"
  [ "$status" -eq 1 ]
  [[ ${lines[-1]} == *"do not build"*"make deps" ]]
  assert_on
}

@test "a clone whose name has a space and quotes, called by a symbolic link: load --adopt, status, unload" {
  local clone="$BATS_TEST_TMPDIR/it's a \"clone\"" link="$BATS_TEST_TMPDIR/a link" options=()
  ! can_adopt || options=(--adopt)
  mkdir "$clone" "$link"
  cp -a "$here"/{Makefile,vmlinux.h,bpf,lib,*.sh} "$clone"
  ln -s "$clone"/*.sh "$link"
  run "$link/load.sh" "${options[@]}" 3>&-
  echo "$output"
  [ "$status" -eq 0 ]
  [ "$(bash -c "printf '%s\n' ${lines[-1]#*: }")" = "$link/status.sh,"$'\n'"$link/trace_bpf_output.sh,"$'\n'"$link/trace_lo_traffic.sh" ]
  assert_on
  open_steps
  BACKGROUND=$STEPS_PID
  ! can_list || [ "$("$clone/status.sh" --json 3>&- | jq '.connections | length')" -eq 2 ]
  rm "$BPFFS/bpf_redir"
  run "$link/status.sh" 3>&-
  echo "$output"
  [ "$status" -eq 4 ]
  bash -c "${lines[0]#*try: } --quiet" 3>&-
  assert_on
  "$clone/unload.sh" --quiet
  assert_nothing_left
}

setting() { [[ $("$BPFTOOL" -j map dump pinned "$BPFFS/sockfuse/fuse_settings" | jq ".[0].formatted.value.$1") == "$2" ]]; }

@test "trace_bpf_output.sh turns tracing off however it ends: INT, TERM, a closed pipe" {
  local signal
  refused 1 'not loaded; try: .*/load.sh' "$here/trace_bpf_output.sh"
  load
  for signal in INT TERM; do
    # a shell starts background jobs with SIGINT ignored, which no trap undoes
    env --default-signal=INT "$here/trace_bpf_output.sh" >/dev/null 2>&1 3>&- &
    BACKGROUND=$!
    wait_for 30 setting trace 1
    refused 6 'another trace_bpf_output.sh is running' "$here/trace_bpf_output.sh"
    kill -"$signal" "$BACKGROUND"
    wait "$BACKGROUND" || true
    wait_for 30 setting trace 0
  done
  ("$here/trace_bpf_output.sh" 3>&- | head -n 1 >/dev/null) 2>/dev/null &
  BACKGROUND=$!
  wait_for 30 setting trace 1
  off_after_a_line() { "$TRAFFIC" burst 8 1 && setting trace 0; }
  wait_for 30 off_after_a_line
  wait "$BACKGROUND" || true
  BACKGROUND=
}

@test "a change of the settings keeps a mark that the guard makes meanwhile" {
  local pid tool=$BATS_TEST_TMPDIR/bpftool
  load
  cat >"$tool" <<EOF
#!/bin/bash
[[ "\$*" != *'map update'*fuse_settings* ]] ||
  "$BPFTOOL" map update pinned "$BPFFS/sockfuse/fuse_marks" key 9 9 9 9 9 9 9 9 value 1 0 0 0 0 0 0 0
exec "$BPFTOOL" "\$@"
EOF
  chmod +x "$tool"
  BPFTOOL=$tool "$here/trace_bpf_output.sh" >/dev/null 3>&- &
  pid=$!
  wait_for 30 setting trace 1
  wait_for 30 setting marks 1
  pkill -P "$pid"
  wait "$pid" || true
}

@test "trace_bpf_output.sh while another program reads the trace pipe: one line, exit 6" {
  load
  mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
  exec 7</sys/kernel/tracing/trace_pipe
  refused 6 'another program reads the trace pipe; see: fuser -v /sys/kernel/tracing/trace_pipe' timeout 10 "$here/trace_bpf_output.sh"
  exec 7<&-
  setting trace 0
}

@test "trace_lo_traffic.sh says what to expect, and captures the port or filter it is given" {
  for arguments in "" "7000" "tcp port 7000"; do
    rm -f "$BATS_TEST_TMPDIR/out"
    # shellcheck disable=SC2086
    "$here/trace_lo_traffic.sh" $arguments >"$BATS_TEST_TMPDIR/out" 2>&1 3>&- &
    wait_for 30 grep -q 'listening on lo' "$BATS_TEST_TMPDIR/out"
    kill $!
    cat "$BATS_TEST_TMPDIR/out"
    grep -q "Capturing on lo: .*$([[ $arguments ]] && echo 7000 || echo 'port 5001')" "$BATS_TEST_TMPDIR/out"
    grep -q handshake "$BATS_TEST_TMPDIR/out"
  done
}

# start_capture ARGUMENT...: trace_lo_traffic.sh, until end_capture
start_capture() {
  rm -f "$BATS_TEST_TMPDIR/out" # that of the capture before
  "$here/trace_lo_traffic.sh" "$@" >"$BATS_TEST_TMPDIR/out" 2>&1 3>&- &
  capture=$!
  wait_for 20 grep -q 'listening on lo' "$BATS_TEST_TMPDIR/out"
}

# What the script says at its end is in $output.
end_capture() {
  kill "$capture"
  wait "$capture"
  output=$(tail -n 1 "$BATS_TEST_TMPDIR/out")
  echo "$output"
}

# assert_fused MESSAGES: of the connection of open_steps, from now on
assert_fused() {
  local before
  before=$(counter fused_messages)
  step pace 1000 "$1"
  [ "$(counter fused_messages)" -eq $((before + $1)) ]
}

# bytes_in FILE: what tcpdump saw each way, every byte once, up to the first that lacks
bytes_in() {
  tcpdump -n -r "$1" 2>/dev/null |
    sed -n 's/.* IP \([^ ]*\) > .* seq \([0-9]*\):\([0-9]*\),.*/\1 \2 \3/p' | sort -k 1,1 -k 2,2n |
    awk '$1 != last { end = 1 } { last = $1; bytes[$1] += 0 } $2 <= end && $3 > end { bytes[$1] += $3 - end; end = $3 } END { for (from in bytes) print bytes[from] }'
}

@test "trace_lo_traffic.sh --all: tcpdump sees every byte of the port, and none once it has ended" {
  local dump bytes=50000000
  load
  start_capture --all 0
  tcpdump -i lo -s 128 -B 131072 -U -w "$BATS_TEST_TMPDIR/pcap" tcp 2>"$BATS_TEST_TMPDIR/dump" 3>&- &
  dump=$!
  wait_for 20 grep -q 'listening on lo' "$BATS_TEST_TMPDIR/dump"
  "$TRAFFIC" mix $bytes 1
  sees_all() { [ "$(bytes_in "$BATS_TEST_TMPDIR/pcap" | paste -sd ' ')" = "$bytes $bytes" ]; }
  wait_for 30 sees_all || {
    bytes_in "$BATS_TEST_TMPDIR/pcap"
    cat "$BATS_TEST_TMPDIR/dump"
    false
  }
  kill "$dump"
  wait "$dump"
  end_capture
  [[ $output == *": 0 messages fused, "* ]]
  start_capture --all 5001
  "$TRAFFIC" echo 127.0.0.1 127.0.0.1 1000 # of another port: fused
  end_capture
  [[ $output == *": 2 messages fused, 0 by TCP"* ]]
  open_steps
  start_capture --all 0
  step pace 1000 2
  end_capture
  assert_fused 20
  close_steps
}

@test "trace_lo_traffic.sh --all that is killed: messages are fused again 6 s later" {
  load
  open_steps
  start_capture --all 0
  step pace 1000 2
  kill -9 "$capture"
  wait "$capture" || true
  sleep 6.5
  assert_fused 5
  close_steps
}

@test "trace_lo_traffic.sh takes a filter that begins with port as it is" {
  start_capture port 7000
  end_capture
  grep -qx 'Capturing on lo: port 7000' "$BATS_TEST_TMPDIR/out"
}

@test "no byte is lost or reordered while trace_lo_traffic.sh --all starts and ends 20 times" {
  local traffic
  load
  touch "$BATS_TEST_TMPDIR/go"
  for seed in {1..100000}; do
    [[ -e $BATS_TEST_TMPDIR/go ]] || exit 0
    "$TRAFFIC" mix 50000000 "$seed" || exit
  done >"$BATS_TEST_TMPDIR/mix" 2>&1 3>&- &
  traffic=$! BACKGROUND=$!
  for _ in {1..20}; do
    start_capture --all 0
    end_capture
  done
  rm "$BATS_TEST_TMPDIR/go"
  wait "$traffic" || {
    cat "$BATS_TEST_TMPDIR/mix"
    false
  }
  wc -l "$BATS_TEST_TMPDIR/mix"
  (($(counter tcp_captured) > 100 && $(counter fused_messages) > 100))
}

@test "trace_lo_traffic.sh ends with the messages that were fused and that went by TCP, and why" {
  # while_captured COMMAND...
  while_captured() {
    start_capture 7000
    "$@"
    end_capture
  }
  while_captured true
  [ "$output" = "sockfuse is off: all went by TCP." ]
  load
  "$TRAFFIC" echo 127.0.0.1 127.0.0.1 1000 # before it
  while_captured "$TRAFFIC" echo 127.0.0.1 127.0.0.1 1000
  [ "$output" = "On this host meanwhile: 2 messages fused, 0 by TCP (0.0 %)" ]
  open_steps
  fused_then_not() {
    step pace 1000 2
    set_fuse 0
    step pace 1000 3
  }
  while_captured fused_then_not
  [ "$output" = "On this host meanwhile: 2 messages fused, 3 by TCP (60.0 %): 3 switched_off" ]
  close_steps
}

@test "deps.sh prints the package manager's command before it runs it" {
  local bin=$BATS_TEST_TMPDIR/bin tool
  mkdir "$bin"
  for tool in env bash dirname readlink cut sort; do
    ln -s "$(command -v "$tool")" "$bin/$tool"
  done
  for tool in apt-get dnf zypper pacman; do
    printf '#!/bin/bash\necho "ran %s $*"\n' "$tool" >"$bin/$tool"
    chmod +x "$bin/$tool"
    run env -i PATH="$bin" "$here/lib/deps.sh" load check lint 3>&-
    echo "$output"
    [ "$status" -eq 0 ]
    [[ ${lines[0]} == "+ "*"$tool"*" bats"* || ${lines[0]} == "+ "*"$tool"*bash-bats* ]]
    [[ ${lines[1]} == "ran $tool"* ]]
    rm "$bin/$tool"
  done
  run env -i PATH="$bin" "$here/lib/deps.sh" load 3>&-
  [ "$status" -eq 4 ]
}

@test "make demo installs iperf3 besides what a load needs, and writes to no file of the host" {
  [[ $(make -n -C "$here" demo) == *"lib/deps.sh load demo"$'\n'* ]]
  diff <(sed -n 's/^demo *\([^ ]*\) .*/\1/p' "$here/lib/deps.sh") <(echo iperf3)
  ! grep -rnE -- '-w */dev/' "$here"/bench/*.sh
}

# What asks for FIONREAD is a connection of which a byte goes by TCP.
counters_but_asker() { counters | jq -c 'del(.ends_tracked, .tcp_socket_option)'; }

@test "load.sh --check: nothing lacks here, nothing is loaded, and what is loaded stays as it is" {
  local before
  run "$here/load.sh" --check 3>&-
  echo "$output"
  [ "$status" -eq 0 ]
  [[ $output =~ ok\ +programs ]]
  assert_nothing_left
  load
  before=$(find "$BPFFS"; ours_attached; counters_but_asker)
  "$here/load.sh" --check --json >"$BATS_TEST_TMPDIR/json" 3>&-
  jq -e '.ok and all(.findings[]; .result != "missing") and any(.findings[]; .subject == "programs")' "$BATS_TEST_TMPDIR/json"
  [ "$before" = "$(find "$BPFFS"; ours_attached; counters_but_asker)" ]
  assert_on
}

@test "load.sh --check --quiet tells of the guard, and of all that is reduced, what --check tells" {
  local tool
  without_trampolines '*bpf_status*) echo "Error: no iterator" >&2 && exit 1 ;;'
  export BPFTOOL=$tool
  "$here/load.sh" --check >"$BATS_TEST_TMPDIR/check" 3>&-
  cat "$BATS_TEST_TMPDIR/check"
  grep -q '^reduced  guard .*: Error: no trampolines$' "$BATS_TEST_TMPDIR/check"
  grep -q '^reduced  status .*: Error: no iterator$' "$BATS_TEST_TMPDIR/check"
  diff "$BATS_TEST_TMPDIR/check" <("$here/load.sh" --check --quiet 3>&-)
}

# full DIRECTORY COMMAND...: where that has no byte left
full() { hidden "mount -t tmpfs -o size=4k tmpfs $1 && head -c 4096 /dev/zero >$1/full" "${@:2}"; }

@test "with a full /tmp every script works; with a full /run status.sh says so, exit 1" {
  local script
  load
  open_steps
  BACKGROUND=$STEPS_PID
  full /tmp "$here/load.sh" --quiet 3>&-
  assert_on
  full /tmp "$here/load.sh" --check >/dev/null 3>&-
  ! can_list || [ "$(full /tmp "$here/status.sh" --json 3>&- | jq '.connections | length')" -eq 2 ]
  full /tmp "$here/status.sh" --prometheus >/dev/null 3>&-
  full /tmp "$here/status.sh" --watch 0.1 3>&- | grep -m 2 'fused messages'
  ! can_adopt || full /tmp "$here/load.sh" --quiet --adopt 3>&-
  full /tmp "$here/trace_lo_traffic.sh" >"$BATS_TEST_TMPDIR/traffic" 2>&1 3>&- &
  script=$!
  wait_for 30 grep -q 'listening on lo' "$BATS_TEST_TMPDIR/traffic"
  pkill -P "$script"
  full /tmp "$here/trace_bpf_output.sh" >/dev/null 2>&1 3>&- &
  script=$!
  wait_for 30 setting trace 1
  pkill -P "$script"
  wait_for 30 setting trace 0
  refused 1 'status.sh: no room in /run; see: df -h /run' full /run "$here/status.sh"
  refused 1 'status.sh: no room in /run; see: df -h /run' full /run "$here/status.sh" --watch
  full /tmp "$here/unload.sh" --quiet 3>&-
  assert_nothing_left
}

# missing_with HIDE: what load.sh --check finds missing where that is done first
missing_with() {
  run hidden "$1" "$here/load.sh" --check --json 3>&-
  echo "$1: $status: $output"
  [ "$status" -eq 1 ]
  missing=$(jq -r '[.findings[] | select(.result == "missing").subject] | join(" ")' <<<"$output")
}

@test "load.sh --check names exactly what lacks" {
  local missing
  echo "none integrity [confidentiality]" >"$BATS_TEST_TMPDIR/lockdown"
  printf '#!/bin/sh\necho "bpftool v5.4.0"\n' >"$BATS_TEST_TMPDIR/bpftool"
  chmod +x "$BATS_TEST_TMPDIR/bpftool"
  missing_with 'mount -t tmpfs tmpfs /sys/kernel/btf'
  [ "$missing" = BTF ]
  missing_with 'umount /sys/fs/cgroup'
  [ "$missing" = cgroup2 ]
  missing_with 'mount --bind /dev/null /proc/filesystems'
  [ "$missing" = bpffs ]
  missing_with "export BPFTOOL=$BATS_TEST_TMPDIR/bpftool"
  [ "$missing" = bpftool ]
  missing_with "mkdir -p /sys/kernel/security; mount -t tmpfs tmpfs /sys/kernel/security; cp $BATS_TEST_TMPDIR/lockdown /sys/kernel/security"
  [ "$missing" = lockdown ]
}

# on_kernel VERSION COMMAND...: as on Debian's kernel of that version, or one that names none
on_kernel() {
  printf '#!/bin/sh\ncase $1 in -v) echo "#1 SMP%s" ;; -r) echo 5.14.0-611.el9 ;; *) exec /usr/bin/uname "$@" ;; esac\n' \
    "${1:+ Debian $1-1 (2026-01-01)}" >"$BATS_TEST_TMPDIR/uname"
  chmod +x "$BATS_TEST_TMPDIR/uname"
  PATH=$BATS_TEST_TMPDIR:$PATH "${@:2}" 3>&-
}

@test "load.sh --check names the faults that a stable version is known to have, and no other" {
  local version faults
  for version in 5.10.76:4 5.10.262:1 5.15.32:5 6.1.90:3 6.1.192:0 6.6.34:3 6.12.33:1 6.18.1:0 7.2.13:0; do
    on_kernel "${version%:*}" "$here/load.sh" --check --json >"$BATS_TEST_TMPDIR/json"
    faults=$(jq -c '[.findings[] | select(.result == "fault").text]' "$BATS_TEST_TMPDIR/json")
    echo "$version $faults"
    [ "$(jq length <<<"$faults")" -eq "${version#*:}" ]
    jq -e --arg none "none is known in sockmap of Linux ${version%:*}" --argjson count "${version#*:}" \
      'any(.findings[]; .text == $none) == ($count == 0)' "$BATS_TEST_TMPDIR/json"
  done
}

@test "load.sh --check knows no faults of a kernel whose series or version it does not know, and says so" {
  local version
  for version in 6.8.12 7.9.1 ""; do
    on_kernel "$version" "$here/load.sh" --check --json >"$BATS_TEST_TMPDIR/json"
    jq -e '[.findings[] | select(.subject == "faults" or .result == "fault")]
      | length == 1 and (.[0].text | startswith("not known for this kernel"))' "$BATS_TEST_TMPDIR/json"
  done
}

@test "each load names the faults of this kernel that can cost bytes or its memory, and no others" {
  local version
  for version in 5.10.76:2 6.1.141:1 6.1.142:0 6.8.12:0; do
    on_kernel "${version%:*}" "$here/load.sh" --quiet 2>"$BATS_TEST_TMPDIR/errors"
    cat "$BATS_TEST_TMPDIR/errors"
    [ "$(grep -c "this kernel's sockmap has known faults: " "$BATS_TEST_TMPDIR/errors")" -eq $((${version#*:} > 0)) ]
    [ "$(grep -o "mended in Linux" "$BATS_TEST_TMPDIR/errors" | wc -l)" -eq "${version#*:}" ]
  done
}

# layout CHANGE: what makes BTF of vmlinux.h with this change (sed) the kernel's
layout() {
  local dir=$BATS_TEST_TMPDIR/layout
  mkdir -p "$dir/tests"
  sed "$1" "$here/vmlinux.h" >"$dir/vmlinux.h"
  make -s -C "$dir" -f "$here/Makefile" tests/vmlinux.bpf.o >&2
  echo "mount --bind $dir/tests/vmlinux.bpf.o /sys/kernel/btf/vmlinux"
}

@test "a kernel that keeps fused bytes elsewhere, or lays sockmap out otherwise, is refused: nothing is loaded" {
  local change differs missing
  while IFS='|' read -r change differs; do
    refused 4 "laid out otherwise in this kernel than sockfuse knows \($differs\); " hidden "$(layout "$change")" "$here/load.sh" --quiet
    missing_with "$(layout "$change")"
    [ "$missing" = BTF ]
  done <<'END'
s/struct list_head ingress_msg;/& struct list_head backlog_msg;/|sk_psock has struct list_head backlog_msg
s/struct list_head ingress_msg;/struct wait_queue_head ingress_msg;/|sk_psock has struct wait_queue_head ingress_msg, sk_psock lacks struct list_head ingress_msg
s/refcount_t refcnt;/atomic_t refcnt;/|sk_psock lacks refcount_t refcnt
s/void \*link_raw;/u64 link_raw;/|sk_psock_link lacks void \*link_raw
s/u8 key\[0\];/u8 *key;/|bpf_shtab_elem lacks u8 key\[\]
END
}

# renamed OLD NEW: what makes this kernel's BTF with another name of the same length its own
renamed() {
  LC_ALL=C sed "s/\x00$1\x00/\x00$2\x00/" /sys/kernel/btf/vmlinux >"$BATS_TEST_TMPDIR/btf"
  echo "mount --bind $BATS_TEST_TMPDIR/btf /sys/kernel/btf/vmlinux"
}

@test "load.sh --check asks the kernel which bytes FIONREAD counts, and whether sockmap can splice" {
  local counts="counts fused bytes(, and not| and) TCP's"
  grep -q msg_tot_len /sys/kernel/btf/vmlinux || skip "FIONREAD does not count fused bytes here"
  run "$here/load.sh" --check 3>&-
  echo "$output"
  [[ $output =~ "ok       FIONREAD  "$counts ]]
  counts=${BASH_REMATCH[0]}
  [[ $output == *"ok       splice    sockmap does not read fused bytes in splice: "* ]]
  load # and beside one that fuses the asker's socket
  run hidden "$(renamed inet_csk_clone_lock tcp_bpf_splice_read)" "$here/load.sh" --check 3>&-
  echo "$output"
  [ "$status" -eq 0 ]
  [[ $output == *"$counts"*"ok       splice    sockmap reads fused bytes in splice: "* ]]
  run hidden "$(renamed msg_tot_len msg_tot_lex)" "$here/load.sh" --check 3>&-
  echo "$output"
  [ "$status" -eq 0 ]
  [[ $output == *"reduced  FIONREAD  does not count fused bytes"* ]]
}
