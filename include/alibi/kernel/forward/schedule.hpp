// The tasks of the forward. A sequence is cut into tasks by its own shapes alone, so that no result depends on the
// other sequences of the call. The order of the tasks, by estimated cost, changes no bit. Internal.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <span>
#include <tuple>

#include "alibi/kernel/forward/params.hpp"
#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/load.hpp"
#include "alibi/kernel/tile/position_bias.hpp"
#include "alibi/kernel/tile/rows.hpp"
#include "alibi/kernel/tile/scores.hpp"
#include "alibi/mask.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

// Blocks that share a pass over the keys, at most: 768 queries of float with 16 registers as with 32. With fewer, tiles
// are loaded, and far-apart rows copied, more often.
inline constexpr int kMaxBlocks = kManyRegisters ? 16 : 32;
inline constexpr std::size_t kScratchBytes = 1024 * 1024;  // scratch of a task, at most, unless one block needs more

/// The scratch of a task of the forward. It depends on the head dims alone.
template <class F>
struct ForwardScratch {
  using T = typename F::T;
  using U = typename F::Unit;
  int blocks;  // the number that fits, at most kMaxBlocks
  std::size_t bytes;

  ForwardScratch(Index head_dim, Index value_dim) {
    const std::size_t block =
        (std::size_t(units<U>(head_dim)) * sizeof(U) + std::size_t(value_dim) * sizeof(T)) * kBlock<T>;
    const std::size_t shared = std::size_t(kScoreRows * kBlock<T>) * sizeof(T) +
                               std::size_t(tile_units<F>(head_dim, value_dim, true) + units<U>(head_dim)) * sizeof(U);
    const std::size_t left = std::max(kScratchBytes, shared) - shared;
    blocks = int(std::clamp<std::size_t>(left / block, 1, kMaxBlocks));
    bytes = (std::size_t(blocks) * block + shared + 63) / 64 * 64;  // the slots of an executor share no cache line
  }
};

/// The division of the queries of each head of a sequence into tasks.
struct ForwardPlan {
  int blocks;    // of kBlock queries in a task
  Index chunks;  // tasks for each head

  template <class F>
  static ForwardPlan of(const SequenceParams<F>& sequence, const ForwardScratch<F>& scratch) {
    const Index all = ceil_div(sequence.q.tokens, kBlock<typename F::T>);
    int blocks = scratch.blocks;
    while (blocks > 8 && sequence.q.heads * ceil_div(all, blocks) < 16) blocks /= 2;  // enough tasks for many threads
    return {blocks, ceil_div(all, blocks)};
  }
};

/// One task: consecutive blocks of one head.
struct ForwardItem {
  float cost;  // the estimated number of pairs of query and key
  std::int32_t sequence, head, blocks;
  Index chunk;
};

/// The estimated number of keys within `penalty`, in base 2, on the side that sees farther.
template <class T>
double estimated_keys(const PositionBiasPolicy<T>& bias, const ResolvedMask& mask, double penalty) {
  const double gap = (bias.key(mask.keys - 1) - bias.key(0)) / double(mask.keys);  // of neighbouring keys
  double most = 1;
  for (const bool left : {true, false})
    if ((left ? mask.left : mask.right) > 0) most = std::max(most, penalty / (bias.slope(left) * gap));
  return std::min(most, double(mask.keys));
}

/// The estimated receptive field of a head, in keys. Allows 10 bits for scores, which is typical of normal queries and
/// keys.
template <class F>
double estimated_receptive_field(const SequenceParams<F>& sequence, Index head) {
  const PruningBudget budget = sequence.budget(head);
  if (!budget.enabled) return double(sequence.mask.keys);
  if constexpr (kHasPositions<F>)
    return estimated_keys(sequence.bias(head), sequence.mask_of_query_head(head), 10 - std::log2(budget.tolerance));
  return std::min(double(sequence.mask.keys),
                  (10 - std::log2(budget.tolerance)) / (sequence.slope(head) * std::numbers::log2e));
}

/// The estimated number of pairs of query and key for rows [begin, end) of a head.
template <class F>
float estimated_cost(const SequenceParams<F>& sequence, Index head, Index begin, Index end) {
  const Index middle = (begin + end) / 2, at = sequence.mask.nearest_key(middle);
  const KeyRange seen = (kHasPositions<F> ? sequence.mask_of_query_head(head) : sequence.mask).visible(middle);
  const double reach = estimated_receptive_field(sequence, head);
  const double keys = std::clamp(double(at - seen.begin), 0., reach) + std::clamp(double(seen.end - at), 0., reach);
  return float(double(end - begin) * (keys + double(end - begin)));
}

/// The tasks of a call, the most expensive first.
template <class F>
void list_items(const Params<F>& params, const ForwardScratch<F>& scratch, std::span<ForwardItem> items) {
  // Of tasks of equal cost the later one comes first, so that the order is unique. They are listed in this order, so
  // that hundreds of thousands of tasks of equal cost need no sorting.
  auto item = items.begin();
  for (std::size_t s = params.sequences.size(); s-- > 0;) {
    const SequenceParams<F>& sequence = params.sequences[s];
    const ForwardPlan plan = ForwardPlan::of(sequence, scratch);
    const Index rows = plan.blocks * kBlock<typename F::T>;
    for (Index head = params.heads; head-- > 0;)
      for (Index chunk = plan.chunks; chunk-- > 0;) {
        const Index end = std::min((chunk + 1) * rows, sequence.q.tokens);
        const float cost = estimated_cost(sequence, head, chunk * rows, end);
        *item++ = {cost, std::int32_t(s), std::int32_t(head), plan.blocks, chunk};
      }
  }
  const auto before = [](const ForwardItem& a, const ForwardItem& b) {
    return std::tuple(a.cost, a.sequence, a.head, a.chunk) > std::tuple(b.cost, b.sequence, b.head, b.chunk);
  };
  if (!std::is_sorted(items.begin(), items.end(), before)) std::sort(items.begin(), items.end(), before);
}

}  // namespace alibi::inline ALIBI_ISA::kernel
