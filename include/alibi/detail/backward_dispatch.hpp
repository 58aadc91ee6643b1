// From a call of the backward pass to its tasks: checks the call, lays out the scratch memory, prepares the rows, and
// runs the waves. Internal.
//
// Memory: the scratch of a task that runs at once is at most 1 MiB, as long as head_dim + value_dim is at most some 500
// floats. In addition a call holds
// - 5 numbers for each query and head, 6 if the shifted lse is computed (needs_shifted_lse()),
// - a sum of the gradient of the bias for each chunk of some 400 queries of a head; for a table that is 2 numbers for
//   each query,
// - for the gradients of positions, a double for each key and each query of a head,
// - for positions in any order, 2 doubles for each query and head.
// Nothing grows with the square of the tokens.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>

#include "alibi/detail/backward_memory.hpp"
#include "alibi/detail/backward_validate.hpp"
#include "alibi/detail/call.hpp"
#include "alibi/detail/forward_dispatch.hpp"
#include "alibi/detail/validate.hpp"
#include "alibi/executor.hpp"
#include "alibi/kernel/backward/schedule.hpp"
#include "alibi/kernel/backward/task.hpp"
#include "alibi/kernel/forward/params.hpp"
#include "alibi/options.hpp"
#include "alibi/relative_bias.hpp"
#include "alibi/view.hpp"
#include "alibi/workspace.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// Sets the gradients of keys and values to 0, because the tasks add to them.
template <class F>
void clear_keys(const kernel::BackwardParams<F>& call, const Executor& executor) {
  using T = typename F::T;
  const Index heads = call.forward.kv_heads;
  executor.for_each(Index(call.sequences.size()) * heads, [&](Index i, int) {
    const auto& bwd = call.sequences[std::size_t(i / heads)];
    for (const View<T>& x : {bwd.grad_k, bwd.grad_v}) {
      const kernel::Rows<T> rows = kernel::rows_of(x, i % heads);
      for (Index j = 0; j < x.tokens; j++) std::fill_n(rows[j], x.head_dim, T(0));
    }
  });
}

/// Adds the bias gradients of the tasks of a wave to the sums of the entries of a table, and clears their slots.
template <class F>
void add_tables(BackwardMemory<F>& memory, const kernel::Params<F>& call, Index items,
                const RelativeBias<typename F::T>& table) {
  using T = typename F::T;
  for (Index i = 0; i < items; i++) {
    const kernel::BackwardItem& item = memory.items[std::size_t(i)];
    const auto& bwd = memory.sequences[std::size_t(item.sequence)];
    const kernel::BackwardPlan& plan = bwd.plan;
    const Index query = item.queries * plan.rows<T>(), keys = plan.tiles * kernel::kTile;
    const Index first = kernel::BiasGradient<kernel::TableBiasPolicy<T>>::first_distance(
        memory.call.sequences[std::size_t(item.sequence)].mask.position(query), item.keys * keys, keys);
    for (Index h = item.kv_head * call.group(); h < (item.kv_head + 1) * call.group(); h++) {
      double* const slot = bwd.slots + (h * plan.query_chunks + item.queries) * slot_size<F>(plan);
      double* const sums = memory.sums.data() + h * table.entries;
      for (Index d = 0; d < slot_size<F>(plan); d++)
        sums[std::clamp<Index>(first + d - table.first, 0, table.entries - 1)] += std::exchange(slot[d], 0.0);
    }
  }
}

/// Writes the gradient of the bias, of slopes [sequences or 1][heads], of a table [heads][entries]. Does nothing if it
/// is not wanted. Entries first, …, first + count - 1 of a slot are added up.
template <class F>
void write_bias(const BackwardMemory<F>& memory, Index heads, std::span<typename F::T> to, Index first = 0,
                Index count = 1) {
  using T = typename F::T;
  if (to.empty()) return;
  if (!kernel::kHasPositions<F> && !memory.sums.empty()) {
    std::transform(memory.sums.begin(), memory.sums.end(), to.begin(), [](double x) { return T(x); });
    return;
  }
  const std::size_t all = memory.sequences.size();
  const bool shared = to.size() == std::size_t(heads) && all != 1;
  for (std::size_t i = 0; i < to.size(); i++) {
    double sum = 0;
    for (std::size_t s = shared ? 0 : i / std::size_t(heads); s < (shared ? all : i / std::size_t(heads) + 1); s++) {
      const auto& bwd = memory.sequences[s];
      const Index chunks = bwd.plan.query_chunks;
      const Index size = kernel::kHasPositions<F> ? slot_size<F>(bwd.plan) : 1;
      for (Index chunk = 0; chunk < chunks; chunk++)
        for (Index entry = first; entry < first + count; entry++)
          sum += bwd.slots[((Index(i) % heads) * chunks + chunk) * size + entry];
    }
    to[i] = T(sum);
  }
}

/// The arrays of the caller for the gradient of the bias.
template <class T>
struct BackwardGradients {
  BiasEntries<T> bias, after{};
  View<T> key_positions{}, query_positions{};
};

/// Adds the gradients of the positions of a sequence, [heads][tokens], to those of the caller. The sum over heads that
/// share positions is in double.
template <class T>
void add_positions(const double* from, Index heads, Index batch, const KeyRange& tokens, const View<T>& to) {
  const Index count = tokens.end - tokens.begin, b = to.batch > 1 ? batch : 0, shared = to.heads > 1 ? 1 : heads;
  for (Index h = 0; h < to.heads && heads > 0; h++)
    for (Index i = 0; i < count; i++) {
      double sum = 0;
      for (Index of = h; of < h + shared; of++) sum += from[of * count + i];
      T& entry = to.data[b * to.batch_stride + h * to.head_stride + (tokens.begin + i) * to.token_stride];
      entry = T(double(entry) + sum);
    }
}
/// Writes the gradients of two-sided slopes and of positions that are wanted.
template <class F>
void write_positions(const BackwardMemory<F>& memory, const BackwardSequences<F>& all,
                     const BackwardGradients<typename F::T>& to) {
  using T = typename F::T;
  const Index heads = all.arrays.q.heads;
  const auto span_of = [](const BiasEntries<T>& x) { return std::span<T>(x.data, std::size_t(x.size())); };
  write_bias(memory, heads, span_of(to.bias), 0, all.arrays.bias.positions.one_slope ? 2 : 1);
  write_bias(memory, heads, span_of(to.after), 1);
  for (const View<T>* x : {&to.key_positions, &to.query_positions})
    for (Index b = 0; b < x->batch; b++)
      for (Index h = 0; h < x->heads; h++)
        for (Index i = 0; i < x->tokens; i++)
          x->data[b * x->batch_stride + h * x->head_stride + i * x->token_stride] = T(0);
  if (!all.positions_wanted) return;
  for (Index s = 0; s < all.count(); s++) {
    const SequenceSlice slice = all.arrays.sequences[s];
    const auto& bwd = memory.sequences[std::size_t(s)];
    if (wants_positions(to.key_positions))
      add_positions(bwd.grad_key_positions, heads, slice.batch, slice.keys, to.key_positions);
    const View<T>& of_queries = all.arrays.bias.positions.shared ? to.key_positions : to.query_positions;
    if (wants_positions(of_queries))
      add_positions(bwd.grad_query_positions, heads, slice.batch, slice.queries, of_queries);
  }
}

/// Runs a checked call of the backward pass.
template <class F>
void run_backward(kernel::Params<F> call, const BackwardSequences<F>& all, const RelativeBias<typename F::T>& table,
                  const BackwardGradients<typename F::T>& to, const Options& options) {
  const Executor& executor = options.executor;
  const auto sizes = backward_sizes<F>(call, all, table, executor.max_concurrency());
  Arena counted;
  BackwardMemory<F>(counted, sizes);
  Workspace own;
  Arena arena(scratch_memory(options.workspace ? *options.workspace : own, counted.used()));
  BackwardMemory<F> memory(arena, sizes);

  prepare(call, memory.call, all, table, executor);
  make_backward_sequences(memory, call, all);
  if constexpr (kHasDistances<F>) compute_shifted_lse(memory, call, executor);
  const kernel::BackwardParams<F> backward{call, memory.sequences};
  const std::size_t bytes = sizes.slot_bytes;
  clear_keys(backward, executor);
  executor.for_each(sizes.rows, [&](Index i, int slot) {
    const RowItem& item = memory.rows[std::size_t(i)];
    std::byte* const scratch = memory.scratch.data() + std::size_t(slot) * bytes;
    kernel::BackwardRows<F>(backward, item.sequence, item.head, item.chunk, scratch).run();
  });
  Index waves = 0;
  for (const auto& bwd : memory.sequences) waves = std::max(waves, bwd.plan.waves());
  for (Index wave = 0; wave < waves; wave++) {
    const Index items = kernel::list_wave(backward, wave, memory.items);
    executor.for_each(items, [&](Index i, int slot) {
      std::byte* const scratch = memory.scratch.data() + std::size_t(slot) * bytes;
      kernel::BackwardTask<F>(backward, memory.items[std::size_t(i)], scratch).run();
    });
    if (table.entries > 0) add_tables(memory, call, items, table);
  }
  if constexpr (kernel::kHasPositions<F>)
    write_positions(memory, all, to);
  else
    write_bias(memory, call.heads, {to.bias.data, std::size_t(to.bias.size())});
}

/// Sets the gradients of keys or values that are padding to 0.
template <class T>
void clear_key_padding(const View<T>& x, const SequenceList& sequences) {
  clear_padding(x, sequences.key_ranges);
}

template <class E, BiasKind kind>
void backward(const BackwardCall<E>& call, const Options& options) {
  using T = Sum<E>;
  using X = kernel::Erased<E>;
  using F = kernel::KernelTraits<X, X, false, false, BiasPolicyFor<kind, T>>;
  const SequenceList sequences = checked_sequences(call.sequences, options);
  check_backward<kind>(call, sequences);
  const double scale = scale_of<T>(options, call.q.head_dim), tolerance = tolerance_of<T>(options);
  PruningStats* const pruning_stats = pruning_stats_of(options, sequences, call.q.heads);
  resolve(options.mask, call.q.tokens, call.k.tokens);
  check_mask<kind>(options);
  clear_padding(call.grad_q, sequences.query_ranges);
  clear_key_padding(call.grad_k, sequences);
  clear_key_padding(call.grad_v, sequences);
  using kernel::erased;
  const BackwardSequences<F> all{
      {erased(call.q), erased(call.k), erased(call.v), {}, nullptr, call.bias, sequences, options.mask, tolerance},
      erased(call.output),
      {erased(call.grad_output.of_scalar), call.grad_output.of_sum, call.grad_output.is_sum},
      call.lse.data(),
      call.grad_lse ? call.grad_lse->data() : nullptr,
      call.grad_q,
      call.grad_k,
      call.grad_v,
      call.grad_bias.size() > 0 || wants_positions(call.grad_key_positions),
      wants_positions(call.grad_key_positions)};
  run_backward<F>(
      kernel::Params<F>{{}, call.q.heads, call.k.heads, call.q.head_dim, call.v.head_dim, scale, pruning_stats}, all,
      call.bias.table, {call.grad_bias, call.grad_after, call.grad_key_positions, call.grad_query_positions}, options);
}

}  // namespace alibi::inline ALIBI_ABI::detail
