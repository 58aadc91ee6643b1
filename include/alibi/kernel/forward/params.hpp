// What a call of the forward is made of, and how it is cut into tasks: by the shapes of each sequence alone, so that no
// sequence's result depends on what else is in the call. The order of tasks, by estimated cost, changes no bit.
#pragma once

#include <span>
#include <type_traits>

#include "alibi/kernel/pruning/budget.hpp"
#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/bias.hpp"
#include "alibi/kernel/tile/key_bounds.hpp"
#include "alibi/kernel/tile/load.hpp"
#include "alibi/kernel/tile/rows.hpp"
#include "alibi/mask.hpp"
#include "alibi/view.hpp"

namespace alibi {

/// A view of bfloat16 or half (kernel/rows.hpp).
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

/// A view as kernels take it.
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

/// The tokens of one head of a view with a batch of 1. No offset is added to null, which a view without tokens may
/// hold.
template <class X>
Rows<X> rows_of(const View<X>& x, Index head) {
  X* const data = x.data ? x.data + head * x.head_stride : x.data;
  if constexpr (std::is_same_v<std::remove_const_t<X>, Narrow>)
    return {data, x.token_stride, x.half};
  else
    return {data, x.token_stride};
}

/// The tables of a bias (bias.hpp), of all heads: [heads][size()], padded at both ends; none: slopes instead.
template <class T>
struct Tables {
  const T* padded = nullptr;
  Index entries = 0, first = 0;

  Index size() const { return entries + 2 * TableBiasPolicy<T>::kPadding; }
};

/// One sequence with all its heads; the views have a batch of 1.
template <class F>
struct SequenceParams {
  using T = typename F::T;
  View<const typename F::Query> q;
  View<typename F::Query> output;
  View<const typename F::Stored> k{}, v{};                // rows; not in use for a cache
  const Cached<typename F::Stored, T>* cached = nullptr;  // [kv_heads]
  T* lse = nullptr;                                       // row i of head h at lse[h lse_stride + i]; null: not wanted
  Index lse_stride = 0;
  bool shifted_lse =
      false;           // lse as if each row's nearest key had no bias (bias.hpp): as many digits however far it is
  SlopeView slopes{};  // [heads]; 0 beside tables
  Tables<T> tables{};
  ResolvedMask mask{};
  double tolerance = 0;
  Index kv_heads = 1;
  const KeyTileBounds<T>* key_bounds = nullptr;  // [kv_heads], or null where nothing is pruned
  const T* tail_bounds = nullptr;  // [heads][tail_bounds_size()], with the radii: before and, if they have it, behind

  double slope(Index head) const { return alibi::detail::slope_at(slopes, 0, head); }

  typename F::Bias bias(Index head) const {
    if constexpr (std::is_same_v<typename F::Bias, TableBiasPolicy<T>>)
      return {tables.padded + head * tables.size(), tables.first, tables.entries};
    else
      return typename F::Bias(base2<T>(slope(head)));
  }

  /// What the queries of a kv head see: of a cache, what is still there.
  ResolvedMask mask_of(Index kv_head) const {
    ResolvedMask of = mask;
    if (cached) of.first = cached[kv_head].begin;
    return of;
  }
  Index kv_head_of(Index head) const { return head / (q.heads / kv_heads); }
  PruningBudget budget(Index head) const {
    const Index kv = kv_head_of(head);
    return make_budget(slope(head), tolerance, cached ? cached[kv].evicted : 0, mask_of(kv), q.tokens);
  }

  /// What is known of a kv head's keys, or null.
  const KeyTileBounds<T>* key_bounds_of(Index kv_head) const {
    if (cached) return &cached[kv_head].key_bounds;
    return key_bounds ? key_bounds + kv_head : nullptr;
  }
};

/// A checked call of the forward.
template <class F>
struct Params {
  std::span<const SequenceParams<F>> sequences;
  Index heads, kv_heads, head_dim, value_dim;
  double scale;
  PruningStats* pruning_stats;  // [sequences][heads], or null

  Index group() const { return heads / kv_heads; }
};

/// The statistics of the keys of a head that may prune; null for one that reads every key.
template <class F>
const KeyTileBounds<typename F::T>* pruning_key_bounds(const SequenceParams<F>& sequence, Index head) {
  return sequence.budget(head).enabled ? sequence.key_bounds_of(sequence.kv_head_of(head)) : nullptr;
}
/// The tail bounds of a head, if its keys were measured for the call.
template <class F>
const typename F::T* pruning_tail_bounds(const SequenceParams<F>& sequence, Index head,
                                         const KeyTileBounds<typename F::T>* key_bounds) {
  return key_bounds && sequence.tail_bounds ? sequence.tail_bounds + head * tail_bounds_size(*key_bounds) : nullptr;
}

}  // namespace kernel
}  // namespace ALIBI_ISA
}  // namespace alibi
