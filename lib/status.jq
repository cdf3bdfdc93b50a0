# What status.sh has gathered, as the object of docs/status.schema.json but for its
# connections, and that object as text.  The names of counters are those of struct
# counters.

include "addresses";

# "80,443,6000-6010" from port numbers in order
def ranges:
  reduce .[] as $port ([]; if .[-1][1] == $port - 1 then .[-1][1] = $port else . + [[$port, $port]] end)
  | map(if .[0] == .[1] then "\(.[0])" else "\(.[0])-\(.[1])" end)
  | join(",");

# enum reason of bpf/services.h
def guard_reasons: ["", "splice", "recv_flags", "send_flags", "interrupted", "ulp", "recv_beside_send", "may_splice"];

def guard_reason: guard_reasons[.];

# Of a value of fuse_services: load.sh --reset-services
def may_be_forgotten: .reason | guard_reason != "may_splice";

# Whose connections to the service; nothing if everybody's, also for lack of the field in an
# older load
def guard_user: if . == null or . == 4294967295 then {} else {user: .} end;

def summed: # over processors, the order of struct counters kept
  reduce .[0].formatted.values[].value as $cpu ({};
    reduce ($cpu | to_entries[]) as $counter (.; .[$counter.key] += $counter.value));

# Messages: tcp_...; sockets that did not enter the map: ends_...
def reasons:
  with_entries(
    if .key | startswith("tcp_") then .key |= ltrimstr("tcp_")
    elif .key == "ends_guarded" then .key = "guarded_service"
    elif .key | IN("ends_tracked", "ends_unfused") then empty
    elif .key | startswith("ends_") then .key |= ltrimstr("ends_")
    else empty end);

# What bpftool -j showed, null if it had nothing to show
def shown: .[0] | if type == "object" and has("error") then null else . end;

def service_key: {netns: .key.netns, port: .key.port} + (.key.user | guard_user);

# Entries of fuse_services, each once, although bpftool may list one twice that was used meanwhile
def known_services: [.services | shown[]?.formatted] | unique_by(.key);

# Those of which something was seen that only TCP serves
def guarded_services: map(select(.value.reason > 0) | service_key + {reason: (.value.reason | guard_reason)}) | unique;

# $boot: when the host was started.  Why the next connections of a service are plain TCP: for good,
# for what was seen of this user's or of everybody's; or as the last ones in a row (IN_VAIN of
# bpf/services.h) gained nothing, most of them for that.  The busiest first.
def services($boot):
  (map(select(.value.reason > 0) | {key: (.key | tojson), value: (.value.reason | guard_reason)}) | from_entries) as $seen
  | map(
      (.value.ended | {gained: .[0], short: .[1], stream: .[2], files: .[3]}) as $ended
      | (([.key, (.key | .user = 4294967295) | $seen[tojson] // empty] | first)
         // if .value.in_vain == 16 then $ended | del(.gained) | to_entries | max_by(.value).key else null end) as $reason
      | service_key
      + (if $reason then {path: "tcp", reason: $reason} else {path: "fused"} end)
      + {since: ($boot + .value.since / 1000000000 | floor | todate), connections: ($ended | add)} + $ended + {left_out: .value.left_out})
  | sort_by(-.connections, .port, .user);

# The id of the map of that name that one of our programs uses, 0 if none
def map_used($name):
  [.sockops, .redir | shown | .map_ids[]?] as $used
  | first(.maps[0][] | select(.name == $name and (.id | IN($used[]))).id) // 0;

# Those that status.sh dumps
def map_ids:
  $ARGS.named
  | [map_used("sock_ops_map", "fuse_counters", "fuse_services", "fuse_ports", "fuse_nets")] | join(" ");

def counters:
  {
    tracked_connections: ((.ends_tracked + 1) / 2 | floor),
    fused_messages, fused_bytes,
    unfused_sockets: .ends_unfused,
    fallback: reasons
  };

# Each end of the attachments: "ID CGROUP"
def attached_cgroups($id):
  [.attached | split("\n")[] | select(startswith("\($id) ")) | sub("^[0-9]+ [^ ]+ "; "")];

def load_command($load):
  [$load]
  + [.cgroups // [] | .[] | "--cgroup", @sh]
  + [.policy.nets[] | "--net", .]
  + (if .policy.ports == "" then [] else ["--port", .policy.ports] end)
  + (if .policy.excluded_ports == "" then [] else ["--exclude-port", .policy.excluded_ports] end)
  + (if .map.max_entries == 131072 or .map.max_entries == 0 then [] else ["--max-connections", "\(.map.max_entries / 2)"] end)
  + (.policy.sidecar | if . == null then [] else ["--sidecar", "\(.port)"]
      + (if has("uid") then ["--sidecar-uid", "\(.uid)"] else [] end) + (if has("mark") then ["--sidecar-mark", "\(.mark)"] else [] end) end)
  + (if .policy.adopting then ["--adopt"] else [] end)
  + (if .policy.accounting then ["--account"] else [] end)
  + (if .policy.careful then ["--careful"] elif .guard.loaded or .guard.splicers_left_out then [] else ["--no-guard"] end)
  | join(" ");

def damage:
  [
    (.missing | split("\n")[] | "\(.) is missing"),
    (if .sockops and attached_cgroups(.sockops.id) == [] then "bpf_sockops is not attached to any cgroup (nobody remembers to which it was)" else empty end),
    (if .verdict != "" and .verdict != "\(.redir.id // .verdict)" or .verdict == "0" then "bpf_redir is not attached to sock_ops_map" else empty end),
    (if .settings.fuse == 0 then "fusing is switched off" else empty end),
    (if .staging != "" then "a load was killed and left \(.staging)" else empty end)
  ];

# From bytes, the lowest first
def number: reverse | reduce .[] as $byte (0; . * 256 + $byte);

def ports_of($value): [shown[]?.formatted | select(.value == $value).key] | sort | ranges;

def loaded($version; $kernel):
  (.sockops |= shown | .redir |= shown | .map |= shown | .settings = (.settings | shown)[0].formatted.value)
  | .settings as $settings
  | (.counters | shown | if . then summed else null end) as $counters
  | known_services as $services
  | {
      loaded: true,
      damage: damage,
      version: $version,
      kernel: $kernel,
      time: now,
      since: (.sockops.loaded_at // .redir.loaded_at // null | if . then todate else null end),
      cgroups: attached_cgroups(.sockops.id),
      programs: [.sockops, .redir | select(.) | {name, id, tag}],
      policy: {
        nets: [.nets | shown[]?.key | network],
        refresh_seconds: ($settings.refresh // 0),
        ports: (.ports | ports_of(1)),
        excluded_ports: (.ports | ports_of(0)),
        accounting: ($settings.account == 1),
        careful: ($settings.careful == 1),
        sidecar: (.sidecar | shown[0]?.formatted.value // null | if . then
          {port: (.port | number)} + (if .by_uid == 1 then {uid: (.uid | number)} else {} end) + (if .by_mark == 1 then {mark: (.mark | number)} else {} end)
        else null end),
        adopting: (.adopt != "")
      },
      guard: {
        loaded: (.guard != ""),
        splicers_left_out: ($settings.splicers == 2),
        services: ($services | guarded_services)
      },
      services: ((now - (.uptime | split(" ")[0] | tonumber)) as $boot | $services | services($boot)),
      map: {entries: (.entries | tonumber), max_entries: (.map.max_entries // 0)},
      backlog,
      counters: (if $counters then $counters | counters else null end)
    };

# For join_sockets: the names of counters in their order; "off" if fusing is switched off
def outcomes:
  if (.settings | shown)[0].formatted.value.fuse == 0 then "off"
  else .counters | shown // [{formatted: {values: []}}] | summed | keys_unsorted | join(" ") end;

def exit_code: if .loaded | not then 3 elif .damage == [] then 0 else 4 end;

# From the arguments that status.sh gives: the outcomes, the exit code, the object
def report:
  $ARGS.named
  | .version as $version | .kernel as $kernel | .load as $load
  | .state[0] as $state
  | (if $state then
      $state
      | loaded($version; $kernel)
      | .load_command = (if .cgroups == [$state.root] then .cgroups = [] else . end | load_command($load))
    else {loaded: false, version: $version, kernel: $kernel, time: now, load_command: $load} end) as $report
  | ($state | if . then outcomes else "" end), ($report | exit_code), ($report | tojson);

# Those of .fallback that count sockets; the others count messages.
def of_sockets: IN("left_out", "excluded", "guarded_service", "may_splice", "no_gain", "map_full", "refused", "remote");

def or_none: if . == "" then "none" else . end;

def service: "port \(.port)\(if has("user") then " for user \(.user)" else "" end) (\(.reason))";

def percent($all): "\(. * 1000 / $all | round / 10) %";

def with_unit: [., 0] | until(.[0] < 1000 or .[1] == 4; [.[0] / 1000, .[1] + 1]) | "\(.[0] * 10 | round / 10) \(["bytes", "KB", "MB", "GB", "TB"][.[1]])";

# How much of what was sent is fused, and why the rest is not, the most frequent reason first
def shares:
  [.fallback | to_entries[] | select(.key | of_sockets | not)] as $by_tcp
  | ([.fused_messages, $by_tcp[].value] | add) as $all
  | if $all == 0 then "none yet"
    else
      "\(.fused_messages | percent($all)) fused (\(.fused_bytes | with_unit))"
      + ($by_tcp | map(select(.value * 1000 >= $all)) | sort_by(-.value) | map("\(.key) \(.value | percent($all))") | if . == [] then "" else "; by TCP: " + join(", ") end)
    end;

def summary:
  if .loaded | not then
    "sockfuse is off; try: \(.load_command)"
  else
    (.load_command as $load | .damage[] | "damaged: \(.); try: \($load)"),
    "sockfuse is \(if .damage == [] then "on" else "damaged" end) since \(.since | fromdate | strflocaltime("%F %T %Z")), Linux \(.kernel)",
    (.counters // empty | "  messages   \(shares)"),
    "  cgroup     \(.cgroups | join(", ") | or_none)",
    "  programs   \([.programs[] | "\(.name) \(.id) (tag \(.tag))"] | join(", "))",
    "  policy     loopback\(if .policy.nets == [] then "" else ", and between \(.policy.nets | join(", "))\(
        if .policy.refresh_seconds > 0 then ", by TCP again after \(.policy.refresh_seconds) s" else "" end)" end)\(
      if .policy.ports == "" then "" else ", only ports \(.policy.ports)" end)\(
      if .policy.excluded_ports == "" then "" else ", but not ports \(.policy.excluded_ports)" end)\(
      if .policy.sidecar then ", to the proxy at port \(.policy.sidecar.port)" else "" end)\(
      if .policy.careful then ", careful" else "" end)\(if .policy.accounting then ", accounting" else "" end)",
    "  guard      \(if .guard.loaded then "on" elif .guard.splicers_left_out then
      "off; programs that may splice stay plain TCP" else "off" end)\(if .guard.services == [] then "" else
      ", by TCP: \([.guard.services[] | service] | join(", "))" end)",
    "  map        \(.map.entries) of \(.map.max_entries) sockets"
  end;

def counter_rows:
  ["tracked connections", .tracked_connections],
  ["fused messages", .fused_messages],
  ["fused bytes", .fused_bytes],
  (.fallback | to_entries[] | [(if .key | of_sockets then "sockets left out: " else "messages by TCP: " end) + .key, .value]),
  ["sockets unfused again", .unfused_sockets];

# What moved or ever moved; with rates if there is an earlier snapshot.
def counters_table($before):
  .time as $time
  | ([$before.counters // empty | counter_rows] | map({key: .[0], value: .[1]}) | from_entries) as $earlier
  | .counters // empty
  | "",
    (["counter", "total"] + (if $before.counters then ["per second"] else [] end),
      (counter_rows
        | select(.[1] > 0 or (.[0] | startswith("fused")))
        | . + (if $before.counters then [(.[1] - $earlier[.[0]]) / ($time - $before.time) | floor] else [] end))
    | @tsv);

# What status.sh has seen beside the map
def seen:
  $ARGS.named
  | .why as $why
  | (.stalled // "" | select(. != "") | split("\t") | . as [$who, $at, $seconds, $bytes, $port, $more]
    | "  stalled    \($who) at \($at) has read nothing for \($seconds) s, and \($bytes | tonumber | with_unit) wait\(
        if $more == "0" then "" else " (\($more) more readers)" end); see: \($why) \($port)"),
    (.plain // "" | select(. != "") | "  plain TCP  \(.); see: \($why)");

# What was learned of services; the first 20
def learned_table:
  .services // [] | select(. != [])
  | ([.[].netns] | unique | length > 1) as $namespaces
  | "",
    (["learned", "user", "connections", "gained", "path", "since"] + (if $namespaces then ["netns"] else [] end),
      (.[:20][]
        | [.port, .user // "all", .connections, (.connections as $all | if $all > 0 then .gained | percent($all) else "" end), .path + (if .reason then ": " + .reason else "" end),
            (.since | fromdate | strflocaltime("%F %T"))]
        + (if $namespaces then [.netns] else [] end))
    | @tsv),
    (length - 20 | select(. > 0) | "and \(.) more: see --json");

def text: summary, seen, counters_table($ARGS.named.before[0]), learned_table;

def metric($name; $type; $help; samples):
  "# HELP sockfuse_\($name) \($help)", "# TYPE sockfuse_\($name) \($type)", (samples | "sockfuse_\($name)\(.[0]) \(.[1])");

def by_reason($reason): "{reason=\"\($reason)\"}";

def prometheus:
  metric("info"; "gauge"; "Version of sockfuse that is installed."; ["{version=\"\(.version)\"}", 1]),
  metric("status_timestamp_seconds"; "gauge"; "When these metrics were taken, in seconds since 1970."; ["", .time]),
  metric("loaded"; "gauge"; "Whether sockfuse is loaded."; ["", if .loaded then 1 else 0 end]),
  (if .loaded then
    metric("damages"; "gauge"; "Pins and attachments that are missing."; ["", (.damage | length)]),
    metric("guard"; "gauge"; "1 for what is done about programs that splice: guarded, left_out or nothing.";
      (["guarded", .guard.loaded], ["left_out", .guard.splicers_left_out], ["nothing", (.guard.loaded or .guard.splicers_left_out | not)])
      | ["{state=\"\(.[0])\"}", if .[1] then 1 else 0 end]),
    (.guard.services as $services
    | metric("remembered_services"; "gauge"; "Services whose connections stay plain TCP for what was seen of them, by reason.";
      guard_reasons[1:] | unique[] as $reason | [by_reason($reason), ([$services[] | select(.reason == $reason)] | length)])),
    metric("map_entries"; "gauge"; "Sockets in sock_ops_map."; ["", .map.entries]),
    metric("map_max_entries"; "gauge"; "Sockets that sock_ops_map has room for."; ["", .map.max_entries]),
    (.backlog // empty
    | metric("backlog_sockets"; "gauge"; "Sockets with fused bytes that wait to be read."; ["", .sockets]),
    metric("backlog_bytes"; "gauge"; "Fused bytes that wait to be read."; ["", .bytes]),
    metric("backlog_largest_bytes"; "gauge"; "Fused bytes that wait to be read, of the socket with the most."; ["", .largest_bytes]))
  else empty end),
  (if .counters then
    (.counters.fallback | to_entries | map([by_reason(.key), .value, (.key | of_sockets)])) as $fallback
    | metric("tracked_connections_total"; "counter"; "Connections that entered the map."; ["", .counters.tracked_connections]),
    metric("fused_messages_total"; "counter"; "Messages that were fused."; ["", .counters.fused_messages]),
    metric("fused_bytes_total"; "counter"; "Bytes that were fused."; ["", .counters.fused_bytes]),
    metric("fallback_messages_total"; "counter"; "Messages that went by TCP, by reason."; $fallback[] | select(.[2] | not)),
    metric("left_out_sockets_total"; "counter"; "Sockets that did not enter the map, by reason."; $fallback[] | select(.[2])),
    metric("unfused_sockets_total"; "counter"; "Sockets that left the map while they lived."; ["", .counters.unfused_sockets])
  else empty end);
