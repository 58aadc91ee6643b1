// Attention over a KvCache: decoding, a query or a few at a time, and chunked prefill alike.
//
// q [batch, heads, queries, head_dim] of float or of the cache's scalar (double for a cache of double), slopes [heads]
// or [batch, heads]; the result is [batch, heads, queries, value_dim] of q's scalar. Query i of a sequence of length n
// stands at n - queries + i: append the new tokens first, then attend. All of Options holds; mask.window is by default
// that of the cache. For up to 8 queries a head the keys are split into tasks by their number, and Options::report
// counts pairs of one query and a tile of 64 keys.
//
// The certificate covers what the cache has evicted: pruning gets what that has left of the tolerance. With a tolerance
// below that of the eviction nothing more is left out; Pruning::bound says what was lost in all.
//
// Errors: std::invalid_argument that names the argument, before anything is written: shapes that do not fit the cache,
// queries that stand before keys which have left it, and queries, slopes or a scale beyond what its eviction was
// promised, from the first call on.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>

#include "alibi/attention.hpp"
#include "alibi/call.hpp"
#include "alibi/check.hpp"
#include "alibi/error.hpp"
#include "alibi/kernel/decode.hpp"
#include "alibi/kv_cache.hpp"
#include "alibi/options.hpp"
#include "alibi/view.hpp"
#include "alibi/workspace.hpp"

namespace alibi::inline ALIBI_ISA {

namespace detail {

/// The mask of a call, its window that of the cache unless it asks for a narrower one.
template <class S>
Mask cache_mask(const KvCache<S>& cache, const Mask& asked) {
  Mask mask = asked;
  const std::optional<Index> window = cache.config().window;
  if (!window) return mask;
  if (!mask.window) mask.window = window;
  require(*mask.window <= *window, "mask.window is ", *mask.window, "; expected at most ", *window,
          ", the window of the cache");
  return mask;
}

/// That the queries find all that they need in the cache.
template <class S, class E, class T>
void check_reach(const KvCache<S>& cache, const View<const E>& q, const SlopeView<T>& slopes, const Mask& mask,
                 double scale) {
  const KvCacheConfig& config = cache.config();
  for (Index b = 0; b < q.batch; b++) {
    const Index first = resolve(mask, q.tokens, cache.length(b)).position(0), least = cache.shortest(b) - 1;
    require(q.tokens == 0 || cache.shortest(b) == 0 || first >= least, "the first query of sequence ", b, " stands at ",
            first, "; expected at least ", least, ": keys that it needs have left the cache");
    // From the first call on, not only once something has been evicted: a promise that is not kept shows at once.
    for (Index h = 0; h < q.heads && config.eviction; h++) {
      const Eviction& eviction = *config.eviction;
      require(Index(eviction.slopes.size()) == q.heads, "q has heads ", q.heads, "; expected ", eviction.slopes.size(),
              ", as many as eviction.slopes of the cache");
      constexpr double kSlack = 0x1p-12;  // of a number: what the eviction has left for rounding
      const double slope = double(slopes.data[b * slopes.batch_stride + h * slopes.head_stride]);
      const double least_slope = eviction.slopes[std::size_t(h)];
      require(slope >= least_slope - kSlack * std::abs(least_slope), "the slope of head ", h, " in batch ", b, " is ",
              slope, "; expected at least ", least_slope, ", that of the cache's eviction");
      require(std::abs(scale) <= std::abs(*eviction.scale) * (1 + kSlack), "scale is ", scale, "; expected at most ",
              *eviction.scale, ", that of the cache's eviction");
      for (Index i = 0; i < q.tokens; i++) {
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

/// The memory of a decode call.
template <class F>
struct DecodeMemory {
  using T = typename F::T;
  std::span<std::byte> scratch;
  std::span<kernel::Sequence<F>> sequences;
  std::span<kernel::Cached<typename F::Stored, T>> cached;
  std::span<kernel::DecodeItem> items;
  std::span<kernel::RowState<T>> states;
  std::span<T> outputs;

  DecodeMemory(Arena& arena, Index scratch_bytes, Index count, Index kv_heads, Index item_count, Index rows, Index dims)
      : scratch(arena.take<std::byte>(scratch_bytes)),
        sequences(arena.take<kernel::Sequence<F>>(count)),
        cached(arena.take<kernel::Cached<typename F::Stored, T>>(count * kv_heads)),
        items(arena.take<kernel::DecodeItem>(item_count)),
        states(arena.take<kernel::RowState<T>>(item_count * rows)),
        outputs(arena.take<T>(item_count * rows * dims)) {}
};

/// Runs a checked call with few queries: a task for each split of each kv head, then the merge.
template <class F, class Make>
void run_decode(kernel::Forward<F> call, Index count, const Make& make, const Executor& executor,
                Workspace& workspace) {
  using kernel::DecodePlan;
  using T = typename F::T;
  const Index queries = make(0).q.tokens, rows = call.group() * queries, dims = kernel::padded<T>(call.value_dim);
  Index items = 0;
  for (Index s = 0; s < count; s++) items += call.kv_heads * DecodePlan::of(call.kv_heads, make(s).mask.keys).splits;
  const std::size_t bytes = kernel::DecodeTask<F>::bytes(rows, call.head_dim);
  const Index scratch = Index(bytes) * std::min<Index>(executor.slots(), items);
  Arena counted;
  DecodeMemory<F>(counted, scratch, count, call.kv_heads, items, rows, dims);
  Arena arena(workspace.reserve(counted.used()));
  DecodeMemory<F> memory(arena, scratch, count, call.kv_heads, items, rows, dims);
  make_sequences<F>(memory.sequences, memory.cached, call.kv_heads, make);
  call.sequences = memory.sequences;
  kernel::list_items(call, rows, memory.items);
  executor.for_each(items, [&](Index i, int slot) {
    const kernel::DecodeItem& item = memory.items[std::size_t(i)];
    kernel::DecodeTask<F>(call, item, memory.states.data() + item.first_row,
                          memory.outputs.data() + item.first_row * dims,
                          memory.scratch.data() + std::size_t(slot) * bytes)
        .run();
  });
  Index first = 0;
  for (Index s = 0; s < count; s++)
    for (Index kv = 0; kv < call.kv_heads; kv++) {
      const Index splits = DecodePlan::of(call.kv_heads, memory.sequences[std::size_t(s)].mask.keys).splits;
      kernel::finish_decode(call, s, kv, splits, memory.states.data() + first, memory.outputs.data() + first * dims);
      first += splits * rows;
    }
}

/// A checked call over a cache.
template <class E, class S, class T>
struct CacheCall {
  const View<const E>& q;
  const View<E>& output;
  T* lse;
  const KvCache<S>& cache;
  const SlopeView<T>& slopes;
  const Mask& mask;
  double tolerance;

  template <class F>
  struct Sequences {
    const CacheCall& call;

    kernel::Sequence<F> operator()(Index b) const {
      const Index queries = call.q.tokens;
      return {.q = part_of(call.q, b, {0, queries}),
              .output = part_of(call.output, b, {0, queries}),
              .lse = call.lse ? call.lse + b * call.q.heads * queries : nullptr,
              .lse_stride = queries,
              .slopes = call.slopes.data + b * call.slopes.batch_stride,
              .slope_stride = call.slopes.head_stride,
              .mask = resolve(call.mask, queries, call.cache.length(b)),
              .tolerance = call.tolerance,
              .kv_heads = call.cache.config().kv_heads};
    }
    kernel::Cached<S, T> head(Index b, Index kv_head) const {
      kernel::Cached<S, T> at = call.cache.head(b, kv_head);
      at.evicted = call.cache.evicted_tolerance(b, kv_head);
      return at;
    }
  };
  /// As run() and run_decode() take them.
  template <class F>
  Sequences<F> sequences() const {
    return {*this};
  }
};

template <class E, class S, class T>
void decode_views(const View<E>& output, std::optional<std::span<T>> lse, const View<const E>& q,
                  const KvCache<S>& cache, const SlopeView<T>& slopes, const Options& options, Workspace& workspace) {
  const KvCacheConfig& config = cache.config();
  require_equal(q.batch, config.batch, "q", "batch", "the cache");
  require(q.heads % config.kv_heads == 0, "q has heads ", q.heads, "; expected a multiple of ", config.kv_heads,
          ", the kv_heads of the cache");
  require_equal(q.head_dim, config.head_dim, "q", "head_dim", "the cache");
  require_memory(q, "q");
  check_slopes(slopes, q.heads, {q.batch});
  check_output(output, q, config.value_dim);
  const double scale = scale_of<T>(options, q.head_dim), tolerance = tolerance_of<T>(options);
  Pruning* const report = report_of(options, {q.batch}, q.heads);
  const Mask mask = cache_mask(cache, options.mask);
  const std::pair of_q(q, "q");
  const auto of_slopes = memory_of(slopes);
  require_apart(output, "output", of_q, of_slopes);
  if (lse) {
    const View<T> row = lse_row(*lse, q.batch * q.heads * q.tokens);
    require_apart(row, "lse", of_q, of_slopes);
    require(!overlap(row, output), "lse overlaps output; expected memory of its own");
  }
  check_reach(cache, q, slopes, mask, scale);
  if (report) std::fill_n(report, q.batch * q.heads, Pruning());
  if (q.tokens == 0 || q.heads == 0) return;

  const CacheCall<E, S, T> make{q, output, lse ? lse->data() : nullptr, cache, slopes, mask, tolerance};
  const auto call = [&]<class F>(F) {
    return kernel::Forward<F>{{}, q.heads, config.kv_heads, q.head_dim, config.value_dim, scale, report};
  };
  using Plain = kernel::Format<E, S, true>;
  if (q.tokens <= kernel::kMostQueries)
    return run_decode(call(Plain()), q.batch, make.template sequences<Plain>(), options.executor, workspace);
  with_format<E, S, true>(options, [&]<class F>(F format) {
    run(call(format), q.batch, make.template sequences<F>(), options.executor, workspace);
  });
}

template <class Output, class Q, class S, class Slopes>
void decode_into(Output& output, std::optional<std::span<SumOf<Q>>> lse, const Q& q, const KvCache<S>& cache,
                 const Slopes& slopes, const Options& options, Workspace& workspace) {
  using E = typename Adapter<Q>::Scalar;
  using T = SumOf<Q>;
  static_assert(std::is_same_v<E, S> || (std::is_same_v<E, float> && !std::is_same_v<S, double>),
                "alibi: q must hold the scalar of the cache, or float for a cache of bfloat16 or half.");
  const auto into = Adapter<std::remove_const_t<Output>>::of(output, "output");
  check_scalars<E, E, E, decltype(into)>();
  const View<const E> queries = Adapter<Q>::of(q, "q");
  const auto bias = bias_view<T>(slopes, queries.heads);
  static_assert(!bias.kTable, "alibi: attention over a cache takes slopes or alibi::no_bias, not a table.");
  decode_views<E, S, T>(into, lse, queries, cache, bias.slopes, options, workspace);
}

/// The result of q's kind for the values of the cache.
template <class Q, class S>
auto new_decode_output(const Q& q, const KvCache<S>& cache) {
  static_assert(
      requires { typename Adapter<Q>::Output; },
      "alibi: for views there is no array type to return; use attention_into() with a view of your memory.");
  const auto queries = Adapter<Q>::of(q, "q");
  return Adapter<Q>::output(queries.batch, queries.heads, queries.tokens, cache.config().value_dim);
}

}  // namespace detail

/// Attention of q over the keys and values of a cache, as a new array of q's kind.
template <class Q, class S, class Slopes>
auto attention(const Q& q, const KvCache<S>& cache, const Slopes& slopes, const Options& options = {}) {
  auto output = detail::new_decode_output(q, cache);
  Workspace workspace;
  detail::decode_into(output, std::nullopt, q, cache, slopes, options, workspace);
  return output;
}

/// The same with the log-sum-exp: auto [output, lse] = attention_forward(q, cache, slopes).
template <class Q, class S, class Slopes>
auto attention_forward(const Q& q, const KvCache<S>& cache, const Slopes& slopes, const Options& options = {}) {
  auto output = detail::new_decode_output(q, cache);
  const auto queries = Adapter<Q>::of(q, "q");
  auto lse = Adapter<Q>::lse(queries.batch, queries.heads, queries.tokens);
  Workspace workspace;
  detail::decode_into(output, lse_view<detail::SumOf<Q>>(lse), q, cache, slopes, options, workspace);
  return ForwardResult<decltype(output), decltype(lse)>{std::move(output), std::move(lse)};
}

/// Into memory of the caller, which may not overlap q. Allocates nothing once `workspace` has served a call of these
/// shapes, as long as the executor does not.
template <class Output, class Q, class S, class Slopes>
void attention_into(Output&& output, const Q& q, const KvCache<S>& cache, const Slopes& slopes, const Options& options,
                    Workspace& workspace) {
  detail::decode_into(output, std::nullopt, q, cache, slopes, options, workspace);
}
template <class Output, class Q, class S, class Slopes>
void attention_into(Output&& output, const Q& q, const KvCache<S>& cache, const Slopes& slopes,
                    const Options& options = {}) {
  Workspace workspace;
  attention_into(output, q, cache, slopes, options, workspace);
}

/// The same with the log-sum-exp, [batch, heads, queries], what lse_view() takes.
template <class Output, class Lse, class Q, class S, class Slopes>
void attention_forward_into(Output&& output, Lse&& lse, const Q& q, const KvCache<S>& cache, const Slopes& slopes,
                            const Options& options, Workspace& workspace) {
  detail::decode_into(output, lse_view<detail::SumOf<Q>>(lse), q, cache, slopes, options, workspace);
}
template <class Output, class Lse, class Q, class S, class Slopes>
void attention_forward_into(Output&& output, Lse&& lse, const Q& q, const KvCache<S>& cache, const Slopes& slopes,
                            const Options& options = {}) {
  Workspace workspace;
  attention_forward_into(output, lse, q, cache, slopes, options, workspace);
}

}  // namespace alibi::inline ALIBI_ISA
