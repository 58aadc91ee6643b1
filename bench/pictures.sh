#!/usr/bin/env bash
# pictures.sh <directory>: draws pruning.png (time against tokens) and tiles.png (the tiles that each head computes)
# from its pruning.json, and extrapolation.png (time of a token against the evaluated length) from its
# extrapolation.json. A picture is skipped if a filter has excluded its cases.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
directory=$1

# For the cases of eight heads with plain inputs, one block for each method, with one line for each length: tokens,
# median seconds, and the speedup over the dense case. Then the computed share of the tiles: one line for each head, one
# column for each length.
table=$(mktemp)
costs=$(mktemp)
trap 'rm -f "$table" "$costs"' EXIT
if [ -s "$directory/pruning.json" ]; then
  jq --raw-output '
    def median: sort | (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2;
    def grouped: if length > 3 then .[:-3] + "," + .[-3:] else . end;
    [.benchmarks[] | select(.run_type == "iteration")
      | . + (.name | capture("^(?<method>\\w+)/heads:8/tokens:(?<tokens>\\d+)/(?!mean|sink|slopes)"))]
    | group_by([.method, (.tokens | tonumber)])
    | map(.[0] + {seconds: (map(.real_time * 1e-9) | median)})
    | (map(select(.method == "dense") | {(.tokens): .seconds}) | add // {}) as $dense
    | (group_by(.method)[]
        | "# \(.[0].method)",
          (.[] | "\(.tokens) \(.seconds) \(if $dense[.tokens] then $dense[.tokens] / .seconds else "?" end)"),
          "\n"),
      (map(select(.method == "pruned")) | reverse
        | "# tiles", (["slope"] + map(.tokens | grouped) | join(" ")),
          (range(1; 9) as $h | ["1/\(pow(2; $h))"] + map(.["head_\($h)"] | tostring) | join(" ")))
  ' "$directory/pruning.json" >"$table"
fi

# One block for each pass and method, with one line for each length: tokens and median microseconds of a token. A third
# column repeats the time at the last length of a materialised bias: at twice that length, bias and scores would take
# more than 4 GiB. Then one block with all lengths and times.
if [ -s "$directory/extrapolation.json" ]; then
  jq --raw-output '
    def median: sort | (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2;
    [.benchmarks[] | select(.run_type == "iteration")
      | . + (.name | capture("^(?<method>\\w+)/(?<pass>\\w+)/heads:(8|1x8)/tokens:(?<tokens>\\d+)/"))]
    | group_by([.pass, .method, (.tokens | tonumber)])
    | map(.[0] + {us: (map(.["ns/token"] / 1000) | median)})
    | def line: "\(.tokens) \(.us) "
        + if (.method | test("materialised")) and 4 * (.bias + .scratch) > 4294967296 then "\(.us)" else "?" end;
      . as $cases
    | (("forward", "forward_backward") as $pass
        | ("alibi", "alibi_dense", "alibi_materialised", "none", "rotary", "t5_materialised", "t5_fused") as $method
        | "# \($pass) \($method).",
          ([$cases[] | select(.pass == $pass and .method == $method) | line] | if . == [] then "? ? ?" else .[] end),
          "\n"),
      "# all", ($cases[] | line)
  ' "$directory/extrapolation.json" >"$costs"
fi

lengths=$(awk '/^slope/ {print NF - 1}' "$table")
for picture in pruning tiles; do
  png=$directory/$picture.png
  if [ "${lengths:-0}" -lt 2 ]; then
    echo "No $png: it needs the cases pruned/heads:8 of at least two lengths."
  else
    gnuplot --default-settings -e "table = '$table'; lengths = $lengths; png = '$png.part'" "$here/$picture.gnuplot"
    mv "$png.part" "$png"
    echo "Drew $png"
  fi
done

png=$directory/extrapolation.png
lengths=$(awk '/^#/ {block = $2 " " $3} block == "forward alibi." && /^[0-9]/ {n++} END {print n + 0}' "$costs")
if [ "$lengths" -lt 2 ]; then
  echo "No $png: it needs the cases alibi/forward of at least two lengths."
else
  gnuplot --default-settings -e "table = '$costs'; png = '$png.part'" "$here/extrapolation.gnuplot"
  mv "$png.part" "$png"
  echo "Drew $png"
fi
