// Attention over a KvCache: decoding one or a few tokens at a time, and chunked prefill.
//
// Shapes:
//   q        [batch, heads, queries, head_dim], of float or of the cache's scalar (double for a cache of double)
//   slopes   [heads] or [batch, heads], a relative_bias() or no_bias
//   output   [batch, heads, queries, value_dim], of the scalar of q
//   lse      [batch, heads, queries]
//
// Append the new tokens first, then attend: query i of a sequence of length n has position n - queries + i. Prompts of
// unequal length are appended by counts or ranges, and Options::queries takes the same counts or ranges; with c real
// queries in a sequence, real query i has position n - c + i. All of Options but `keys` applies. mask.window and
// mask.sinks default to those of the cache.
//
// With up to 8 queries a head, the keys are split into tasks, and Options::pruning_stats counts pairs of one query and
// a tile of 64 keys. With more queries, the forward kernel runs.
//
// The certificate includes the evicted keys: pruning gets the rest of the tolerance. With a tolerance below that of the
// eviction nothing is pruned. PruningStats::mass_bound is the bound of pruning and eviction together.
//
// Errors: std::invalid_argument that names the argument, before anything is written, for
// - shapes that do not fit the cache,
// - queries whose keys have left the cache,
// - queries, slopes or a scale outside the preconditions of its Eviction. They are checked on every call, so that a
//   violated precondition is reported at once.
// - a relative_bias() over a cache with an Eviction, whose bound holds for slopes only.
#pragma once

#include <optional>
#include <span>
#include <type_traits>
#include <utility>

#include "alibi/attention.hpp"
#include "alibi/detail/adapt.hpp"
#include "alibi/detail/call.hpp"
#include "alibi/kv_cache.hpp"
#include "alibi/options.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ABI {

namespace detail {

/// Makes views of the arrays of a call over a cache and runs it.
template <class Output, class Q, class S, class Bias>
void cached_into(Output& output, std::optional<std::span<SumOf<Q>>> lse, const Q& q, const KvCache<S>& cache,
                 const Bias& bias, const Options& options) {
  using E = typename Adapter<Q>::Scalar;
  static_assert(std::is_same_v<E, S> || (std::is_same_v<E, float> && !std::is_same_v<S, double>),
                "alibi: q must hold the scalar of the cache, or float for a cache of bfloat16 or half.");
  const auto into = Adapter<std::remove_const_t<Output>>::of(output, "output");
  check_scalars<E, E, E, decltype(into)>();
  const View<const E> queries = view_of(q, "q");
  static_assert(kBiasKind<Bias> != BiasKind::positions,
                "alibi: attention over a cache takes slopes, a table or alibi::no_bias, not positions or two-sided "
                "slopes.");
  forward_cached<E, S, kBiasKind<Bias>>({queries, into, lse, cache, bias_view<SumOf<Q>>(bias, queries.heads)}, options);
}

/// A new output of the array type of q, with the value_dim of the cache.
template <class Q, class S>
auto new_cached_output(const Q& q, const KvCache<S>& cache) {
  static_assert(
      requires { typename Adapter<Q>::Output; },
      "alibi: for views there is no array type to return; use attention_into() with a view of your memory.");
  const auto queries = view_of(q, "q");
  return Adapter<Q>::output(queries.batch, queries.heads, queries.tokens, cache.config().value_dim);
}

}  // namespace detail

/// Attention of q, [batch, heads, queries, head_dim], over the keys and values of a cache, as a new array of the type
/// of q, [batch, heads, queries, value_dim]. slopes are [heads] or [batch, heads], a relative_bias() or no_bias. The
/// formula is that of attention(q, k, v, slopes); the last query has the position of the last key. Throws
/// std::invalid_argument, before anything is written, for shapes that do not fit the cache, queries whose keys have
/// left it, and a violated precondition of its Eviction.
template <class Q, class S, class Bias>
auto attention(const Q& q, const KvCache<S>& cache, const Bias& slopes, const Options& options = {}) {
  auto output = detail::new_cached_output(q, cache);
  detail::cached_into(output, std::nullopt, q, cache, slopes, options);
  return output;
}

/// Attention over a cache and its log-sum-exp, [batch, heads, queries], natural logarithm:
///
///     auto [output, lse] = attention_with_lse(q, cache, slopes);
///
/// Shapes and errors are those of attention(q, cache, slopes).
template <class Q, class S, class Bias>
auto attention_with_lse(const Q& q, const KvCache<S>& cache, const Bias& slopes, const Options& options = {}) {
  auto output = detail::new_cached_output(q, cache);
  auto lse = detail::new_lse(q);
  detail::cached_into(output, lse_view<detail::SumOf<Q>>(lse), q, cache, slopes, options);
  return ForwardResult<decltype(output), decltype(lse)>{std::move(output), std::move(lse)};
}

/// Attention over a cache into memory of the caller, [batch, heads, queries, value_dim], which may not overlap q or the
/// slopes. With Options::workspace a repeated call allocates nothing. Shapes and errors are those of
/// attention(q, cache, slopes).
template <class Output, class Q, class S, class Bias>
void attention_into(Output&& output, const Q& q, const KvCache<S>& cache, const Bias& slopes,
                    const Options& options = {}) {
  detail::cached_into(output, std::nullopt, q, cache, slopes, options);
}

/// attention_into() over a cache that also writes the log-sum-exp, [batch, heads, queries], natural logarithm. `lse` is
/// an array that lse_view() takes.
template <class Output, class Lse, class Q, class S, class Bias>
void attention_with_lse_into(Output&& output, Lse&& lse, const Q& q, const KvCache<S>& cache, const Bias& slopes,
                             const Options& options = {}) {
  detail::cached_into(output, lse_view<detail::SumOf<Q>>(lse), q, cache, slopes, options);
}

}  // namespace alibi::inline ALIBI_ABI

#if !defined(ALIBI_COMPILED)
#include "alibi/detail/cached_dispatch.hpp"
#endif
