// Attention over a KvCache: decoding, a query or a few at a time, and chunked prefill alike.
//
// q [batch, heads, queries, head_dim] of float or of the cache's scalar (double for a cache of double), slopes [heads]
// or [batch, heads]; the result is [batch, heads, queries, value_dim] of q's scalar. Query i of a sequence of length n
// stands at n - queries + i: append the new tokens first, then attend. Prompts of unequal length are appended by counts
// or ranges, and Options::queries is given the same: of c real queries in a sequence the i-th stands at n - c + i, as
// in a call of its own. All of Options holds; mask.window is by default that of the cache. For up to 8 queries a head
// the keys are split into tasks by their number, and Options::report counts pairs of one query and a tile of 64 keys.
//
// The certificate covers what the cache has evicted: pruning gets what that has left of the tolerance. With a tolerance
// below that of the eviction nothing more is left out; Pruning::bound says what was lost in all.
//
// Errors: std::invalid_argument that names the argument, before anything is written: shapes that do not fit the cache,
// queries that stand before keys which have left it, and queries, slopes or a scale beyond what its eviction was
// promised, from the first call on.
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
#include "alibi/workspace.hpp"

namespace alibi::inline ALIBI_ABI {

namespace detail {

template <class Output, class Q, class S, class Slopes>
void decode_into(Output& output, std::optional<std::span<SumOf<Q>>> lse, const Q& q, const KvCache<S>& cache,
                 const Slopes& slopes, const Options& options, Workspace& workspace) {
  using E = typename Adapter<Q>::Scalar;
  using T = SumOf<Q>;
  static_assert(std::is_same_v<E, S> || (std::is_same_v<E, float> && !std::is_same_v<S, double>),
                "alibi: q must hold the scalar of the cache, or float for a cache of bfloat16 or half.");
  const auto into = Adapter<std::remove_const_t<Output>>::of(output, "output");
  check_scalars<E, E, E, decltype(into)>();
  const View<const E> queries = view_of(q, "q");
  static_assert(kBiasKind<Slopes> == BiasKind::slopes,
                "alibi: attention over a cache takes slopes or alibi::no_bias, not a table.");
  forward_cached<E, S>({queries, into, lse, cache, bias_view<T>(slopes, queries.heads).slopes}, options, workspace);
}

/// The result of q's kind for the values of the cache.
template <class Q, class S>
auto new_decode_output(const Q& q, const KvCache<S>& cache) {
  static_assert(
      requires { typename Adapter<Q>::Output; },
      "alibi: for views there is no array type to return; use attention_into() with a view of your memory.");
  const auto queries = view_of(q, "q");
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
  auto lse = detail::new_lse(q);
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

}  // namespace alibi::inline ALIBI_ABI

#if !defined(ALIBI_COMPILED)
#include "alibi/detail/cached_dispatch.hpp"
#endif
