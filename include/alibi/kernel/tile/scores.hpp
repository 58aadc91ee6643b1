// S = τ Q K' + bias, for one tile of keys and one block of queries, transposed: each lane is a query.
//
//   S[key][query] = start[key][query] + Σ_d k[key][d] · Q[d][query]
//
// Q holds the queries of the block as [units of head_dim][kBlock], scaled by τ log2 e. Pairs of bfloat16 are not
// scaled, because that would round them once more. Their sum is scaled instead, τ log2 e · Σ_d, and then added to the
// start. Internal.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/block.hpp"
#include "alibi/kernel/tile/load.hpp"
#include "alibi/kernel/tile/microkernel.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// The rows of a buffer of scores. Scores are computed for kRows keys at a time from any first key on, so that the last
/// rows may be in excess.
inline constexpr Index kScoreRows = kTile + kRows;

/// Scores of keys [key, key + kRows) and N vectors of queries from vector `r0` on. Rows in excess repeat the last key.
/// The units of a key are kDimStep apart.
template <Index kDimStep, int N, class U, class T, class Bias>
EIGEN_ALWAYS_INLINE void score_rows(const U* k, Index key_stride, Index dims, const U* q, T scale, const TileKeys& keys,
                                    Index key, int r0, const Bias& bias, Vec<T> (&acc)[kRows][kVectors]) {
  constexpr bool kPairs = kDepth<U> > 1;
  const U* row[kRows];
#pragma GCC unroll 8
  for (int a = 0; a < kRows; a++) {
    const Index j = std::min(key + a, keys.end - 1);
    row[a] = k + j * key_stride;
#pragma GCC unroll 4
    for (int r = 0; r < N; r++) acc[a][r] = kPairs ? broadcast<T>(T(0)) : bias.start(j, r0 + r);
  }
  multiply_add<0, N>(row, kDimStep, q + r0 * kLanes<T>, kBlock<T>, dims, acc);
  if constexpr (kPairs) {
#pragma GCC unroll 8
    for (int a = 0; a < kRows; a++)
#pragma GCC unroll 4
      for (int r = 0; r < N; r++)
        acc[a][r] = fma(acc[a][r], broadcast<T>(scale), bias.start(std::min(key + a, keys.end - 1), r0 + r));
  }
}

/// Sets the scores of keys that a lane does not see to -inf. `last` is the last key in use; rows in excess repeat it.
template <int N, class T, class Mask>
EIGEN_ALWAYS_INLINE void mask_scores(const Mask& mask, Index last, Index key, int r0, Vec<T> (&acc)[kRows][kVectors]) {
  if constexpr (!std::is_same_v<Mask, NoMask>) {
    const Vec<T> hidden = broadcast<T>(-std::numeric_limits<T>::infinity());
#pragma GCC unroll 8
    for (int a = 0; a < kRows; a++) {
      const Vec<T> j = broadcast<T>(T(std::min(key + a, last)));
#pragma GCC unroll 4
      for (int r = 0; r < N; r++)
        acc[a][r] = select_within(load<T>(mask.low + (r0 + r) * kLanes<T>), j,
                                  load<T>(mask.high + (r0 + r) * kLanes<T>), acc[a][r], hidden);
    }
  }
}

/// Computes the scores of the keys in use, kRows at a time, for the vectors of queries that need them. Calls
/// finish(n, key, r0, acc) with the scores of keys [key, key + kRows) and vectors r0 … r0 + n - 1 in acc[kRows][0 … n),
/// where n is a compile-time constant. Rows in excess repeat the last key. `dims` counts units. ahead() is called once
/// for each kRows keys, to prefetch.
template <Index kDimStep, class U, class T, class Bias, class Ahead, class Finish>
void score(const U* k, Index key_stride, Index dims, const U* q, T scale, const TileKeys& keys, const Bias& bias,
           Ahead& ahead, const Finish& finish) {
  int first = 0;  // vectors before it need no more keys
  for (Index key = keys.begin; key < keys.end; key += kRows) {
    while (key >= keys.ends[first]) first++;
    ahead();
    with_vectors(keys.vectors - first, [&](auto n) {
      Vec<T> acc[kRows][kVectors];
      score_rows<kDimStep, n>(k, key_stride, dims, q, scale, keys, key, first, bias, acc);
      finish(n, key, first, acc);
    });
  }
}

/// Stores the scores of the forward in s [kScoreRows][kBlock], rows in excess included, and updates `largest`, the
/// maximum of each lane.
template <class T, class Mask>
struct StoreScores {
  const Mask& mask;
  Index last;  // key in use
  T* s;
  Vec<T>* largest;

  template <int N>
  EIGEN_ALWAYS_INLINE void operator()(std::integral_constant<int, N>, Index key, int r0,
                                      Vec<T> (&acc)[kRows][kVectors]) const {
    mask_scores<N, T>(mask, last, key, r0, acc);
#pragma GCC unroll 8
    for (int a = 0; a < kRows; a++)
#pragma GCC unroll 4
      for (int r = 0; r < N; r++) {
        largest[r0 + r] = max(largest[r0 + r], acc[a][r]);
        store<T>(s + (key + a) * kBlock<T> + (r0 + r) * kLanes<T>, acc[a][r]);
      }
  }
};

}  // namespace alibi::inline ALIBI_ISA::kernel
