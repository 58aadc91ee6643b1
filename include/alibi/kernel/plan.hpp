// What a call of the forward is made of, and how it is cut into tasks: by the shapes of each sequence alone, so that no
// sequence's result depends on what else is in the call. The order of tasks, by estimated cost, changes no bit.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <span>
#include <tuple>
#include <type_traits>

#include "alibi/horizon.hpp"
#include "alibi/kernel/bias.hpp"
#include "alibi/kernel/radii.hpp"
#include "alibi/kernel/rows.hpp"
#include "alibi/kernel/score.hpp"
#include "alibi/kernel/simd.hpp"
#include "alibi/kernel/tile.hpp"
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

  Index size() const { return entries + 2 * TableLaw<T>::kPadding; }
};

/// One sequence with all its heads; the views have a batch of 1.
template <class F>
struct Sequence {
  using T = typename F::T;
  View<const typename F::Query> q;
  View<typename F::Query> output;
  View<const typename F::Stored> k{}, v{};                // rows; not in use for a cache
  const Cached<typename F::Stored, T>* cached = nullptr;  // [kv_heads]
  T* lse = nullptr;                                       // row i of head h at lse[h lse_stride + i]; null: not wanted
  Index lse_stride = 0;
  bool framed = false;  // lse as if each row's nearest key had no bias (bias.hpp): as many digits however far it is
  SlopeView slopes{};   // [heads]; 0 beside tables
  Tables<T> tables{};
  ResolvedMask mask{};
  double tolerance = 0;
  Index kv_heads = 1;
  const Radii<T>* radii = nullptr;  // [kv_heads], or null where nothing is pruned
  const T* tails = nullptr;         // [heads][tails_size()], with the radii: before and, if they have it, behind

  double slope(Index head) const { return alibi::detail::slope_at(slopes, 0, head); }

  typename F::Bias bias(Index head) const {
    if constexpr (std::is_same_v<typename F::Bias, TableLaw<T>>)
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
  /// What is left of the tolerance after what a cache has evicted.
  double tolerance_of(Index kv_head) const {
    return cached ? std::max(tolerance - cached[kv_head].evicted, 0.) : tolerance;
  }

  /// What is known of a kv head's keys, or null.
  const Radii<T>* radii_of(Index kv_head) const {
    if (cached) return &cached[kv_head].radii;
    return radii ? radii + kv_head : nullptr;
  }
};

/// A checked call of the forward.
template <class F>
struct Forward {
  std::span<const Sequence<F>> sequences;
  Index heads, kv_heads, head_dim, value_dim;
  double scale;
  Pruning* report;  // [sequences][heads], or null

  Index group() const { return heads / kv_heads; }
};

/// Whether a head may find keys to leave out: the farthest key must lose 4 bits more to its distance than the tolerance
/// asks for, or the search is not worth its cost.
inline bool worth_pruning(double slope, double tolerance, const ResolvedMask& mask, Index queries) {
  if (!(slope > 0 && tolerance > 0) || queries == 0) return false;
  const Index back = std::min(mask.left, mask.nearest_key(queries - 1) - mask.first);
  const Index ahead = std::min(mask.right, mask.keys - 1 - mask.nearest_key(0));
  return slope * std::numbers::log2e * double(std::max(back, ahead)) > 4 - std::log2(tolerance);
}

/// What is known of the keys of a head that may leave some out; null for one that reads all.
template <class F>
const Radii<typename F::T>* pruning_radii(const Sequence<F>& sequence, Index head) {
  const Index kv = head / (sequence.q.heads / sequence.kv_heads);
  const bool prunes =
      worth_pruning(sequence.slope(head), sequence.tolerance_of(kv), sequence.mask_of(kv), sequence.q.tokens);
  return prunes ? sequence.radii_of(kv) : nullptr;
}
/// Its tails, if its keys were measured for the call.
template <class F>
const typename F::T* pruning_tails(const Sequence<F>& sequence, Index head, const Radii<typename F::T>* radii) {
  return radii && sequence.tails ? sequence.tails + head * tails_size(*radii) : nullptr;
}

/// Adds what a task did to a head's account, which other tasks may be writing too.
inline void add_to(Pruning& account, Index visited, Index visible, double bound) {
  std::atomic_ref(account.tiles_visited).fetch_add(visited, std::memory_order_relaxed);
  std::atomic_ref(account.tiles_visible).fetch_add(visible, std::memory_order_relaxed);
  std::atomic_ref most(account.bound);
  for (double before = most.load(); before < bound && !most.compare_exchange_weak(before, bound);) {
  }
}

inline constexpr int kMostBlocks = 16;                     // that share a pass over the keys
inline constexpr std::size_t kScratchBytes = 1024 * 1024;  // of a task, at most, as long as one block fits

/// Bytes of a task of the forward, by the head dims alone.
template <class F>
struct ForwardScratch {
  using T = typename F::T;
  using U = typename F::Unit;
  int blocks;  // that fit, at most kMostBlocks
  std::size_t bytes;

  ForwardScratch(Index head_dim, Index value_dim) {
    const std::size_t block =
        (std::size_t(units<U>(head_dim)) * sizeof(U) + std::size_t(value_dim) * sizeof(T)) * kBlock<T>;
    const std::size_t shared = std::size_t(kScoreRows * kBlock<T>) * sizeof(T) +
                               std::size_t(tile_units<F>(head_dim, value_dim) + units<U>(head_dim)) * sizeof(U);
    const std::size_t left = std::max(kScratchBytes, shared) - shared;
    blocks = int(std::clamp<std::size_t>(left / block, 1, kMostBlocks));
    bytes = (std::size_t(blocks) * block + shared + 63) / 64 * 64;  // slots share no cache line
  }
};

/// How the queries of each head of a sequence are cut into tasks.
struct ForwardPlan {
  int blocks;    // of kBlock queries, in a task
  Index chunks;  // tasks of a head

  template <class F>
  static ForwardPlan of(const Sequence<F>& sequence, const ForwardScratch<F>& scratch) {
    const Index all = pieces(sequence.q.tokens, kBlock<typename F::T>);
    int blocks = scratch.blocks;
    while (blocks > 8 && sequence.q.heads * pieces(all, blocks) < 16) blocks /= 2;  // enough tasks for many threads
    return {blocks, pieces(all, blocks)};
  }
};

/// One task: a run of blocks of one head.
struct ForwardItem {
  float cost;  // keys that its queries see, by estimate
  std::int32_t sequence, head, blocks;
  Index chunk;
};

/// How far a head sees, in keys, by estimate: 10 bits for the content is what normal queries and keys come to.
template <class F>
double estimated_reach(const Sequence<F>& sequence, Index head) {
  const double tolerance = sequence.tolerance_of(head / (sequence.q.heads / sequence.kv_heads));
  if (!worth_pruning(sequence.slope(head), tolerance, sequence.mask, sequence.q.tokens))
    return double(sequence.mask.keys);
  return std::min(double(sequence.mask.keys),
                  (10 - std::log2(tolerance)) / (sequence.slope(head) * std::numbers::log2e));
}

/// Estimated pairs of query and key for rows [begin, end) of a head.
template <class F>
float estimated_cost(const Sequence<F>& sequence, Index head, Index begin, Index end) {
  const Index middle = (begin + end) / 2, at = sequence.mask.nearest_key(middle);
  const KeyRange seen = sequence.mask.visible(middle);
  const double reach = estimated_reach(sequence, head);
  const double keys = std::clamp(double(at - seen.begin), 0., reach) + std::clamp(double(seen.end - at), 0., reach);
  return float(double(end - begin) * (keys + double(end - begin)));
}

/// The tasks of a call, the most expensive first.
template <class F>
void list_items(const Forward<F>& call, const ForwardScratch<F>& scratch, std::span<ForwardItem> items) {
  auto item = items.begin();
  for (std::size_t s = 0; s < call.sequences.size(); s++) {
    const Sequence<F>& sequence = call.sequences[s];
    const ForwardPlan plan = ForwardPlan::of(sequence, scratch);
    const Index rows = plan.blocks * kBlock<typename F::T>;
    for (Index head = 0; head < call.heads; head++)
      for (Index chunk = 0; chunk < plan.chunks; chunk++) {
        const Index end = std::min((chunk + 1) * rows, sequence.q.tokens);
        const float cost = estimated_cost(sequence, head, chunk * rows, end);
        *item++ = {cost, std::int32_t(s), std::int32_t(head), plan.blocks, chunk};
      }
  }
  // Of equal tasks the later one first, for no reason but that the order be one.
  std::sort(items.begin(), items.end(), [](const ForwardItem& a, const ForwardItem& b) {
    return std::tuple(a.cost, a.sequence, a.head, a.chunk) > std::tuple(b.cost, b.sequence, b.head, b.chunk);
  });
}

}  // namespace kernel
}  // namespace ALIBI_ISA
}  // namespace alibi
