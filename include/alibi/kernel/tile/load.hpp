// A tile of keys and values as the products read it. If the stored type is the type that is multiplied, the tile is
// read in place. Otherwise it is widened, or paired for the dot product instruction, once for all blocks of a task.
//
// A tile that could be read in place is copied instead if several blocks use it and its rows are far apart, as those of
// [tokens, heads, head_dim] are: rows at a distance of a large power of two compete for a few sets of the first-level
// cache, so that every block would read the tile from the second level.
//
//   stored        rows                    a cache (cached.hpp)
//   keys          [kTile][head_dim]       [head_dim][kTile]
//   values        [kTile][value_dim]      [kTile][value_dim]
//
// A pair holds two dims of a key, or two keys of a value dim. Internal.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <type_traits>

#include "alibi/kernel/simd/bf16.hpp"
#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/bias.hpp"
#include "alibi/kernel/tile/cached.hpp"
#include "alibi/kernel/tile/rows.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

using alibi::detail::Sum;

/// How numbers are stored and multiplied: queries and output are of E, keys and values of S, in rows or in a cache.
/// `pairs`: the dot product instruction multiplies bfloat16. BiasPolicy is the kind of bias (kernel/tile/bias.hpp).
template <class E, class S, bool cached, bool pairs = false, class BiasPolicy = LinearBiasPolicy<Sum<E>>>
struct KernelTraits {
  using Query = E;
  using Stored = S;
  using T = Sum<E>;
  using Bias = BiasPolicy;
  static constexpr bool kPairs = pairs;
  static_assert(!pairs || (std::is_same_v<E, Bfloat16> && std::is_same_v<S, Bfloat16>));
  using Unit = std::conditional_t<kPairs, BfloatPair, T>;
  static constexpr bool kCached = cached;
  static constexpr bool kInPlace = std::is_same_v<S, Unit>;
  static constexpr Index kDimStep = cached ? kTile : 1;  // from one unit of a key to the next
};

/// The keys and values of one head.
template <class S>
struct KeyRows {
  Rows<const S> k, v;
};
template <class F>
using Source = std::conditional_t<F::kCached, Cached<typename F::Stored, typename F::T>, KeyRows<typename F::Stored>>;

/// Unit i of key j is k[j key_stride + i kDimStep]. Rows of values, or of pairs of values, are `value_stride` apart.
template <class U>
struct Tile {
  const U* k;
  Index key_stride;
  const U* v;
  Index value_stride;
};

/// Whether rows of `dims` numbers that are `stride` apart compete for the sets of the first-level cache. It has 64 sets
/// of 64 bytes: rows at a multiple of 512 bytes begin in 8 of them at most.
template <class T>
bool rows_compete(Index stride, Index dims) {
  constexpr Index kApart = 512 / Index(sizeof(T));
  return stride > dims && stride >= 2 * kApart && stride % kApart == 0;
}

/// The number of units of the buffer of a tile: keys, then values. `copies`: with room for a tile that could be read in
/// place.
template <class F>
constexpr Index tile_units(Index head_dim, Index value_dim, bool copies = false) {
  using U = typename F::Unit;
  if (F::kInPlace && (F::kCached || !copies)) return 0;
  const Index all = kTile * units<U>(head_dim) + units<U>(kTile) * value_dim;
  return ceil_div(all, kBlock<float>) * kBlock<float>;
}

/// Loads the first `count` keys and values of tile `number`. A tile that is not read in place is converted into
/// `buffer`, which has tile_units() units. `copies`: a tile whose rows compete is copied there.
template <class F>
Tile<typename F::Unit> load_tile(const Source<F>& source, Index number, Index count, Index head_dim, Index value_dim,
                                 typename F::Unit* buffer, bool copies = false) {
  using U = typename F::Unit;
  using S = typename F::Stored;
  const S *k, *v;
  Index key_stride = 1, value_stride = value_dim;
  if constexpr (F::kCached) {
    k = source.tile(number);
    v = k + source.value_offset;
  } else {
    k = source.k[number * kTile];
    v = source.v[number * kTile];
    key_stride = source.k.stride;
    value_stride = source.v.stride;
  }
  if constexpr (F::kInPlace) {
    if constexpr (!F::kCached) {
      const auto copy = [count](const U*& rows, Index& stride, Index dims, U* to) {
        for (Index j = 0; j < count; j++) std::copy_n(rows + j * stride, dims, to + j * dims);
        rows = to;
        stride = dims;
      };
      if (copies && rows_compete<U>(key_stride, head_dim)) copy(k, key_stride, head_dim, buffer);
      if (copies && rows_compete<U>(value_stride, value_dim))
        copy(v, value_stride, value_dim, buffer + kTile * head_dim);
    }
    return {k, key_stride, v, value_stride};
  } else {
    const Index dims = units<U>(head_dim);
    U *keys = buffer, *values = buffer + kTile * dims;
    if constexpr (F::kPairs) {
      const auto pair = [](const S* low, const S* high, Index n, U* to) {
        static constexpr S kZeros[kTile] = {};
        if (high) return interleave(low, high, n, to);
        for (Index i = 0; i < n; i += kTile) interleave(low + i, kZeros, std::min<Index>(n - i, kTile), to + i);
      };
      if constexpr (F::kCached) {
        for (Index i = 0; i < dims; i++)
          pair(k + 2 * i * kTile, 2 * i + 1 < head_dim ? k + (2 * i + 1) * kTile : nullptr, kTile, keys + i * kTile);
      } else {
        for (Index j = 0; j < count; j++) {
          keys[(j + 1) * dims - 1] = {};
          std::memcpy(static_cast<void*>(keys + j * dims), k + j * key_stride, std::size_t(head_dim) * sizeof(S));
        }
        if (count % 2) std::fill_n(keys + count * dims, dims, U{});
      }
      for (Index j = 0; j < count; j += 2)
        pair(v + j * value_stride, j + 1 < count ? v + (j + 1) * value_stride : nullptr, value_dim,
             values + j / 2 * value_dim);
    } else {
      bool half;
      if constexpr (F::kCached)
        half = source.half;
      else if constexpr (std::is_same_v<S, Narrow>)
        half = source.k.half;
      else
        half = false;
      if constexpr (F::kCached)
        widen_rows(rows_at(k, 0, half), 0, 1, head_dim * kTile, keys, 0);
      else
        widen_rows(rows_at(k, key_stride, half), 0, count, head_dim, keys, dims);
      widen_rows(rows_at(v, value_stride, half), 0, count, value_dim, values, value_dim);
    }
    return {keys, F::kCached ? 1 : dims, values, value_dim};
  }
}

/// Prefetches tile `number` of a head with `keys` keys, spread over `calls` calls.
template <class F>
Prefetch prefetch_tile(const Source<F>& source, Index number, Index keys, Index head_dim, Index value_dim,
                       Index calls) {
  if constexpr (F::kCached) {
    const auto* k = source.tile(number);
    return {k, head_dim, head_dim, k + source.value_offset, value_dim, value_dim, kTile, calls};
  } else {
    const Index first = number * kTile;
    return {source.k[first],
            source.k.stride,
            head_dim,
            source.v[first],
            source.v.stride,
            value_dim,
            std::min<Index>(kTile, keys - first),
            calls};
  }
}

}  // namespace alibi::inline ALIBI_ISA::kernel
