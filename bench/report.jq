# The object of summarize.jq as tables in Markdown; with --arg readme 1 the short one of
# the README.

def places($n): . as $x | pow(10; $n) as $p | ($x * $p | round / $p) | tostring
  | if $n == 0 then . else (if test("\\.") then . else . + ".0" end) | (. + "00")[:(index(".") + 1 + $n)] end;
def amount($case): if . == null then "" elif $case | (.kind == "stream" or (.kind | startswith("iperf3"))) then "\(. / 1e9 | places(2)) GB/s" else "\(places(0)) /s" end;
def interval: "\(.median | places(2)) (\(.low | places(2))–\(.high | places(2)))";
def name: "\(.kind)\(if .how == "epoll" then ", epoll, \(.connections)" elif .how == "beginning" then ", its first 0.4 s" else "" end)";
def amounts($modes): . as $case | [.[$modes[]].per_second | amount($case)] | join(" | ");
def unix: if .fused_to_unix then .fused_to_unix.median | places(2) else "" end;

def table($title; $header; cases; row):
  [cases] | if length == 0 then empty else "", $title, "", $header, (.[] | "| \(row) |") end;

# The rows of the README: eight cases, and three in which fused connections are slower.
def in_readme:
  ["rr", "blocking", 64, "one"], ["rr", "blocking", 64, "two"],
  ["stream", "lasting", 65536, "one"], ["stream", "lasting", 65536, "two"],
  ["redis-get", "application"], ["pgbench-select", "application"],
  ["wrk-nginx", "application"], ["wrk-nginx-proxy", "application"],
  ["stream", "beginning", 64, "one"], ["connect", "blocking", 64, "two"], ["wrk-nginx-no-sendfile", "application"];
def readme:
  "*\(.processor), \(.processors) processors, \(.kernel), \(.date), medians of \(.rounds) rounds and more*",
  "",
  "| case | bytes | processors | plain TCP | fused | ratio |\n|---|---:|---|---:|---:|---:|",
  (.cases as $cases | in_readme as [$kind, $how, $bytes, $processors] | $cases[]
    | select(.kind == $kind and .how == $how and .bytes == ($bytes // .bytes) and .processors == ($processors // .processors))
    | "| \(name) | \(.bytes) | \(.processors) | \(amounts(["plain", "fused"]) | gsub(" /s"; "/s")) | \(.fused_to_plain.median | places(2)) |");

if $ARGS.named.readme then readme else
"*\(.processor), \(.processors) processors, \(.kernel), \(.date), \(.rounds) rounds and more, medians*",
table("### Two processes";
  "| case | bytes | on | plain TCP | fused | Unix socket | fused / plain (95 %) | fused / Unix | CPU, fused / plain | p99 µs, plain → fused |\n|---|---:|---|---:|---:|---:|---|---:|---:|---:|";
  .cases[] | select(.unix and .how != "application");
  "\(name) | \(.bytes) | \(.processors) | \(amounts(["plain", "fused", "unix"])) | \(.fused_to_plain | interval) | \(unix) | \(.cpu_fused_to_plain.median | places(2)) | \(if .kind == "rr" then "\(.plain.p99_us | places(1)) → \(.fused.p99_us | places(1))" else "" end)"),
table("### Applications";
  "| case | connections | bytes | plain TCP | fused | Unix socket | fused / plain (95 %) | fused / Unix | CPU, fused / plain |\n|---|---:|---:|---:|---:|---:|---|---:|---:|";
  .cases[] | select(.how == "application");
  "\(name) | \(.connections) | \(.bytes) | \(amounts(["plain", "fused", "unix"])) | \(.fused_to_plain | interval) | \(unix) | \(.cpu_fused_to_plain.median | places(2))"),
([.cases[] | select(.how == "epoll" and .connections == 10)] as $scale
  | table("### Ten connections that talk, beside some that do not";
    "| idle connections | plain TCP | fused | fused / plain (95 %) | time a message, fused, by that with none | kernel memory of an idle one, plain → fused |\n|---:|---:|---:|---|---:|---:|";
    $scale[];
    "\(.idle) | \(amounts(["plain", "fused"])) | \(.fused_to_plain | interval) | \($scale[0].fused.per_second / .fused.per_second | places(2)) | \(if .idle < 10000 then "" else "\(.plain.memory_bytes) → \(.fused.memory_bytes) bytes" end)")),
table("### To another host (a network namespace behind veth): nothing is fused";
  "| case | bytes | without sockfuse | with | ratio (95 %) | CPU, ratio |\n|---|---:|---:|---:|---|---:|";
  .cases[] | select(.how == "remote");
  "\(name) | \(.bytes) | \(amounts(["plain", "fused"])) | \(.fused_to_plain | interval) | \(.cpu_fused_to_plain.median | places(2))")
end
