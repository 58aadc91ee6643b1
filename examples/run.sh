#!/usr/bin/env bash
# Builds and runs the examples. Argument: a text for the second to look at (default: the LICENSE, plain English).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"

require gnuplot-nox
build_part EXAMPLES

echo "==> quickstart"
"$build/examples/quickstart"

text=${1:-$root/LICENSE}
picture=$build/examples/heads.png
echo "==> heads, over $text"
"$build/examples/heads" "$text" "$picture"

costs=$build/examples/decode.png
echo "==> decode, up to 65,536 tokens"
"$build/examples/decode" 65536 "$costs"

echo
echo "Look at $picture: the bias and the attention of every head, side by side."
echo "Look at $costs: what one more token costs as the context grows, with and without pruning."
