// From a checked call of the backward pass to its tasks: lays out the scratch memory, prepares the rows, and runs the
// waves. Not a header for users.
//
// The scratch of an executor slot is at most 1 MiB, as long as head_dim + value_dim is at most some 500 floats. Beside
// it a call holds 4 numbers a query and head, 5 where the lse is computed anew (is_coarse()), and for every chunk of
// some 400 queries of a head a sum of the bias's gradient; for a table that is 2 numbers a query. Nothing grows with
// the square of the tokens.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <memory>
#include <span>

#include "alibi/call.hpp"
#include "alibi/executor.hpp"
#include "alibi/kernel/backward.hpp"
#include "alibi/kernel/backward_plan.hpp"
#include "alibi/kernel/plan.hpp"
#include "alibi/table_bias.hpp"
#include "alibi/workspace.hpp"

namespace alibi::inline ALIBI_ISA::detail {

/// Some queries of a head whose numbers one task fills in.
struct RowItem {
  Index sequence, head, chunk;
};

/// Everything a call of the backward pass needs besides its arrays.
template <class F, class G>
struct BackwardMemory {
  using T = typename F::T;
  CallMemory<F> call;
  std::span<std::byte> scratch;
  std::span<kernel::BackwardSequence<F, G>> sequences;
  std::span<RowItem> rows;
  std::span<kernel::BackwardItem> items;  // of a wave
  std::span<kernel::BlockNumbers<T>> blocks;
  std::span<kernel::TileRange> reach;
  std::span<T> framed;
  std::span<double> slots, sums;  // of the bias's gradient: a slot a chunk, and of a table [heads][entries]

  struct Sizes {
    typename CallMemory<F>::Sizes call;
    std::size_t slot_bytes = 0;
    Index scratch = 0, rows = 0, items = 0, blocks = 0, reach = 0, framed = 0, slots = 0, sums = 0;
  };
  BackwardMemory(Arena& arena, const Sizes& sizes)
      : call(arena, sizes.call),
        scratch(arena.take<std::byte>(sizes.scratch)),
        sequences(arena.take<kernel::BackwardSequence<F, G>>(sizes.call.sequences)),
        rows(arena.take<RowItem>(sizes.rows)),
        items(arena.take<kernel::BackwardItem>(sizes.items)),
        blocks(arena.take<kernel::BlockNumbers<T>>(sizes.blocks)),
        reach(arena.take<kernel::TileRange>(sizes.reach)),
        framed(arena.take<T>(sizes.framed)),
        slots(arena.take<double>(sizes.slots)),
        sums(arena.take<double>(sizes.sums)) {}
};

/// Doubles in a slot of the bias's gradient.
template <class F>
Index slot_size(const kernel::BackwardPlan& plan) {
  return kernel::BiasGradient<typename F::Bias>::slot_size(plan.rows<typename F::T>(), plan.tiles * kernel::kTile);
}

/// Whether an lse may be so far from the scores, by what all keys of a row have in common, that its last digits are
/// missed: then it is computed anew, in the frame of the scores. The rows farthest out decide.
template <class F>
bool is_coarse(const kernel::Sequence<F>& sequence) {
  constexpr double kNats = 16;
  const ResolvedMask& mask = sequence.mask;
  const Index first = std::max<Index>(-mask.offset - mask.right, 0),
              last = std::min(mask.keys - 1 + mask.left - mask.offset, sequence.q.tokens - 1);
  if (first > last) return false;  // no row sees a key
  for (Index h = 0; h < sequence.q.heads; h++)
    for (const Index query : {first, last}) {
      const double slope = sequence.slope(h);
      if (std::abs(slope) * double(mask.common_distance(query, slope)) > kNats) return true;
    }
  return false;
}

template <class F, class G, class Make>
typename BackwardMemory<F, G>::Sizes backward_sizes(const kernel::Forward<F>& call, Index count, const Make& make,
                                                    const TableBias<typename F::T>& table, Index slots) {
  using T = typename F::T;
  typename BackwardMemory<F, G>::Sizes sizes;
  kernel::Forward<F> of_lse = call;  // the only forward that may run, in frame_lse()
  of_lse.value_dim = 0;
  sizes.call = sizes_of(of_lse, count, make, table);
  std::size_t scratch = kernel::BackwardRows<F, G>::bytes(call.head_dim);
  for (Index s = 0; s < count; s++) {
    const kernel::Sequence<F> sequence = make(s);
    const auto plan = kernel::BackwardPlan::of(sequence, call.head_dim, call.value_dim);
    const Index chunks = call.heads * plan.query_chunks;
    scratch = std::max(scratch, kernel::BackwardScratch<F>(call.head_dim, call.value_dim, plan).bytes);
    sizes.rows += chunks;
    sizes.reach += chunks;
    sizes.slots += chunks * slot_size<F>(plan);
    sizes.items += call.kv_heads * std::min(plan.query_chunks, plan.key_chunks);
    sizes.blocks += call.heads * kernel::pieces(sequence.q.tokens, kernel::kBlock<T>);
    if (!is_coarse(sequence)) continue;
    sizes.framed += call.heads * sequence.q.tokens;
    scratch = std::max(scratch, kernel::ForwardScratch<F>(call.head_dim, 0).bytes);
  }
  sizes.sums = table.entries > 0 ? call.heads * table.entries : 0;
  const Index most = std::max({sizes.rows, sizes.items, sizes.call.items});  // tasks at a time
  sizes.slot_bytes = (scratch + 63) / 64 * 64;
  sizes.scratch = Index(sizes.slot_bytes) * std::min(slots, std::max<Index>(most, 1));
  return sizes;
}

/// Fills in what belongs to each sequence beside its arrays, which make.backward(s) gives.
template <class F, class G, class Make>
void make_backward_sequences(BackwardMemory<F, G>& memory, const kernel::Forward<F>& call, const Make& make) {
  using T = typename F::T;
  const Index heads = call.heads;
  Index blocks = 0, reach = 0, slots = 0, framed = 0, row = 0;
  for (std::size_t s = 0; s < memory.sequences.size(); s++) {
    const kernel::Sequence<F>& sequence = memory.call.sequences[s];
    auto& mine = *std::construct_at(&memory.sequences[s], make.backward(Index(s)));
    mine.plan = kernel::BackwardPlan::of(sequence, call.head_dim, call.value_dim);
    mine.blocks = memory.blocks.data() + blocks;
    mine.reach = memory.reach.data() + reach;
    mine.slots = memory.slots.data() + slots;
    if (is_coarse(sequence)) {
      mine.framed = memory.framed.data() + framed;
      framed += heads * sequence.q.tokens;
    }
    blocks += heads * kernel::pieces(sequence.q.tokens, kernel::kBlock<T>);
    reach += heads * mine.plan.query_chunks;
    slots += heads * mine.plan.query_chunks * slot_size<F>(mine.plan);
    for (Index h = 0; h < heads; h++)
      for (Index chunk = 0; chunk < mine.plan.query_chunks; chunk++)
        memory.rows[std::size_t(row++)] = {Index(s), h, chunk};
  }
  std::fill(memory.slots.begin(), memory.slots.end(), 0.0);
  std::fill(memory.sums.begin(), memory.sums.end(), 0.0);
}

/// Where an lse is coarse, that of every row in the frame of its scores, by the forward without values. Sequence by
/// sequence: what else is in the call changes nothing.
template <class F, class G>
void frame_lse(BackwardMemory<F, G>& memory, kernel::Forward<F> call, const Executor& executor) {
  call.value_dim = 0;
  call.report = nullptr;
  const kernel::ForwardScratch<F> scratch(call.head_dim, call.value_dim);
  for (std::size_t s = 0; s < memory.sequences.size(); s++) {
    if (!memory.sequences[s].framed) continue;
    kernel::Sequence<F>& sequence = memory.call.sequences[s];
    sequence.lse = memory.sequences[s].framed;
    sequence.lse_stride = sequence.q.tokens;
    sequence.framed = true;
    call.sequences = {&sequence, 1};
    const Index tasks = call.heads * kernel::ForwardPlan::of(sequence, scratch).chunks;
    run_forward(call, memory.call.items.first(std::size_t(tasks)), memory.scratch.data(), executor);
  }
}

/// Sets the gradients of keys and values to 0, to be added to.
template <class F, class G>
void clear_keys(const kernel::Backward<F, G>& call, const Executor& executor) {
  using T = typename F::T;
  const Index heads = call.forward.kv_heads;
  executor.for_each(Index(call.sequences.size()) * heads, [&](Index i, int) {
    const auto& mine = call.sequences[std::size_t(i / heads)];
    for (const View<T>& x : {mine.grad_k, mine.grad_v}) {
      const kernel::Rows<T> rows = kernel::rows_of(x, i % heads);
      for (Index j = 0; j < x.tokens; j++) std::fill_n(rows[j], x.head_dim, T(0));
    }
  });
}

/// Adds the slots of a wave to the sums of a table's entries, and clears them.
template <class F, class G>
void add_tables(BackwardMemory<F, G>& memory, const kernel::Forward<F>& call, Index items,
                const TableBias<typename F::T>& table) {
  using T = typename F::T;
  for (Index i = 0; i < items; i++) {
    const kernel::BackwardItem& item = memory.items[std::size_t(i)];
    const auto& mine = memory.sequences[std::size_t(item.sequence)];
    const kernel::BackwardPlan& plan = mine.plan;
    const Index query = item.queries * plan.rows<T>(), keys = plan.tiles * kernel::kTile;
    const Index first = kernel::BiasGradient<kernel::TableLaw<T>>::first_distance(
        memory.call.sequences[std::size_t(item.sequence)].mask.position(query), item.keys * keys, keys);
    for (Index h = item.kv_head * call.group(); h < (item.kv_head + 1) * call.group(); h++) {
      double* const slot = mine.slots + (h * plan.query_chunks + item.queries) * slot_size<F>(plan);
      double* const sums = memory.sums.data() + h * table.entries;
      for (Index d = 0; d < slot_size<F>(plan); d++)
        sums[std::clamp<Index>(first + d - table.first, 0, table.entries - 1)] += std::exchange(slot[d], 0.0);
    }
  }
}

/// Where the gradient of the bias goes: of slopes [sequences or 1][heads], of a table [heads][entries]; or nowhere.
template <class F, class G>
void write_bias(const BackwardMemory<F, G>& memory, Index heads, std::span<typename F::T> to) {
  using T = typename F::T;
  if (to.empty()) return;
  if (!memory.sums.empty()) {
    std::transform(memory.sums.begin(), memory.sums.end(), to.begin(), [](double x) { return T(x); });
    return;
  }
  const std::size_t all = memory.sequences.size();
  const bool shared = to.size() == std::size_t(heads) && all != 1;
  for (std::size_t i = 0; i < to.size(); i++) {
    double sum = 0;
    for (std::size_t s = shared ? 0 : i / std::size_t(heads); s < (shared ? all : i / std::size_t(heads) + 1); s++) {
      const auto& mine = memory.sequences[s];
      const Index chunks = mine.plan.query_chunks;
      for (Index chunk = 0; chunk < chunks; chunk++) sum += mine.slots[(Index(i) % heads) * chunks + chunk];
    }
    to[i] = T(sum);
  }
}

/// Runs a checked call whose sequences are make(0), …, make(count - 1), their gradients' arrays make.backward(s).
template <class F, class G, class Make>
void run_backward(kernel::Forward<F> call, Index count, const Make& make, const TableBias<typename F::T>& table,
                  std::span<typename F::T> grad_bias, const Executor& executor, Workspace& workspace) {
  const auto sizes = backward_sizes<F, G>(call, count, make, table, executor.slots());
  Arena counted;
  BackwardMemory<F, G>(counted, sizes);
  Arena arena(workspace.reserve(counted.used()));
  BackwardMemory<F, G> memory(arena, sizes);

  prepare(call, memory.call, make, table, executor);
  make_backward_sequences(memory, call, make);
  frame_lse(memory, call, executor);
  const kernel::Backward<F, G> backward{call, memory.sequences};
  const std::size_t bytes = sizes.slot_bytes;
  clear_keys(backward, executor);
  executor.for_each(sizes.rows, [&](Index i, int slot) {
    const RowItem& item = memory.rows[std::size_t(i)];
    std::byte* const scratch = memory.scratch.data() + std::size_t(slot) * bytes;
    kernel::BackwardRows<F, G>(backward, item.sequence, item.head, item.chunk, scratch).run();
  });
  Index waves = 0;
  for (const auto& mine : memory.sequences) waves = std::max(waves, mine.plan.waves());
  for (Index wave = 0; wave < waves; wave++) {
    const Index items = kernel::list_wave(backward, wave, memory.items);
    executor.for_each(items, [&](Index i, int slot) {
      std::byte* const scratch = memory.scratch.data() + std::size_t(slot) * bytes;
      kernel::BackwardTask<F, G>(backward, memory.items[std::size_t(i)], scratch).run();
    });
    if (table.entries > 0) add_tables(memory, call, items, table);
  }
  write_bias(memory, call.heads, grad_bias);
}

}  // namespace alibi::inline ALIBI_ISA::detail
