# shellcheck shell=bash
# Packages of a Debian suite and an architecture that need not be this host's, through
# the mirror that it uses; DEBIAN_MIRROR=URL names another.  Nothing is installed.
# Sourced.

# unreachable WHY: exit code 75, with one line
unreachable() {
  echo "${0##*/}: nothing to fetch from Debian $suite for $architecture: $1" >&2
  exit 75
}

# suite_of KERNEL: the suite whose kernel that is, as kernel.sh names it
suite_of() {
  case ${1%-arm64} in
    5.10) echo bullseye ;;
    6.1) echo bookworm ;;
    6.12) echo trixie ;;
    newest) echo sid ;;
    *)
      echo "${0##*/}: not 5.10, 6.1, 6.12 or newest, with or without -arm64: $1" >&2
      return 2
      ;;
  esac
}

# apt_knows AWK_CONDITION: the mirror of this host's releases for which it holds
# shellcheck disable=SC2016 # apt's own variables
apt_knows() {
  apt-get indextargets --format '$(ORIGIN) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
    awk "\$1 == \"Debian\" && \$2 $1 { print \$3; exit }"
}

# with_apt COMMAND...: of apt, on that suite and architecture alone
with_apt() {
  "$@" -o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null -o "Dir::State::Lists=$apt/lists" \
    -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root \
    -o "APT::Architecture=$architecture" -o "APT::Architectures::=$architecture" -o pkgCacheGen::ForceEssential=none
}

# open_suite DIRECTORY SUITE ARCHITECTURE: for with_apt, which keeps its state in DIRECTORY
open_suite() {
  local mirror security
  suite=$2 architecture=$3 apt=$1/apt-$2-$3
  command -v apt-get dpkg-deb >/dev/null || unreachable "apt is not here"
  mirror=${DEBIAN_MIRROR:-$(apt_knows '!~ /-/')}
  security=$(apt_knows '~ /-security$/')
  [[ $mirror ]] || unreachable "no mirror of Debian is in use here; try: DEBIAN_MIRROR=URL make vmcheck"
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
  : >"$apt/status"
  {
    echo "deb $mirror $suite main"
    [[ ! $security || $suite == sid ]] || echo "deb $security $suite-security main"
  } >"$apt/sources.list"
  [[ $(find "$apt/lists" -maxdepth 1 -name '*_Packages*' -mtime -1) ]] || with_apt apt-get -qq update >"$apt/log" 2>&1 ||
    unreachable "$(grep -m 1 '^[EW]:' "$apt/log")"
}

# unpack DIRECTORY PACKAGE...: with all that they depend on.  No maintainer script is
# run: what those do is missing.
unpack() {
  local deb directory=$1
  shift
  rm -rf "$apt"/cache/archives/*.deb "$directory.part"
  # Not every mirror has each package of the security updates.
  with_apt apt-get -qq -y --no-install-recommends --download-only install "$@" >"$apt/log" 2>&1 ||
    with_apt apt-get -qq -y --no-install-recommends --download-only -t "$suite" install "$@" >"$apt/log" 2>&1 ||
    unreachable "$(grep -m 1 '^[EW]:' "$apt/log")"
  mkdir -p "$directory.part"
  for deb in "$apt"/cache/archives/base-files_*.deb "$apt"/cache/archives/*.deb; do # /bin and /lib are links, which base-files has
    [[ ! -e $deb ]] || dpkg-deb --fsys-tarfile "$deb" | tar -C "$directory.part" --keep-directory-symlink -xf -
  done
  rm -rf "$apt"/cache/archives/*.deb "$directory"
  mv "$directory.part" "$directory"
}
