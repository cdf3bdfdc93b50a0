# shellcheck shell=bash disable=SC2154 # TMP, WATCH: of status.sh
# What status.sh tells of sockets: which are in the maps, whose they are, which reader has
# stalled, what a service has, which connections are plain TCP.  Promises it rows, fields between
# tabs, in files of $TMP or on standard output; nothing of the kernel is changed.

# read_sockets ID: what the iterators list, those of earlier loads apart.  The kernel
# may list a socket twice, where one read(2) ends and the next begins.
read_sockets() {
  local pin file
  for pin in "$CONNECTIONS"/*; do
    file=$TMP/earlier
    [[ ${pin##*/} != "$1" ]] || file=$TMP/sockets
    awk -F '\t' '!seen[$5]++' "$pin" >>"$file" 2>/dev/null || true
  done
}

# What the readers of those sockets have not taken; null where none can be listed.
unread() {
  [[ -e $CONNECTIONS/$1 ]] || {
    echo null
    return
  }
  # mawk would print a number above 2^31 with six digits
  awk -F '\t' '
    $8 > 0 { sockets++; bytes += $8; if ($8 > largest) largest = $8 }
    END { printf "{\"sockets\": %d, \"bytes\": %.0f, \"largest_bytes\": %.0f}\n", sockets, bytes, largest }' "$TMP/sockets" "$TMP/earlier"
}

# How long no byte of a backlog is taken before its reader counts as stalled, and how often it
# must have been looked at: a reader at work may have something waiting at any one moment.
readonly STALLED_S=3 STALLED_LOOKS=6

# Brings $TMP/unread up to date: of each backlog that has not shrunk its socket's cookie, how
# much, since when, and how often it was looked at.
look_at_backlogs() {
  awk -F '\t' -v OFS='\t' -v now="$EPOCHREALTIME" '
    FILENAME == ARGV[1] { backlog[$1] = $2; since[$1] = $3; looks[$1] = $4; next }
    $8 > 0 && !($4 in seen) {
      seen[$4]
      if (!($4 in since) || $8 + 0 < backlog[$4] + 0) { since[$4] = now; looks[$4] = 0 }
      print $4, $8, since[$4], looks[$4] + 1
    }' "$TMP/unread" "$CONNECTIONS"/* >"$TMP/looked" 2>/dev/null || true
  mv "$TMP/looked" "$TMP/unread"
}

# For as long as it takes to tell whether a reader has stalled, if any may have; --watch goes
# on with it from frame to frame.
await_readers() {
  local look looks=$((STALLED_S * 4))
  [[ ! $WATCH ]] || looks=1
  look_at_backlogs
  for ((look = 1; look <= looks; look++)); do
    awk -v look="$look" '$4 >= look { found = 1 } END { exit !found }' "$TMP/unread" || return 0
    sleep 0.25
    look_at_backlogs
  done
}

# "COOKIE PID..." of each TCP socket whose processes are known.
read_processes() {
  command -v ss >/dev/null || return 0
  in_each_netns ss -Htnep 2>/dev/null | awk -F '",pid=' '
    NF > 1 {
      found = substr($0, index($0, " sk:") + 4, 20)
      sub(/ .*/, "", found)
      for (i = 2; i <= NF; i++) found = found " " $i + 0
      print found
    }'
}

# What ss tells of each established connection, in $TMP/established, and the ports that are
# listened on, in $TMP/listening.
read_connections() {
  in_each_netns ss -Htne --cgroup state established state listening 2>/dev/null | awk -v directory="$TMP" '
    $1 == "LISTEN" {
      sub(/.*:/, "", $4)
      print $4 >(directory "/listening")
    }
    sub(/^ESTAB +/, "") { print >(directory "/established") }'
}

# "PID NAME" of each process in the lines of read_processes.
read_names() {
  local pid name
  cut -s -d ' ' -f 2- | tr ' ' '\n' | sort -u | while read -r pid; do
    read -r name 2>/dev/null <"/proc/$pid/comm" || continue
    name=${name//[![:print:]]/?} # anybody may name a process
    printf '%s\t%s\n' "$pid" "${name//[\\\",]/?}"
  done
}

# The sockets of the iterators with their peers and processes, the busiest first,
# fields between tabs: fused bytes both ways, backlog, local, remote, network
# namespace, cookie, path, reason, bytes sent, received, age, processes, for how long the
# reader has stalled.
join_sockets() {
  awk -F '\t' -v OFS='\t' -v names="$1" -v now="$EPOCHREALTIME" -v stalled_s="$STALLED_S" -v looks="$STALLED_LOOKS" '
    BEGIN {
      split(names, name, " ")
      for (i in name) sub(/^tcp_/, "", name[i])
      off = names == "off"
    }
    file == 1 { process[$1] = $2 "/" $1; next }
    file == 2 {
      n = split($0, word, " ")
      for (i = 2; i <= n; i++)
        if (word[i] in process && !seen[word[1], word[i]]++) processes[word[1]] = processes[word[1]] "," process[word[i]]
      next
    }
    file == 3 {
      if ($4 >= looks && now - $3 >= stalled_s) stalled[$1] = int(now - $3)
      next
    }
    $1 == "verdict" { next }
    { row[++rows] = $0; sent[$5] = $9 }
    END {
      for (n = 1; n <= rows; n++) {
        $0 = row[n]
        received = $9 == "" || $6 in sent && sent[$6] != "" ? sent[$6] : 0
        reason = off ? "switched_off" : $7 > 0 ? name[$7 + 1] : $7 < 0 && !($6 in sent) ? "peer_unknown" : ""
        # mawk would print a number above 2^31 with six digits
        print sprintf("%.0f", $9 + received), $8, $1, $2, $3, $4, reason == "" ? "fused" : "tcp", reason, $9, received, $10, substr(processes[$4], 2), stalled[$4]
      }
    }' file=1 "$TMP/names" file=2 "$TMP/processes" file=3 "$TMP/unread" file=4 "$TMP/sockets" "$TMP/earlier" |
    LC_ALL=C sort -t $'\t' -k 1,1nr -k 2,2nr -k 3,4
}

# stalled FILE: of the readers that have stalled the one with the most to read, fields between
# tabs: processes, address, seconds, bytes, the port of the connection that is its own, and how
# many more there are
stalled() {
  awk -F '\t' '$13 != ""' "$1" | LC_ALL=C sort -t $'\t' -k 2,2nr | awk -F '\t' -v OFS='\t' '
    function port_of(end) { sub(/.*:/, "", end); return end + 0 }
    NR == 1 { first = $12 OFS $3 OFS $13 OFS $2 OFS (port_of($3) > port_of($4) ? port_of($3) : port_of($4)) }
    END { if (NR) print first, NR - 1 }'
}

# services FILE: the rows of join_sockets summed up by the port that is listened on, of two such
# or none the lower one; the busiest first
services() {
  awk -F '\t' -v OFS='\t' '
    function port_of(end) { sub(/.*:/, "", end); return end + 0 }
    file == 1 { listens[$1]; next }
    {
      own = port_of($3)
      peer = port_of($4)
      port = (own in listens) == (peer in listens) ? (own < peer ? own : peer) : own in listens ? own : peer
      sockets[port]++
      tcp[port] += $7 == "tcp"
      backlog[port] += $2
      bytes[port] += $9
      if ($11 != "") accounts = 1
      n = own == port ? split($12, name, ",") : 0
      for (i = 1; i <= n; i++) {
        sub(/\/[0-9]+$/, "", name[i])
        if (!known[port, name[i]]++) names[port] = names[port] "," name[i]
      }
    }
    END {
      for (port in sockets) # mawk would print a number above 2^31 with six digits
        print port, int((sockets[port] + 1) / 2), tcp[port], sprintf("%.0f", backlog[port]) (accounts ? OFS sprintf("%.0f", bytes[port]) : ""), substr(names[port], 2)
    }' file=1 "$TMP/listening" file=2 "$1" | LC_ALL=C sort -t $'\t' -k 5,5nr -k 2,2nr -k 1,1n
}

# The connections between two sockets of this host of which one, or both, is in no map: a
# line of ss for each.  $1: the rows of join_sockets
plain_connections() {
  awk -F '\t' '
    function plain(end) { if (end ~ /^\[::ffff:[0-9.]+\]/) gsub(/\[::ffff:|\]/, "", end); return end }
    file == 1 { known[$6]; next }
    {
      split($0, word, " ")
      cookie = substr($0, index($0, " sk:") + 4)
      sub(/ .*/, "", cookie)
      end[++lines] = plain(word[3]) " " plain(word[4])
      other[lines] = plain(word[4]) " " plain(word[3])
      there[end[lines]]
      line[lines] = cookie in known ? "" : $0
    }
    END {
      for (n = 1; n <= lines; n++)
        if (line[n] != "" && other[n] in there && !(other[n] in told)) { told[end[n]]; print line[n] }
    }' file=1 "$1" file=2 "$TMP/established"
}
