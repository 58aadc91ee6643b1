// The register tile of both matrix products of attention.
//
//   acc[a][lane] += Σ_i x[a][i] · y[i][lane]        a < M, lanes of N vectors
//
// The forward has two products. For scores, x is M keys, y the transposed queries, and i runs over head_dim. For
// values, x is M dims of the value rows, y the probabilities, and i runs over the keys. x is read in place, one scalar
// broadcast for N vectors, so that nothing is packed or transposed per tile. Decoding exchanges the two: x is M queries
// or their probabilities, and y the keys of a cache or the value rows. Each i takes M · N multiply-adds, M broadcasts
// and N loads. Internal.
#pragma once

#include <cstddef>
#include <type_traits>

#include "alibi/kernel/simd/bf16.hpp"
#include "alibi/kernel/simd/vec.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// x[a] points at the first scalar of a row, whose scalars are `step` apart. Rows of y are `stride` apart, and only
/// vectors [R, N) of them are used. X is the type of the sums, or BfloatPair, with two products per entry; then y holds
/// pairs too. y is widened as it is read.
template <int R, int N, std::size_t M, std::size_t V, class X, class Y, class P>
EIGEN_ALWAYS_INLINE void multiply_add(const X* const (&x)[M], Index step, const Y* y, Index stride, Index length,
                                      P (&acc)[M][V]) {
#pragma GCC unroll 4
  for (Index i = 0; i < length; i++) {
    Vec<X> vector[std::size_t(N)];
#pragma GCC unroll 8
    for (int r = R; r < N; r++) vector[r] = widen<X>(y + i * stride + r * kLanes<X>);
#pragma GCC unroll 8
    for (std::size_t a = 0; a < M; a++) {
      const Vec<X> scalar = broadcast<X>(x[a][i * step]);
#pragma GCC unroll 8
      for (int r = R; r < N; r++) acc[a][r] = fma(scalar, vector[r], acc[a][r]);
    }
  }
}

/// The same for contiguous rows of x that lie XStride apart. With a constant stride one register addresses all rows.
/// The loop is not unrolled, because g++ then loads the scalars of later entries early and spills.
template <int N, Index XStride, std::size_t M, std::size_t V, class X, class Y, class P>
EIGEN_ALWAYS_INLINE void multiply_add_rows(const X* x, const Y* y, Index stride, Index length, P (&acc)[M][V]) {
#pragma GCC unroll 1
  for (Index i = 0; i < length; i++) {
    Vec<X> vector[std::size_t(N)];
#pragma GCC unroll 8
    for (int r = 0; r < N; r++) vector[r] = widen<X>(y + i * stride + r * kLanes<X>);
#pragma GCC unroll 8
    for (std::size_t a = 0; a < M; a++) {
      const Vec<X> scalar = broadcast<X>(x[Index(a) * XStride + i]);
#pragma GCC unroll 8
      for (int r = 0; r < N; r++) acc[a][r] = fma(scalar, vector[r], acc[a][r]);
    }
  }
}

/// Calls f with n as a compile-time constant; 1 <= n <= N.
template <int N = kVectors, class F>
EIGEN_ALWAYS_INLINE void with_vectors(int n, const F& f) {
  if constexpr (N > 1) {
    if (n < N) return with_vectors<N - 1>(n, f);
  }
  f(std::integral_constant<int, N>());
}

}  // namespace alibi::inline ALIBI_ISA::kernel
