# status.sh --why: each TCP connection that matches, is it fused, and why not.  Promises that a
# socket in the map is told by what the map shows, and every other one by the first rule that
# can have kept it out.  Takes the report of status.jq, the rows of join_sockets, and lines of
# ss.

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
  nets: "its addresses are in no network of --net, or its other end is not on this host",
  excluded: "load.sh --port or --exclude-port leaves its service out",
  cgroup: "its process is in none of the cgroups of this load; try: load.sh --cgroup",
  before: "it was made before the load, or has left the map (files, a stream of small writes); made anew it is fused if it may be; try: load.sh --adopt",
  splice: "its service splices, which only TCP serves",
  recv_flags: "its service receives with MSG_WAITALL, MSG_TRUNC or MSG_OOB, which only TCP serves",
  send_flags: "its service sends with MSG_OOB, which only TCP serves",
  interrupted: "a recv of its service was interrupted and answered EAGAIN",
  ulp: "its service uses kTLS",
  recv_beside_send: "a thread of its service sleeps in recv while another fills the send buffer",
  may_splice: "one of its programs may splice; see the list splicers"
};

def port: capture(":(?<port>[0-9]+)$").port | tonumber;
def on_loopback: test("^(127\\.|\\[::ffff:127\\.|\\[::1\\])");
def in_ranges($ranges): . as $port | any($ranges | split(",")[]; split("-") | map(tonumber) | .[0] <= $port and $port <= .[-1]);

# A socket that is in no map
def kept_out($report; $cgroups):
  [.local, .remote | port] as $ports
  | ([$report.guard.services[] | select(.port | IN($ports[])).reason] | first) as $learned
  | if any(.local, .remote; on_loopback | not) then if $report.policy.nets == [] then "remote" else "nets" end
    elif any($ports[]; in_ranges($report.policy.excluded_ports)) then "excluded"
    elif $report.policy.ports != "" and all($ports[]; in_ranges($report.policy.ports) | not) then "excluded"
    elif .cgroup as $path | $path and (any($cgroups[]; . as $below | $below == "" or $path == $below or ($path | startswith($below + "/"))) | not) then "cgroup"
    else $learned // "before" end;

# ADDRESS:PORT of ss, as the iterator prints it
def socket: capture("^\\S+\\s+\\S+\\s+(?<local>\\S+)\\s+(?<remote>\\S+)\\s.*\\bsk:(?<cookie>[0-9a-f]+)( cgroup:(?<cgroup>\\S+))?");

# cgroups: those of the load as ss shows them, "" for the root
# names: how the scripts are called here
def why($report; $cgroups; $names; $rows; $wanted):
  ([$rows | split("\n")[] | select(. != "") | split("\t") | {key: .[5], value: {path: .[6], reason: .[7], backlog: .[1]}}] | from_entries) as $known
  | [inputs | socket
      | select($wanted == "" or any(.local, .remote; . == $wanted or endswith(":" + $wanted)))
      | ($known[.cookie] // {path: "tcp", reason: kept_out($report; $cgroups)}) as $found
      | ($found.reason | if . == "" then "fused" else . end) as $reason
      | [.local, .remote, $found.path + (if $found.path == "tcp" then ": " + $reason else "" end),
          (explanations[$reason] | gsub("(?<script>[a-z_]+)\\.sh"; $names[.script])) + (if ($found.backlog // "0") != "0" then "; \($found.backlog) bytes wait for its reader" else "" end)]]
  | unique[] | @tsv;
