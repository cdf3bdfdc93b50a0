# The object of summarize.jq as a table in Markdown.

def places($n): . as $x | pow(10; $n) as $p | ($x * $p | round / $p) | tostring
  | if $n == 0 then . else (if test("\\.") then . else . + ".0" end) | (. + "00")[:(index(".") + 1 + $n)] end;
def amount($kind): if $kind == "stream" then "\(. / 1e9 | places(2)) GB/s" else "\(places(0)) /s" end;
def interval: "\(.median | places(2)) (\(.low | places(2))–\(.high | places(2)))";

"*\(.processor), \(.processors) processors, \(.kernel), \(.date), \(.rounds) rounds, medians*",
"",
"| case | bytes | on | plain TCP | fused | Unix socket | fused / plain (95 %) | fused / Unix | CPU, fused / plain | p99 µs, plain → fused |",
"|---|---:|---|---:|---:|---:|---|---:|---:|---:|",
(.cases[]
  | "| \(.kind)\(if .how == "epoll" then ", epoll, \(.connections)" else "" end) | \(.bytes) | \(.processors) | \(.kind as $kind | [.plain, .fused, .unix] | map(.per_second | amount($kind)) | join(" | ")
    ) | \(.fused_to_plain | interval) | \(.fused_to_unix.median | places(2)) | \(.cpu_fused_to_plain.median | places(2)) | \(
    if .kind == "rr" then "\(.plain.p99_us | places(1)) → \(.fused.p99_us | places(1))" else "" end) |")
