#!/usr/bin/env bash
# comparison.sh RESULTS DIRECTORY: writes comparison.md and its plot, SVG and PNG, into the
# directory, from what compare.sh measured (make compare).
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
results=$1 directory=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

jq -r --arg plot 1 -f "$here/comparison.jq" "$results" >"$work/speed.tsv"
for terminal in svg pngcairo; do
  gnuplot <<END
set terminal $terminal size 900,450
set output "$directory/comparison-speed.${terminal/cairo/}"
set datafile separator tab
set title "Speed, plain TCP = 1; the ends on one processor, or on two"
set style data histograms
set style histogram cluster gap 1
set style fill solid 0.8 border -1
set yrange [0:*]
set offsets 0,0,0.3,0
set grid ytics
set key top center horizontal noenhanced
plot for [i=2:$(awk -F '\t' 'NR == 1 { print NF }' "$work/speed.tsv")] "$work/speed.tsv" using i:xtic(1) title columnheader(i)
END
done
{
  cat <<'END'
# Comparison

Written by `make compare`: five ways to send bytes from one process to another on one host, one
after the other in the same run ([numbers](comparison.json)).

- **plain TCP** over loopback.
- **sockfuse** as `load.sh` loads it.
- **tutorial**: the two programs that tutorials about sockops and sk_msg end with, written for this
  page ([tutorial.bpf.c](../bench/tutorial.bpf.c), 60 lines). They show how the redirect works, and
  promise no more.
- **AF_UNIX** stream sockets. Programs must be changed for them.
- **AF_SMC** over loopback. A program must ask for it, or be run with `smc_run`.

A ratio above 1 is faster. Both ends run on one processor, or each on its own. "–" is what does not
apply to that way.

END
  jq -r -f "$here/comparison.jq" "$results"
  cat <<'END'

![Speed of each way, plain TCP = 1](comparison-speed.svg)

Each program runs for some seconds. A number is what it counted: calls that failed, bytes lost,
connections with bytes out of order, rounds that hung (5 s without a byte). A fault that plain TCP
has, too, is no fault of the others. `tests/adversaries/` has the programs, and
[CONTRIBUTING.md](../CONTRIBUTING.md) the command that runs them longer.

- Segments are what TCP counts as sent with data (`TCPOrigDataSent`); one may hold 64 KB and more.
- "What gets in" are bytes that a writer which does not wait has sent when its reader does not read.
  The measurement ends at 256 MB, or after a second.
- A send that meets a close may fail on sockfuse, once in some thousand, see
  [semantics.md](semantics.md#a-send-that-meets-a-close).
END
} >"$directory/comparison.md"
