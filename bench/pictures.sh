#!/usr/bin/env bash
# pictures.sh <directory>: draws its pruning.json into pruning.png (time against tokens) and tiles.png (what each head
# visits), as far as the figures are there: a filter leaves some out.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
directory=$1

# Of the cases of eight heads on plain inputs, a block a method, with a line a length: tokens, median seconds, how many
# times as fast as the dense one. Then what is visited of all that is visible: a line a head, a column a length.
table=$(mktemp)
trap 'rm -f "$table"' EXIT
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

lengths=$(awk '/^slope/ {print NF - 1}' "$table")
for picture in pruning tiles; do
  png=$directory/$picture.png
  if [ "${lengths:-0}" -lt 2 ]; then
    echo "No $png: needed are the cases pruned/heads:8 of at least two lengths."
  else
    gnuplot --default-settings -e "table = '$table'; lengths = $lengths; png = '$png.part'" "$here/$picture.gnuplot"
    mv "$png.part" "$png"
    echo "Drew $png"
  fi
done
