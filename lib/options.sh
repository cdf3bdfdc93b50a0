# shellcheck shell=bash disable=SC2034,SC2154 # set for load.sh, and by common.sh
# The command line of load.sh: what --help says (of rare options sockfuse.conf(5) does), and what
# each option sets.  Promises load.sh
# that after parse_arguments the options are sound, alone and together; else the script has
# ended with one line and exit code 2.  Needs common.sh and policy.sh.

usage() {
  cat <<EOF
Usage: ${0##*/} [--cgroup PATH]... [--net CIDR]... [--port LIST]
               [--exclude-port LIST] [--adopt] [--config FILE]
               [--check [--json] | --quiet] [RARE OPTION]...
       ${0##*/} --reset-services [--quiet]

Fuses local TCP connections: each one that is established from now on between
two loopback addresses, in every network namespace.  Running it again replaces
what is loaded; live connections go on.

  --cgroup PATH        only sockets of processes in this cgroup2 directory
                       (default: all, the root of the cgroup2 mount)
  --net CIDR           fuse between addresses of this network, too, if both ends
                       are on this host, in the same network namespace or not,
                       and through NAT; local: this host's own addresses
  --port LIST          fuse only connections to services that listen on these
                       ports, as 80,443,6000-6010, whether they gain or not
  --exclude-port LIST  do not fuse connections to services on these ports; nor to
                       564,2049,3240,3260,4420,10809, which the kernel serves,
                       unless --port has them
  --adopt              fuse the connections that are established already, too
  --config FILE        take options from a file, too, one a line; # for comments
  --check              load nothing for good, and attach to no cgroup; say what
                       this host lacks (exit 1), what would be reduced, and which
                       faults of sockmap this kernel is known to have
  --json               print what --check found as one JSON object
  --reset-services     load nothing; forget what was learned of services
  --quiet              do not print the commands that change the system
  --help               this text

Rare options, for short connections, the guard, a sidecar proxy, accounting and
the size of the map: sockfuse.conf(5), in a clone packaging/man/sockfuse.conf.5.

Example: ${0##*/} --cgroup /sys/fs/cgroup/system.slice --exclude-port 8404,9000-9010

$EXIT_CODES
EOF
}

# Set by read_options, and by nobody else but where it says so.  Behind the arrow: who reads it,
# load.sh or files of lib/.
CGROUPS=()            # find_cgroups puts real directories there → attachments, iterators, sidecar, load
NETWORKS=()           # → policy, load
LISTED=               # lists of --port, a comma before each → policy, load
EXCLUDE=              # lists of --exclude-port, a comma before each → policy
MAX_CONNECTIONS=65536 # → staging, load
ADOPTING=             # 1 with --adopt; preflight sets it → kernel, iterators, staging, load
SIDECAR_PORT=         # → sidecar, staging
SIDECAR_UID=          # decimal or 0x… → sidecar
SIDECAR_MARK=         # decimal or 0x… → sidecar
ACCOUNT=              # 1 or empty → load
GUARD=1               # or empty; stage_guard empties it where it cannot attach → staging, preflight
CAREFUL=              # 1 or empty → guard, load
CHECK=                # 1 or empty → load
JSON=                 # 1 or empty → preflight
RESET=                # 1 or empty → load

parse_arguments() {
  local word
  read_options "$@"
  for word in ${RESET:+"$@"}; do
    [[ $word == --reset-services || $word == --quiet ]] || wrong "--reset-services goes with --quiet alone"
  done
  check_options
}

# read_options ARGUMENT...: sets the variables above
read_options() {
  local words
  split_options "$@"
  set -- "${ARGUMENTS[@]}"
  while (($#)); do
    words=1
    case $1 in
      --cgroup | --net | --refresh | --sidecar | --sidecar-uid | --sidecar-mark | --port | --exclude-port | --max-connections | --min-age | --config)
        [[ ${2-} ]] || wrong "$1 needs a value"
        words=2
        ;;&
      --cgroup) CGROUPS+=("$2") ;;
      --net) NETWORKS+=("$2") ;;
      --refresh) # of older versions; a sockfuse.conf that still has it must not keep the service off
        warn "--refresh is ignored: it follows from nf_conntrack_tcp_timeout_established; take it out"
        ;;
      --min-age) warn "--min-age is ignored: services whose connections are short are left on TCP; take it out" ;;
      --nonblocking-only) warn "--nonblocking-only is ignored; take it out" ;;
      --sidecar) SIDECAR_PORT=$2 ;;
      --sidecar-uid) SIDECAR_UID=$2 ;;
      --sidecar-mark) SIDECAR_MARK=$2 ;;
      --port) LISTED+=,$2 ;;
      --exclude-port) EXCLUDE+=,$2 ;;
      --max-connections) MAX_CONNECTIONS=$2 ;;
      --config) read_config "$2" ;;
      --adopt) ADOPTING=1 ;;
      --account) ACCOUNT=1 ;;
      --no-guard) GUARD= ;;
      --careful) CAREFUL=1 ;;
      --check) CHECK=1 ;;
      --json) JSON=1 ;;
      --reset-services) RESET=1 ;;
      --quiet) QUIET=1 ;;
      *) last_option "$1" ;;
    esac
    shift "$words"
  done
}

# read_config FILE: as read_options, from its lines
read_config() {
  local option value
  [[ -f $1 && -r $1 ]] || wrong "--config: cannot read $1"
  while read -r option value || [[ $option ]]; do
    case $option in
      '' | '#'*) ;;
      --config) wrong "$1: --config cannot stand in a file" ;;
      *) read_options "$option" ${value:+"$value"} ;;
    esac
  done <"$1"
}

check_options() {
  [[ ! $JSON || $CHECK ]] || wrong "--json goes with --check"
  [[ ! $CAREFUL || $GUARD ]] || wrong "--careful needs the guard"
  # Each connection has two sockets; the kernel allocates the buckets at once.
  check_number --max-connections number 1 16777216 "$MAX_CONNECTIONS"
  check_sidecar
  ports_of --port "$LISTED" >/dev/null
  ports_of --exclude-port "$EXCLUDE" >/dev/null
  network_keys >/dev/null
}

# check_number OPTION WHAT FIRST LAST VALUE
check_number() {
  [[ $5 =~ ^(0|[1-9][0-9]{0,7})$ && $5 -ge $3 && $5 -le $4 ]] || wrong "$1: not a $2 from $3 to $4: $5"
}

check_sidecar() {
  local option
  if [[ ! $SIDECAR_PORT ]]; then
    [[ ! $SIDECAR_UID$SIDECAR_MARK ]] || wrong "--sidecar-uid and --sidecar-mark go with --sidecar"
    return 0
  fi
  [[ $SIDECAR_PORT =~ ^[1-9][0-9]{0,4}$ && $SIDECAR_PORT -le 65535 ]] || wrong "--sidecar: not a port: $SIDECAR_PORT"
  ((${#CGROUPS[@]})) || wrong "--sidecar needs --cgroup: whose connections go to the proxy"
  [[ $SIDECAR_UID$SIDECAR_MARK ]] || wrong "--sidecar needs --sidecar-uid or --sidecar-mark, or the proxy would dial itself"
  for option in "$SIDECAR_UID" "$SIDECAR_MARK"; do
    [[ $option =~ ^(0x[0-9a-fA-F]{1,8}|0|[1-9][0-9]{0,9})?$ && $((option)) -le 4294967295 ]] ||
      wrong "--sidecar-uid, --sidecar-mark: not a number of 32 bits: $option"
  done
}
