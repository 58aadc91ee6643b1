// Packing: rows of the caller's arrays into the order in which the register tile reads them.
//
//   queries, once per block            [head_dim][kBlock]               transposed and scaled
//   keys, once per tile of a task      [kTile / kPack][head_dim][kPack]  transposed
//   values, once per tile of a task    [value_dim / kPack][kTile][kPack]
//
// A tile's packing is shared by all the task's blocks: 2 · kTile · head_dim elements moved for up to
// 4 · kTile · head_dim · kBlock · kMostBlocks flops. Lanes, rows and dims behind the last hold zeros.
#pragma once

#include <algorithm>

#include "alibi/kernel/simd.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// Tokens of one head: row t is at data + t stride.
template <class T>
struct Rows {
  T* data;
  Index stride;
  T* operator[](Index t) const { return data + t * stride; }
  Rows from(Index t) const { return {(*this)[t], stride}; }
};

/// n / unit, rounded up.
constexpr Index pieces(Index n, Index unit) { return (n + unit - 1) / unit; }

/// Rows first, …, first + kLanes - 1, transposed: dim d of the i-th goes to to[d * width + i], times `scale`. Rows
/// outside [begin, end) are not read.
template <class T>
EIGEN_ALWAYS_INLINE void pack_transposed(Rows<const T> rows, Index first, Index begin, Index end, Index dims, T scale,
                                         T* to, Index width) {
  constexpr int W = kLanes<T>;
  for (Index d = 0; d < dims; d += W) {
    const Index n = std::min<Index>(W, dims - d);
    Pack<T> square[W];
    for (int i = 0; i < W; i++) {
      const bool inside = begin <= first + i && first + i < end;
      square[i] = !inside  ? splat<T>(T(0))
                  : n == W ? load<T>(rows[first + i] + d)
                           : load_first<T>(rows[first + i] + d, n);
    }
    transpose<T>(square);
    for (int i = 0; i < W && i < n; i++) store<T>(to + (d + i) * width, mul(square[i], splat<T>(scale)));
  }
}

/// Brings rows [next, end) of keys and values towards the cache, some at each call, so that a tile arrives while the
/// one before it is used.
template <class T>
struct Prefetch {
  Rows<const T> k, v;
  Index head_dim, value_dim;
  Index next, end, step;

  void operator()() {
    constexpr Index kLine = Index(64 / sizeof(T));
    for (const Index stop = std::min(next + step, end); next < stop; next++) {
      for (Index d = 0; d < head_dim; d += kLine) prefetch(k[next] + d);
      for (Index d = 0; d < value_dim; d += kLine) prefetch(v[next] + d);
    }
  }
};

}  // namespace alibi::inline ALIBI_ISA::kernel
