// From a call over a cache to its tasks: checks the call, and runs it by splits of the keys for few queries, by blocks
// of queries for many. Internal.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <span>
#include <type_traits>

#include "alibi/detail/call.hpp"
#include "alibi/detail/forward_dispatch.hpp"
#include "alibi/detail/validate.hpp"
#include "alibi/error.hpp"
#include "alibi/kernel/decode/merge.hpp"
#include "alibi/kernel/decode/schedule.hpp"
#include "alibi/kernel/decode/task.hpp"
#include "alibi/kv_cache.hpp"
#include "alibi/options.hpp"
#include "alibi/relative_bias.hpp"
#include "alibi/view.hpp"
#include "alibi/workspace.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// The mask of a call. Its window and its sinks are those of the cache, unless the call asks for fewer keys.
template <class S>
Mask cache_mask(const KvCache<S>& cache, const Mask& asked) {
  Mask mask = asked;
  const std::optional<Index> window = cache.config().window;
  if (!mask.sinks) mask.sinks = cache.config().sinks;
  require(*mask.sinks <= cache.config().sinks || !(window || cache.config().eviction), "mask.sinks is ", *mask.sinks,
          "; expected at most ", cache.config().sinks, ", the sinks of the cache");
  if (!window) return mask;
  if (!mask.window) mask.window = window;
  require(*mask.window <= *window, "mask.window is ", *mask.window, "; expected at most ", *window,
          ", the window of the cache");
  return mask;
}

/// Checks that the cache still holds all keys that the queries need, and that queries, slopes and scale satisfy the
/// preconditions of its Eviction.
template <class E, class S>
void check_reach(const CachedCall<E, S>& call, const SequenceList& sequences, const Mask& mask, double scale) {
  const KvCache<S>& cache = call.cache;
  const View<const E>& q = call.q;
  const KvCacheConfig& config = cache.config();
  for (Index b = 0; b < q.batch; b++) {
    const KeyRange queries = sequences[b].queries;
    const Index count = queries.end - queries.begin, least = cache.min_length(b) - 1;
    const Index first = resolve(sequences.mask_of(mask, b), count, cache.length(b)).position(0);
    require(count == 0 || cache.min_length(b) == 0 || first >= least, "the first query of sequence ", b,
            " has position ", first, "; expected at least ", least, ": keys that it needs have left the cache");
    // On every call, not only after an eviction, so that a violated precondition is reported at once.
    for (Index h = 0; h < q.heads && config.eviction; h++) {
      const Eviction& eviction = *config.eviction;
      require(Index(eviction.slopes.size()) == q.heads, "q has heads ", q.heads, "; expected ", eviction.slopes.size(),
              ", as many as eviction.slopes of the cache");
      constexpr double kSlack = 0x1p-12;  // the relative rounding error that the eviction bound allows
      const double slope = slope_at(call.bias.slopes, b, h), least_slope = eviction.slopes[std::size_t(h)];
      require(slope >= least_slope - kSlack * std::abs(least_slope), "the slope of head ", h, " in batch ", b, " is ",
              slope, "; expected at least ", least_slope, ", that of the cache's eviction");
      require(std::abs(scale) <= std::abs(*eviction.scale) * (1 + kSlack), "scale is ", scale, "; expected at most ",
              *eviction.scale, ", that of the cache's eviction");
      for (Index i = queries.begin; i < queries.end; i++) {
        const E* query = q.data + b * q.batch_stride + h * q.head_stride + i * q.token_stride;
        double square = 0;
        for (Index d = 0; d < q.head_dim; d++) square += double(query[d]) * double(query[d]);
        require(!(std::sqrt(square) > eviction.query_norm * (1 + kSlack)), "query ", i, " of head ", h, " in batch ", b,
                " has norm ", std::sqrt(square), "; expected at most ", eviction.query_norm,
                ", the query_norm of the cache's eviction");
      }
    }
  }
}

/// The memory of a call of the decode kernel.
template <class F>
struct DecodeMemory {
  using T = typename F::T;
  std::span<std::byte> scratch;
  std::span<kernel::SequenceParams<F>> sequences;
  std::span<kernel::Cached<typename F::Stored, T>> cached;
  std::span<kernel::DecodeItem> items;
  std::span<kernel::RowState<T>> states;
  std::span<T> outputs;
  std::span<T> table;  // of a table bias: [heads][kernel::Tables::size()], padded, in reverse order

  DecodeMemory(Arena& arena, Index scratch_bytes, Index count, Index kv_heads, Index item_count, Index rows, Index dims,
               Index table_size)
      : scratch(arena.take<std::byte>(scratch_bytes)),
        sequences(arena.take<kernel::SequenceParams<F>>(count)),
        cached(arena.take<kernel::Cached<typename F::Stored, T>>(count * kv_heads)),
        items(arena.take<kernel::DecodeItem>(item_count)),
        states(arena.take<kernel::RowState<T>>(rows)),
        outputs(arena.take<T>(rows * dims)),
        table(arena.take<T>(table_size)) {}
};

/// Whether the decode kernel runs a sequence. This depends on its queries alone, so that its bits do not depend on the
/// other sequences.
inline bool is_few(const KeyRange& queries) { return queries.end - queries.begin <= kernel::kMaxQueries; }

/// The sequences of a checked call over a cache, one at a time: those with few queries if `few`, else those with many.
/// The other sequences appear without queries.
template <class F, class S>
struct CacheSequences {
  using E = typename F::Query;
  using T = typename F::T;
  View<const E> q;
  View<E> output;
  T* lse;
  const KvCache<S>& cache;
  SlopeView slopes;
  const SequenceList& sequences;
  const Mask& mask;
  double tolerance;
  bool few;

  Index count() const { return q.batch; }
  kernel::SequenceParams<F> operator[](Index b) const {
    KeyRange queries = sequences[b].queries;
    if (is_few(queries) != few) queries.end = queries.begin;
    return {.q = part_of(q, b, queries),
            .output = part_of(output, b, queries),
            .lse = lse ? lse + b * q.heads * q.tokens + queries.begin : nullptr,
            .lse_stride = q.tokens,
            .slopes = slopes_of(slopes, b),
            .mask = resolve(sequences.mask_of(mask, b), queries.end - queries.begin, cache.length(b)),
            .tolerance = tolerance,
            .kv_heads = cache.config().kv_heads};
  }
  kernel::Cached<typename F::Stored, T> head(Index b, Index kv_head) const {
    const kernel::Cached<S, T> at = CacheAccess::head(cache, b, kv_head);
    return {.tiles = at.tiles,
            .first_tile = at.first_tile,
            .begin = at.begin,
            .length = at.length,
            .value_offset = at.value_offset,
            .key_bounds = at.key_bounds,
            .sinks = at.sinks,
            .half = std::is_same_v<S, Eigen::half>,
            .evicted = cache.evicted_tolerance(b, kv_head)};
  }
};

/// Runs a checked call with few queries: a task for each split of each kv head, then the merge.
template <class F, class S>
void run_decode(kernel::Params<F> call, const CacheSequences<F, S>& all, const Options& options,
                const RelativeBias<typename F::T>& table) {
  using kernel::DecodePlan;
  const Executor& executor = options.executor;
  using T = typename F::T;
  const Index count = all.count(), dims = kernel::round_up<T>(call.value_dim);
  Index items = 0, rows = 0, max_rows = 0;  // rows of all items together; max_rows: the most rows of one item
  for (Index s = 0; s < count; s++) {
    const kernel::SequenceParams<F> sequence = all[s];
    const Index of_one = call.group() * sequence.q.tokens;
    const Index splits = call.kv_heads * DecodePlan::of(sequence).splits;
    max_rows = std::max(max_rows, of_one);
    items += splits;
    rows += splits * of_one;
  }
  const std::size_t bytes = kernel::DecodeTask<F>::bytes(max_rows, call.head_dim);
  const Index scratch = Index(bytes) * std::min<Index>(executor.max_concurrency(), items);
  const Index table_size = table.entries > 0 ? call.heads * kernel::Tables<T>{nullptr, table.entries}.size() : 0;
  Arena counted;
  DecodeMemory<F>(counted, scratch, count, call.kv_heads, items, rows, dims, table_size);
  Workspace own;
  Arena arena(scratch_memory(options.workspace ? *options.workspace : own, counted.used()));
  DecodeMemory<F> memory(arena, scratch, count, call.kv_heads, items, rows, dims, table_size);
  make_sequences<F>(memory.sequences, memory.cached, call.kv_heads, all);
  if (table.entries > 0) {
    const auto tables = pad_tables(table, memory.table, true);
    for (auto& sequence : memory.sequences) sequence.tables = tables;
  }
  call.sequences = memory.sequences;
  kernel::list_items(call, memory.items);
  executor.for_each(items, [&](Index i, int slot) {
    const kernel::DecodeItem& item = memory.items[std::size_t(i)];
    kernel::DecodeTask<F>(call, item, memory.states.data() + item.first_row,
                          memory.outputs.data() + item.first_row * dims,
                          memory.scratch.data() + std::size_t(slot) * bytes)
        .run();
  });
  Index first = 0;
  for (Index s = 0; s < count; s++) {
    const kernel::SequenceParams<F>& sequence = memory.sequences[std::size_t(s)];
    const Index splits = DecodePlan::of(sequence).splits;
    for (Index kv = 0; kv < call.kv_heads; kv++) {
      kernel::finish_decode(call, s, kv, splits, memory.states.data() + first, memory.outputs.data() + first * dims);
      first += splits * call.group() * sequence.q.tokens;
    }
  }
}

template <class E, class S, BiasKind kind>
void forward_cached(const CachedCall<E, S>& call, const Options& options) {
  using T = Sum<E>;
  const View<const E>& q = call.q;
  const KvCacheConfig& config = call.cache.config();
  check_queries(q, config);
  require(options.keys.empty(),
          "options.keys is given for attention over a cache; expected none: append real keys only");
  const SequenceList sequences = checked_sequences({.count = q.batch, .queries = q.tokens}, options);
  check_bias<kind>(call.bias, q.heads, sequences);
  require(
      kind == BiasKind::slopes || !config.eviction,
      "a table is given for attention over a cache with an eviction; expected slopes: its bound holds for them only");
  check_output(call.output, q, config.value_dim);
  const double scale = scale_of<T>(options, q.head_dim), tolerance = tolerance_of<T>(options);
  PruningStats* const pruning_stats = pruning_stats_of(options, sequences, q.heads);
  const Mask mask = cache_mask(call.cache, options.mask);
  check_memory(call.output, call.lse, q.batch * q.heads * q.tokens, {memory_of(q, "q"), memory_of<kind>(call.bias)});
  check_reach(call, sequences, mask, scale);
  if (pruning_stats) std::fill_n(pruning_stats, q.batch * q.heads, PruningStats());
  clear_padding(call.output, sequences.query_ranges);
  if (call.lse) clear_padding(call.lse->data(), q.heads, q.tokens, sequences.query_ranges);
  if (q.tokens == 0 || q.heads == 0) return;

  // Few queries read a table, if there is one, in the kernel for slopes, which is compiled for both.
  using Few = kernel::KernelTraits<E, S, true>;
  using Many = kernel::KernelTraits<kernel::Erased<E>, kernel::Erased<S>, true, false, BiasPolicyFor<kind, T>>;
  bool any_few = false, any_many = false;
  for (Index b = 0; b < q.batch; b++) (is_few(sequences[b].queries) ? any_few : any_many) = true;
  const auto run_as = [&]<class F>(F, const auto& queries, const auto& output, bool few) {
    const kernel::Params<F> forward{{}, q.heads, config.kv_heads, q.head_dim, config.value_dim, scale, pruning_stats};
    const CacheSequences<F, S> all{queries,    output,           call.lse ? call.lse->data() : nullptr,
                                   call.cache, call.bias.slopes, sequences,
                                   mask,       tolerance,        few};
    if constexpr (std::is_same_v<F, Few>) {
      if (few) return run_decode(forward, all, options, call.bias.table);
    }
    if constexpr (std::is_same_v<F, Many> || F::kPairs) run(forward, all, options, call.bias.table);
  };
  if constexpr (kernel::kDotsPairs && std::is_same_v<E, Eigen::bfloat16> && std::is_same_v<S, Eigen::bfloat16>) {
    using Pairs = kernel::KernelTraits<E, S, true, true, BiasPolicyFor<kind, T>>;
    if (any_many && options.bf16_dot) run_as(Pairs(), q, call.output, false);
    any_many = any_many && !options.bf16_dot;
  }
  // Many queries first, because prepare() clears the statistics.
  if (any_many) run_as(Many(), kernel::erased(q), kernel::erased(call.output), false);
  if (any_few) run_as(Few(), q, call.output, true);
}

}  // namespace alibi::inline ALIBI_ABI::detail
