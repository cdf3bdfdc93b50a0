#!/usr/bin/env bash
# Tells what the kernel holds: is sockfuse on, for whom, what has it done, and
# which connections are fused.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
. "$here/lib/common.sh"
. "$here/lib/attachments.sh"
. "$here/lib/settings.sh"
. "$here/lib/sockets.sh"

usage() {
  cat <<EOF
Usage: ${0##*/} [--json | --prometheus [FILE] | --watch [SECONDS]] [--top N]
       ${0##*/} --why [[ADDRESS:]PORT]

Tells whether sockfuse is on, with what programs and policy, what went fused and
what by TCP and why, whose reader has stalled, and how many connections are in no
map.  Sums up the services and what is known of them, and lists the live
connections, a line for each socket.

  --json             one JSON object (docs/status.schema.json)
  --prometheus [FILE]
                     metrics in the text format of node_exporter's textfile
                     collector; FILE is replaced at once, so a reader never sees
                     a part of it
  --watch [SECONDS]  again every so many seconds (default 2), with rates; the 20
                     busiest connections unless --top says otherwise; q ends it
  --top N            only the N sockets with the most fused bytes; needs
                     $(name_of load) --account
  --why [[ADDRESS:]PORT]
                     each TCP connection of this host that has that end, or each
                     one: is it fused, and if not, why, and what to do
  --help             this text

Example: ${0##*/} --json | jq '.connections[] | select(.path == "tcp")'

Exit codes:
  0  on
  1  cannot be told: root is needed, or this host lacks something
  2  the command line is wrong
  3  off
  4  damaged: a pin or an attachment is missing, or fusing is switched off
  6  another sockfuse script held the lock for $LOCK_WAIT s
EOF
}

# Set by parse_arguments.
FORMAT=text # json, prometheus
FILE=       # of --prometheus
WATCH=      # seconds
WHY=        # --why: which end
TOP=        # --top; watch sets it, too
parse_arguments() {
  local words value
  split_options "$@"
  set -- "${ARGUMENTS[@]}"
  while (($#)); do
    words=1 value=${2-}
    [[ $value != -* ]] || value=
    case $1 in
      --prometheus | --watch | --top | --why) [[ ! $value ]] || words=2 ;;&
      --json) FORMAT=json ;;
      --prometheus) FORMAT=prometheus FILE=${value:-$FILE} ;;
      --watch)
        WATCH=${value:-2}
        [[ $WATCH =~ ^[0-9]+(\.[0-9]+)?$ && $WATCH =~ [1-9] ]] || wrong "--watch: not a number of seconds: $WATCH"
        ;;
      --why)
        FORMAT=why WHY=$value
        [[ ! $WHY || $WHY =~ ^(.+:)?[0-9]{1,5}$ ]] || wrong "--why: not a port, nor an address and a port: $WHY"
        ;;
      --top)
        TOP=$value
        [[ $TOP =~ ^[1-9][0-9]{0,8}$ ]] || wrong "--top: not a number: ${2-}"
        ;;
      *) last_option "$1" ;;
    esac
    shift "$words"
  done
  [[ ! $FILE || (${FILE##*/} && ! -d $FILE) ]] || wrong "--prometheus: not a file: $FILE"
  [[ ! $TOP || $FORMAT != why ]] || wrong "--top goes without --why"
  [[ ! $WATCH || $FORMAT == text ]] || wrong "--watch goes without --$FORMAT"
}

# shown ARGUMENT...: what bpftool shows in JSON, an error too
shown() {
  "$BPFTOOL" -j "$@" 2>/dev/null || true
}

# What a whole load has pinned, one path a line; $1: id of its sockhash.
expected_pins() {
  printf '%s\n' "$PIN_SOCKOPS" "$PIN_REDIR" "$PIN_MAP" "$PIN_DIR/"{"$SETTINGS","$COUNTERS","$MARKS","$CAPTURE","$SERVICES"}
  [[ ! $1 || ! -e $CONNECTIONS ]] || echo "$CONNECTIONS/$1"
  local optional
  for optional in guard sidecar; do
    [[ ! -e $PIN_DIR/$optional ]] || "$BPFTOOL" -j btf dump file "$here/bpf/bpf_$optional.bpf.o" |
      jq -r --arg name "$optional" --arg path "$PIN_DIR/$optional/" '.types[] | select(.kind == "FUNC" and (.name | startswith($name + "_"))) | $path + .name'
  done
}

# What is loaded, as status.jq takes it; nothing if sockfuse is off.  A map that is no
# longer pinned is found by the program that uses it.
read_state() {
  local pin settings attached sockops=(pinned "$PIN_SOCKOPS") map counters services ports nets
  settings=$(our_settings | tail -n 1)
  [[ $settings ]] || return 0
  attached=$(our_attachments)
  [[ -e $PIN_SOCKOPS ]] || sockops=(id "$(our_programs | jq -r --argjson id "$settings" 'select(.name == "bpf_sockops" and .settings == $id).id' | tail -n 1)")
  shown prog show "${sockops[@]}" >"$TMP/sockops"
  shown map dump id "$settings" >"$TMP/settings"
  shown prog show pinned "$PIN_REDIR" >"$TMP/redir"
  read -r map counters services ports nets < <(with_jq status map_ids -nr \
    --slurpfile sockops "$TMP/sockops" --slurpfile redir "$TMP/redir" --slurpfile maps <(shown map show))
  read_sockets "$map"
  jq -n --arg attached "$attached" --arg root "$(cgroup2_mount)" \
    --arg missing "$(expected_pins "$map" | while read -r pin; do [[ -e $pin ]] || echo "$pin"; done)" \
    --arg staging "$([[ ! -e $STAGING ]] || echo "$STAGING")" \
    --arg guard "$([[ ! -e $PIN_DIR/guard ]] || echo "$PIN_DIR/guard")" \
    --arg adopt "$([[ ! -e $ADOPT ]] || echo "$ADOPT")" \
    --arg entries "$(grep -cv ^verdict "$TMP/sockets")" \
    --arg verdict "$(sed -n 's/^verdict\t//p' "$TMP/sockets")" \
    --argjson backlog "$(unread "$map")" \
    --slurpfile sockops "$TMP/sockops" \
    --slurpfile redir "$TMP/redir" \
    --slurpfile map <(shown map show id "$map") \
    --slurpfile settings "$TMP/settings" \
    --slurpfile counters <(shown map dump id "$counters") \
    --slurpfile services <(shown map dump id "$services") \
    --rawfile uptime /proc/uptime \
    --slurpfile sidecar <(shown map dump pinned "$SIDECAR/$SIDECAR_MAP") \
    --slurpfile ports <(shown map dump id "$ports") \
    --slurpfile nets <(shown map dump id "$nets") '$ARGS.named'
}

# snapshot FILE: what is known now, as one JSON object in FILE, and the rows of
# join_sockets in FILE.rows, all of them in FILE.all; sets CODE, the exit code
snapshot() {
  local outcomes file
  # Without room, what is read would be cut short.
  printf "%65536s" "" >"$TMP/room" 2>/dev/null || die "$EX_FAILED" "no room in /run" "see: df -h /run"
  rm "$TMP/room"
  for file in sockets earlier processes names established listening; do
    : >"$TMP/$file"
  done
  [[ $FORMAT == prometheus ]] || read_processes >"$TMP/processes" & # takes the longest
  (take_lock && read_state) >"$TMP/state"
  if [[ $FORMAT == text || $FORMAT == why ]]; then
    read_connections
    await_readers
  fi
  wait $! || true # without ss, no processes
  {
    read -r outcomes
    read -r CODE
    cat >"$1"
  } < <(with_jq status 'report' -nr --slurpfile state "$TMP/state" --arg version "$VERSION" --arg kernel "$(uname -r)" --arg load "$(path_to load)")
  if [[ $FORMAT == prometheus ]]; then
    : >"$1.rows"
  else
    read_names <"$TMP/processes" >"$TMP/names"
    join_sockets "$outcomes" >"$1.all"
    awk -v top="$TOP" 'top == "" || NR <= top' "$1.all" >"$1.rows"
  fi
}

# Blocks of lines with tabs: columns as wide as their widest cell, numbers to the
# right.
align() {
  awk -F '\t' '
    function flush(n, i) {
      for (i = 1; i <= columns; i++) format[i] = "%" (text[i] ? "-" : "") width[i] (i < columns ? "s  " : "s\n")
      format[columns] = text[columns] ? "%s\n" : format[columns]
      for (n = 1; n <= rows; n++) {
        $0 = row[n]
        for (i = 1; i <= columns; i++) printf format[i], $i
      }
      rows = 0
      for (i in width) width[i] = text[i] = 0
    }
    NF < 2 {
      line = $0
      flush()
      print line
      next
    }
    {
      row[++rows] = $0
      columns = NF
      for (i = 1; i <= NF; i++) {
        if (length($i) > width[i]) width[i] = length($i)
        if (rows > 1 && !text[i] && $i !~ /^[0-9-]*$/) text[i] = 1
      }
    }
    END { flush() }'
}

# Where there is one connection, its line tells as much.
services_table() {
  (($(wc -l <"$1") > 2)) || return 0
  printf '\nport\tconnections\ttcp\tbacklog%s\tprocesses\n' "$(awk -F '\t' '$11 != "" { print "\tbytes"; exit }' "$1")"
  services "$1" | awk -v top="$TOP" 'top == "" || NR <= top'
}

# The rows of join_sockets as a table
connections_table() {
  [[ -s $1 ]] || return 0
  echo
  awk -F '\t' -v OFS='\t' '
    function age(s) { return s < 60 ? s "s" : s < 3600 ? int(s / 60) "m" s % 60 "s" : int(s / 3600) "h" int(s % 3600 / 60) "m" }
    { row[NR] = $0; if (NR > 1 && $5 != before) namespaces = 1; before = $5; if ($11 != "") accounts = 1; if ($13 != "") stalls = 1 }
    END {
      print "local", "remote", "path", "backlog" (stalls ? OFS "stalled" : "") (accounts ? OFS "sent" OFS "received" OFS "age" : "") (namespaces ? OFS "netns" : ""), "processes"
      for (n = 1; n <= NR; n++) {
        $0 = row[n]
        print $3, $4, $7 ($8 == "" ? "" : ": " $8), $2 (stalls ? OFS ($13 == "" ? "-" : age($13)) : "") \
          (accounts ? OFS $9 OFS $10 OFS ($11 == "" ? "" : age($11)) : "") (namespaces ? OFS $5 : ""), $12
      }
    }' "$1"
}

# The same as JSON
connections_json() {
  awk -F '\t' '
    {
      processes = ""
      n = split($12, process, ",")
      for (i = 1; i <= n; i++) {
        pid = process[i]
        sub(/.*\//, "", pid)
        sub(/\/[0-9]+$/, "", process[i])
        processes = processes (i > 1 ? ", " : "") "{\"name\": \"" process[i] "\", \"pid\": " pid "}"
      }
      printf (NR > 1 ? ",\n" : "") "    {\"local\": \"%s\", \"remote\": \"%s\", \"path\": \"%s\"%s, \"backlog_bytes\": %s, ",
        $3, $4, $7, ($8 == "" ? "" : ", \"reason\": \"" $8 "\""), $2
      if ($11 != "") printf "\"fused_bytes_sent\": %s, \"fused_bytes_received\": %s, \"age_seconds\": %s, ", $9, $10, $11
      printf "\"netns\": %s, \"cookie\": \"%s\", \"processes\": [%s]}", $5, $6, processes
    }
    END { if (NR) print "" }' "$1"
}

# with_why FILTER FILE [ARGUMENT...]: jq with the functions of why.jq, on lines of ss
with_why() {
  with_jq why "$1" -nrR --slurpfile report "$2" --arg cgroups "$(jq -r --arg mount "$(cgroup2_mount)" '.cgroups[] | ltrimstr($mount)' "$2")" "${@:3}"
}

# why FILE: a line for each end that is asked for
why() {
  local lines
  jq -e .loaded "$1" >/dev/null || {
    with_jq status text -r --slurpfile before /dev/null "$1"
    return
  }
  need_command ss iproute2
  # shellcheck disable=SC2016 # of jq
  lines=$(with_why 'why($report[0]; $cgroups; $names; $rows; $wanted)' "$1" --rawfile rows "$1.rows" --arg wanted "$WHY" \
    --argjson names "{\"load\": \"$(name_of load)\", \"trace_lo_traffic\": \"$(name_of trace_lo_traffic)\"}" <"$TMP/established")
  if [[ $lines ]]; then
    printf 'local\tremote\tpath\twhy\n%s\n' "$lines" | align
  else
    echo "no TCP connection is established${WHY:+ that has $WHY at an end}"
  fi
}

# show FILE [EARLIER_FILE]: a snapshot, with rates since the earlier one
show() {
  case $FORMAT in
    json)
      if [[ ! -s $TMP/state ]]; then
        jq . "$1"
      else
        jq . "$1" | sed '$d' | sed '$s/$/,/'
        printf '  "connections": [\n%s\n  ]\n}\n' "$(connections_json "$1.rows")"
      fi
      ;;
    prometheus) with_jq status prometheus -r "$1" ;;
    why) why "$1" ;;
    text)
      {
        # shellcheck disable=SC2016 # of jq
        with_jq status text -r --slurpfile before "${2:-/dev/null}" --arg stalled "$(stalled "$1.all")" \
          --arg plain "$(! jq -e .backlog "$1" >/dev/null || plain_connections "$1.all" | with_why 'plain_connections($report[0]; $cgroups)' "$1")" --arg why "$(name_of status) --why" "$1"
        services_table "$1.all"
        connections_table "$1.rows"
      } | align
      ;;
  esac
}

# As show, into $FILE: whole, or not at all.  Its name until then is none that
# node_exporter reads.
replace_file() {
  local directory
  directory=$(dirname -- "$FILE")
  NEW=$(mktemp -u "$directory/.${FILE##*/}.XXXXXX" 2>/dev/null) # a name first: a signal may come once it is there
  (set -o noclobber && : >"$NEW") 2>/dev/null || die "$EX_FAILED" "cannot write into $directory" "see: ls -ld $directory"
  show "$1" >"$NEW" 2>/dev/null || die "$EX_FAILED" "cannot write into $directory" "see: df -h $directory"
  chmod 644 "$NEW" # node_exporter has a user of its own
  mv -T "$NEW" "$FILE"
}

# The busiest can be told only where bytes are counted.
check_top() {
  [[ ! $TOP || $(jq .policy.accounting "$1") != false ]] ||
    die "$EX_USAGE" "--top: the bytes of connections are not counted" "try: $(jq -r .load_command "$1") --account"
}

# On a terminal a line ends where that does, and the key q ends it.
watch() {
  local before=/dev/null text line width key
  TOP=${TOP:-20}
  trap 'exit 0' INT TERM HUP PIPE
  [[ ! -t 0 ]] || stty -echo # what is typed while a frame is made
  while true; do
    snapshot "$TMP/now"
    text=$(show "$TMP/now" "$before")
    if [[ -t 1 ]]; then
      printf '\033[H\033[2J'
      read -r _ width < <(stty size 2>/dev/null </dev/tty) && ((width)) || width=80
      text=$(while IFS= read -r line; do printf '%s\n' "${line:0:width}"; done <<<"$text")
    fi
    printf '%s\n' "$text"
    mv "$TMP/now" "$TMP/before"
    before=$TMP/before
    if [[ -t 0 ]]; then
      ! read -rsn 1 -t "$WATCH" key || [[ $key != q ]] || exit 0
    else
      sleep "$WATCH" &
      wait $!
    fi
  done
}

parse_arguments "$@"
(need_root "$@" && need_bpftool) || exit "$EX_FAILED"
NEW=                                  # set by replace_file: what becomes $FILE
TMP=$(mktemp -u /run/sockfuse.XXXXXX) # set by nobody else; snapshot writes there
trap 'rm -rf "$TMP" ${NEW:+"$NEW"}; [[ ! $WATCH || ! -t 0 ]] || stty echo 2>/dev/null || true' EXIT
mkdir -m 700 "$TMP"
: >"$TMP/unread"
[[ ! $WATCH ]] || watch
snapshot "$TMP/now"
check_top "$TMP/now"
if [[ $FILE ]]; then
  replace_file "$TMP/now"
else
  show "$TMP/now"
fi
exit "$CODE"
