#!/usr/bin/env bash
# Builds and runs every benchmark, optimised for this machine, and draws pictures of the benchmarks of pruning and
# extrapolation. Arguments go to Google Benchmark, e.g. --benchmark_filter=<regex> or --benchmark_repetitions=<n>.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"

require libbenchmark-dev gnuplot-nox jq
build_part BENCHMARKS

for source in "$root"/bench/*.cpp; do
  name=$(basename "$source" .cpp)
  echo "==> $name"
  "$build/bench/bench_$name" --benchmark_counters_tabular=true \
    --benchmark_out_format=json --benchmark_out="$build/bench/$name.json" "$@"
done

echo "==> pictures"
bash "$root/bench/pictures.sh" "$build/bench"

echo
bash "$root/bench/goals.sh" "$build/bench"

echo
echo "of_peak is the fraction of this machine's multiply-add peak, measured in the same process. of_read is the"
echo "fraction of the speed of a plain read of as many bytes. Every unit is defined in $root/bench/README.md."
echo "The same figures as JSON are in $build/bench/."
