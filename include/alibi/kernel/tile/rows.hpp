// Rows: the tokens of one head, and how they are loaded.
//
//   queries           once per block, as [units of head_dim][kBlock]: transposed, scaled, one lane for each query
//   keys and values   read in place, or widened or paired once per tile (kernel/tile/load.hpp); prefetched before
//
// Internal.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "alibi/kernel/simd/bf16.hpp"
#include "alibi/kernel/simd/vec.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// The tokens of one head. Row t is at data + t stride.
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

/// A bfloat16 or a half. Which of the two is known at run time, so that a kernel that computes in float is compiled
/// once for both. Rows<Narrow>::half tells them apart.
struct Narrow {
  std::uint16_t bits;
};
template <class T>
  requires std::is_same_v<std::remove_const_t<T>, Narrow>
struct Rows<T> {
  T* data;
  Index stride;
  bool half;

  T* operator[](Index t) const { return data + t * stride; }
};

/// The element type that kernels use for arrays of E.
template <class E>
using Erased = std::conditional_t<sizeof(E) == 2, Narrow, E>;

template <class T>
Rows<T> rows_at(T* data, Index stride, bool half) {
  if constexpr (std::is_same_v<std::remove_const_t<T>, Narrow>)
    return {data, stride, half};
  else
    return {data, stride};
}

/// Calls f with the rows, typed by the scalar that they hold.
template <class T, class Body>
void with_scalar(const Rows<T>& rows, const Body& f) {
  if constexpr (std::is_same_v<T, const Narrow>) {
    rows.half ? f(Rows<const Half>{reinterpret_cast<const Half*>(rows.data), rows.stride})
              : f(Rows<const Bfloat16>{reinterpret_cast<const Bfloat16*>(rows.data), rows.stride});
  } else if constexpr (std::is_same_v<T, Narrow>) {
    rows.half ? f(Rows<Half>{reinterpret_cast<Half*>(rows.data), rows.stride})
              : f(Rows<Bfloat16>{reinterpret_cast<Bfloat16*>(rows.data), rows.stride});
  } else {
    f(rows);
  }
}

/// Converts rows [first, first + count) of `dims` values to T and stores them at `to`, `stride` apart.
template <class T, class E>
void widen_rows(const Rows<const E>& rows, Index first, Index count, Index dims, T* to, Index stride) {
  with_scalar(rows, [&](const auto& typed) {
    for (Index i = 0; i < count; i++) widen_row(typed[first + i], dims, to + i * stride);
  });
}

/// n / unit, rounded up.
constexpr Index ceil_div(Index n, Index unit) { return (n + unit - 1) / unit; }

/// n, rounded up to whole vectors of T.
template <class T>
constexpr Index round_up(Index n) {
  return ceil_div(n, kLanes<T>) * kLanes<T>;
}

/// The number of dims, or keys, in a unit: 1, or 2 in a pair.
template <class U>
inline constexpr Index kDepth = std::is_same_v<U, BfloatPair> ? 2 : 1;
/// The number of units in `dims` dims.
template <class U>
constexpr Index units(Index dims) {
  return ceil_div(dims, kDepth<U>);
}

/// The type of a unit in a transposition: a pair is moved as the bits of a float.
template <class U>
using Carrier = std::conditional_t<std::is_same_v<U, BfloatPair>, float, U>;

/// Loads up to kLanes units from a row with `left` dims left. Lanes after the last unit are 0. Reads nothing after the
/// row.
template <class U, class E>
EIGEN_ALWAYS_INLINE Vec<Carrier<U>> load_units(const E* p, Index left) {
  using C = Carrier<U>;
  if constexpr (std::is_same_v<U, BfloatPair>) {
    if (left >= 2 * kLanes<C>) return load<C>(reinterpret_cast<const C*>(p));
    BfloatPair all[kLanes<C>] = {};
    std::memcpy(static_cast<void*>(all), p, std::size_t(left) * sizeof(E));
    return load<C>(reinterpret_cast<const C*>(all));
  } else {
    if (left >= kLanes<C>) return widen<C>(p);
    C all[kLanes<C>] = {};
    for (Index i = 0; i < left; i++) all[i] = C(p[i]);
    return load<C>(all);
  }
}

/// Packs rows [first, first + count) transposed: unit d of row first + i goes to to[d * kBlock + i], for i < kLanes.
/// Values are multiplied by `scale`, pairs are not. Lanes after the last row hold zeros.
template <class U, class E, class T>
void pack_transposed(Rows<const E> rows, Index first, Index count, Index dims, T scale, U* to) {
  using C = Carrier<U>;
  constexpr int W = kLanes<C>;
  C* into = reinterpret_cast<C*>(to);
  for (Index d = 0, left = dims; left > 0; d += W, left -= W * kDepth<U>) {
    const Index n = std::min<Index>(W, units<U>(left));
    Vec<C> square[std::size_t(W)];
    for (int i = 0; i < W; i++)
      square[i] = i >= count ? broadcast<C>(C(0)) : load_units<U>(rows[first + i] + d * kDepth<U>, left);
    transpose<C>(square);
    for (int i = 0; i < W && i < n; i++) {
      if constexpr (std::is_same_v<U, T>) square[i] = mul(square[i], broadcast<T>(scale));
      store<C>(into + (d + i) * kBlock<T>, square[i]);
    }
  }
}

template <class U, class T>
void pack_transposed(Rows<const Narrow> rows, Index first, Index count, Index dims, T scale, U* to) {
  with_scalar(rows, [&](const auto& typed) { pack_transposed(typed, first, count, dims, scale, to); });
}

/// The inverse: lane i of dim d, at from[d * kBlock + i], multiplied by the `scale` of the lane, goes to dim d of
/// rows[first + i]. If `adds`, it is added to the value there.
template <bool adds = false, class T, class E>
void unpack_transposed(const T* from, Vec<T> scale, Index dims, Rows<E> rows, Index first, Index count) {
  constexpr int W = kLanes<T>;
  for (Index d = 0; d < dims; d += W) {
    const Index n = std::min<Index>(W, dims - d);
    Vec<T> square[std::size_t(W)];
    for (int i = 0; i < W; i++)
      square[i] = i < n ? mul(load<T>(from + (d + i) * kBlock<T>), scale) : broadcast<T>(T(0));
    transpose<T>(square);
    for (int i = 0; i < W && i < count; i++) {
      E* const to = rows[first + i] + d;
      if constexpr (adds) square[i] = add(square[i], load_units<T>(to, n));
      narrow_first(to, square[i], n);
    }
  }
}

template <class T>
void unpack_transposed(const T* from, Vec<T> scale, Index dims, Rows<Narrow> rows, Index first, Index count) {
  with_scalar(rows, [&](const auto& typed) { unpack_transposed<false>(from, scale, dims, typed, first, count); });
}

/// Prefetches rows of up to two arrays, some at each call, while other rows are in use.
class Prefetch {
 public:
  Prefetch() = default;
  /// `count` rows of each array, spread over `calls` calls.
  template <class A, class B>
  Prefetch(const A* a, Index a_stride, Index a_size, const B* b, Index b_stride, Index b_size, Index count, Index calls)
      : a_{bytes(a), a_stride * Index(sizeof(A)), a_size * Index(sizeof(A))},
        b_{bytes(b), b_stride * Index(sizeof(B)), b_size * Index(sizeof(B))},
        left_(count),
        step_(ceil_div(count, calls)) {}

  EIGEN_ALWAYS_INLINE void operator()() {
    for (Index stop = std::max<Index>(left_ - step_, 0); left_ > stop; left_--) {
      a_.take();
      b_.take();
    }
  }

 private:
  static const char* bytes(const void* p) { return static_cast<const char*>(p); }
  struct Array {
    const char* at;
    Index stride, size;
    void take() {
      for (Index i = 0; i < size; i += 64) prefetch(at + i);
      at += stride;
    }
  };
  Array a_{}, b_{};
  Index left_ = 0, step_ = 0;
};

}  // namespace alibi::inline ALIBI_ISA::kernel
