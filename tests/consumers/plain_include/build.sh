#!/bin/sh
# Uses no build system: two include paths and C++20.
set -eu
"$CXX" -std=c++20 -I "$ALIBI_DIR/include" -I "$EIGEN_INCLUDE_DIR" "$ALIBI_DIR/tests/consumers/main.cpp" -o consumer
./consumer
