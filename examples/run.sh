#!/usr/bin/env bash
# Builds and runs the examples. The last ones are the paper's experiment, reduced to about a minute, and `pretrained`, which
# lets the model that was just trained write. The argument is the text for the second example (default: the LICENSE, plain
# English).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"

require gnuplot-nox libopenblas-dev libopenmpi-dev libpcre2-dev nlohmann-json3-dev openmpi-bin pkg-config
configure_part EXAMPLES
run_build "build quickstart" quickstart

echo "==> quickstart"
"$build/examples/quickstart"

run_build "build examples" alibi_examples

text=${1:-$root/LICENSE}
picture=$build/examples/heads.png
echo "==> heads, over $text"
"$build/examples/heads" "$text" "$picture"

costs=$build/examples/decode.png
echo "==> decode, up to 65,536 tokens"
"$build/examples/decode" 65536 "$costs"

for cache in beam_search continuous_batching; do
  echo "==> $cache"
  "$build/examples/$cache"
done
echo "==> context_parallel, 65,536 tokens over 4 ranks; without an argument it takes 262,144"
OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
  mpirun --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 -n 4 "$build/examples/context_parallel" 65536

experiment=$build/examples/experiment
rm -rf "$experiment"
echo "==> train_short_test_long, the reduced version: ALiBi and sinusoidal, trained at 128 bytes"
"$build/examples/train_short_test_long" --methods alibi,sinusoidal --length 128 --steps 200 --evaluate 16384 \
  --out "$experiment"

echo
echo "Look at $picture: the bias and the attention of every head, side by side."
echo "Look at $costs: what one more token costs as the context grows, with and without pruning."
echo "Look at $experiment/perplexity.png: the paper's claim, trained short and tested long; the same as a table is in"
echo "$experiment/results.csv. The full version, ten methods in about 45 minutes:"
echo "    $build/examples/train_short_test_long --out train_short_test_long.out"

echo
echo "==> pretrained: the ALiBi model just trained, from $experiment/alibi, goes on after \"// Returns the \""
"$build/examples/pretrained/pretrained" "$experiment/alibi" generate --prompt "// Returns the " --tokens 160 \
  --temperature 0.8 --top-p 0.9 --seed 1 2>"$experiment/generate.log" || {
  cat "$experiment/generate.log" >&2
  exit 1
}
