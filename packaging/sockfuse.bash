# shellcheck shell=bash
# Completion for the commands of sockfuse(8).

_sockfuse() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} options=
  COMPREPLY=()
  case $before in
    --cgroup)
      mapfile -t COMPREPLY < <(compgen -d -- "${word:-/sys/fs/cgroup/}")
      return
      ;;
    --config | --prometheus)
      mapfile -t COMPREPLY < <(compgen -f -- "$word")
      return
      ;;
    --net | --sidecar | --sidecar-uid | --sidecar-mark | --port | --exclude-port | --max-connections | --top | --why) return ;;
  esac
  case ${1##*/} in
    sockfuse-load) options="--cgroup --net --port --exclude-port --max-connections --sidecar --sidecar-uid --sidecar-mark --adopt --account --no-guard --careful --config --check --json --reset-services --quiet --help" ;;
    sockfuse-unload) options="--quiet --help" ;;
    sockfuse-status) options="--json --prometheus --watch --top --why --help" ;;
    sockfuse-trace-lo-traffic) options="--all --help" ;;
    sockfuse-trace-*) options="--help" ;;
  esac
  mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")
}
complete -F _sockfuse sockfuse-load sockfuse-unload sockfuse-status sockfuse-trace-bpf-output sockfuse-trace-lo-traffic
