#!/usr/bin/env bash
# Fuzzes for the given number of seconds, 600 by default, in one process for each core. The inputs are calls of
# attention and histories of caches. Results are checked against the definition (judge.hpp), under the address and
# undefined-behaviour sanitizers.
#
# A corpus in build/fuzz/corpus grows from run to run, starting with tests/fuzz/corpus. A finding ends the run and is
# stored in build/fuzz/findings. Given such a file, the fuzzer runs it alone and prints what is wrong.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../cmake/setup.sh"

seconds=${1:-600}
build=$root/build/fuzz

require clang
require "libclang-rt-$(clang++ -dumpversion | cut -d. -f1)-dev"
run_step "configure fuzz" cmake -S "$root" --preset fuzz "-DALIBI_WERROR=${ALIBI_WERROR:-OFF}"
run_step "build fuzz" cmake --build "$build" --target fuzz --parallel "$jobs"

fuzz=$build/tests/fuzz/fuzz
corpus=$build/corpus
log=$root/build/log/fuzz.log
findings=$build/findings
mkdir -p "$corpus" "$findings"
cp "$root"/tests/fuzz/corpus/* "$corpus"
before=$(find "$findings" -type f | wc -l)

# Most calls need 100 bytes or more, so the length is not limited at first: short inputs are plain calls only.
echo "==> fuzz for $seconds s, $jobs at a time; log: $log"
begin=$SECONDS
status=0
"$fuzz" -fork="$jobs" -max_total_time="$seconds" -max_len=1000 -len_control=0 -timeout=300 \
  -artifact_prefix="$findings/" "$corpus" >"$log" 2>&1 </dev/null || status=$?
took=$((SECONDS - begin))

# Processes print a line when they end: "#<runs>: cov: ...".
runs=$(sed -nE 's/^#([0-9]+): cov: .*/\1/p' "$log" | tail -n 1)
found=$(($(find "$findings" -type f | wc -l) - before))
echo "Fuzzed for $took s, ${runs:-0} runs; findings: $found"
if [ "$status" -ne 0 ] || [ "$found" -ne 0 ]; then
  grep -m 1 -A 5 -E 'FINDING|runtime error|ERROR: ' "$log" >&2 || tail -n 20 "$log" >&2
  echo "The whole log: $log" >&2
  exit 1
fi

# The edges that the processes print cannot be added up. One process runs the whole corpus to count them.
run_step "measure coverage" "$fuzz" -runs=0 "$corpus"
edges=$(sed -nE 's/^#[0-9]+\s+INITED cov: ([0-9]+) .*/\1/p' "$root/build/log/measure-coverage.log")
all=$(sed -nE 's/.*Loaded 1 modules +\(([0-9]+) inline.*/\1/p' "$root/build/log/measure-coverage.log")
echo "Covered by $(find "$corpus" -type f | wc -l) inputs: $edges of $all edges"
