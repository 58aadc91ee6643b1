// Sums over queries, one row a key: the two products of the backward pass that the forward has no form of.
//
//   G[key][d] += Σ_query p[key][query] · y[query][d]        dV = P' dO,   dK = τ dS' Q
//
// p is a tile as the forward keeps it, [kScoreRows][kBlock], of which one scalar is broadcast; y are rows of queries,
// [kBlock][padded dims], and so are those of G: whole vectors, zeros behind the last dim.
#pragma once

#include <algorithm>

#include "alibi/kernel/block.hpp"
#include "alibi/kernel/product.hpp"
#include "alibi/kernel/rows.hpp"
#include "alibi/kernel/simd.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

// The register tile: p has a row a key and few queries to sum over, so that more of both operands pays than in the
// forward's products. Of the multiply-add peak, 16 lanes, 64 dims: 6 x 4 0.88, 4 x 4 0.80, 8 x 2 0.79.
inline constexpr int kKeyRows = kManyRegisters ? 6 : 4;
inline constexpr int kDimVectors = kManyRegisters ? 4 : 3;

/// M keys from the first of p and g, N vectors of dims from the first of y and g.
template <int M, int N, class T>
void key_rows(const T* p, const T* y, Index stride, Index queries, T* g) {
  const T* row[M];
  Pack<T> acc[M][N];
#pragma GCC unroll 8
  for (int a = 0; a < M; a++) {
    row[a] = p + a * kBlock<T>;
#pragma GCC unroll 4
    for (int r = 0; r < N; r++) acc[a][r] = load<T>(g + a * stride + r * kLanes<T>);
  }
  multiply_add<0, N>(row, 1, y, stride, queries, acc);
#pragma GCC unroll 8
  for (int a = 0; a < M; a++)
#pragma GCC unroll 4
    for (int r = 0; r < N; r++) store<T>(g + a * stride + r * kLanes<T>, acc[a][r]);
}

/// The keys in use. `dims` are padded, and what rows are apart.
template <class T>
void add_to_keys(const T* p, const TileKeys& keys, const T* y, Index dims, T* g) {
  for (Index d = 0; d < dims;) {
    const Index left = (dims - d) / kLanes<T>;
    const int vectors = int(pieces(left, pieces(left, kDimVectors)));  // in parts of like size
    with_vectors<kDimVectors>(vectors, [&](auto n) {
      int first = 0;  // the vectors of queries before it see no more keys
      for (Index key = keys.begin; key < keys.end; key += kKeyRows) {
        while (key >= keys.ends[first]) first++;
        const Index skipped = first * kLanes<T>;
        with_vectors<kKeyRows>(int(std::min<Index>(kKeyRows, keys.end - key)), [&](auto m) {
          key_rows<m, n>(p + key * kBlock<T> + skipped, y + skipped * dims + d, dims,
                         (keys.vectors - first) * kLanes<T>, g + key * dims + d);
        });
      }
    });
    d += vectors * kLanes<T>;
  }
}

}  // namespace alibi::inline ALIBI_ISA::kernel
