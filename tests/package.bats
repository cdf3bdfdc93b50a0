#!/usr/bin/env bats
# Installed, packaged, deployed: the same thing under other names.

load helpers

ROOT=$here/tests/apps/root
COMMANDS="load unload status trace-bpf-output trace-lo-traffic"

teardown() {
  unload --quiet
  assert_nothing_left
}

need_root() { [[ -e $ROOT/.complete ]] || skip "no Debian root, see tests/debian.sh"; }

installed() { find "$1" ! -type d -printf '/%P\n' | sort; }

@test "make install: load, status and unload run from there; make uninstall leaves nothing" {
  local dir=$BATS_TEST_TMPDIR/root bin=$BATS_TEST_TMPDIR/root/opt/sbin command
  make -s -C "$here" install DESTDIR="$dir" PREFIX=/opt 3>&-
  for command in $COMMANDS; do
    "$bin/sockfuse-$command" --help | grep -q "^Usage: sockfuse-$command"
  done
  run "$bin/sockfuse-status" 3>&-
  [ "$status" -eq 3 ]
  [ "$output" = "sockfuse is off; try: $bin/sockfuse-load" ]
  run "$bin/sockfuse-load" 3>&-
  echo "$output"
  [ "$status" -eq 0 ]
  [ "${lines[-1]}" = "Look at it: $bin/sockfuse-status, $bin/sockfuse-trace-bpf-output, $bin/sockfuse-trace-lo-traffic" ]
  assert_on
  "$bin/sockfuse-status" --json 3>&- >/dev/null
  "$bin/sockfuse-unload" --quiet 3>&-
  assert_nothing_left
  make -s -C "$here" uninstall DESTDIR="$dir" PREFIX=/opt 3>&-
  [ "$(installed "$dir")" = "" ]
}

@test "make uninstall leaves a changed sockfuse.conf; make install does not overwrite it" {
  local dir=$BATS_TEST_TMPDIR/root
  make -s -C "$here" install DESTDIR="$dir" 3>&-
  echo "--account" >>"$dir/etc/sockfuse.conf"
  make -s -C "$here" install DESTDIR="$dir" 3>&-
  make -s -C "$here" uninstall DESTDIR="$dir" 3>&-
  [ "$(installed "$dir")" = /etc/sockfuse.conf ]
  grep -qx -- --account "$dir/etc/sockfuse.conf"
}

@test "load.sh --config: options from a file, comments and blank lines apart; wrong ones are refused" {
  local file=$BATS_TEST_TMPDIR/conf
  grep -v '^#--' "$here/packaging/sockfuse.conf" >"$file"
  printf '%s\n' "--exclude-port 80,443" "  --max-connections 1000" "" --account >>"$file"
  load --config "$file" --exclude-port 8080
  [ "$("$here/status.sh" --json 3>&- | jq -c '[.policy.excluded_ports, .map.max_entries, .policy.accounting]')" = '["80,443,8080",2000,true]' ]
  echo "--exclude-ports 1" >"$file"
  run load --config "$file"
  [ "$status" -eq 2 ]
  [ "${#lines[@]}" -eq 1 ]
  run load --config "$file.none"
  [ "$status" -eq 2 ]
}

@test "a sockfuse.conf of an older version: sockfuse is on, and a line for each option that is gone says to take it out" {
  local file=$BATS_TEST_TMPDIR/conf option
  printf '%s\n' "--refresh 30" "--min-age 1" --nonblocking-only "--exclude-port 80" >"$file"
  run load --config "$file"
  echo "$output"
  [ "$status" -eq 0 ]
  for option in refresh min-age nonblocking-only; do
    [ "$(grep -c -- "--$option is ignored.*; take it out$" <<<"$output")" -eq 1 ]
  done
  [ "$("$here/status.sh" --json 3>&- | jq -r .policy.excluded_ports)" = 80 ]
}

@test "load.sh --config: options that need each other may stand in any order" {
  local file=$BATS_TEST_TMPDIR/conf
  mkdir "$CGROUP/pod"
  printf '%s\n' "--sidecar-uid 1337" "--sidecar 15001" "--cgroup $CGROUP/pod" >"$file"
  load --config "$file"
  [ "$("$here/status.sh" --json 3>&- | jq -c .policy.sidecar)" = '{"port":15001,"uid":1337}' ]
  unload --quiet
  rmdir "$CGROUP/pod"
  echo --json >"$file"
  run load --config "$file"
  [ "$status" -eq 2 ]
  [[ $output == *"--json goes with "* ]]
}

@test "every commented option of sockfuse.conf is one that load.sh takes" {
  sed -n 's/^#--/--/p' "$here/packaging/sockfuse.conf" | grep -vE -- '--(cgroup|net|sidecar)' >"$BATS_TEST_TMPDIR/conf"
  [ "$(wc -l <"$BATS_TEST_TMPDIR/conf")" -ge 5 ]
  run load --config "$BATS_TEST_TMPDIR/conf"
  [[ $output == *"--careful needs the guard"* ]] # both stand there
  grep -v -- --no-guard "$BATS_TEST_TMPDIR/conf" | grep -v -- --careful >"$BATS_TEST_TMPDIR/rest"
  load --config "$BATS_TEST_TMPDIR/rest"
}

help_options() { "$here/${1//-/_}.sh" --help | grep -oE -- '--[a-z][a-z-]*' | sort -u; }

# man_options PAGE
man_options() { sed -n 's/^\.It Fl \\-\([a-z-]*\).*/--\1/p' "$here/packaging/man/$1" | sort -u; }

completed_options() {
  # shellcheck disable=SC2034 # what bash gives to a completion
  bash -c '. "$1"; COMP_WORDS=("$2" --) COMP_CWORD=1; _sockfuse "$2"; printf "%s\n" "${COMPREPLY[@]}"' - \
    "$here/packaging/sockfuse.bash" "sockfuse-$1" | sort -u
}

# Options that a help text names of another command are none of its own.
own() {
  case $1 in
    status) grep -vx -- --account ;;
    *) cat ;;
  esac
}

# The rare options of load
rare() {
  [[ $1 != load ]] || man_options sockfuse.conf.5
}

@test "every option in a --help is in its man page and no other; the completion has those and the rare ones" {
  local command
  for command in $COMMANDS; do
    echo "$command"
    diff <(help_options "$command" | own "$command") <(man_options "sockfuse-$command.8")
    diff <({ help_options "$command" | own "$command" && rare "$command"; } | sort) <(completed_options "$command")
  done
}

@test "sockfuse.conf(5) explains each option of sockfuse.conf that sockfuse-load(8) does not" {
  diff <(sed -n 's/^#\(--[a-z-]*\).*/\1/p' "$here/packaging/sockfuse.conf" | sort -u | comm -23 - <(man_options sockfuse-load.8)) \
    <(man_options sockfuse.conf.5 | grep -vx -- --sidecar-mark) # the conf has --sidecar-uid
}

# As mandoc shows it, in one line with single spaces
man_text() { mandoc -T ascii -O width=200 "$here/packaging/man/sockfuse-$1.8" | col -b | tr -s ' \n' ' '; }

@test "the man pages show the examples of --help as they are" {
  local command example
  for command in load status; do
    example=$("$here/${command//-/_}.sh" --help | sed -n 's/^Example: //p')
    example=${example//"${command//-/_}.sh"/sockfuse-$command}
    echo "$example"
    [[ $(man_text "$command") == *"$example"* ]]
  done
}

@test "each reason that status.sh shows stands in its man page" {
  local reason
  load
  "$here/status.sh" --json | jq -r '.counters.fallback | keys[]' >"$BATS_TEST_TMPDIR/reasons"
  [ -s "$BATS_TEST_TMPDIR/reasons" ]
  while read -r reason; do
    echo "$reason"
    sed -n 's/^\.It //p' "$here/packaging/man/sockfuse-status.8" | grep -qw "$reason"
  done <"$BATS_TEST_TMPDIR/reasons"
  unload --quiet
}

packages() { make -s -C "$here" deb rpm 3>&-; }

@test "the .deb and the .rpm hold what make install puts there, and their scripts are sound" {
  local dir=$BATS_TEST_TMPDIR
  packages
  make -s -C "$here" install DESTDIR="$dir/root" PREFIX=/usr 3>&-
  dpkg-deb -x "$here"/dist/sockfuse_*.deb "$dir/deb"
  diff -r --no-dereference "$dir/root" "$dir/deb"
  diff <(installed "$dir/root") <(rpm -qp --queryformat '[%{FILEMODES:perms} %{FILENAMES}\n]' "$here"/dist/sockfuse-*.rpm | sed -n 's/^[-l][^ ]* //p' | sort)
  [ -x "$dir/deb/usr/lib/sockfuse/bpf/autoattach" ] # so it is for one architecture, with a library
  [ "$(dpkg-deb -f "$here"/dist/*.deb Architecture)" = "$(dpkg --print-architecture)" ]
  [[ $(dpkg-deb -f "$here"/dist/*.deb Depends) == *", libbpf"* ]]
  [ "$(rpm -qp --queryformat '%{ARCH}' "$here"/dist/*.rpm)" = "$(uname -m)" ]
  [[ $(rpm -qp --requires "$here"/dist/*.rpm) == *libbpf.so* ]]
  [ "$(dpkg-deb -f "$here"/dist/*.deb Version)" = "$(rpm -qp --queryformat '%{VERSION}' "$here"/dist/*.rpm)" ]
  [ "$(dpkg-deb -I "$here"/dist/*.deb conffiles)" = /etc/sockfuse.conf ]
  rpm -qp --queryformat '%{POSTIN}\n' "$here"/dist/*.rpm | sh -n
  rpm -qp --queryformat '%{PREUN}\n' "$here"/dist/*.rpm | sh -n
}

# In a container whose init is systemd, with the package in it; JOB is its work.
in_container() {
  local root=$BATS_TEST_TMPDIR/overlay/root unit
  mkdir "$BATS_TEST_TMPDIR/overlay"
  mount -t tmpfs tmpfs "$BATS_TEST_TMPDIR/overlay"
  mkdir "$BATS_TEST_TMPDIR/overlay"/{upper,work,root}
  mount -t overlay overlay -o "lowerdir=$ROOT,upperdir=$BATS_TEST_TMPDIR/overlay/upper,workdir=$BATS_TEST_TMPDIR/overlay/work" "$root"
  mount -t bpf bpf /sys/fs/bpf
  for unit in nginx haproxy redis-server postgresql ssh prometheus prometheus-node-exporter rsync; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit.service"
  done
  cp "$here"/dist/*.deb "$root/root"
  cp "$here/deploy/ansible/sockfuse.yml" "$root/root"
  { echo '#!/bin/bash' && cat; } >"$root/root/job"
  chmod +x "$root/root/job"
  cat >"$root/etc/systemd/system/job.service" <<'END'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
StandardOutput=file:/root/log
StandardError=inherit
ExecStart=/root/job
ExecStopPost=/bin/systemctl --no-block exit
END
  mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
  ln -s ../job.service "$root/etc/systemd/system/multi-user.target.wants/job.service"
  SYSTEMD_NSPAWN_API_VFS_WRITABLE=1 SYSTEMD_NSPAWN_USE_CGNS=0 timeout 600 systemd-nspawn -q -D "$root" --register=no --keep-unit \
    --kill-signal=SIGRTMIN+3 --capability=all --system-call-filter="bpf perf_event_open" --bind=/sys/fs/bpf --console=pipe \
    -b systemd.unified_cgroup_hierarchy=1 </dev/null 3>&- || true
  cat "$root/root/log"
  cp "$root/root/log" "$BATS_TEST_TMPDIR/log"
  umount "$root" "$BATS_TEST_TMPDIR/overlay" /sys/fs/bpf
}

@test "in a systemd container: the .deb installs, its service starts, reloads and stops, removal unloads; the playbook too" {
  need_root
  packages
  in_container <<'END'
state() { sockfuse-status >/dev/null; echo "$1: $?"; }
asked() { sockfuse-status --json | jq -c "$1"; }
dpkg -i /root/sockfuse_*.deb >/dev/null && echo installed
state "after the installation"
systemd-analyze verify --man=no sockfuse.service sockfuse-metrics.timer && echo verified
metrics=/var/lib/prometheus/node-exporter/sockfuse.prom
mkdir -p "${metrics%/*}"
echo "the timer is $(systemctl is-enabled sockfuse-metrics.timer)"
systemctl start sockfuse-metrics.service && grep -x "sockfuse_loaded 0" "$metrics"
systemctl start sockfuse && echo started
state "started"
systemctl start sockfuse-metrics.service && grep -x "sockfuse_loaded 1" "$metrics"
systemctl enable --now sockfuse-metrics.timer
rm "$metrics"
for i in {1..70}; do [[ -e $metrics ]] || sleep 1; done
grep -x "sockfuse_damages 0" "$metrics"
python3 -c '
import socket
listener = socket.create_server(("127.0.0.1", 4321))
client = socket.create_connection(("127.0.0.1", 4321))
client.sendall(b"x" * 1000)
'
echo "fused: $(asked .counters.fused_bytes)"
before=$(asked .programs)
echo "--exclude-port 4321" >>/etc/sockfuse.conf
systemctl reload sockfuse && echo reloaded
echo "excluded: $(asked .policy.excluded_ports)"
[[ $(asked .programs) != "$before" ]] && echo "loaded anew"
systemctl stop sockfuse && echo stopped
state "stopped"
ansible-playbook -i localhost, -c local -e ansible_become=false -e "sockfuse_package=$(echo /root/sockfuse_*.deb)" \
  -e '{"sockfuse_options": "--account"}' /root/sockfuse.yml
systemctl is-enabled sockfuse
state "by the playbook"
before=$(asked .programs)
dpkg -i /root/sockfuse_*.deb >/dev/null && echo "installed again"
state "upgraded"
[[ $(asked .programs) != "$before" ]] && echo "reloaded by the upgrade"
echo "accounting: $(asked .policy.accounting)"
dpkg -r sockfuse >/dev/null && echo removed
[[ ! -e $metrics ]] && echo "the timer is $(systemctl is-active sockfuse-metrics.timer), its file removed"
echo "left: $(find /sys/fs/bpf -mindepth 1 ! -name '*.debug' | wc -l) pins, $(bpftool cgroup tree | grep -cw sock_ops) attachments"
END
  local line
  for line in installed "after the installation: 3" verified "the timer is disabled" "sockfuse_loaded 0" started "started: 0" \
    "sockfuse_loaded 1" "sockfuse_damages 0" "the timer is inactive, its file removed" "fused: 1000" reloaded 'excluded: "4321"' "loaded anew" stopped \
    "stopped: 3" enabled "by the playbook: 0" "installed again" "upgraded: 0" "reloaded by the upgrade" "accounting: true" removed \
    "left: 0 pins, 0 attachments"; do
    grep -qxF "$line" "$BATS_TEST_TMPDIR/log" || { echo "not so: $line" && return 1; }
  done
}

@test "the Kubernetes manifest fits the types of the API, and a wrong field is found" {
  need_root
  mount -t tmpfs tmpfs "$ROOT/tmp"
  cp "$here/tests/manifest.py" "$here/deploy/kubernetes/sockfuse.yaml" "$ROOT/tmp"
  run chroot "$ROOT" python3 /tmp/manifest.py /tmp/sockfuse.yaml
  echo "$output"
  [ "$status" -eq 0 ]
  [[ $output == *DaemonSet ]]
  sed -i 's/readOnlyRootFilesystem/readOnlyRoot/' "$ROOT/tmp/sockfuse.yaml"
  run chroot "$ROOT" python3 /tmp/manifest.py /tmp/sockfuse.yaml
  umount "$ROOT/tmp"
  [ "$status" -ne 0 ]
  [[ $output == *"no field readOnlyRoot"* ]]
}

@test "the READMEs name each package that make demo, make check and make check-apps install" {
  local package readme
  for package in $(sed -n 's/^\(demo\|check\|apps\)  *[^ ]*  *\([^ ]*\)  *[^ ]*  *[^ ]*  *[^ ]*$/\2/p' "$here/lib/deps.sh"); do
    for readme in README.md README.zh.md; do
      echo "$package in $readme"
      sed -n '/make check. /,/^```$/p' "$here/$readme" | grep -qwF "$package"
    done
  done
}

# Others at work here may make flow control necessary, so one of three runs has to have few.
@test "make demo: fused, few packets are left on lo, but for flow control; /dev/null stays whose it is" {
  local owner turn
  owner=$(stat -c '%U %G %a' /dev/null)
  for turn in 1 2 3; do
    run timeout 300 "$here/bench/demo.sh" 3>&-
    echo "$output"
    rmdir "$CGROUP"/{plain,fused,unix}
    [ "$status" -eq 0 ]
    [ "$(stat -c '%U %G %a' /dev/null)" = "$owner" ]
    [ "$(grep -c 'x [0-9.]*$' <<<"$output")" -eq 2 ]
    [ "$(grep -c 'packets on lo' <<<"$output")" -eq 2 ]
    ! awk '/packets on lo/ && $5 * 3 > $4 { exit 1 }' <<<"$output" || return 0
  done
  return 1
}
