#!/usr/bin/env bash
# Builds and runs the benchmarks of attention over several ranks: bytes by simulation up to 2^20 tokens, with a picture,
# then time and bytes of as many ranks as there are cores, and of 4 and 8. The argument is the number of tokens of a rank
# for the times (default: 65536).
#
# run.sh checkpoint MODEL FILE.u16 [ranks] [tokens of a rank] simulates the bytes for q and k of a checkpoint instead.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../cmake/setup.sh"

if [ "${1:-}" = checkpoint ]; then
  require libbenchmark-dev libopenblas-dev libpcre2-dev nlohmann-json3-dev pkg-config
  configure_part EXAMPLES
  configure_part BENCHMARKS
  run_build "build the benchmark of a checkpoint" bench_mpi_checkpoint
  exec "$build/bench/mpi/bench_mpi_checkpoint" "${@:2}"
fi
require libbenchmark-dev libopenmpi-dev openmpi-bin gnuplot-nox
configure_part BENCHMARKS
run_build "build benchmarks of several ranks" alibi_mpi_benchmarks

out=$build/bench/mpi
echo "==> bytes, by simulation"
"$out/bench_mpi_bytes" 128 8192 "$out/bytes.txt"
gnuplot --default-settings -e "table = '$out/bytes.txt'; png = '$out/bytes.png'" "$root/bench/mpi/bytes.gnuplot"
echo "Drew $out/bytes.png"

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
start=(mpirun --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 -n)
tokens=${1:-65536}
echo "==> time"
"${start[@]}" "$jobs" "$out/bench_mpi_time" "$tokens"
"${start[@]}" "$jobs" "$out/bench_mpi_time" "$((tokens / 4))" 5 backward
echo "==> bytes, measured at 8,192 tokens a rank; the times say nothing where ranks share cores"
for ranks in 4 8; do
  "${start[@]}" "$ranks" "$out/bench_mpi_time" 8192 1
done
