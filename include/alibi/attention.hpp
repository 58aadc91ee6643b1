// Attention with linear biases (Press, Smith, Lewis, "Train Short, Test Long", arXiv 2108.12409).
//
//   s_ij  = τ q_i·k_j - m_h |p_i - j|       the bias is outside the scale (footnote 10)
//   o_i   = Σ_j softmax_j(s_ij) v_j         over the keys that the mask lets query i see
//   lse_i = ln Σ_j exp(s_ij)
//
// Shapes:
//   q        [batch, heads, queries, head_dim]
//   k        [batch, kv_heads, keys, head_dim]
//   v        [batch, kv_heads, keys, value_dim]
//   slopes   [heads] or [batch, heads]
//   output   [batch, heads, queries, value_dim]
//   lse      [batch, heads, queries], natural logarithm
// heads is a multiple of kv_heads; query head h reads kv head h / (heads / kv_heads).
//
// q, k, v and the output are arrays of one scalar: float, double, bfloat16 or half (view.hpp lists the array types).
// bfloat16 and half are summed in float; their lse is float. Slopes may hold any of the four.
//
// Pruning: keys that are too distant to matter are not read. Pruning removes at most the share `tolerance` of the
// softmax mass of each row; the default is smaller than rounding errors (pruning.hpp derives the bound). The cost of a
// head of slope m therefore grows with tokens / m, not with the square of the tokens.
//
// - A query that sees no key has output 0 and lse -inf.
// - The same input gives the same bits on any number of threads.
// - A NaN or infinity in the value of a pruned key does not reach the output. Keys that are not finite are always read;
//   a head that has one reads nearly all of its keys.
// - Instead of slopes, pass two_sided(before, after), positions(slopes, c), relative_bias(table) or no_bias.
//
// Errors: std::invalid_argument that names the argument, before anything is written. Gradients: backward.hpp. Dropout
// and additive masks are not supported.
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

namespace alibi::inline ALIBI_ABI {

/// The result of attention_with_lse() and of its forms for a cache and for varlen.
template <class Output, class Lse>
struct ForwardResult {
  Output output;  ///< [batch, heads, queries, value_dim]; varlen: [tokens, heads, value_dim]
  Lse lse;        ///< [batch, heads, queries], natural logarithm; varlen: [heads, tokens]
};
/// For compilers that do not deduce it themselves: clang before 17.
template <class Output, class Lse>
ForwardResult(Output, Lse) -> ForwardResult<Output, Lse>;

namespace detail {

/// Makes views of the arrays of a call and runs it. Fills in the sizes of the arrays, which `sequences` still lacks.
template <template <class> class AdapterOf, class Output, class Q, class K, class V, class Bias>
void forward_into(Output& output, std::optional<std::span<Sum<typename AdapterOf<Q>::Scalar>>> lse, const Q& q,
                  const K& k, const V& v, const Bias& bias, SequenceList sequences, const Options& options) {
  using E = typename AdapterOf<Q>::Scalar;
  const auto into = AdapterOf<std::remove_const_t<Output>>::of(output, "output");
  check_scalars<E, typename AdapterOf<K>::Scalar, typename AdapterOf<V>::Scalar, decltype(into)>();
  const View<const E> queries = view_of<AdapterOf>(q, "q"), keys = view_of<AdapterOf>(k, "k"),
                      values = view_of<AdapterOf>(v, "v");
  if (sequences.kind != SequenceList::Kind::varlen) sequences.count = queries.batch;
  sequences.queries = queries.tokens;
  sequences.keys = keys.tokens;
  forward<E, kBiasKind<Bias>>({queries, keys, values, into, lse, bias_view<Sum<E>>(bias, queries.heads), sequences},
                              options);
}

/// A new output of the array type of q, with the head_dim of v.
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
/// A new lse of the array type of q, one entry for each row of q.
template <class Q>
auto new_lse(const Q& q) {
  const auto queries = view_of(q, "q");
  return Adapter<Q>::lse(queries.batch, queries.heads, queries.tokens);
}

}  // namespace detail

/// Attention with linear biases (Press et al., arXiv 2108.12409, section 3), as a new array of the type of q: a tensor
/// for tensors, a row-major matrix for matrices of one head.
///
///     o_i = Σ_j softmax_j(τ q_i·k_j - m_h |p_i - j|) v_j
///
/// q is [batch, heads, queries, head_dim], k [batch, kv_heads, keys, head_dim], v [batch, kv_heads, keys, value_dim],
/// slopes [heads] or [batch, heads], a relative_bias() or no_bias. The result is [batch, heads, queries, value_dim].
/// Throws std::invalid_argument, before anything is written, for shapes, slopes or options that do not fit.
template <class Q, class K, class V, class Bias>
auto attention(const Q& q, const K& k, const V& v, const Bias& slopes, const Options& options = {}) {
  auto output = detail::new_output(q, v);
  detail::forward_into<Adapter>(output, std::nullopt, q, k, v, slopes, {}, options);
  return output;
}

/// Attention and its log-sum-exp lse_i = ln Σ_j exp(s_ij) of the full logits, as new arrays:
///
///     auto [output, lse] = attention_with_lse(q, k, v, slopes);
///
/// Shapes and errors are those of attention(); lse is [batch, heads, queries].
template <class Q, class K, class V, class Bias>
auto attention_with_lse(const Q& q, const K& k, const V& v, const Bias& slopes, const Options& options = {}) {
  auto output = detail::new_output(q, v);
  auto lse = detail::new_lse(q);
  detail::forward_into<Adapter>(output, lse_view<detail::SumOf<Q>>(lse), q, k, v, slopes, {}, options);
  return ForwardResult<decltype(output), decltype(lse)>{std::move(output), std::move(lse)};
}

/// attention() into memory of the caller, [batch, heads, queries, value_dim], which may not overlap an input. With
/// Options::workspace a repeated call allocates nothing. Shapes and errors are those of attention().
template <class Output, class Q, class K, class V, class Bias>
void attention_into(Output&& output, const Q& q, const K& k, const V& v, const Bias& slopes,
                    const Options& options = {}) {
  detail::forward_into<Adapter>(output, std::nullopt, q, k, v, slopes, {}, options);
}

/// attention_into() that also writes the log-sum-exp, [batch, heads, queries], natural logarithm. `lse` is an array
/// that lse_view() takes.
template <class Output, class Lse, class Q, class K, class V, class Bias>
void attention_with_lse_into(Output&& output, Lse&& lse, const Q& q, const K& k, const V& v, const Bias& slopes,
                             const Options& options = {}) {
  detail::forward_into<Adapter>(output, lse_view<detail::SumOf<Q>>(lse), q, k, v, slopes, {}, options);
}

}  // namespace alibi::inline ALIBI_ABI

#if !defined(ALIBI_COMPILED)
#include "alibi/detail/forward_dispatch.hpp"
#endif
