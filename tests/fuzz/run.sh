#!/usr/bin/env bash
# Fuzzes for the given number of seconds, 600 by default, in one process for each core, under the address and
# undefined-behaviour sanitizers. A quarter of the time is for the files that examples/pretrained reads
# (tests/pretrained/fuzz_loaders.cpp). The rest is for calls of attention and histories of caches, whose results are
# checked against the definition (judge.hpp).
#
# The corpora in build/fuzz/corpus and build/fuzz/corpus_loaders grow from run to run. They start with tests/fuzz/corpus
# and the files in tests/pretrained/golden. A finding ends the run and is stored in build/fuzz/findings, in the folder of
# its fuzzer. Given such a file, the fuzzer runs it alone and prints what is wrong.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../cmake/setup.sh"

seconds=${1:-600}
if ! [[ $seconds =~ ^[1-9][0-9]*$ ]] || [ "$seconds" -lt 4 ]; then
  echo "The argument is $seconds; expected seconds, at least 4." >&2
  exit 2
fi
build=$root/build/fuzz

require clang nlohmann-json3-dev libpcre2-dev pkg-config
require "libclang-rt-$(clang++ -dumpversion | cut -d. -f1)-dev"
run_step "configure fuzz" cmake -S "$root" --preset fuzz "-DALIBI_WERROR=${ALIBI_WERROR:-OFF}"
run_step "build fuzz" cmake --build "$build" --target fuzz fuzz_loaders --parallel "$jobs"

# run_fuzzer <name> <seconds> <corpus> <options of libFuzzer...>
run_fuzzer() {
  local name=$1 seconds=$2 corpus=$3 fuzzer=$build/tests/fuzz/$1 log=$root/build/log/$1.log findings=$build/findings/$1
  local before begin took status=0 runs found edges all
  shift 3
  mkdir -p "$findings"
  before=$(find "$findings" -type f | wc -l)

  echo "==> $name for $seconds s, $jobs at a time; log: $log"
  begin=$SECONDS
  "$fuzzer" -fork="$jobs" -max_total_time="$seconds" "$@" -artifact_prefix="$findings/" "$corpus" >"$log" 2>&1 \
    </dev/null || status=$?
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
  run_step "measure coverage of $name" "$fuzzer" -runs=0 "$corpus"
  log=$root/build/log/measure-coverage-of-$name.log
  edges=$(sed -nE 's/^#[0-9]+\s+INITED cov: ([0-9]+) .*/\1/p' "$log")
  all=$(sed -nE 's/.*Loaded 1 modules +\(([0-9]+) inline.*/\1/p' "$log")
  echo "Covered by $(find "$corpus" -type f | wc -l) inputs: $edges of $all edges"
}

corpus=$build/corpus
mkdir -p "$corpus"
cp "$root"/tests/fuzz/corpus/* "$corpus"

# The first byte of an input selects the reader. A zero byte ends a tokenizer, and begins a whole safetensors file.
corpus_loaders=$build/corpus_loaders
mkdir -p "$corpus_loaders"
for file in "$root"/tests/pretrained/golden/*/*; do
  seed=$corpus_loaders/$(basename "$(dirname "$file")")-$(basename "$file")
  case $file in
    */config.json) { printf c && cat "$file"; } >"$seed" ;;
    */model*.safetensors) { printf 's\0' && cat "$file"; } >"$seed" ;;
    */tokenizer/strings.json) { printf x && cat "$file"; } >"$seed" ;;
    */tokenizer/expected.json) ;;
    */tokenizer/*.json) { printf t && cat "$file" && printf '\0It'"'"'s <s> a text'; } >"$seed" ;;
  esac
done
printf 'm"normalizer":{"type":"NFC"}\0e\314\201' >"$corpus_loaders/members"

# The timeout is for inputs that take time in proportion to the square of their length, or more.
run_fuzzer fuzz_loaders $((seconds / 4)) "$corpus_loaders" -max_len=40000 -timeout=30
# Most calls need 100 bytes or more, so the length is not limited at first: short inputs are plain calls only.
run_fuzzer fuzz $((seconds - seconds / 4)) "$corpus" -max_len=1000 -len_control=0 -timeout=300
