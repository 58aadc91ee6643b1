#!/usr/bin/env bash
# Measures how long files that use alibi take to compile, in units of Eigen's Core and Tensor headers on the same
# machine. The files are one `attention` call, and forward, backward and cache together, each header-only and with the
# compiled library. With --budget, also checks the build time of the tests, and fails if a file exceeds its budget.
# Budgets are about a quarter above the times measured with g++ 12 on an AVX-512 machine, whose kernels take longest to
# compile.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"

eigen=$(pkg-config --variable=prefix eigen3 2>/dev/null || echo /usr)/include/eigen3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat >"$work/eigen.cpp" <<'CPP'
#include <Eigen/Core>
#include <unsupported/Eigen/CXX11/Tensor>
CPP
cat >"$work/call.cpp" <<'CPP'
#include <alibi/attention.hpp>
#include <alibi/tensor.hpp>
using Tensor4 = Eigen::Tensor<float, 4, Eigen::RowMajor>;
Tensor4 call(const Tensor4& q, const Tensor4& k, const Tensor4& v, const Eigen::VectorXf& slopes) {
  return alibi::attention(q, k, v, slopes);
}
CPP
cat >"$work/all.cpp" <<'CPP'
#include <alibi/alibi.hpp>
using Tensor4 = Eigen::Tensor<float, 4, Eigen::RowMajor>;
void all(const Tensor4& q, const Tensor4& k, const Tensor4& v, const Eigen::VectorXf& slopes, Tensor4& to) {
  auto [output, lse] = alibi::attention_with_lse(q, k, v, slopes);
  auto grad = alibi::attention_backward(output, q, k, v, slopes, {output, lse});
  alibi::KvCache<float> cache({.kv_heads = 8, .head_dim = 64, .capacity = 1024});
  cache.append(k, v);
  to = alibi::attention(q, cache, slopes) + grad.q;
}
CPP

# seconds <file> <flag>...: processor seconds of compiling it with -O3, the least of two.
seconds() {
  local file=$1 TIMEFORMAT='%U %S'
  shift
  for _ in 1 2; do
    { time "${CXX:-c++}" -std=c++20 -O3 -DNDEBUG -march=native -I "$root/include" -isystem "$eigen" "$@" -c \
      "$work/$file.cpp" -o "$work/$file.o" 2>"$work/messages"; } 2>&1 || cat "$work/messages" >&2
  done | awk '{ s = $1 + $2; if (NR == 1 || s < least) least = s } END { print least }'
}

unit=$(seconds eigen)
echo "Eigen's Core and Tensor headers: $unit s"
failures=0
# row <what> <seconds> <budget>
row() {
  local ratio
  ratio=$(awk -v s="$2" -v u="$unit" 'BEGIN { printf "%.2f", s / u }')
  echo "$1: $2 s, $ratio times that (budget $3)"
  awk -v r="$ratio" -v b="$3" 'BEGIN { exit !(r > b) }' && failures=$((failures + 1)) || true
}
row "one attention call, header-only" "$(seconds call)" 4.2
echo "the longest symbol of its object file: $(nm "$work/call.o" | awk '{ n = length($NF); if (n > m) m = n } END { print m }') characters"
row "one attention call, compiled library" "$(seconds call -DALIBI_COMPILED)" 1.5
row "forward, backward and cache, header-only" "$(seconds all)" 12
row "forward, backward and cache, compiled library" "$(seconds all -DALIBI_COMPILED)" 1.7
if [ "${1:-}" = --budget ]; then
  log=$root/build/log/build-tests.time
  [ -e "$log" ] && row "the build of the tests and of the compiled library" "$(awk '{ print $1 + $2 }' "$log")" 350
  exit $((failures > 0))
fi
