// From a call of the backward pass to its tasks: checks it, lays out the scratch memory, prepares the rows, and runs
// the waves. Not a header for users.
//
// The scratch of an executor slot is at most 1 MiB, as long as head_dim + value_dim is at most some 500 floats. Beside
// it a call holds 5 numbers a query and head, 6 where the lse is computed anew (is_beyond()), and for every chunk of
// some 400 queries of a head a sum of the bias's gradient; for a table that is 2 numbers a query. Nothing grows with
// the square of the tokens.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>

#include "alibi/detail/call.hpp"
#include "alibi/detail/forward_dispatch.hpp"
#include "alibi/detail/validate.hpp"
#include "alibi/executor.hpp"
#include "alibi/kernel/backward.hpp"
#include "alibi/kernel/backward_plan.hpp"
#include "alibi/kernel/plan.hpp"
#include "alibi/options.hpp"
#include "alibi/table_bias.hpp"
#include "alibi/view.hpp"
#include "alibi/workspace.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// The sequences of a checked call of the backward pass, one at a time.
template <class F>
struct BackwardSequences {
  using E = typename F::Query;
  using T = typename F::T;
  ArraySequences<F> arrays;
  View<const E> output;
  EitherView<E> grad_output;
  const T* lse;
  View<T> grad_q, grad_k, grad_v;
  bool bias_wanted;  // whether its gradient is

  Index count() const { return arrays.count(); }
  kernel::Sequence<F> operator[](Index s) const { return arrays[s]; }
  kernel::BackwardSequence<F> backward(Index s) const {
    const SequenceSlice slice = arrays.sequences[s];
    const auto queries = [&slice](const auto& x) { return part_of(x, slice.batch, slice.queries); };
    const auto keys = [&slice](const auto& x) { return part_of(x, slice.batch, slice.keys); };
    return {.grad_output = {queries(grad_output.of_scalar), queries(grad_output.of_sum), grad_output.is_sum},
            .output = queries(output),
            .lse = lse + slice.batch * arrays.q.heads * arrays.q.tokens + slice.queries.begin,
            .lse_stride = arrays.q.tokens,
            .grad_q = queries(grad_q),
            .grad_k = keys(grad_k),
            .grad_v = keys(grad_v)};
  }
};

/// Some queries of a head whose numbers one task fills in.
struct RowItem {
  Index sequence, head, chunk;
};

/// Everything a call of the backward pass needs besides its arrays.
template <class F>
struct BackwardMemory {
  using T = typename F::T;
  CallMemory<F> call;
  std::span<std::byte> scratch;
  std::span<kernel::BackwardSequence<F>> sequences;
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
        sequences(arena.take<kernel::BackwardSequence<F>>(sizes.call.sequences)),
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

/// Whether all keys of some row are at a distance that they have in common. Then the lse of the keys at hand is
/// computed, in the frame of the scores: it tells whether the one that is given is of these keys alone, and has more
/// digits (find_lse() of kernel/backward_rows.hpp). The rows farthest out decide. `bias_wanted`: whether its gradient
/// is.
template <class F>
bool is_beyond(const kernel::Sequence<F>& sequence, bool bias_wanted) {
  if (std::is_same_v<typename F::Bias, kernel::TableLaw<typename F::T>>) return false;
  const ResolvedMask& mask = sequence.mask;
  const Index first = std::max<Index>(-mask.offset - mask.right, 0),
              last = std::min(mask.keys - 1 + mask.left - mask.offset, sequence.q.tokens - 1);
  if (first > last) return false;  // no row sees a key
  for (Index h = 0; h < sequence.q.heads; h++)
    for (const Index query : {first, last}) {
      const double slope = sequence.slope(h);
      if ((slope != 0 || bias_wanted) && mask.common_distance(query, slope) > 0) return true;
    }
  return false;
}

template <class F>
typename BackwardMemory<F>::Sizes backward_sizes(const kernel::Forward<F>& call, const BackwardSequences<F>& all,
                                                 const TableBias<typename F::T>& table, Index slots) {
  using T = typename F::T;
  typename BackwardMemory<F>::Sizes sizes;
  kernel::Forward<F> of_lse = call;  // the only forward that may run, in frame_lse()
  of_lse.value_dim = 0;
  sizes.call = sizes_of(of_lse, all, table);
  std::size_t scratch = kernel::BackwardRows<F>::bytes(call.head_dim);
  for (Index s = 0; s < all.count(); s++) {
    const kernel::Sequence<F> sequence = all[s];
    const auto plan = kernel::BackwardPlan::of(sequence, call.head_dim, call.value_dim);
    const Index chunks = call.heads * plan.query_chunks;
    scratch = std::max(scratch, kernel::BackwardScratch<F>(call.head_dim, call.value_dim, plan).bytes);
    sizes.rows += chunks;
    sizes.reach += chunks;
    sizes.slots += chunks * slot_size<F>(plan);
    sizes.items += call.kv_heads * std::min(plan.query_chunks, plan.key_chunks);
    sizes.blocks += call.heads * kernel::pieces(sequence.q.tokens, kernel::kBlock<T>);
    if (!is_beyond(sequence, all.bias_wanted)) continue;
    sizes.framed += call.heads * sequence.q.tokens;
    scratch = std::max(scratch, kernel::ForwardScratch<F>(call.head_dim, 0).bytes);
  }
  sizes.sums = table.entries > 0 ? call.heads * table.entries : 0;
  const Index most = std::max({sizes.rows, sizes.items, sizes.call.items});  // tasks at a time
  sizes.slot_bytes = (scratch + 63) / 64 * 64;
  sizes.scratch = Index(sizes.slot_bytes) * std::min(slots, std::max<Index>(most, 1));
  return sizes;
}

/// Fills in what belongs to each sequence beside its arrays.
template <class F>
void make_backward_sequences(BackwardMemory<F>& memory, const kernel::Forward<F>& call,
                             const BackwardSequences<F>& all) {
  using T = typename F::T;
  const Index heads = call.heads;
  Index blocks = 0, reach = 0, slots = 0, framed = 0, row = 0;
  for (std::size_t s = 0; s < memory.sequences.size(); s++) {
    const kernel::Sequence<F>& sequence = memory.call.sequences[s];
    auto& mine = *std::construct_at(&memory.sequences[s], all.backward(Index(s)));
    mine.plan = kernel::BackwardPlan::of(sequence, call.head_dim, call.value_dim);
    mine.blocks = memory.blocks.data() + blocks;
    mine.reach = memory.reach.data() + reach;
    mine.slots = memory.slots.data() + slots;
    if (is_beyond(sequence, all.bias_wanted)) {
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

/// Where is_beyond(), the lse of every row in the frame of its scores, by the forward without values. Sequence by
/// sequence: what else is in the call changes nothing.
template <class F>
void frame_lse(BackwardMemory<F>& memory, kernel::Forward<F> call, const Executor& executor) {
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
template <class F>
void clear_keys(const kernel::Backward<F>& call, const Executor& executor) {
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
template <class F>
void add_tables(BackwardMemory<F>& memory, const kernel::Forward<F>& call, Index items,
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
template <class F>
void write_bias(const BackwardMemory<F>& memory, Index heads, std::span<typename F::T> to) {
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

/// Runs a checked call.
template <class F>
void run_backward(kernel::Forward<F> call, const BackwardSequences<F>& all, const TableBias<typename F::T>& table,
                  std::span<typename F::T> grad_bias, const Executor& executor, Workspace& workspace) {
  const auto sizes = backward_sizes<F>(call, all, table, executor.slots());
  Arena counted;
  BackwardMemory<F>(counted, sizes);
  Arena arena(workspace.reserve(counted.used()));
  BackwardMemory<F> memory(arena, sizes);

  prepare(call, memory.call, all, table, executor);
  make_backward_sequences(memory, call, all);
  frame_lse(memory, call, executor);
  const kernel::Backward<F> backward{call, memory.sequences};
  const std::size_t bytes = sizes.slot_bytes;
  clear_keys(backward, executor);
  executor.for_each(sizes.rows, [&](Index i, int slot) {
    const RowItem& item = memory.rows[std::size_t(i)];
    std::byte* const scratch = memory.scratch.data() + std::size_t(slot) * bytes;
    kernel::BackwardRows<F>(backward, item.sequence, item.head, item.chunk, scratch).run();
  });
  Index waves = 0;
  for (const auto& mine : memory.sequences) waves = std::max(waves, mine.plan.waves());
  for (Index wave = 0; wave < waves; wave++) {
    const Index items = kernel::list_wave(backward, wave, memory.items);
    executor.for_each(items, [&](Index i, int slot) {
      std::byte* const scratch = memory.scratch.data() + std::size_t(slot) * bytes;
      kernel::BackwardTask<F>(backward, memory.items[std::size_t(i)], scratch).run();
    });
    if (table.entries > 0) add_tables(memory, call, items, table);
  }
  write_bias(memory, call.heads, grad_bias);
}

/// Where it is wanted.
template <BiasKind kind, class T>
void check_grad_bias(const BiasEntries<T>& x, const BiasView<T>& bias, Index heads, Index sequences) {
  if (x.size() == 0) return;
  constexpr bool kTable = kind == BiasKind::table;
  const bool shared = bias.slopes.batch_stride == 0;
  const Index rows = kTable ? heads : shared ? 1 : sequences, cols = kTable ? bias.table.entries : heads;
  const bool one_line = (x.rows == 1 || x.cols == 1) && x.size() == rows * cols;
  require((x.rows == rows && x.cols == cols) || one_line, "the gradient of the bias is [", x.rows, ", ", x.cols,
          "]; expected [", rows, ", ", cols, "], ", kTable ? "the sizes of the table" : "the sizes of slopes");
  require(!kTable || !x.mirrored, "the gradient of the table is column-major; expected row-major");
}

template <BiasKind kind, class E>
void check_backward(const BackwardCall<E>& x, const Sequences& sequences) {
  using T = Sum<E>;
  check_inputs(x.q, x.k, x.v);
  check_bias<kind>(x.bias, x.q.heads, sequences);
  check_shape(x.output, "output", x.q, x.v.head_dim, kLikeOutput);
  x.grad_output.is_sum ? check_shape(x.grad_output.of_sum, "grad_output", x.q, x.v.head_dim, kLikeOutput)
                       : check_shape(x.grad_output.of_scalar, "grad_output", x.q, x.v.head_dim, kLikeOutput);
  const auto lse = lse_row(x.lse, x.q.batch * x.q.heads * x.q.tokens);
  check_shape(x.grad_q, "grad_q", x.q, x.q.head_dim, "the sizes of q");
  check_shape(x.grad_k, "grad_k", x.k, x.k.head_dim, "the sizes of k");
  check_shape(x.grad_v, "grad_v", x.v, x.v.head_dim, "the sizes of v");
  check_grad_bias<kind>(x.grad_bias, x.bias, x.q.heads, sequences.count);

  const View<T> grad_bias{x.grad_bias.data, 1, 1, 1, x.grad_bias.size(), 0, 0, 0};
  const Memory grad_output = x.grad_output.is_sum ? memory_of(x.grad_output.of_sum, "grad_output")
                                                  : memory_of(x.grad_output.of_scalar, "grad_output");
  const Memory to_q = memory_of(x.grad_q, "grad_q"), to_k = memory_of(x.grad_k, "grad_k"),
               to_v = memory_of(x.grad_v, "grad_v"), to_bias = memory_of(grad_bias, "the gradient of the bias");
  for (const Memory& written : {to_q, to_k, to_v, to_bias})
    require_apart(written,
                  {memory_of(x.q, "q"), memory_of(x.k, "k"), memory_of(x.v, "v"), memory_of(x.output, "output"),
                   grad_output, memory_of(lse, "lse"), memory_of<kind>(x.bias)});
  require_rows(x.grad_q, "grad_q");
  require_rows(x.grad_k, "grad_k");
  require_rows(x.grad_v, "grad_v");
  require_apart(to_k, {to_q, to_bias});
  require_apart(to_v, {to_q, to_k, to_bias});
  require_apart(to_q, {to_bias});
}

/// Sets the rows of keys that belong to no sequence to 0.
template <class T>
void clear_key_padding(const View<T>& x, const Sequences& sequences) {
  if (sequences.kind == Sequences::Kind::padded) clear_padding(x, sequences.key_ranges);
}

template <class E, BiasKind kind>
void backward(const BackwardCall<E>& call, const Options& options, Workspace& workspace) {
  using T = Sum<E>;
  using X = kernel::Erased<E>;
  using F = kernel::Format<X, X, false, false, BiasOf<kind, T>>;
  const Sequences sequences = checked_sequences(call.sequences, options);
  check_backward<kind>(call, sequences);
  const double scale = scale_of<T>(options, call.q.head_dim), tolerance = tolerance_of<T>(options);
  Pruning* const report = report_of(options, sequences, call.q.heads);
  resolve(options.mask, call.q.tokens, call.k.tokens);
  clear_padding(call.grad_q, sequences.query_ranges);
  clear_key_padding(call.grad_k, sequences);
  clear_key_padding(call.grad_v, sequences);
  using kernel::erased;
  const BackwardSequences<F> all{
      {erased(call.q), erased(call.k), erased(call.v), {}, nullptr, call.bias, sequences, options.mask, tolerance},
      erased(call.output),
      {erased(call.grad_output.of_scalar), call.grad_output.of_sum, call.grad_output.is_sum},
      call.lse.data(),
      call.grad_q,
      call.grad_k,
      call.grad_v,
      call.grad_bias.size() > 0};
  run_backward<F>(kernel::Forward<F>{{}, call.q.heads, call.k.heads, call.q.head_dim, call.v.head_dim, scale, report},
                  all, call.bias.table, {call.grad_bias.data, std::size_t(call.grad_bias.size())}, options.executor,
                  workspace);
}

}  // namespace alibi::inline ALIBI_ABI::detail
