// Sums over queries, one row a key: the two products of the backward pass that the forward has no form of.
//
//   G[key][d] += Σ_query p[key][query] · y[query][d]        dV = P' dO,   dK = τ dS' Q
//
// p is a tile as the forward keeps it, [kScoreRows][kBlock], of which one scalar is broadcast; y are rows of queries,
// [kBlock][padded dims], and so are those of G: whole vectors, zeros behind the last dim.
#pragma once

#include "alibi/kernel/block.hpp"
#include "alibi/kernel/product.hpp"
#include "alibi/kernel/rows.hpp"
#include "alibi/kernel/simd.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// kRows keys from the first of p and g, N vectors of dims from the first of y and g.
template <int N, class T>
EIGEN_ALWAYS_INLINE void key_rows(const T* p, const T* y, Index stride, Index queries, T* g) {
  const T* row[kRows];
  Pack<T> acc[kRows][kVectors];
#pragma GCC unroll 8
  for (int a = 0; a < kRows; a++) {
    row[a] = p + a * kBlock<T>;
#pragma GCC unroll 4
    for (int r = 0; r < N; r++) acc[a][r] = load<T>(g + a * stride + r * kLanes<T>);
  }
  multiply_add<0, N>(row, 1, y, stride, queries, acc);
#pragma GCC unroll 8
  for (int a = 0; a < kRows; a++)
#pragma GCC unroll 4
    for (int r = 0; r < N; r++) store<T>(g + a * stride + r * kLanes<T>, acc[a][r]);
}

/// The keys in use, kRows at a time; rows of p in excess are 0. `dims` are padded, and what rows are apart.
template <class T>
void add_to_keys(const T* p, const TileKeys& keys, const T* y, Index dims, T* g) {
  for (Index d = 0; d < dims;) {
    const Index left = (dims - d) / kLanes<T>;
    const int vectors = left == 4 ? 2 : int(left < kVectors ? left : kVectors);  // 2 + 2: one alone waits for loads
    with_vectors(vectors, [&](auto n) {
      int first = 0;  // the vectors of queries before it see no more keys
      for (Index key = keys.begin; key < keys.end; key += kRows) {
        while (key >= keys.ends[first]) first++;
        const Index skipped = first * kLanes<T>;
        key_rows<n>(p + key * kBlock<T> + skipped, y + skipped * dims + d, dims, (keys.vectors - first) * kLanes<T>,
                    g + key * dims + d);
      }
    });
    d += vectors * kLanes<T>;
  }
}

}  // namespace alibi::inline ALIBI_ISA::kernel
