# shellcheck shell=bash disable=SC2154 # names: set by common.sh
# struct settings: where it is, what stands in it, and how a member changes.  Promises load.sh,
# unload.sh and trace_bpf_output.sh that a change concerns live connections at once: the
# programs read it for each message.  our_settings needs attachments.sh.

# Map ids of the settings that pins and attachments of ours lead to; several
# only after a load that was killed.
our_settings() {
  local path
  {
    for path in "$PIN_SOCKOPS" "$PIN_REDIR" "$STAGING/bpf_sockops" "$STAGING/bpf_redir"; do
      "$BPFTOOL" -j prog show pinned "$path" 2>/dev/null || true
    done
    for path in "$PIN_DIR/$SETTINGS" "$STAGING/maps/$SETTINGS"; do
      "$BPFTOOL" -j map show pinned "$path" 2>/dev/null || true
    done
  } | jq -rs --slurpfile ours <(our_programs) --rawfile attached <(our_attachments) '
    map(select(.id)) | map(select(.bytes_key).id) as $maps
    | (map(select(.bytes_key | not).id) + [$attached | split("\n")[] | split(" ")[0] // empty | tonumber]) as $programs
    | $maps + [$ours[] | select(.id | IN($programs[])).settings]
    | unique[]'
}

# settings_in MAP_REFERENCE...: struct settings as a JSON object
settings_in() {
  "$BPFTOOL" -j map dump "$@" | jq -c '.[0].formatted.value'
}

# set_settings MAP_REFERENCE... OBJECT: changes the members of struct settings that are in this
# object of jq; all of it is bytes, and the map's BTF says in which order.  The guard may make
# its first mark meanwhile, and switch marks on; that is done again.
set_settings() {
  local map=("${@:1:$#-1}") bytes
  read -ra bytes < <(settings_in "${map[@]}" | jq -r ". + ${*: -1} | [.[]] | flatten | join(\" \")")
  "$BPFTOOL" map update "${map[@]}" key 0 0 0 0 value "${bytes[@]}" || return
  if "$BPFTOOL" map getnext pinned "${map[1]%/*}/$MARKS" >/dev/null 2>&1 &&
    settings_in "${map[@]}" | jq -e '.marks == 0' >/dev/null; then
    set_settings "${map[@]}" '{marks: 1}'
  fi
}
