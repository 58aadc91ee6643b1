#!/usr/bin/env bash
# Fuzzes for so many seconds, 600 by default, in as many processes as there are cores: calls of attention and histories
# of caches, held against the definition (judge.hpp), under the address and undefined-behaviour sanitizers.
#
# A corpus grows in build/fuzz/corpus, from one run to the next; tests/fuzz/corpus is where it begins. What is found
# ends the run, and lies in build/fuzz/findings: the fuzzer, given such a file, runs it alone and says what is wrong.
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

# Most calls are made of 100 bytes or more: short inputs first would be plain calls only.
echo "==> fuzz for $seconds s, $jobs at a time; log: $log"
begin=$SECONDS
status=0
"$fuzz" -fork="$jobs" -max_total_time="$seconds" -max_len=1000 -len_control=0 -timeout=300 \
  -artifact_prefix="$findings/" "$corpus" >"$log" 2>&1 </dev/null || status=$?
took=$((SECONDS - begin))

# Processes report as they end: "#<runs>: cov: ...".
runs=$(sed -nE 's/^#([0-9]+): cov: .*/\1/p' "$log" | tail -n 1)
found=$(($(find "$findings" -type f | wc -l) - before))
echo "Fuzzed for $took s, ${runs:-0} runs; findings: $found"
if [ "$status" -ne 0 ] || [ "$found" -ne 0 ]; then
  grep -m 1 -A 5 -E 'FINDING|runtime error|ERROR: ' "$log" >&2 || tail -n 20 "$log" >&2
  echo "The whole log: $log" >&2
  exit 1
fi

# What the processes say of edges is no count of different ones; one that runs the whole corpus knows.
run_step "measure coverage" "$fuzz" -runs=0 "$corpus"
edges=$(sed -nE 's/^#[0-9]+\s+INITED cov: ([0-9]+) .*/\1/p' "$root/build/log/measure-coverage.log")
all=$(sed -nE 's/.*Loaded 1 modules +\(([0-9]+) inline.*/\1/p' "$root/build/log/measure-coverage.log")
echo "Covered by $(find "$corpus" -type f | wc -l) inputs: $edges of $all edges"
