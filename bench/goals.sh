#!/usr/bin/env bash
# goals.sh <directory>: compares the figures that the library is tuned for with their goals, from the JSON of the
# benchmarks in this directory: the median of the repetitions, their range, the goal of this machine's vector unit, and
# whether it is met. A figure whose case a filter has excluded is left out.
set -euo pipefail
directory=$1

# figure | program | case, a regular expression | counter | goal with AVX2 | goal with AVX-512
# ">" before a goal: at least; "<": at most.
goals='
forward, head_dim 64, 256 tokens     | forward  | alibi/float/heads:1/tokens:256/head_dim:64     | of_peak     | >.72 | >.78
forward, head_dim 64, 1,024 tokens   | forward  | alibi/float/heads:1/tokens:1024/head_dim:64    | of_peak     | >.80 | >.85
forward, head_dim 64, 4,096 tokens   | forward  | alibi/float/heads:1/tokens:4096/head_dim:64    | of_peak     | >.86 | >.88
forward, head_dim 64, 16,384 tokens  | forward  | alibi/float/heads:1/tokens:16384/head_dim:64   | of_peak     | >.86 | >.88
forward, head_dim 128, 256 tokens    | forward  | alibi/float/heads:1/tokens:256/head_dim:128    | of_peak     | >.76 | >.80
forward, head_dim 128, 1,024 tokens  | forward  | alibi/float/heads:1/tokens:1024/head_dim:128   | of_peak     | >.84 | >.88
forward, head_dim 128, 4,096 tokens  | forward  | alibi/float/heads:1/tokens:4096/head_dim:128   | of_peak     | >.90 | >.90
forward, head_dim 128, 16,384 tokens | forward  | alibi/float/heads:1/tokens:16384/head_dim:128  | of_peak     | >.90 | >.90
forward, head_dim 40                 | forward  | alibi/float/heads:1/tokens:4096/head_dim:40    | of_peak     | >.80 | >.85
forward, head_dim 80                 | forward  | alibi/float/heads:1/tokens:4096/head_dim:80    | of_peak     | >.80 | >.85
forward, head_dim 96                 | forward  | alibi/float/heads:1/tokens:4096/head_dim:96    | of_peak     | >.80 | >.85
forward, head_dim 256                | forward  | alibi/float/heads:1/tokens:4096/head_dim:256   | of_peak     | >.80 | >.85
forward, double, head_dim 64         | forward  | alibi/double/heads:1/tokens:4096/head_dim:64   | of_peak     | >.78 | >.85
forward, double, head_dim 128        | forward  | alibi/double/heads:1/tokens:4096/head_dim:128  | of_peak     | >.84 | >.85
backward, head_dim 64                | backward | alibi/float/heads:1/tokens:4096/head_dim:64    | of_peak     | >.72 | >.82
backward, head_dim 128               | backward | alibi/float/heads:1/tokens:4096/head_dim:128   | of_peak     | >.76 | >.82
backward, double, head_dim 64        | backward | alibi/double/heads:1/tokens:4096/head_dim:64   | of_peak     | >.70 | >.78
token-major, 8 heads of 64           | forward  | in_turn/float/heads:8/.*/head_dim:64/bnhd      | over_bhnd   | <1.03 | <1.03
token-major, 8 heads of 128          | forward  | in_turn/float/heads:8/.*/head_dim:128/bnhd     | over_bhnd   | <1.03 | <1.03
token-major, 32 heads of 64          | forward  | in_turn/float/heads:32/.*/head_dim:64/bnhd     | over_bhnd   | <1.03 | <1.03
token-major, 32 heads of 128         | forward  | in_turn/float/heads:32/.*/head_dim:128/bnhd    | over_bhnd   | <1.03 | <1.03
decode, float                        | decode   | dense/float/heads:8/keys:65536/head_dim:64     | of_read     | >.92 | >.95
decode, float, head_dim 128          | decode   | dense/float/heads:8/keys:65536/head_dim:128    | of_read     | >.92 | >.95
decode, bfloat16                     | decode   | dense/bf16/heads:8/keys:65536/head_dim:64      | of_read     | >.85 | >.90
decode, bfloat16, head_dim 128       | decode   | dense/bf16/heads:8/keys:65536/head_dim:128     | of_read     | >.85 | >.90
decode, 8 heads a kv head, float     | decode   | dense/float/heads:64/kv_heads:8/.*/head_dim:64 | of_roofline | >.80 | >.85
decode, 8 heads a kv head, bfloat16  | decode   | dense/bf16/heads:64/kv_heads:8/.*/head_dim:64  | of_roofline | >.70 | >.80
pruning, 8 heads, 2,048 tokens       | pruning  | in_turn/heads:8/tokens:2048                    | speedup     | >1.8 | >1.8
'

files=()
for program in forward backward decode pruning; do
  [ ! -s "$directory/$program.json" ] || files+=("$directory/$program.json")
done
[ ${#files[@]} -gt 0 ] || exit 0

jq --raw-output --null-input --arg goals "$goals" '
  def median: sort | (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2;
  def rounded: . * 1000 | round / 1000;
  [inputs | (input_filename | split("/")[-1] | rtrimstr(".json")) as $program
    | (.context.vector_unit // "") as $unit
    | .benchmarks[] | select(.run_type == "iteration") | . + {program: $program, unit: $unit}] as $runs
  | ($runs[0].unit // "") as $unit
  | ($unit | startswith("avx512")) as $wide
  | if ($unit | test("^avx(2|512)") | not) then "No goals are set for the vector unit \($unit)."
    else
      (["figure", "median", "least", "most", "goal", "met"],
        ($goals | split("\n")[] | select(test("\\|")) | split("|") | map(gsub("^ +| +$"; ""))
          | . as [$figure, $program, $case, $counter, $avx2, $avx512]
          | (if $wide then $avx512 else $avx2 end) as $goal
          | [$runs[] | select(.program == $program and (.name | test("^" + $case + "/min_time"))) | .[$counter]]
          | map(select(. != null)) | select(length > 0)
          | median as $median
          | ($goal[1:] | tonumber) as $limit
          | (if $goal[:1] == ">" then $median >= $limit else $median <= $limit end) as $met
          | [$figure, ($median | rounded), (min | rounded), (max | rounded),
             (if $goal[:1] == ">" then "at least " else "at most " end) + $goal[1:], if $met then "yes" else "no" end])
      | @tsv)
    end
' "${files[@]}" | if command -v column >/dev/null; then column --table --separator $'\t'; else cat; fi
