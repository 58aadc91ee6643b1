// The sequences and the memory of a call of the backward pass. Internal.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>

#include "alibi/detail/arena.hpp"
#include "alibi/detail/call.hpp"
#include "alibi/detail/forward_dispatch.hpp"
#include "alibi/detail/pruning_setup.hpp"
#include "alibi/detail/sequences.hpp"
#include "alibi/executor.hpp"
#include "alibi/kernel/backward/schedule.hpp"
#include "alibi/kernel/backward/task.hpp"
#include "alibi/kernel/forward/params.hpp"
#include "alibi/kernel/forward/schedule.hpp"
#include "alibi/mask.hpp"
#include "alibi/relative_bias.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// The sequences of a checked call of the backward pass, one at a time.
template <class F>
struct BackwardSequences {
  using E = typename F::Query;
  using T = typename F::T;
  ArraySequences<F> arrays;
  View<const E> output;
  EitherView<E> grad_output;
  const T *lse, *grad_lse;  // grad_lse: null, if it is 0
  View<T> grad_q, grad_k, grad_v;
  bool bias_wanted;  // whether the gradient of the bias is wanted
  bool positions_wanted = false;

  Index count() const { return arrays.count(); }
  kernel::SequenceParams<F> operator[](Index s) const { return arrays[s]; }
  kernel::BackwardSequenceParams<F> backward(Index s) const {
    const SequenceSlice slice = arrays.sequences[s];
    const auto queries = [&slice](const auto& x) { return part_of(x, slice.batch, slice.queries); };
    const auto keys = [&slice](const auto& x) { return part_of(x, slice.batch, slice.keys); };
    const Index first_row = slice.batch * arrays.q.heads * arrays.q.tokens + slice.queries.begin;
    return {.grad_output = {queries(grad_output.of_scalar), queries(grad_output.of_sum), grad_output.is_sum},
            .output = queries(output),
            .lse = lse + first_row,
            .grad_lse = grad_lse ? grad_lse + first_row : nullptr,
            .lse_stride = arrays.q.tokens,
            .grad_q = queries(grad_q),
            .grad_k = keys(grad_k),
            .grad_v = keys(grad_v)};
  }
};

/// One task of BackwardRows: a chunk of queries of a head.
struct RowItem {
  Index sequence, head, chunk;
};

/// Everything a call of the backward pass needs besides its arrays.
template <class F>
struct BackwardMemory {
  using T = typename F::T;
  CallMemory<F> call;
  std::span<std::byte> scratch;
  std::span<kernel::BackwardSequenceParams<F>> sequences;
  std::span<RowItem> rows;
  std::span<kernel::BackwardItem> items;  // of a wave
  std::span<kernel::BlockStats<T>> blocks;
  std::span<kernel::NearestKeys<T>> nearest;
  std::span<kernel::TileRange> reach;
  std::span<T> shifted_lse;
  // Of the gradient of the bias: one slot for each chunk; of a table [heads][entries]; of positions
  // [sequences][heads][keys, then queries].
  std::span<double> slots, sums;

  struct Sizes {
    typename CallMemory<F>::Sizes call;
    std::size_t slot_bytes = 0;
    Index scratch = 0, rows = 0, items = 0, blocks = 0, nearest = 0, reach = 0, shifted_lse = 0, slots = 0, sums = 0;
  };
  BackwardMemory(Arena& arena, const Sizes& sizes)
      : call(arena, sizes.call),
        scratch(arena.take<std::byte>(sizes.scratch)),
        sequences(arena.take<kernel::BackwardSequenceParams<F>>(sizes.call.sequences)),
        rows(arena.take<RowItem>(sizes.rows)),
        items(arena.take<kernel::BackwardItem>(sizes.items)),
        blocks(arena.take<kernel::BlockStats<T>>(sizes.blocks)),
        nearest(arena.take<kernel::NearestKeys<T>>(sizes.nearest)),
        reach(arena.take<kernel::TileRange>(sizes.reach)),
        shifted_lse(arena.take<T>(sizes.shifted_lse)),
        slots(arena.take<double>(sizes.slots)),
        sums(arena.take<double>(sizes.sums)) {}
};

/// Doubles in a slot of the gradient of the bias.
template <class F>
Index slot_size(const kernel::BackwardPlan& plan) {
  return kernel::BiasGradient<typename F::Bias>::slot_size(plan.rows<typename F::T>(), plan.tiles * kernel::kTile);
}

/// Whether the bias has distances. A table has none.
template <class F>
inline constexpr bool kHasDistances = !std::is_same_v<typename F::Bias, kernel::TableBiasPolicy<typename F::T>>;

/// Whether all keys of some row have a distance in common (ResolvedMask::common_distance()). Then
/// compute_shifted_lse() computes the shifted lse of the keys of the call. It tells whether the given lse is of these
/// keys alone, and it has more digits (BackwardRows::find_lse() in kernel/backward/rows.hpp). Of slopes, the first and
/// the last row that see a key decide, because they are the most distant ones. `bias_wanted`: whether the gradient of
/// the bias is wanted.
template <class F>
bool needs_shifted_lse(const kernel::SequenceParams<F>& sequence, bool bias_wanted) {
  if (!kHasDistances<F>) return false;
  if constexpr (kernel::kHasPositions<F>) {
    for (Index h = 0; h < sequence.q.heads; h++) {
      const auto bias = sequence.bias(h);
      if (bias.has_common(bias.mask_of(sequence.mask), sequence.q.tokens, bias_wanted)) return true;
    }
    return false;
  }
  const ResolvedMask& mask = sequence.mask;
  const auto [first, end] = mask.queries_that_see(sequence.q.tokens);
  if (first >= end) return false;  // no row sees a key
  for (Index h = 0; h < sequence.q.heads; h++)
    for (const Index query : {first, end - 1}) {
      const double slope = sequence.slope(h);
      if ((slope != 0 || bias_wanted) && mask.common_distance(query, slope) > 0) return true;
    }
  return false;
}

/// The memory of a call; `slots` is the number of tasks that may run at once.
template <class F>
typename BackwardMemory<F>::Sizes backward_sizes(const kernel::Params<F>& call, const BackwardSequences<F>& all,
                                                 const RelativeBias<typename F::T>& table, Index slots) {
  using T = typename F::T;
  typename BackwardMemory<F>::Sizes sizes;
  kernel::Params<F> of_lse = call;  // the only forward of this call, that of compute_shifted_lse()
  of_lse.value_dim = 0;
  sizes.call = sizes_of(of_lse, all, table);
  std::size_t scratch = kernel::BackwardRows<F>::bytes(call.head_dim);
  for (Index s = 0; s < all.count(); s++) {
    const kernel::SequenceParams<F> sequence = all[s];
    const auto plan = kernel::BackwardPlan::of(sequence, call.head_dim, call.value_dim);
    const Index chunks = call.heads * plan.query_chunks;
    scratch = std::max(scratch, kernel::BackwardScratch<F>(call.head_dim, call.value_dim, plan).bytes);
    sizes.rows += chunks;
    sizes.reach += chunks;
    sizes.slots += chunks * slot_size<F>(plan);
    sizes.items += call.kv_heads * std::min(plan.query_chunks, plan.key_chunks);
    const Index blocks = call.heads * kernel::ceil_div(sequence.q.tokens, kernel::kBlock<T>);
    sizes.blocks += blocks;
    if constexpr (kernel::kHasPositions<F>)
      if (call.heads > 0 && sequence.bias(0).searches()) sizes.nearest += blocks;
    if (!needs_shifted_lse(sequence, all.bias_wanted)) continue;
    sizes.shifted_lse += call.heads * sequence.q.tokens;
    scratch = std::max(scratch, kernel::ForwardScratch<F>(call.head_dim, 0).bytes);
  }
  sizes.sums = table.entries > 0 ? call.heads * table.entries : 0;
  if (all.positions_wanted)
    for (Index s = 0; s < all.count(); s++)
      sizes.sums += call.heads * (all.backward(s).grad_k.tokens + all.backward(s).grad_q.tokens);
  const Index max_tasks = std::max({sizes.rows, sizes.items, sizes.call.items});  // in one for_each()
  sizes.slot_bytes = (scratch + 63) / 64 * 64;
  sizes.scratch = Index(sizes.slot_bytes) * std::min(slots, std::max<Index>(max_tasks, 1));
  return sizes;
}

/// Makes the BackwardSequenceParams of each sequence, and lists the tasks of BackwardRows.
template <class F>
void make_backward_sequences(BackwardMemory<F>& memory, const kernel::Params<F>& call,
                             const BackwardSequences<F>& all) {
  using T = typename F::T;
  const Index heads = call.heads;
  Index blocks = 0, reach = 0, slots = 0, shifted_lse = 0, row = 0;
  double* positions = memory.sums.data();
  for (std::size_t s = 0; s < memory.sequences.size(); s++) {
    const kernel::SequenceParams<F>& sequence = memory.call.sequences[s];
    auto& bwd = *std::construct_at(&memory.sequences[s], all.backward(Index(s)));
    bwd.plan = kernel::BackwardPlan::of(sequence, call.head_dim, call.value_dim);
    bwd.blocks = memory.blocks.data() + blocks;
    if (!memory.nearest.empty()) bwd.nearest = memory.nearest.data() + blocks;
    bwd.reach = memory.reach.data() + reach;
    bwd.slots = memory.slots.data() + slots;
    if (needs_shifted_lse(sequence, all.bias_wanted)) {
      bwd.shifted_lse = memory.shifted_lse.data() + shifted_lse;
      shifted_lse += heads * sequence.q.tokens;
    }
    if (all.positions_wanted) {
      bwd.grad_key_positions = std::exchange(positions, positions + heads * bwd.grad_k.tokens);
      bwd.grad_query_positions = std::exchange(positions, positions + heads * bwd.grad_q.tokens);
    }
    blocks += heads * kernel::ceil_div(sequence.q.tokens, kernel::kBlock<T>);
    reach += heads * bwd.plan.query_chunks;
    slots += heads * bwd.plan.query_chunks * slot_size<F>(bwd.plan);
    for (Index h = 0; h < heads; h++)
      for (Index chunk = 0; chunk < bwd.plan.query_chunks; chunk++)
        memory.rows[std::size_t(row++)] = {Index(s), h, chunk};
  }
  std::fill(memory.slots.begin(), memory.slots.end(), 0.0);
  std::fill(memory.sums.begin(), memory.sums.end(), 0.0);
}

/// Computes the shifted lse of every row of the sequences with needs_shifted_lse(), by the forward without values. Each
/// sequence runs by itself, so that its bits do not depend on the other sequences of the call.
template <class F>
void compute_shifted_lse(BackwardMemory<F>& memory, kernel::Params<F> call, const Executor& executor) {
  call.value_dim = 0;
  call.pruning_stats = nullptr;
  const kernel::ForwardScratch<F> scratch(call.head_dim, call.value_dim);
  for (std::size_t s = 0; s < memory.sequences.size(); s++) {
    if (!memory.sequences[s].shifted_lse) continue;
    kernel::SequenceParams<F>& sequence = memory.call.sequences[s];
    sequence.lse = memory.sequences[s].shifted_lse;
    sequence.lse_stride = sequence.q.tokens;
    sequence.shifted_lse = true;
    call.sequences = {&sequence, 1};
    const Index tasks = call.heads * kernel::ForwardPlan::of(sequence, scratch).chunks;
    run_forward(call, memory.call.items.first(std::size_t(tasks)), memory.scratch.data(), executor);
  }
}

}  // namespace alibi::inline ALIBI_ABI::detail
