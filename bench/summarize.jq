# The rounds of run.sh as one object: for each case the medians of each mode with
# their spread, and fused as a ratio of the others.  Ratios are of rounds that ran
# one after the other; their 95 % interval is Student's, of the logarithms.

def median: sort | if length == 0 then null else (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2 end;

# Student's t for 95 %, by degrees of freedom
def t: [0, 12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262][.] // 2;

def ratio($by):
  . as $of
  | [range(length) | $of[.] / $by[.]]
  | median as $median
  | map(log)
  | length as $n
  | (add / $n) as $mean
  | (if $n > 1 then (map(. - $mean | . * .) | add / ($n - 1) | sqrt) * ($n - 1 | t) / ($n | sqrt) else 0 end) as $half
  | {$median, low: ($mean - $half | exp), high: ($mean + $half | exp)};

def numbers($name): map(.[$name] // empty);

def summary:
  (numbers("per_second") | {per_second: median, low: min, high: max})
  + {cpu_seconds: (numbers("cpu_seconds") | median)}
  + (if .[0].p50_us then {p50_us: (numbers("p50_us") | median), p99_us: (numbers("p99_us") | median), p999_us: (numbers("p999_us") | median)} else {} end)
  + (if .[0].memory_bytes then {memory_bytes: (numbers("memory_bytes") | median)} else {} end);

def case: {kind, how, connections, bytes, processors, idle};

# cases in the order in which they were measured
. as $rounds_of_all
| {
    $kernel, $processor, $processors, $date, $rounds,
    cases: [
      reduce .[] as $one ([]; ($one | case) as $case | if any(.[]; . == $case) then . else . + [$case] end)
      | .[] as $case
      | ([$rounds_of_all[] | select(case == $case)] | group_by(.mode) | map({key: .[0].mode, value: .}) | from_entries) as $modes
      | ($modes.fused | numbers("per_second")) as $fused
      | $case
        + ($modes | map_values(summary))
        + {
            fused_to_plain: ($fused | ratio($modes.plain | numbers("per_second"))),
            cpu_fused_to_plain: ($modes.fused | numbers("cpu_seconds") | ratio($modes.plain | numbers("cpu_seconds")))
          }
        + (if $modes.unix then {fused_to_unix: ($fused | ratio($modes.unix | numbers("per_second")))} else {} end)
    ]
  }
