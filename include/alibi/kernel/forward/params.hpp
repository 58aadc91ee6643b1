// The parameters of a call of the forward, as kernels take them. Internal.
#pragma once

#include <algorithm>
#include <span>
#include <type_traits>

#include "alibi/kernel/pruning/budget.hpp"
#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/bias.hpp"
#include "alibi/kernel/tile/key_bounds.hpp"
#include "alibi/kernel/tile/load.hpp"
#include "alibi/kernel/tile/position_bias.hpp"
#include "alibi/kernel/tile/rows.hpp"
#include "alibi/mask.hpp"
#include "alibi/token_positions.hpp"
#include "alibi/view.hpp"

namespace alibi {

/// A view of bfloat16 or half (kernel/tile/rows.hpp).
template <class T>
  requires std::is_same_v<std::remove_const_t<T>, kernel::Narrow>
struct View<T> {
  T* data = nullptr;
  Index batch = 0, heads = 0, tokens = 0, head_dim = 0;
  Index batch_stride = 0, head_stride = 0, token_stride = 0;
  bool half = false;
};

inline namespace ALIBI_ISA {
namespace kernel {

/// A view with the element type of kernels.
template <class X>
auto erased(const View<X>& x) {
  using E = std::remove_const_t<X>;
  using Y = std::conditional_t<std::is_const_v<X>, const Erased<E>, Erased<E>>;
  if constexpr (std::is_same_v<X, Y>)
    return x;
  else
    return View<Y>{reinterpret_cast<Y*>(x.data),
                   x.batch,
                   x.heads,
                   x.tokens,
                   x.head_dim,
                   x.batch_stride,
                   x.head_stride,
                   x.token_stride,
                   std::is_same_v<E, Half>};
}

/// The tokens of one head of a view with a batch of 1. `data` may be null in a view without tokens; no offset is added
/// then.
template <class X>
Rows<X> rows_of(const View<X>& x, Index head) {
  X* const data = x.data ? x.data + head * x.head_stride : x.data;
  if constexpr (std::is_same_v<std::remove_const_t<X>, Narrow>)
    return {data, x.token_stride, x.half};
  else
    return {data, x.token_stride};
}

/// The tables of a relative bias (kernel/tile/bias.hpp) for all heads: [heads][size()], padded at both ends, for
/// decoding in reverse order. No entries: the bias has slopes.
template <class T>
struct Tables {
  const T* padded = nullptr;
  Index entries = 0, first = 0;

  Index size() const { return entries + 2 * TableBiasPolicy<T>::kPadding; }

  /// In reverse order: the biases of keys key, …, key + kTile - 1 for a query of position p.
  const T* of_keys(Index head, Index p, Index key) const {
    const Index last = first + entries - 1, distance = std::clamp(p - key, first, last + kTile);
    return padded + head * size() + TableBiasPolicy<T>::kPadding + (last - distance);
  }
};

/// Whether the bias of a kernel has two-sided slopes or positions.
template <class F>
inline constexpr bool kHasPositions = std::is_same_v<typename F::Bias, PositionBiasPolicy<typename F::T>>;

/// One sequence with all its heads. The views have a batch of 1.
template <class F>
struct SequenceParams {
  using T = typename F::T;
  View<const typename F::Query> q;
  View<typename F::Query> output;
  View<const typename F::Stored> k{}, v{};                // not used with a cache
  const Cached<typename F::Stored, T>* cached = nullptr;  // [kv_heads]; null: k and v
  T* lse = nullptr;  // row i of head h is at lse[h lse_stride + i]; null: not wanted
  Index lse_stride = 0;
  // Whether to write the shifted lse, relative to the largest bias of each row (kernel/tile/bias.hpp). Its precision
  // does not depend on the distance of the keys.
  bool shifted_lse = false;
  SlopeView slopes{};  // [heads]; 0 if there are tables or positions
  Tables<T> tables{};
  alibi::detail::PositionBias positions{};
  ResolvedMask mask{};
  double tolerance = 0;
  Index kv_heads = 1;
  const KeyTileBounds<T>* key_bounds = nullptr;  // [kv_heads], or null if nothing is pruned
  // [heads][tail_bounds_size()], if key_bounds is not null: those of the keys up to each tile and, if there is a
  // suffix_max, those of the keys from each tile on.
  const T* tail_bounds = nullptr;

  double slope(Index head) const { return alibi::detail::slope_at(slopes, 0, head); }

  typename F::Bias bias(Index head) const {
    if constexpr (std::is_same_v<typename F::Bias, TableBiasPolicy<T>>)
      return {tables.padded + head * tables.size(), tables.first, tables.entries};
    else if constexpr (kHasPositions<F>)
      return {alibi::detail::slope_at(positions.before, 0, head),
              alibi::detail::slope_at(positions.after, 0, head),
              {positions.keys, head},
              {positions.queries, head},
              positions.any_order,
              mask.keys};
    else
      return typename F::Bias(base2<T>(slope(head)));
  }

  /// The mask of a kv head. With a cache it excludes the keys that have been removed.
  ResolvedMask mask_of(Index kv_head) const {
    ResolvedMask of = mask;
    if (cached) of.first = cached[kv_head].begin;
    return of;
  }
  Index kv_head_of(Index head) const { return head / (q.heads / kv_heads); }
  /// The mask of a query head, which may see one side only.
  ResolvedMask mask_of_query_head(Index head) const {
    if constexpr (kHasPositions<F>)
      return bias(head).mask_of(mask);
    else
      return mask_of(kv_head_of(head));
  }
  PruningBudget budget(Index head) const {
    const Index kv = kv_head_of(head);
    if constexpr (kHasPositions<F>)
      return make_budget(bias(head).largest_penalty(mask_of_query_head(head), q.tokens), tolerance, 0);
    else
      return make_budget(slope(head), tolerance, cached ? cached[kv].evicted : 0, mask_of(kv), q.tokens);
  }

  /// The key tile bounds of a kv head, or null.
  const KeyTileBounds<T>* key_bounds_of(Index kv_head) const {
    if (cached) return &cached[kv_head].key_bounds;
    return key_bounds ? key_bounds + kv_head : nullptr;
  }
};

/// A validated call of the forward.
template <class F>
struct Params {
  std::span<const SequenceParams<F>> sequences;
  Index heads, kv_heads, head_dim, value_dim;
  double scale;
  PruningStats* pruning_stats;  // [sequences][heads], or null

  Index group() const { return heads / kv_heads; }
};

/// The key tile bounds of a head with this budget; null if the head does not prune.
template <class F>
const KeyTileBounds<typename F::T>* pruning_key_bounds(const SequenceParams<F>& sequence, Index head,
                                                       const PruningBudget& budget) {
  return budget.enabled ? sequence.key_bounds_of(sequence.kv_head_of(head)) : nullptr;
}
/// The tail bounds of a head; null if its keys were not measured for the call.
template <class F>
const typename F::T* pruning_tail_bounds(const SequenceParams<F>& sequence, Index head,
                                         const KeyTileBounds<typename F::T>* key_bounds) {
  return key_bounds && sequence.tail_bounds ? sequence.tail_bounds + head * tail_bounds_size(*key_bounds) : nullptr;
}

}  // namespace kernel
}  // namespace ALIBI_ISA
}  // namespace alibi
