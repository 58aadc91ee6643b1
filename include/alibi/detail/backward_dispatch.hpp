// From a call of the backward pass to its tasks: checks the call, lays out the scratch memory, prepares the rows, and
// runs the waves. Internal.
//
// Memory: the scratch of a task that runs at once is at most 1 MiB, as long as head_dim + value_dim is at most some 500
// floats. In addition a call holds
// - 5 numbers for each query and head, 6 if the shifted lse is computed (needs_shifted_lse()),
// - a sum of the gradient of the bias for each chunk of some 400 queries of a head; for a table that is 2 numbers for
//   each query.
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
/// is not wanted.
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
      const auto& bwd = memory.sequences[s];
      const Index chunks = bwd.plan.query_chunks;
      for (Index chunk = 0; chunk < chunks; chunk++) sum += bwd.slots[(Index(i) % heads) * chunks + chunk];
    }
    to[i] = T(sum);
  }
}

/// Runs a checked call of the backward pass.
template <class F>
void run_backward(kernel::Params<F> call, const BackwardSequences<F>& all, const RelativeBias<typename F::T>& table,
                  std::span<typename F::T> grad_bias, const Options& options) {
  const Executor& executor = options.executor;
  const auto sizes = backward_sizes<F>(call, all, table, executor.max_concurrency());
  Arena counted;
  BackwardMemory<F>(counted, sizes);
  Workspace own;
  Arena arena(scratch_memory(options.workspace ? *options.workspace : own, counted.used()));
  BackwardMemory<F> memory(arena, sizes);

  prepare(call, memory.call, all, table, executor);
  make_backward_sequences(memory, call, all);
  compute_shifted_lse(memory, call, executor);
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
  write_bias(memory, call.heads, grad_bias);
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
      call.grad_bias.size() > 0};
  run_backward<F>(
      kernel::Params<F>{{}, call.q.heads, call.k.heads, call.q.head_dim, call.v.head_dim, scale, pruning_stats}, all,
      call.bias.table, {call.grad_bias.data, std::size_t(call.grad_bias.size())}, options);
}

}  // namespace alibi::inline ALIBI_ABI::detail
