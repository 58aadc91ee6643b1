// S = τ Q K' + bias, one tile of keys against one block of queries, transposed: a lane is a query.
//
//   S[key][query] = start[key][query] + Σ_d k[key][d] · Q[d][query]
//
// Q holds the block's queries as [units of head_dim][kBlock], scaled by τ log2 e; pairs of bfloat16 are not scaled,
// that would round them once more: there the sum is, τ log2 e · Σ_d, before the start joins.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "alibi/kernel/block.hpp"
#include "alibi/kernel/product.hpp"
#include "alibi/kernel/simd.hpp"
#include "alibi/kernel/tile.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// Keys [key, key + kRows) against N vectors of queries from vector `r0` on. Behind the last key that one is repeated:
/// its further rows are computed, change nothing in `largest`, and are never used.
template <class F, int N, class T, class Bias, class Mask>
EIGEN_ALWAYS_INLINE void score_rows(const Tile<typename F::Unit>& tile, Index dims, const typename F::Unit* q, T scale,
                                    const TileKeys& keys, Index key, int r0, const Bias& bias, const Mask& mask, T* s,
                                    Pack<T>* largest) {
  constexpr int W = kLanes<T>;
  const typename F::Unit* row[kRows];
  Pack<T> acc[kRows][kVectors];
#pragma GCC unroll 8
  for (int a = 0; a < kRows; a++) {
    const Index j = std::min(key + a, keys.end - 1);
    row[a] = tile.k + j * tile.key_stride;
#pragma GCC unroll 4
    for (int r = 0; r < N; r++) acc[a][r] = F::kPairs ? splat<T>(T(0)) : bias.start(j, r0 + r);
  }
  multiply_add<0, N>(row, F::kDimStep, q + r0 * W, kBlock<T>, dims, acc);
  if constexpr (F::kPairs) {
#pragma GCC unroll 8
    for (int a = 0; a < kRows; a++)
#pragma GCC unroll 4
      for (int r = 0; r < N; r++)
        acc[a][r] = fma(acc[a][r], splat<T>(scale), bias.start(std::min(key + a, keys.end - 1), r0 + r));
  }
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

/// Scores of the keys in use, into s [kScoreRows][kBlock]; `largest`, by lane, takes their maximum. `dims` counts
/// units.
template <class F, class T, class Bias, class Mask, class Ahead>
void score(const Tile<typename F::Unit>& tile, Index dims, const typename F::Unit* q, T scale, const TileKeys& keys,
           const Bias& bias, const Mask& mask, T* s, Pack<T>* largest, Ahead& ahead) {
  int first = 0;  // the vectors before it need no more keys
  for (Index key = keys.begin; key < keys.end; key += kRows) {
    while (key >= keys.ends[first]) first++;
    ahead();
    with_vectors(keys.vectors - first,
                 [&](auto n) { score_rows<F, n>(tile, dims, q, scale, keys, key, first, bias, mask, s, largest); });
  }
}

}  // namespace alibi::inline ALIBI_ISA::kernel
