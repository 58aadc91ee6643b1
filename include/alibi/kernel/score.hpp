// S = τ Q K' + bias, one tile of keys against one block of queries, transposed: a lane is a query.
//
//   S[key][query] = start[key][query] + Σ_d k[key][d] · Q[d][query]
//
// Q holds the block's queries as [head_dim][kBlock], scaled by τ log2 e.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "alibi/kernel/block.hpp"
#include "alibi/kernel/product.hpp"
#include "alibi/kernel/rows.hpp"
#include "alibi/kernel/simd.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// Keys [key, key + kRows) against N vectors of queries from vector `r0` on. Behind the last key that one is repeated:
/// its further rows are computed, change nothing in `largest`, and are never used.
template <int N, class T, class Bias, class Mask>
EIGEN_ALWAYS_INLINE void score_rows(Rows<const T> k, Index head_dim, const T* q, const TileKeys& keys, Index key,
                                    int r0, const Bias& bias, const Mask& mask, T* s, Pack<T>* largest) {
  constexpr int W = kLanes<T>;
  const T* row[kRows];
  Pack<T> acc[kRows][kVectors];
#pragma GCC unroll 8
  for (int a = 0; a < kRows; a++) {
    const Index j = std::min(key + a, keys.end - 1);
    row[a] = k[keys.tile + j];
#pragma GCC unroll 4
    for (int r = 0; r < N; r++) acc[a][r] = bias.start(j, r0 + r);
  }
  multiply_add<0, N>(row, 1, q + r0 * W, head_dim, acc);
  if constexpr (!std::is_same_v<Mask, NoMask>) {
    const Pack<T> hidden = splat<T>(-std::numeric_limits<T>::infinity());
#pragma GCC unroll 8
    for (int a = 0; a < kRows; a++) {
      const Pack<T> j = splat<T>(T(std::min(key + a, keys.end - 1)));
#pragma GCC unroll 4
      for (int r = 0; r < N; r++) {
        acc[a][r] = select_le(j, load<T>(mask.high + (r0 + r) * W), acc[a][r], hidden);
        acc[a][r] = select_le(load<T>(mask.low + (r0 + r) * W), j, acc[a][r], hidden);
      }
    }
  }
#pragma GCC unroll 8
  for (int a = 0; a < kRows; a++)
#pragma GCC unroll 4
    for (int r = 0; r < N; r++) {
      largest[r0 + r] = max(largest[r0 + r], acc[a][r]);
      store<T>(s + (key + a) * kBlock<T> + (r0 + r) * W, acc[a][r]);
    }
}

/// Rows of a buffer of scores. Keys come kRows at a time from any first one on, so that the last rows may be in excess.
inline constexpr Index kScoreRows = kTile + kRows;

/// Scores of the keys in use, into s [kScoreRows][kBlock]; `largest`, by lane, takes their maximum.
template <class T, class Bias, class Mask, class Ahead>
void score(Rows<const T> k, Index head_dim, const T* q, const TileKeys& keys, const Bias& bias, const Mask& mask, T* s,
           Pack<T>* largest, Ahead& ahead) {
  int first = 0;  // the vectors before it need no more keys
  for (Index key = keys.begin; key < keys.end; key += kRows) {
    while (key >= keys.ends[first]) first++;
    ahead();
    with_vectors(keys.vectors - first,
                 [&](auto n) { score_rows<n>(k, head_dim, q, keys, key, first, bias, mask, s, largest); });
  }
}

}  // namespace alibi::inline ALIBI_ISA::kernel
