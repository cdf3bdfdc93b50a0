# shellcheck shell=bash disable=SC2034,SC2154 # QUIET: for say; the rest: set by load.sh and what it sources
# load.sh --check: tries on this host, in a mount namespace and a bpffs of its own, what a load
# would need, and says what is missing and what would be reduced.  Promises load.sh that
# nothing is attached to a cgroup, and that no pin outlives it.

# What found has noted: result, subject and text of each, in turn.  Results: ok, reduced
# (sockfuse runs without it), fault (a known one of this kernel), hint, missing (no load).
FINDINGS=()
MISSING= # set by found, at the first missing
found() {
  FINDINGS+=("$1" "$2" "$3")
  [[ $1 != missing ]] || MISSING=1
}

# tried RESULT SUBJECT TEXT COMMAND...: notes ok and TEXT if the command succeeds and says
# nothing; reduced and what it says, if it succeeds; RESULT and its error, if it fails
tried() {
  local result=$1 subject=$2 text=$3 says code
  shift 3
  set +e # or set -e would mean nothing inside
  says=$(
    set -e
    "$@" 2>&1
  )
  code=$?
  set -e
  says=$(sed '/^+ /d' <<<"$says" | tail -n 1)
  if ((code)); then
    found "$result" "$subject" "${says#"${0##*/}: "}"
  elif [[ $says ]]; then
    found reduced "$subject" "$says"
  else
    found ok "$subject" "$text"
  fi
}

# Confidentiality forbids BPF programs to read the kernel's memory (LOCKDOWN_BPF_READ_KERNEL).
need_no_lockdown() {
  local file=/sys/kernel/security/lockdown
  [[ -e $file ]] || mount -t securityfs securityfs /sys/kernel/security 2>/dev/null || return 0
  [[ $(cat $file 2>/dev/null) != *'[confidentiality]'* ]] ||
    die "$EX_HOST" "kernel lockdown in mode confidentiality forbids what the programs read" "boot with lockdown=integrity or none"
}

verdict_of_stage() {
  stage_programs
  stage_policy
  attach_verdict
}

# Programs that run here and may splice, one a line: those in the list, and those that
# catch SIGBUS, SIGSEGV and SIGURG, as Go's runtime does
may_splice_here() {
  local file name caught mask=$((1 << 6 | 1 << 10 | 1 << 22))
  for file in /proc/[0-9]*/status; do
    { read -r _ name && caught=$(sed -n 's/^SigCgt:[[:space:]]*[0-9a-f]*\([0-9a-f]\{8\}\)$/\1/p'); } 2>/dev/null <"$file" || continue
    [[ ${caught:-0} =~ ^[0-9a-f]+$ ]] || continue
    if (((0x${caught:-0} & mask) == mask)) || grep -qxF "$name" <<<"$SPLICER_NAMES"; then
      echo "$name"
    fi
  done | sort -u
}

# The guard, or what is left out without it
guard_or_why() {
  local here_now
  stage_guard
  [[ $UNGUARDED ]] || return 0
  here_now=$(SPLICER_NAMES=$(splicer_names) may_splice_here | paste -sd , | sed 's/,/, /g')
  echo "Go programs and those in the list splicers stay plain TCP (here now: ${here_now:-none}), and MSG_WAITALL, MSG_TRUNC, MSG_OOB and kTLS differ: $UNGUARDED"
}

adoption() { # in the subshell of tried
  ADOPTING=1
  need_adoption
  stage_adopter
}

look_at_security_modules() {
  local context
  context=$(tr -d '\0' </proc/self/attr/current 2>/dev/null) || return 0
  if [[ $(cat /sys/fs/selinux/enforce 2>/dev/null) == 1 ]]; then
    found hint SELinux "it is enforcing, and this is $context; a service's domain needs the permissions of class bpf: see ausearch -m avc"
  elif [[ $context && $context != unconfined ]]; then
    found hint AppArmor "this runs in the profile $context, which must allow the capabilities bpf, net_admin, perfmon and syslog"
  fi
}

look_at_faults() {
  local version faults cost fault
  version=$(stable_version)
  faults=$(known_faults "$version") || {
    found hint faults "not known for this kernel: ask its distribution for those of sockmap"
    return 0
  }
  [[ $faults ]] || found ok faults "none is known in sockmap of Linux $version"
  while read -r cost fault; do
    [[ ! $cost ]] || found fault sockmap "$fault"
  done <<<"$faults"
}

# What later kernels may do otherwise
look_at_readers() {
  local counts
  if counts=$(fionread_counts "$STAGING/sock_ops_map"); then
    found ok FIONREAD "$counts"
  else
    found reduced FIONREAD "does not count fused bytes: edge-triggered readers stay with TCP"
  fi
  if sockmap_can_splice; then
    found ok splice "sockmap reads fused bytes in splice: no guard is needed for that"
  else
    found ok splice "sockmap does not read fused bytes in splice: see guard"
  fi
}

try_host() {
  found ok kernel "Linux $(uname -r), $(uname -m)"
  tried missing bpffs "can be mounted" need_bpffs
  tried missing BTF "the kernel's, and sockmap is laid out as the programs know it" need_btf
  tried missing bpftool "$("$BPFTOOL" version 2>/dev/null | head -n 1)" need_bpftool
  tried missing cgroup2 "${CGROUPS[*]:-$(cgroup2_mount)}" find_cgroups
  tried missing lockdown "does not forbid it" need_no_lockdown
  tried missing build "the objects are there" build
}

try_load() {
  find_cgroups
  tried missing programs "the verifier takes them" verdict_of_stage
  [[ ! $MISSING ]] || return 0
  [[ ! $GUARD ]] || tried missing guard "its programs attach" guard_or_why
  tried reduced status "lists connections" stage_status
  tried "$([[ $ADOPTING ]] && echo missing || echo reduced)" adoption "--adopt works" adoption
  ! symbols_hidden || found reduced symbols "$SYMBOLS_HIDDEN"
  look_at_readers
  look_at_faults
}

print_findings() {
  if [[ $JSON ]]; then
    printf '%s\n' "${FINDINGS[@]}" | jq -Rnc '[inputs] as $found
      | [range(0; $found | length; 3) | {result: $found[.], subject: $found[. + 1], text: $found[. + 2]}]
      | {ok: all(.result != "missing"), findings: .}'
  else
    printf '%-8s %-9s %s\n' "${FINDINGS[@]}"
  fi
}

# preflight: fails if a load would
preflight() {
  QUIET= # what is reduced is said all the same
  [[ ! $JSON ]] || need_command jq jq
  mount -t bpf bpf "$BPFFS" 2>/dev/null || true # need_bpffs says why not
  try_host
  if [[ $MISSING ]]; then
    found hint programs "not tried, since something is missing"
  else
    try_load
  fi
  look_at_security_modules
  print_findings
  [[ ! $MISSING ]]
}
