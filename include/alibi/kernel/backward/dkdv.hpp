// Sums over queries, with one row for each key: the two products of the backward pass that have no form in the forward.
//
//   G[key][d] += Σ_query p[key][query] · y[query][d]        dV = P' dO,   dK = τ dS' Q
//
// p is a tile as in the forward, [kScoreRows][kBlock]; one scalar of it is broadcast at a time. y holds rows of
// queries, [kBlock][padded dims], and G rows of keys. Both have rows of whole vectors, with zeros after the last dim.
// Internal.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/block.hpp"
#include "alibi/kernel/tile/microkernel.hpp"
#include "alibi/kernel/tile/rows.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

// The register tile. p has one row for each key and few queries to sum over, so that larger parts of both operands pay
// than in the products of the forward. Share of the multiply-add peak, with 16 lanes and 64 dims:
// 6 x 4 0.88, 4 x 4 0.80, 8 x 2 0.79.
inline constexpr int kKeyRows = kManyRegisters ? 6 : 4;
inline constexpr int kDimVectors = kManyRegisters ? 4 : 3;

/// The part of one block in the sums over queries: its tile p and its rows y.
template <class T>
struct KeyShare {
  const T *p, *y;
  const TileKeys* keys;
};

/// Adds to M keys from `key` on and N vectors of dims from `d` on. Skips the vectors of queries before `first`.
template <int M, int N, class T>
void key_rows(std::span<const KeyShare<T>> shares, Index key, int first, Index d, Index dims, T* g) {
  Vec<T> acc[std::size_t(M)][std::size_t(N)];
  T* const to = g + key * dims + d;
#pragma GCC unroll 8
  for (int a = 0; a < M; a++)
#pragma GCC unroll 4
    for (int r = 0; r < N; r++) acc[a][r] = load<T>(to + a * dims + r * kLanes<T>);
  const Index skipped = first * kLanes<T>;
  for (const KeyShare<T>& share : shares) {
    const T* row[std::size_t(M)];
#pragma GCC unroll 8
    for (int a = 0; a < M; a++) row[a] = share.p + (key + a) * kBlock<T> + skipped;
    multiply_add<0, N>(row, 1, share.y + skipped * dims + d, dims, share.keys->vectors * kLanes<T> - skipped, acc);
  }
#pragma GCC unroll 8
  for (int a = 0; a < M; a++)
#pragma GCC unroll 4
    for (int r = 0; r < N; r++) store<T>(to + a * dims + r * kLanes<T>, acc[a][r]);
}

/// Adds shares that have the same keys. `dims` is padded to whole vectors and is the stride of the rows.
template <class T>
void accumulate_shares(std::span<const KeyShare<T>> shares, Index dims, T* g) {
  const TileKeys& keys = *shares[0].keys;
  for (Index d = 0; d < dims;) {
    const Index left = (dims - d) / kLanes<T>;
    const int vectors = int(ceil_div(left, ceil_div(left, kDimVectors)));  // in parts of similar size
    with_vectors<kDimVectors>(vectors, [&](auto n) {
      int first = 0;  // vectors of queries before it see no more keys
      for (Index key = keys.begin; key < keys.end; key += kKeyRows) {
        while (key >= keys.ends[first]) first++;
        with_vectors<kKeyRows>(int(std::min<Index>(kKeyRows, keys.end - key)),
                               [&](auto m) { key_rows<m, n>(shares, key, first, d, dims, g); });
      }
    });
    d += vectors * kLanes<T>;
  }
}

/// Adds all shares: together if they have the same keys, so that G is loaded and stored once for all; else one by one.
template <class T>
void accumulate_dkdv(std::span<const KeyShare<T>> shares, Index dims, T* g) {
  const TileKeys& keys = *shares[0].keys;
  const bool alike = std::all_of(shares.begin(), shares.end(), [&](const KeyShare<T>& share) {
    return share.keys->begin == keys.begin && share.keys->end == keys.end && share.keys->ends[0] == keys.end;
  });
  if (alike) return accumulate_shares(shares, dims, g);
  for (std::size_t i = 0; i < shares.size(); i++) accumulate_shares(shares.subspan(i, 1), dims, g);
}

}  // namespace alibi::inline ALIBI_ISA::kernel
