// Rows: the tokens of one head, and how they come near.
//
//   queries           packed once per block as [head_dim][kBlock]: transposed, scaled, one lane a query
//   keys and values   read where they lie, and asked for ahead of time
#pragma once

#include <algorithm>
#include <type_traits>

#include "alibi/kernel/simd.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// Tokens of one head: row t is at data + t stride.
template <class T>
struct Rows {
  T* data;
  Index stride;

  T* operator[](Index t) const { return data + t * stride; }
  operator Rows<const T>() const
    requires(!std::is_const_v<T>)
  {
    return {data, stride};
  }
};

/// n / unit, rounded up.
constexpr Index pieces(Index n, Index unit) { return (n + unit - 1) / unit; }

/// Rows [first, first + count), count <= kLanes, transposed: dim d of the i-th goes to to[d * kBlock + i], times
/// `scale`; lanes behind the last hold zeros.
template <class T>
EIGEN_ALWAYS_INLINE void pack_transposed(Rows<const T> rows, Index first, Index count, Index dims, T scale, T* to) {
  constexpr int W = kLanes<T>;
  for (Index d = 0; d < dims; d += W) {
    const Index n = std::min<Index>(W, dims - d);
    Pack<T> square[W];
    for (int i = 0; i < W; i++) square[i] = i >= count ? splat<T>(T(0)) : load_first<T>(rows[first + i] + d, n);
    transpose<T>(square);
    for (int i = 0; i < W && i < n; i++) store<T>(to + (d + i) * kBlock<T>, mul(square[i], splat<T>(scale)));
  }
}

/// The other way round: lane i of dim d at from[d * kBlock + i], times the lane's `scale`, to rows[first + i].
template <class T>
EIGEN_ALWAYS_INLINE void unpack_transposed(const T* from, Pack<T> scale, Index dims, Rows<T> rows, Index first,
                                           Index count) {
  constexpr int W = kLanes<T>;
  for (Index d = 0; d < dims; d += W) {
    const Index n = std::min<Index>(W, dims - d);
    Pack<T> square[W];
    for (int i = 0; i < W; i++) square[i] = i < n ? mul(load<T>(from + (d + i) * kBlock<T>), scale) : splat<T>(T(0));
    transpose<T>(square);
    for (int i = 0; i < W && i < count; i++) store_first<T>(rows[first + i] + d, square[i], n);
  }
}

/// Brings rows [next, end) of two arrays towards the cache, some at each call, so that they arrive while others are
/// used.
template <class T>
struct Prefetch {
  Rows<const T> a, b;
  Index a_dims, b_dims;
  Index next, end, step;

  void operator()() {
    constexpr Index kLine = Index(64 / sizeof(T));
    for (const Index stop = std::min(next + step, end); next < stop; next++) {
      for (Index d = 0; d < a_dims; d += kLine) prefetch(a[next] + d);
      for (Index d = 0; d < b_dims; d += kLine) prefetch(b[next] + d);
    }
  }
};

}  // namespace alibi::inline ALIBI_ISA::kernel
