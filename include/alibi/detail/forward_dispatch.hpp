// From a call of the forward to its tasks: checks the call, lays out the scratch memory, measures the keys of heads
// that may prune, and runs the tasks. Shared by every form of attention. Internal.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>

#include "alibi/detail/arena.hpp"
#include "alibi/detail/call.hpp"
#include "alibi/detail/padding.hpp"
#include "alibi/detail/pruning_setup.hpp"
#include "alibi/detail/sequences.hpp"
#include "alibi/detail/validate.hpp"
#include "alibi/executor.hpp"
#include "alibi/kernel/forward/one_token.hpp"
#include "alibi/kernel/forward/params.hpp"
#include "alibi/kernel/forward/task.hpp"
#include "alibi/kernel/pruning/key_stats.hpp"
#include "alibi/options.hpp"
#include "alibi/relative_bias.hpp"
#include "alibi/view.hpp"
#include "alibi/workspace.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// Makes the SequenceParams of a call and, over a cache, the Cached of each kv head.
template <class F, class All, class Cached>
void make_sequences(std::span<kernel::SequenceParams<F>> sequences, std::span<Cached> cached, Index kv_heads,
                    const All& all) {
  for (std::size_t s = 0; s < sequences.size(); s++) {
    std::construct_at(&sequences[s], all[Index(s)]);
    if constexpr (F::kCached) {
      for (Index kv = 0; kv < kv_heads; kv++)
        std::construct_at(&cached[s * std::size_t(kv_heads) + std::size_t(kv)], all.head(Index(s), kv));
      sequences[s].cached = cached.data() + s * std::size_t(kv_heads);
    }
  }
}

/// The memory of a call of these sequences, without the scratch.
template <class F, class All>
typename CallMemory<F>::Sizes sizes_of(const kernel::Params<F>& call, const All& all,
                                       const RelativeBias<typename F::T>& table) {
  using T = typename F::T;
  const kernel::ForwardScratch<F> scratch(call.head_dim, call.value_dim);
  typename CallMemory<F>::Sizes sizes;
  sizes.sequences = all.count();
  sizes.cached = F::kCached ? all.count() * call.kv_heads : 0;
  if (table.entries > 0) sizes.table = call.heads * kernel::Tables<T>{nullptr, table.entries, table.first}.size();
  for (Index s = 0; s < all.count(); s++) {
    const kernel::SequenceParams<F> sequence = all[s];
    const Index tiles = measured_tiles(sequence), heads = tiles > 0 ? call.kv_heads : 0;
    sizes.items += call.heads * kernel::ForwardPlan::of(sequence, scratch).chunks;
    sizes.measures += heads * kernel::ceil_div(tiles, MeasureItem::kTiles);
    sizes.key_bounds += heads;
    const Index sides = sides_of(sequence);
    sizes.numbers += heads * kernel::KeyStatsMemory<T>::size(call.head_dim, tiles, sides) + call.heads * sides * tiles;
    sizes.outliers += heads * tiles;
  }
  return sizes;
}

/// Pads the tables of a bias into `to`, [heads][Tables::size()].
template <class T>
kernel::Tables<T> pad_tables(const RelativeBias<T>& table, std::span<T> to, bool reversed = false) {
  const kernel::Tables<T> tables{to.data(), table.entries, table.first};
  for (Index h = 0; h < table.heads; h++)
    kernel::pad_table(table.data + h * table.head_stride, table.entries, &to[std::size_t(h * tables.size())], reversed);
  return tables;
}

/// Prepares everything that the tasks read: the sequences, the tables of a bias, and the statistics of the keys for
/// pruning. Clears the pruning statistics.
template <class F, class All>
void prepare(kernel::Params<F>& call, CallMemory<F>& memory, const All& all, const RelativeBias<typename F::T>& table,
             const Executor& executor) {
  make_sequences<F>(memory.sequences, memory.cached, call.kv_heads, all);
  call.sequences = memory.sequences;
  if (call.pruning_stats)
    std::fill_n(call.pruning_stats, memory.sequences.size() * std::size_t(call.heads), PruningStats());
  if (table.entries > 0) {
    const auto tables = pad_tables(table, memory.table);
    for (auto& sequence : memory.sequences) sequence.tables = tables;
  }
  measure_keys(memory, call, executor);
}

/// Runs the tasks of the forward. `scratch` holds ForwardScratch::bytes for every slot of the executor.
template <class F>
void run_forward(const kernel::Params<F>& call, std::span<kernel::ForwardItem> items, std::byte* scratch,
                 const Executor& executor) {
  const kernel::ForwardScratch<F> size(call.head_dim, call.value_dim);
  kernel::list_items(call, size, items);
  executor.for_each(Index(items.size()), [&](Index i, int slot) {
    kernel::ForwardTask<F>(call, items[std::size_t(i)], scratch + std::size_t(slot) * size.bytes).run();
  });
}

/// Runs a checked call of the forward. All is ArraySequences, or CacheSequences of cached_dispatch.hpp. `table` is the
/// table of the bias, if it has one.
template <class F, class All>
void run(kernel::Params<F> call, const All& all, const Options& options,
         const RelativeBias<typename F::T>& table = {}) {
  const Executor& executor = options.executor;
  typename CallMemory<F>::Sizes sizes = sizes_of(call, all, table);
  sizes.scratch = Index(kernel::ForwardScratch<F>(call.head_dim, call.value_dim).bytes) *
                  std::min<Index>(executor.max_concurrency(), sizes.items);
  Arena counted;
  CallMemory<F>(counted, sizes);
  Workspace own;
  Arena arena(scratch_memory(options.workspace ? *options.workspace : own, counted.used()));
  CallMemory<F> memory(arena, sizes);
  prepare(call, memory, all, table, executor);
  run_forward(call, memory.items, memory.scratch.data(), executor);
}

/// Runs the sequences of one token, each as a part of a task of many.
template <class F>
void run_one_token(const kernel::Params<F>& call, const ArraySequences<F>& all, const Executor& executor) {
  constexpr Index kSequences = 256;
  executor.for_each(kernel::ceil_div(all.count(), kSequences), [&](Index i, int) {
    for (Index s = i * kSequences; s < std::min((i + 1) * kSequences, all.count()); s++)
      if (is_one_token(all.sequences[s]))
        kernel::attend_one_token(call, all[s], call.pruning_stats ? call.pruning_stats + s * call.heads : nullptr);
  });
}

/// Runs a checked call over arrays.
template <BiasKind kind, class F>
void run_arrays(const kernel::Params<F>& call, const ArraySequences<F>& all, const Options& options,
                const RelativeBias<typename F::T>& table) {
  constexpr bool kOneToken = kind == BiasKind::slopes && !F::kPairs;
  ArraySequences<F> others = all;
  Index one_token = 0;
  if constexpr (kOneToken) {
    for (Index s = 0; s < all.count(); s++) one_token += is_one_token(all.sequences[s]);
    others.without_one_token = one_token > 0;
  }
  if (one_token < all.count()) run(call, others, options, table);  // first, because it clears the statistics
  if constexpr (kOneToken)
    if (one_token > 0) run_one_token(call, all, options.executor);
}

template <class E, BiasKind kind>
void forward(const ForwardCall<E>& call, const Options& options) {
  using T = Sum<E>;
  using BiasPolicy = BiasPolicyFor<kind, T>;
  const SequenceList sequences = checked_sequences(call.sequences, options);
  check_inputs(call.q, call.k, call.v);
  check_bias<kind>(call.bias, call.q.heads, sequences);
  check_output(call.output, call.q, call.v.head_dim);
  const double scale = scale_of<T>(options, call.q.head_dim), tolerance = tolerance_of<T>(options);
  PruningStats* const pruning_stats = pruning_stats_of(options, sequences, call.q.heads);
  resolve(options.mask, call.q.tokens, call.k.tokens);
  check_mask<kind>(options);
  check_memory(call.output, call.lse, call.q.batch * call.q.heads * call.q.tokens,
               {memory_of(call.q, "q"), memory_of(call.k, "k"), memory_of(call.v, "v"), memory_of<kind>(call.bias)});
  if constexpr (kind == BiasKind::positions) {
    require_disjoint(memory_of(call.output, "output"), call.bias.positions);
    if (call.lse) require_disjoint(memory_of(lse_row(*call.lse, Index(call.lse->size())), "lse"), call.bias.positions);
  }
  clear_padding(call.output, sequences.query_ranges);
  if (call.lse) clear_padding(call.lse->data(), call.q.heads, call.q.tokens, sequences.query_ranges);

  const auto run_as = [&]<class F>(F, const auto& q, const auto& k, const auto& v, const auto& output) {
    T* const lse = call.lse ? call.lse->data() : nullptr;
    run_arrays<kind>(kernel::Params<F>{{}, q.heads, k.heads, q.head_dim, v.head_dim, scale, pruning_stats},
                     ArraySequences<F>{q, k, v, output, lse, call.bias, sequences, options.mask, tolerance}, options,
                     call.bias.table);
  };
  if constexpr (kernel::kDotsPairs && std::is_same_v<E, Eigen::bfloat16>)
    if (options.bf16_dot)
      return run_as(kernel::KernelTraits<E, E, false, true, BiasPolicy>(), call.q, call.k, call.v, call.output);
  using X = kernel::Erased<E>;
  run_as(kernel::KernelTraits<X, X, false, false, BiasPolicy>(), kernel::erased(call.q), kernel::erased(call.k),
         kernel::erased(call.v), kernel::erased(call.output));
}

}  // namespace alibi::inline ALIBI_ABI::detail
