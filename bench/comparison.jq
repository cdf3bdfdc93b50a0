# What compare.sh measured, as the tables of docs/comparison.md; with --arg plot 1 the speeds,
# for gnuplot.

def ways: {plain: "plain TCP", fused: "sockfuse", tutorial: "tutorial", unix: "AF_UNIX", smc: "AF_SMC"};

# {WAY: {ROW: values of its rounds}}
def by_way: .results | reduce .[] as $r ({}; .[$r.mode][$r.row] += [$r.value]);

def median: sort | (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2;
def hundredths: . * 100 | round | "\(. / 100 | floor).\(. % 100 + 100 | tostring[1:])";
def thousands: round | tostring | until(test("[0-9]{4}") | not; sub("(?<a>[0-9]+)(?<b>[0-9]{3})"; "\(.a),\(.b)"));

# Cells, of what one way has; null: it was not asked.
def ratio($row; $plain): .[$row] // null | if . then [., $plain[$row]] | transpose | map(.[0] / .[1]) | median | hundredths else null end;
def segments($kind): .["\($kind)-two-segments"] // .["\($kind)-one-segments"] | median | thousands;
def unread: .unread[0] | if . >= 256000000 then "more than 256 MB" else "\(. / 1e5 | round / 10) MB" end;
def answer($row): .[$row] // [null] | .[0];
def of_rounds($name): if .["\($name)-rounds"] then "\(.["\($name)-failed"][0] | thousands) of \(.["\($name)-rounds"][0] | thousands)" else null end;
def total($key): [to_entries[] | select(.key | endswith("-" + $key) and (startswith("late_peer") | not)).value[0]] | add | if . == null then null else thousands end;
def told($name):
  . as $own
  | [("failed", "lost", "reordered", "hung") as $key | $own["\($name)-\($key)"][0] | select(. and . > 0) | "\($key) \(thousands)"]
  | if . != [] then join(", ") elif $own["\($name)-skipped"] == [1] then "not on this kernel" else "no fault" end;

def cases:
  ("one", "two") as $processors
  | (["rr", "64 bytes and as many back"], ["stream", "one way, writes of 64 KB"], ["connect", "connections with one request"])
  | [.[0] + "-" + $processors, "\(.[1]), \($processors) processor\(if $processors == "one" then "" else "s" end)"];

def adversaries:
  ["refused_connect", "reads what came before a close, after a refused connect"],
  ["leaving_map", "sends files and messages at once, read by edge-triggered epoll"],
  ["leaving_map_lowat", "the same with `SO_RCVLOWAT`"],
  ["closing_peer", "sends while the other end closes"],
  ["under_way", "two threads send while the other end sends a page that is not there"],
  ["uring_seam", "waits with io_uring's poll that goes on"],
  ["sigio", "waits for a signal (`O_ASYNC`)"],
  ["nested_epoll", "waits with an epoll in an epoll"],
  ["zerocopy_receive", "reads with `TCP_ZEROCOPY_RECEIVE`"],
  ["two_readers", "several threads read one socket"],
  ["woken_reader", "a reader is woken for nothing"],
  ["thread_pairs", "several threads send and receive on both ends"],
  ["acks_elsewhere", "streams, while each processor handles lo's packets"],
  ["schedule", "many ends do everything at once"];

def line: "| \(join(" | ")) |";
def table($first; $columns; rows):
  [$first, ways[$columns[]]] | line, (map("---:") | .[0] = "---" | line | gsub(" "; "")), (rows | line);

by_way as $of
| [ways | keys_unsorted[] | select($of[.])] as $ways
| def row($text; cell): [$text, ($of[$ways[]] | cell // "–")];
  [cases | select($of.plain[.[0]])] as $cases
| if $ARGS.named.plot then
    (["case", ways[$ways[]]], ($cases[] as [$case] | row($case | sub("-"; ", "); ratio($case; $of.plain))) | @tsv)
  else
    "*\(.processor), \(.processors) processors, \(.kernel), \(.date), medians of \(.rounds) rounds*",
    "",
    table("speed, plain TCP = 1"; $ways; $cases[] as [$case, $text] | row($text; ratio($case; $of.plain))),
    "",
    table("what stays on lo and in memory, and what fails"; $ways;
      row("TCP segments for 1,000 messages of 64 bytes"; segments("rr")),
      row("… and of 64 KB, one way"; segments("stream")),
      row("what gets in while nobody reads"; unread),
      row("an IPv4 client reaches a dual-stack server"; answer("dual-stack")),
      row("equal addresses in two namespaces are kept apart"; answer("namespaces")),
      row("sends at once, while each processor handles lo's packets: calls that failed"; of_rounds("late_peer")),
      row("programs below: calls that failed"; total("failed")),
      row("… bytes lost"; total("lost")),
      row("… connections with bytes out of order"; total("reordered")),
      row("… rounds that hung"; total("hung")),
      row("entries in the map once all is closed"; answer("entries"))),
    "",
    (if $of.smc then "AF_SMC falls back to TCP where it has no device." else "AF_SMC is not in this kernel." end),
    "",
    "## Programs that once met a fault",
    "",
    table("program"; $ways - ["unix", "smc"]; adversaries as [$name, $text] | select($of.plain["\($name)-rounds"])
      | [$text, ($of["plain", "fused", "tutorial"] | told($name))])
  end
