#!/usr/bin/env bash
# document.sh RESULTS DIRECTORY: writes benchmarks.md, its plots, SVG and PNG, and the
# results into the directory, from what run.sh measured (make benchmarks).
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
results=$1 directory=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# rows KIND FIELD: bytes and that field of plain, fused and Unix sockets, two processors
rows() {
  jq -r --arg kind "$1" --arg field "$2" '.cases[]
    | select(.kind == $kind and .how == "blocking" and .processors == "two")
    | [.bytes, .plain[$field], .fused[$field], .unix[$field]] | @tsv' "$results"
}

# plot NAME TITLE YLABEL SCALE: a curve for each mode from NAME.tsv, as SVG and as PNG
plot() {
  local terminal
  for terminal in svg pngcairo; do
    gnuplot <<END
set terminal $terminal size 800,450
set output "$directory/benchmarks-$1.${terminal/cairo/}"
set title "$2"
set logscale x 2
set xlabel "bytes a message"
set ylabel "$3"
set yrange [0:*]
set key left top
set grid
set format x "%.0f"
set rmargin 6
plot "$work/$1.tsv" using 1:(\$2$4) with linespoints title "plain TCP", \
  "" using 1:(\$3$4) with linespoints title "fused", \
  "" using 1:(\$4$4) with linespoints title "Unix socket"
END
  done
}

rows rr p50_us >"$work/latency.tsv"
rows stream per_second >"$work/throughput.tsv"
plot latency "Request and answer, two processors: median time" "microseconds" ""
plot throughput "One way, two processors" "GB/s" "/1e9"
{
  cat <<'END'
# Benchmarks

Written by `make benchmarks` from one run of `make bench`, which measures plain TCP over loopback, fused connections, and AF_UNIX
stream sockets in turn ([numbers](benchmarks.json)). `rr` is a request and an answer of as many bytes, `stream` is writes one way, `connect` is connections
with one request each; with `epoll` N connections are served by one event loop on each side, otherwise each by a thread. Both
ends on one processor, or each on its own. Ratios above 1 are faster; the interval is Student's, of the logarithms of the rounds'
ratios. *CPU* is the processor time of both processes for the same work. These processors are shared with other machines,
which the intervals show.

END
  jq -r -f "$here/report.jq" "$results"
  cat <<'END'

![Median time of a request and its answer by size](benchmarks-latency.svg)

![Throughput by the size of writes](benchmarks-throughput.svg)

## What is slower than TCP

END
  jq -r '.cases[] | select(.fused_to_plain.median < 0.97)
    | "- \(.kind), \(.bytes) bytes, on \(.processors) processor\(if .processors == "two" then "s" else "" end): \(.fused_to_plain.median * 100 | round / 100) (\(.fused_to_plain.low * 100 | round / 100)–\(.fused_to_plain.high * 100 | round / 100))"' "$results"
  cat <<'END'

A stream of writes below 48 KB begins in the sockhash, where each write costs two to four times what TCP takes, and leaves it
after 16,384 messages and 0.2 s; a run of one second therefore shows the beginning too. A stream of larger writes on one
processor has its writer run ahead of its reader until the bytes have left the cache. A short connection pays for entering
the sockhash and for the RCU work of leaving it.
END
} >"$directory/benchmarks.md"
jq . "$results" >"$directory/benchmarks.json"
