#!/usr/bin/env bash
# document.sh RESULTS PROFILE DIRECTORY README...: writes benchmarks.md, its plots, SVG and
# PNG, and the results into the directory, from what run.sh measured and profile.sh saw, and
# the table of each README anew (make benchmarks).
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
results=$1 profile=$2 directory=$3
shift 3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# rows KIND FIELD: bytes and that field of plain, fused and Unix sockets, two processors
rows() {
  jq -r --arg kind "$1" --arg field "$2" '.cases[]
    | select(.kind == $kind and (.how == "blocking" or .how == "lasting") and .processors == "two")
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

Written by `make benchmarks` from one run of `make bench`. It measures plain TCP over loopback,
fused connections, and AF_UNIX stream sockets in turn ([numbers](benchmarks.json)). It loads
sockfuse with `--no-guard`.

- `rr` is a request and an answer of as many bytes. `stream` is writes one way, once 0.5 s have
  passed. `connect` is connections with one request each.
- With `epoll` N connections are served by one event loop on each side, otherwise each by a thread.
- Both ends run on one processor, or each on its own. Applications run where the scheduler puts
  them.
- Ratios above 1 are faster. The interval is Student's, of the logarithms of the rounds' ratios.
- *CPU* is the processor time of all processes for the same work.
- Other machines share these processors, which the intervals show.

END
  jq -r -f "$here/report.jq" "$results"
  cat <<'END'

![Median time of a request and its answer by size](benchmarks-latency.svg)

![Throughput by the size of writes](benchmarks-throughput.svg)

## What is slower than TCP

END
  jq -r '.cases[] | select(.fused_to_plain.median < 0.97)
    | "- \(.kind)\({beginning: ", its first 0.4 s", remote: ", to another host"}[.how] // ""), \(.bytes) bytes, on \(.processors) processor\(if .processors == "one" then "" else "s" end): \(.fused_to_plain.median * 100 | round / 100) (\(.fused_to_plain.low * 100 | round / 100)–\(.fused_to_plain.high * 100 | round / 100))"' "$results"
  cat <<'END'

Why, as the profiles below show it, and what was tried:

- **Short connections** pay for entering the sockhash. Each end gets a psock. When it leaves, two
  pieces of RCU work follow; they also keep the closed sockets' memory from being used again while
  the cache still has it. With the sockops program attached and nothing entering the map, the same
  connections have 0.98 of plain TCP. Without the callbacks for state changes and for segments
  nothing measurable is gained (0.89 either way). Storage for each socket cost 8 points more, and is
  made only for connections that last. So a service whose connections are short is left on TCP
  after 16 of them, and tried again from time to time ([design.md](design.md#services-teach)).
  The first ones are fused from their first byte.
- **A stream of small writes** begins in the sockhash, where a write costs two to four times what it
  costs TCP, which merges them. It leaves after some 64 messages and 1 ms. Before that it may have a
  third of TCP's speed. From then on it is plain TCP. What still differs is what one connection of
  plain TCP differs from the next.
- **Files by `sendfile`** are copied by a socket in a map, and not by TCP. 32 KB and more at once go
  by TCP, and after four of them the connection leaves the map. The runs of 2 s include that
  beginning. A service that sends large files, each on a new connection, is better left out:
  `--exclude-port`.
- **Answers of 100 KB in writes of 32 KB** (nginx without `sendfile`): each write is a message with
  pages of its own, which the reader takes 8 KB at a time. A larger message is gathered into one
  block of pages, which the allocator gives back warm. Messages of 32 KB cannot be.
- **Requests and answers of 256 KB on two processors** have 0.9 to 1.05 of TCP's speed, from run to
  run, for two thirds of the processor time. `tcp_bpf_sendmsg` copies the whole message in before
  the verdict, so the reader can begin to copy out only then. TCP's reader copies the first segments
  while the writer copies the rest. `bpf_msg_apply_bytes` divides only what has been copied.
  Programs that only enter the sockhash and redirect had 0.96 and 0.86 in two runs; sockfuse had
  0.95 and 0.90.
- **Processor time of a dialogue on two processors**: most of it is the interrupt that wakes the
  other, idle, processor. In a virtual machine that interrupt goes through the hypervisor
  (`_raw_spin_unlock_irqrestore` below `sock_def_readable` in the profiles, more than half of what
  fused processes do). TCP pays the same, and so does a Unix socket. Programs that only enter and
  redirect had 0.85, 0.78 and 0.85 of TCP's time at 64 bytes, 1 KB and 16 KB in thirteen rounds.
  sockfuse had 0.89, 0.85 and 0.82 in these, and down to 0.75 in other runs.
- **Connections with one request on two processors** lose more than on one: programs that only enter
  and redirect have 0.83 to 0.87. The callbacks, the look at who is asleep and the policy take some
  four points each.
- **Unix sockets in a dialogue of 64 KB on two processors** have twice the speed. A reader that has
  taken its bytes wakes the writer for more (`unix_write_space`), so the writer is awake when the
  answer comes. No program of sockfuse runs when a reader takes fused bytes.
- **Other hosts**: no program runs for a message to them, and one runs for a connection. A ratio
  beside 1.00 is noise: forty rounds of the same programs, an hour after the run of 2026-11-24, had
  1.00 (0.97–1.02) for requests, 0.99 for streams and 0.98 for connecting.
- **Bulk on one processor**: the writer runs ahead of its reader until the bytes have left the
  cache. A backlog limited to 256 KB, or to 1 MB, made it worse (0.83 and 0.69 at 64 KB), because
  what is beyond the limit goes by TCP and fills TCP's buffers. A message that is gathered into one
  block of pages is faster (2.1 in place of 1.7 at 256 KB). sockfuse gathers once 512 KB wait. To
  gather from the first byte would add some tenths.
- **Bulk on two processors** was slower while each message was gathered (1.7 at 64 KB; 2.8 without)
  and while its writer slept on the reader's lock as soon as 64 KB waited (2.0). Waiting 20 or 50 µs
  for that lock in place of 6 makes no difference.

## Where the time goes

Flame graphs as text: each function under its caller, with the share of samples that it and what it
calls have (perf, processor clock, without the samples of idle processors). Below 3 % is left out.
END
  cat "$profile"
} >"$directory/benchmarks.md"
jq . "$results" >"$directory/benchmarks.json"
jq -r --arg readme 1 -f "$here/report.jq" "$results" >"$work/table"
for readme; do # from the line that names the machine to the end of the table
  awk -v table="$work/table" '
    /^\*.*medians of/ { while ((getline line < table) > 0) print line; skip = 1; next }
    skip && /^(\||$)/ && !(seen && /^$/) { seen = seen || /^\|/; next }
    { skip = 0; print }' "$readme" >"$work/readme"
  cat "$work/readme" >"$readme"
done
