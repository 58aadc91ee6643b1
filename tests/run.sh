#!/usr/bin/env bash
# Builds and runs every test, optimised for this machine; those of the experiment too, if examples/run.sh has run
# before. Arguments go to ctest, e.g. -R attention.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"

require libgtest-dev libopenblas-dev libopenmpi-dev libpcre2-dev nlohmann-json3-dev openmpi-bin pkg-config
build_part TESTS

echo "==> run tests"
ctest --test-dir "$build" --output-on-failure --no-tests=error --parallel "$jobs" "$@" </dev/null
