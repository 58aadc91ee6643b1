// The register tile that both matrix products of attention are made of.
//
//   acc[a][lane] += Σ_i x[i][a] · y[i][lane]        a < kRows, lanes of N vectors
//
// For scores x is a key's scalars by head dim and y the packed queries; for values x is a value row's scalars and y the
// probabilities. Counted per i: kRows · N multiply-adds against kRows broadcasts and N loads.
//
// x is packed (pack.hpp), so that it is read in the order of memory, whatever the strides of the caller's array: measured
// at head_dim 64, 15 % of the time of the value product when rows lie 2 KiB apart and compete for the same cache sets.
#pragma once

#include "alibi/kernel/simd.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// x: rows of kPack, of which the first kRows count; y: rows of kBlock, of which vectors [R, N) count.
template <int R, int N, class T>
EIGEN_ALWAYS_INLINE void multiply_add(const T* x, const T* y, Index length, Pack<T> (&acc)[kRows][kVectors]) {
  for (Index i = 0; i < length; i++) {
    Pack<T> vector[N];
#pragma GCC unroll 4
    for (int r = R; r < N; r++) vector[r] = load<T>(y + r * kLanes<T>);
#pragma GCC unroll 8
    for (int a = 0; a < kRows; a++) {
      const Pack<T> scalar = splat<T>(x[a]);
#pragma GCC unroll 4
      for (int r = R; r < N; r++) acc[a][r] = fma(scalar, vector[r], acc[a][r]);
    }
    x += kPack<T>;
    y += kBlock<T>;
  }
}

/// Calls f with n as a compile-time constant, 1 <= n <= N.
template <int N, class F>
EIGEN_ALWAYS_INLINE void with_vectors(int n, const F& f) {
  if constexpr (N > 1) {
    if (n < N) return with_vectors<N - 1>(n, f);
  }
  f(std::integral_constant<int, N>());
}

}  // namespace alibi::inline ALIBI_ISA::kernel
