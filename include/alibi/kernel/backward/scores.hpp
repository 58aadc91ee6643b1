// What the backward pass computes from the sums of a tile: probabilities from scores, P = 2^(S - lse), and the
// gradients of the scores from the products of values and grad_output, dS = P ∘ (dP - D). Both are passed as `finish`
// to score() of kernel/tile/scores.hpp. Internal.
#pragma once

#include <type_traits>

#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/scores.hpp"
#include "alibi/kernel/tile/softmax.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// P = 2^(S - lse) from the scores of the forward. 0 in rows in excess, and for vectors of queries that do not need a
/// row.
template <class T, class Mask>
struct Probabilities {
  const Mask& mask;
  Index end;  // one after the last key in use
  const Vec<T>* shift;
  T* p;  // [kScoreRows][kBlock]

  template <int N>
  EIGEN_ALWAYS_INLINE void operator()(std::integral_constant<int, N>, Index key, int r0,
                                      Vec<T> (&acc)[kRows][kVectors]) const {
    constexpr bool kMasked = !std::is_same_v<Mask, NoMask>;
    mask_scores<N, T>(mask, end - 1, key, r0, acc);
#pragma GCC unroll 8
    for (int a = 0; a < kRows; a++) {
      T* const row = p + (key + a) * kBlock<T>;
      for (int r = 0; r < r0; r++) store<T>(row + r * kLanes<T>, broadcast<T>(T(0)));
#pragma GCC unroll 4
      for (int r = 0; r < N; r++) {
        Vec<T> weight = probability<kMasked, T>(sub(acc[a][r], shift[r0 + r]));
        if (key + a >= end) weight = broadcast<T>(T(0));
        store<T>(row + (r0 + r) * kLanes<T>, weight);
      }
    }
  }
};

/// Replaces P by dS = P ∘ (dP - D) and adds dS to the gradient of the bias.
template <class T, class BiasTile>
struct ScoreGradients {
  const BiasTile& bias;
  T* p;

  template <int N>
  EIGEN_ALWAYS_INLINE void operator()(std::integral_constant<int, N>, Index key, int r0,
                                      Vec<T> (&acc)[kRows][kVectors]) const {
#pragma GCC unroll 4
    for (int r = 0; r < N; r++) {
      Vec<T> ds[kRows];
#pragma GCC unroll 8
      for (int a = 0; a < kRows; a++) {
        T* const at = p + (key + a) * kBlock<T> + (r0 + r) * kLanes<T>;
        ds[a] = mul(load<T>(at), acc[a][r]);
        store<T>(at, ds[a]);
      }
      bias.add(key, r0 + r, ds);
    }
  }
};

/// The start of sums from one value for each lane.
template <class T>
struct LaneStart {
  const T* lanes;
  EIGEN_ALWAYS_INLINE Vec<T> start(Index, int r) const { return load<T>(lanes + r * kLanes<T>); }
};

}  // namespace alibi::inline ALIBI_ISA::kernel
