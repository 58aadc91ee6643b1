// Named views for the layouts of other libraries, so that nobody computes strides by hand. The names are those of
// Transformer Engine: b batch, s tokens, h heads, d head_dim, 3 the three arrays of a fused projection.
//
//   view_bshd    [batch, tokens, heads, head_dim]         FlashAttention, JAX, most inference engines
//   view_bs3hd   [batch, tokens, 3, heads, head_dim]      MPT, GPT-2; grouped: [batch, tokens, heads + 2 kv_heads,
//                                                         head_dim], as Falcon's multi-query attention
//   view_bsh3d   [batch, tokens, heads, 3, head_dim]      BLOOM, Falcon-RW, GPT-NeoX
//
// Grouped heads of Falcon's newer layout, [batch, tokens, kv_heads, heads / kv_heads + 2, head_dim], have no single
// stride from one query head to the next. view_bsh3d_grouped() therefore gives the kv heads of one batch entry as a
// batch.
//
// view(pointer, sizes, strides) and tensors take [batch, heads, tokens, head_dim]. Every view reads memory in place.
// Errors: std::invalid_argument for sizes below 0, or heads that are no multiple of kv_heads.
#pragma once

#include <array>

#include "alibi/error.hpp"
#include "alibi/view.hpp"

namespace alibi {

/// The sizes of an array of queries, or of queries, keys and values.
struct LayoutSizes {
  Index batch = 1;     ///< the number of batch entries
  Index tokens = 0;    ///< the number of tokens of each batch entry
  Index heads = 0;     ///< the number of query heads
  Index head_dim = 0;  ///< the size of a query, key or value
  Index kv_heads = 0;  ///< the number of kv heads; 0: as many as heads
};

/// The three arrays of a fused projection.
template <class T>
struct QkvViews {
  View<T> q,  ///< [batch, heads, tokens, head_dim]
      k,      ///< [batch, kv_heads, tokens, head_dim]
      v;      ///< [batch, kv_heads, tokens, head_dim]
};

inline namespace ALIBI_ABI {

namespace detail {

/// The sizes with kv_heads filled in. Throws std::invalid_argument for sizes below 0, or heads that are no multiple of
/// kv_heads.
inline LayoutSizes checked_layout(LayoutSizes sizes) {
  if (sizes.kv_heads == 0) sizes.kv_heads = sizes.heads;
  require(sizes.batch >= 0 && sizes.tokens >= 0 && sizes.heads >= 0 && sizes.kv_heads >= 0 && sizes.head_dim >= 0,
          "the sizes of the layout are batch ", sizes.batch, ", tokens ", sizes.tokens, ", heads ", sizes.heads,
          ", head_dim ", sizes.head_dim, ", kv_heads ", sizes.kv_heads, "; expected none below 0");
  require(sizes.kv_heads == 0 || sizes.heads % sizes.kv_heads == 0, "heads is ", sizes.heads,
          "; expected a multiple of ", sizes.kv_heads, ", the kv_heads");
  checked_product({3, sizes.batch, sizes.tokens, sizes.heads, sizes.head_dim}, "the layout");
  return sizes;
}

/// The element `offset` after `data`; null stays null.
template <class T>
T* after(T* data, Index offset) {
  return data ? data + offset : data;
}

}  // namespace detail

/// A view of an array [batch, tokens, heads, head_dim]; kv_heads is not used. Throws std::invalid_argument for sizes
/// below 0.
template <class T>
View<T> view_bshd(T* data, const LayoutSizes& sizes) {
  const auto [b, s, h, d, kv] = detail::checked_layout({sizes.batch, sizes.tokens, sizes.heads, sizes.head_dim});
  return view(data, {b, h, s, d}, {s * h * d, d, h * d, 1});
}

/// Views of a fused array [batch, tokens, 3, heads, head_dim]. With fewer kv_heads than heads it is [batch, tokens,
/// heads + 2 kv_heads, head_dim]: the query heads first, then the heads of k, then those of v. Throws
/// std::invalid_argument for sizes below 0, or heads that are no multiple of kv_heads.
template <class T>
QkvViews<T> view_bs3hd(T* data, const LayoutSizes& sizes) {
  const auto [b, s, h, d, kv] = detail::checked_layout(sizes);
  const Index token = (h + 2 * kv) * d;
  return {view(data, {b, h, s, d}, {s * token, d, token, 1}),
          view(detail::after(data, h * d), {b, kv, s, d}, {s * token, d, token, 1}),
          view(detail::after(data, (h + kv) * d), {b, kv, s, d}, {s * token, d, token, 1})};
}

/// Views of a fused array [batch, tokens, heads, 3, head_dim]: q, k and v of each head side by side. Throws
/// std::invalid_argument for sizes below 0, and for kv_heads other than 0 or heads.
template <class T>
QkvViews<T> view_bsh3d(T* data, const LayoutSizes& sizes) {
  const auto [b, s, h, d, kv] = detail::checked_layout(sizes);
  detail::require(kv == h, "kv_heads is ", kv, "; expected ", h,
                  ", the heads: for grouped heads use view_bsh3d_grouped()");
  const std::array<Index, 4> sizes_of_one{b, h, s, d}, strides{s * h * 3 * d, 3 * d, h * 3 * d, 1};
  return {view(data, sizes_of_one, strides), view(detail::after(data, d), sizes_of_one, strides),
          view(detail::after(data, 2 * d), sizes_of_one, strides)};
}

/// Views of batch entry `entry` of a fused array [batch, tokens, kv_heads, heads / kv_heads + 2, head_dim]. The kv
/// heads become the batch: q is [kv_heads, heads / kv_heads, tokens, head_dim], k and v are [kv_heads, 1, tokens,
/// head_dim]. Slopes are then [kv_heads, heads / kv_heads], row by row those of the heads. Throws std::invalid_argument
/// for sizes below 0, heads that are no multiple of kv_heads, or an entry outside [0, batch).
template <class T>
QkvViews<T> view_bsh3d_grouped(T* data, const LayoutSizes& sizes, Index entry) {
  const auto [b, s, h, d, kv] = detail::checked_layout(sizes);
  detail::require(0 <= entry && entry < b, "entry is ", entry, "; expected 0 to ", b - 1);
  const Index group = kv == 0 ? 0 : h / kv, block = (group + 2) * d, token = kv * block;
  T* const at = detail::after(data, entry * s * token);
  return {view(at, {kv, group, s, d}, {block, d, token, 1}),
          view(detail::after(at, group * d), {kv, 1, s, d}, {block, d, token, 1}),
          view(detail::after(at, (group + 1) * d), {kv, 1, s, d}, {block, d, token, 1})};
}

}  // namespace ALIBI_ABI
}  // namespace alibi
