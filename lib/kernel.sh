# shellcheck shell=bash disable=SC2034,SC2154 # set for load.sh, and by it, common.sh and options.sh
# What load.sh asks of the running kernel, by its BTF where it can: its version says little
# of what a distribution has put in.  Promises load.sh that need_… ends the script with one line
# where the kernel lacks something; nothing here changes the system.

# What the programs rely on and CO-RE does not check: it finds a field by its name wherever
# it is, also if its type is another now.
readonly LAYOUT="\
sk_psock struct list_head ingress_msg
sk_psock struct list_head link
sk_psock refcount_t refcnt
sk_psock_link struct list_head list
sk_psock_link struct bpf_map *map
sk_psock_link void *link_raw
bpf_shtab_elem u32 hash
bpf_shtab_elem struct sock *sk
bpf_shtab_elem struct hlist_node node
bpf_shtab_elem u8 key[]
sk_msg struct sock *sk_redir"

# What differs from it, one a line.  A further queue in sk_psock would hold fused bytes that
# no_fused_bytes() does not see; ingress_skb is for programs of another type.  Fails if this
# bpftool cannot read the kernel's BTF.
unknown_layout() {
  "$BPFTOOL" btf dump file /sys/kernel/btf/vmlinux format c 2>/dev/null | awk -v layout="$LAYOUT" '
    BEGIN {
      for (i = split(layout, line, "\n"); i; i--) {
        lacks[line[i]]
        split(line[i], word, " ")
        known[word[1]]
      }
    }
    /^struct sk_psock [{]$/ { found = 1 }
    /^struct [a-z_]* [{]$/ { name = $2 in known ? $2 : "" }
    /^}/ { name = "" }
    name && /^\t[^\t].*;$/ {
      member = $0
      sub(/^\t/, name " ", member)
      sub(/;$/, "", member)
      sub(/\[0?\]$/, "[]", member)
      if (member in lacks) delete lacks[member]
      else if (member ~ /^sk_psock struct [a-z_]*_head / && member !~ / ingress_skb$/) print "sk_psock has" substr(member, 9)
    }
    END { for (member in lacks) if (found && sub(" ", " lacks ", member)) print member }'
}

need_bpffs() {
  grep -qw bpf /proc/filesystems ||
    die "$EX_HOST" "this kernel has no bpffs" "boot one with CONFIG_BPF_SYSCALL"
}

need_btf() {
  local differs
  [[ -r /sys/kernel/btf/vmlinux ]] ||
    die "$EX_HOST" "this kernel has no BTF (/sys/kernel/btf/vmlinux)" "boot one with CONFIG_DEBUG_INFO_BTF"
  differs=$(unknown_layout) || return 0 # load_program says why
  [[ ! $differs ]] ||
    die "$EX_HOST" "sockmap is laid out otherwise in this kernel than sockfuse knows (${differs//$'\n'/, })" "update sockfuse, or boot another kernel"
}

# An adopted socket has to ask for the callbacks of the sockops program.
need_adoption() {
  [[ ! $ADOPTING ]] || grep -qa TCP_BPF_SOCK_OPS_CB_FLAGS /sys/kernel/btf/vmlinux ||
    die "$EX_HOST" "--adopt needs Linux 6.12" "leave it out"
}

# sockmap_can_splice: Linux may come to read fused bytes in splice itself
sockmap_can_splice() { grep -qa tcp_bpf_splice_read /sys/kernel/btf/vmlinux; }

# fionread_counts SOCKHASH: prints which bytes FIONREAD counts on a socket there; fails if
# it does not count fused ones
fionread_counts() {
  local code=0 counts=("counts fused bytes and TCP's" "counts fused bytes, and not TCP's")
  grep -qa msg_tot_len /sys/kernel/btf/vmlinux || return
  timeout 5 "$here/bpf/fionread" "$1" 2>/dev/null || code=$?
  echo "${counts[code]:-counts fused bytes}"
}

# Which stable version it is: Debian's and Ubuntu's kernels say so elsewhere than in
# uname -r; others with a patch level of 0, such as RHEL's, not at all.
stable_version() {
  local said
  for said in "$(sed 's/.* //' /proc/version_signature 2>/dev/null)" "$(uname -v | grep -o 'Debian [0-9.]*' | cut -d ' ' -f 2)" "$(uname -r)"; do
    [[ ! $said =~ ^([0-9]+\.[0-9]+\.[1-9][0-9]*) ]] || {
      echo "${BASH_REMATCH[1]}"
      return
    }
  done
}

# known_faults VERSION: "COST TEXT" for each of the file faults that this version has; fails
# if its series is not in the file
known_faults() {
  awk -F '|' -v version="$1" '
    BEGIN { split(version, part, "."); series = part[1] "." part[2] }
    /^#/ { next }
    $1 == "series" { known = index(" " $2 " ", " " series " "); next }
    {
      count = split($2, fixed, " ")
      for (i = 1; i <= count; i++) {
        split(fixed[i], first, ".")
        if (first[1] "." first[2] != series) continue
        if (first[3] == "x") print $1, $3 ", not mended in Linux " series " so far"
        else if (first[3] + 0 > part[3] + 0) print $1, $3 ", mended in Linux " fixed[i]
      }
    }
    END { exit !known }' "$here/lib/faults"
}

# Names those that can cost bytes or the kernel's memory
report_faults() {
  local faults
  faults=$(known_faults "$(stable_version)" | sed -n '/^-/d; s/^[a-z]* //p' | paste -sd '|' | sed 's/|/; /g') || return 0
  [[ ! $faults ]] || warn "this kernel's sockmap has known faults: $faults"
}

# The programs know sleepers and pollers by the kernel's addresses, taken at load.
readonly SYMBOLS_HIDDEN="Kernel addresses are hidden: clients that wait for their connection stay with TCP; else: sysctl kernel.kptr_restrict=1, and load again"
symbols_hidden() {
  ! grep -q '[1-9a-f][0-9a-f]* . woken_wake_function$' /proc/kallsyms
}
