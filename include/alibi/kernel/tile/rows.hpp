// Rows: the tokens of one head, and how they come near.
//
//   queries           packed once per block as [units of head_dim][kBlock]: transposed, scaled, one lane a query
//   keys and values   read where they lie, or widened or paired once per tile (tile.hpp); asked for ahead of time
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "alibi/kernel/simd/bf16.hpp"
#include "alibi/kernel/simd/vec.hpp"

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

/// A bfloat16 or a half: which of the two is known at run time, so that a kernel that works in float is compiled once
/// for both. Rows of them say which.
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

/// What kernels read and write arrays of E as.
template <class E>
using Erased = std::conditional_t<sizeof(E) == 2, Narrow, E>;

template <class T>
Rows<T> rows_at(T* data, Index stride, bool half) {
  if constexpr (std::is_same_v<std::remove_const_t<T>, Narrow>)
    return {data, stride, half};
  else
    return {data, stride};
}

/// Calls f with the rows as rows of what they hold.
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

/// Rows [first, first + count) of `dims` numbers as T, `stride` from one to the next.
template <class T, class E>
void widen_rows(const Rows<const E>& rows, Index first, Index count, Index dims, T* to, Index stride) {
  with_scalar(rows, [&](const auto& typed) {
    for (Index i = 0; i < count; i++) widen_row(typed[first + i], dims, to + i * stride);
  });
}

/// n / unit, rounded up.
constexpr Index ceil_div(Index n, Index unit) { return (n + unit - 1) / unit; }

/// n, rounded up to whole vectors.
template <class T>
constexpr Index round_up(Index n) {
  return ceil_div(n, kLanes<T>) * kLanes<T>;
}

/// Units in `dims` dims: a unit is a dim, or a pair of them.
template <class U>
inline constexpr Index kDepth = std::is_same_v<U, BfloatPair> ? 2 : 1;
template <class U>
constexpr Index units(Index dims) {
  return ceil_div(dims, kDepth<U>);
}

/// The bits of one unit as a float or double: what a transposition moves is no number.
template <class U>
using Carrier = std::conditional_t<std::is_same_v<U, BfloatPair>, float, U>;

/// n <= kLanes units of a row of `left` dims, zeros behind the last; touches nothing behind them.
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

/// Rows [first, first + count), transposed: unit d of the i-th of them goes to to[d * kBlock + i], i < kLanes, numbers
/// (not pairs) times `scale`; lanes behind the last row hold zeros.
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

/// The other way round: lane i of dim d at from[d * kBlock + i], times the lane's `scale`, to rows[first + i]. With
/// `adds` it joins what is there.
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

/// Brings rows of up to two arrays towards the cache, some at each call, so that they arrive while others are used.
class Prefetch {
 public:
  Prefetch() = default;
  /// `count` rows of each, at so many calls.
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
