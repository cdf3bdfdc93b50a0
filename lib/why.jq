# status.sh --why: each TCP connection that matches, is it fused, and why not; and for status.sh
# how many connections within this host are in no map, and why.  Promises that a socket in the
# map is told by what the map shows, and every other one by the first rule that can have kept
# it out.  Takes the report of status.jq, the rows of join_sockets, and lines of ss.

include "addresses";

# For one socket: what the reason means, and what to do
def explanations: {
  fused: "its messages are fused",
  switched_off: "fusing is switched off; try: load.sh",
  socket_state: "a socket is closing, has an upper-layer protocol, or is in another program's map, too",
  socket_option: "an end has set an option that only TCP serves (timestamps, zero copy, low-water mark)",
  guarded: "an end receives or sends as only TCP can",
  sendfile: "files go by TCP, which sends them without a copy",
  peer_unknown: "the other end is not in the map",
  captured: "trace_lo_traffic.sh --all runs",
  refresh: "NAT and connection tracking must see a segment now and then",
  in_flight: "its reader has not taken all bytes that went by TCP before; if that lasts, the reader stalls",
  backlog_bytes: "its reader is slower than its writer: flow control",
  backlog_number: "a stream of small writes, which TCP merges",
  edge_triggered: "its reader is edge-triggered and has much to read; it is about to leave the map",
  memory: "TCP's memory or the reader's memory cgroup is near its limit; raise it, or find who fills it",
  blocked_reader: "a thread may sleep in TCP's own receive function",
  remote: "an end has an address that is not on loopback; try: load.sh --net",
  nets: "an end has an address in no network of --net; if both ends are on this host, name its network: load.sh --net",
  elsewhere: "its other end is on another host, or it was made before the load, or it has left the map",
  excluded: "load.sh --port or --exclude-port leaves its service out",
  cgroup: "its process is in none of the cgroups of this load; try: load.sh --cgroup",
  before: "it was made before the load, or has left the map (files, a stream of small writes); made anew it is fused if it may be; try: load.sh --adopt",
  splice: "its service splices, which only TCP serves",
  recv_flags: "its service receives with MSG_WAITALL, MSG_TRUNC or MSG_OOB, which only TCP serves",
  send_flags: "its service sends with MSG_OOB, which only TCP serves",
  interrupted: "a recv of its service was interrupted and answered EAGAIN",
  ulp: "its service uses kTLS",
  recv_beside_send: "one end fills its send buffer while the other sends, or while a thread of it sleeps in recv",
  no_gain: "the last connections of its user to its service gained nothing; load.sh --port has a service fused always",
  may_splice: "one of its programs may splice; see the list splicers"
};

def port: capture(":(?<port>[0-9]+)$").port | tonumber;
def on_loopback: test("^(127\\.|\\[::ffff:127\\.|\\[::1\\])");
def in_ranges($ranges): . as $port | any($ranges | split(",")[]; split("-") | map(tonumber) | .[0] <= $port and $port <= .[-1]);

def bits: map([range(7; -1; -1) as $i | . / pow(2; $i) | floor % 2]) | add;

# Of ADDRESS:PORT: is it in one of these networks?
def in_networks($nets):
  (sub(":[0-9]+$"; "") | gsub("[\\[\\]]"; "") | [address] | first // [] | bits) as $own
  | any($nets[]; net_key as $key | $own[:$key[:4] | add] == ($key[4:] | bits)[:$key[:4] | add]);

# A socket that is in no map
def kept_out($report; $cgroups):
  [.local, .remote | port] as $ports
  | ([$report.guard.services[] | select(.port | IN($ports[])).reason]
     + [$report.services[] | select(.path == "tcp" and (.port | IN($ports[]))) | "no_gain"] | first) as $learned
  | (any(.local, .remote; on_loopback | not)) as $between
  | if $between and $report.policy.nets == [] then "remote"
    elif any(.local, .remote; on_loopback or in_networks($report.policy.nets) | not) then "nets"
    elif any($ports[]; in_ranges($report.policy.excluded_ports)) then "excluded"
    elif $report.policy.ports != "" and all($ports[]; in_ranges($report.policy.ports) | not) then "excluded"
    elif .cgroup as $path | $path and (any($cgroups[]; . as $below | $below == "" or $path == $below or ($path | startswith($below + "/"))) | not) then "cgroup"
    else $learned // if $between then "elsewhere" else "before" end end;

# What its reader has not taken
def waits:
  if (.backlog // "0") == "0" then ""
  else
    "; \(.backlog) bytes wait for its reader"
    + if .stalled == "" then "" else
        ", which has read nothing for \(.stalled) s; see what it does: ps -o pid,stat,wchan:20,args -p \([.processes | scan("/([0-9]+)(?:,|$)")[0]] | join(","))"
      end
  end;

def lines: . + "\n" | split("\n")[:-1];

# ADDRESS:PORT of ss, as the iterator prints it
def socket: capture("^\\S+\\s+\\S+\\s+(?<local>\\S+)\\s+(?<remote>\\S+)\\s.*\\bsk:(?<cookie>[0-9a-f]+)( cgroup:(?<cgroup>\\S+))?");

# "3 connections within this host: before 2, nets 1", from lines of ss
def plain_connections($report; $cgroups):
  [inputs | socket | kept_out($report; $cgroups | lines) | sub("elsewhere"; "before")]
  | select(. != [])
  | "\(length) connection\(if length == 1 then "" else "s" end) within this host: "
    + (group_by(.) | sort_by(-length) | map("\(.[0]) \(length)") | join(", "));

# cgroups: those of the load as ss shows them, "" for the root
# names: how the scripts are called here
def why($report; $cgroups; $names; $rows; $wanted):
  ([$rows | split("\n")[] | select(. != "") | split("\t") | {key: .[5], value: {path: .[6], reason: .[7], backlog: .[1], stalled: .[12], processes: .[11]}}] | from_entries) as $known
  | [inputs | socket
      | select($wanted == "" or any(.local, .remote; . == $wanted or endswith(":" + $wanted)))
      | ($known[.cookie] // {path: "tcp", reason: kept_out($report; $cgroups | lines)}) as $found
      | ($found.reason | if . == "" then "fused" else . end) as $reason
      | [.local, .remote, $found.path + (if $found.path == "tcp" then ": " + $reason else "" end),
          (explanations[$reason] | if $report.policy.adopting then . else sub("adopt[.]sh"; "load.sh --adopt") end | gsub("(?<script>[a-z_]+)\\.sh"; $names[.script])) + ($found | waits)]]
  | unique[] | @tsv;
