// Attention with linear biases (Press, Smith, Lewis, "Train Short, Test Long", arXiv 2108.12409).
//
//   s_ij = τ q_i·k_j - m_h |p_i - j|        the bias is outside the scale (footnote 10)
//   o_i  = Σ_j softmax_j(s_ij) v_j          over the keys that the mask lets query i see
//   lse_i = ln Σ_j exp(s_ij)
//
// q [batch, heads, queries, head_dim], k [batch, kv_heads, keys, head_dim], v [batch, kv_heads, keys, value_dim],
// slopes m [heads] or [batch, heads]; the result is [batch, heads, queries, value_dim]. heads is a multiple of
// kv_heads: query head h reads kv head h / (heads / kv_heads). Arrays are what view.hpp lists, all of one scalar:
// float, double, bfloat16 or half. The last two are summed up in float; slopes and lse are float with them.
//
// Keys so far back that they cannot matter are not read: each row may lose the share `tolerance` of its softmax mass,
// by default less than rounding takes from it (horizon.hpp derives the bound). So the cost of a head of slope m grows
// with tokens / m, not with their square. What a NaN or infinity in a value that is not read would have done is not
// seen; keys that are not finite are always read, and a head that has one reads nearly all of its keys.
//
// A query that sees no key has output 0 and lse -inf. The same input gives the same bits on any number of threads.
//
// In the place of slopes stands, where that is wanted, any bias of distance, table_bias() of table_bias.hpp, or
// no_bias.
//
// Errors: std::invalid_argument that names the argument, before anything is written. Gradients are in backward.hpp. Not
// for: dropout, additive masks.
#pragma once

#include <optional>
#include <span>
#include <type_traits>
#include <utility>

#include "alibi/detail/adapt.hpp"
#include "alibi/detail/call.hpp"
#include "alibi/error.hpp"
#include "alibi/options.hpp"
#include "alibi/view.hpp"
#include "alibi/workspace.hpp"

namespace alibi::inline ALIBI_ABI {

/// What attention_forward() returns.
template <class Output, class Lse>
struct ForwardResult {
  Output output;  ///< [batch, heads, queries, value_dim]
  Lse lse;        ///< [batch, heads, queries], natural logarithm
};

namespace detail {

/// The arrays of a call as views, over sequences that are known but for the tokens there are.
template <template <class> class AdapterOf, class Output, class Q, class K, class V, class Slopes>
void forward_into(Output& output, std::optional<std::span<Sum<typename AdapterOf<Q>::Scalar>>> lse, const Q& q,
                  const K& k, const V& v, const Slopes& slopes, Sequences sequences, const Options& options,
                  Workspace& workspace) {
  using E = typename AdapterOf<Q>::Scalar;
  const auto into = AdapterOf<std::remove_const_t<Output>>::of(output, "output");
  check_scalars<E, typename AdapterOf<K>::Scalar, typename AdapterOf<V>::Scalar, decltype(into)>();
  const View<const E> queries = view_of<AdapterOf>(q, "q"), keys = view_of<AdapterOf>(k, "k"),
                      values = view_of<AdapterOf>(v, "v");
  if (sequences.kind != Sequences::Kind::varlen) sequences.count = queries.batch;
  sequences.queries = queries.tokens;
  sequences.keys = keys.tokens;
  forward<E, kBiasKind<Slopes>>({queries, keys, values, into, lse, bias_view<Sum<E>>(slopes, queries.heads), sequences},
                                options, workspace);
}

/// The result of q's kind for `v`'s head_dim.
template <class Q, class V>
auto new_output(const Q& q, const V& v) {
  static_assert(
      requires { typename Adapter<Q>::Output; },
      "alibi: for views there is no array type to return; use attention_into() with a view of your memory.");
  const auto queries = view_of(q, "q");
  const Index value_dim = view_of(v, "v").head_dim;
  checked_product({queries.batch, queries.heads, queries.tokens, value_dim}, "the output");
  return Adapter<Q>::output(queries.batch, queries.heads, queries.tokens, value_dim);
}
template <class Q>
auto new_lse(const Q& q) {
  const auto queries = view_of(q, "q");
  return Adapter<Q>::lse(queries.batch, queries.heads, queries.tokens);
}

}  // namespace detail

/// Attention as defined at the top of this file, as a new array of q's kind: a tensor for tensors, a row-major matrix
/// for matrices of one head.
template <class Q, class K, class V, class Slopes>
auto attention(const Q& q, const K& k, const V& v, const Slopes& slopes, const Options& options = {}) {
  auto output = detail::new_output(q, v);
  Workspace workspace;
  detail::forward_into<Adapter>(output, std::nullopt, q, k, v, slopes, {}, options, workspace);
  return output;
}

/// Attention and its log-sum-exp, as new arrays: auto [output, lse] = attention_forward(q, k, v, slopes).
template <class Q, class K, class V, class Slopes>
auto attention_forward(const Q& q, const K& k, const V& v, const Slopes& slopes, const Options& options = {}) {
  auto output = detail::new_output(q, v);
  auto lse = detail::new_lse(q);
  Workspace workspace;
  detail::forward_into<Adapter>(output, lse_view<detail::SumOf<Q>>(lse), q, k, v, slopes, {}, options, workspace);
  return ForwardResult<decltype(output), decltype(lse)>{std::move(output), std::move(lse)};
}

/// Attention into memory of the caller, [batch, heads, queries, value_dim], which may not overlap an input. Allocates
/// nothing once `workspace` has served a call of these shapes, as long as the executor does not.
template <class Output, class Q, class K, class V, class Slopes>
void attention_into(Output&& output, const Q& q, const K& k, const V& v, const Slopes& slopes, const Options& options,
                    Workspace& workspace) {
  detail::forward_into<Adapter>(output, std::nullopt, q, k, v, slopes, {}, options, workspace);
}
template <class Output, class Q, class K, class V, class Slopes>
void attention_into(Output&& output, const Q& q, const K& k, const V& v, const Slopes& slopes,
                    const Options& options = {}) {
  Workspace workspace;
  attention_into(output, q, k, v, slopes, options, workspace);
}

/// The same with the log-sum-exp, [batch, heads, queries], what lse_view() takes.
template <class Output, class Lse, class Q, class K, class V, class Slopes>
void attention_forward_into(Output&& output, Lse&& lse, const Q& q, const K& k, const V& v, const Slopes& slopes,
                            const Options& options, Workspace& workspace) {
  detail::forward_into<Adapter>(output, lse_view<detail::SumOf<Q>>(lse), q, k, v, slopes, {}, options, workspace);
}
template <class Output, class Lse, class Q, class K, class V, class Slopes>
void attention_forward_into(Output&& output, Lse&& lse, const Q& q, const K& k, const V& v, const Slopes& slopes,
                            const Options& options = {}) {
  Workspace workspace;
  attention_forward_into(output, lse, q, k, v, slopes, options, workspace);
}

}  // namespace alibi::inline ALIBI_ABI

#if !defined(ALIBI_COMPILED)
#include "alibi/detail/forward_dispatch.hpp"
#endif
