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

echo
echo "Look at $picture: the bias and the attention of every head, side by side."
