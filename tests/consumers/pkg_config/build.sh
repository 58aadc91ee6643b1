#!/bin/sh
# Uses an installed alibi, found by pkg-config.
set -eu
flags=$(pkg-config --cflags "alibi >= 0.1")
# shellcheck disable=SC2086  # the flags are words
"$CXX" -std=c++20 $flags "$ALIBI_DIR/tests/consumers/main.cpp" -o consumer
./consumer
