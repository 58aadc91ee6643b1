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

#include "alibi/call.hpp"
#include "alibi/check.hpp"
#include "alibi/options.hpp"
#include "alibi/view.hpp"
#include "alibi/workspace.hpp"

namespace alibi::inline ALIBI_ISA {

/// What attention_forward() returns.
template <class Output, class Lse>
struct ForwardResult {
  Output output;  ///< [batch, heads, queries, value_dim]
  Lse lse;        ///< [batch, heads, queries], natural logarithm
};

namespace detail {

/// One sequence of a call: an entry of the batch, and the ranges of its tokens there.
struct Part {
  Index batch;
  KeyRange queries, keys;
};

template <class X>
View<X> part_of(View<X> x, Index b, const KeyRange& tokens) {
  if (x.data) x.data += b * x.batch_stride + tokens.begin * x.token_stride;  // none is added to null
  x.batch = 1;
  x.tokens = tokens.end - tokens.begin;
  return x;
}

/// Checks a call and runs it; the errors are those that the comment above promises. Its sequences are part(0), part(1),
/// …; `begin` is called once all is known to be right.
template <class E, class T, template <class> class Law, class Parts, class Begin>
void forward_parts(const View<E>& output, std::optional<std::span<T>> lse, const View<const E>& q,
                   const View<const E>& k, const View<const E>& v, const BiasView<T, Law>& bias, const Options& options,
                   Workspace& workspace, const Sequences& sequences, const Parts& part, const Begin& begin) {
  check_inputs(q, k, v);
  check_bias(bias, q.heads, sequences);
  check_output(output, q, v.head_dim);
  const double scale = scale_of<T>(options, q.head_dim), tolerance = tolerance_of<T>(options);
  Pruning* const report = report_of(options, sequences, q.heads);
  resolve(options.mask, q.tokens, k.tokens);
  const std::pair of_q(q, "q"), of_k(k, "k"), of_v(v, "v");
  const auto of_bias = memory_of(bias);
  require_apart(output, "output", of_q, of_k, of_v, of_bias);
  if (lse) {
    const View<T> row = lse_row(*lse, q.batch * q.heads * q.tokens);
    require_apart(row, "lse", of_q, of_k, of_v, of_bias);
    require(!overlap(row, output), "lse overlaps output; expected memory of its own");
  }
  begin();

  with_format<E, E, false, Law>(options, [&]<class F>(F) {
    const auto sequence = [&](Index s) {
      const Part of = part(s);
      return kernel::Sequence<F>{
          .q = part_of(q, of.batch, of.queries),
          .output = part_of(output, of.batch, of.queries),
          .k = part_of(k, of.batch, of.keys),
          .v = part_of(v, of.batch, of.keys),
          .lse = lse ? lse->data() + of.batch * q.heads * q.tokens + of.queries.begin : nullptr,
          .lse_stride = q.tokens,
          .slopes = bias.slopes.data + s * bias.slopes.batch_stride,
          .slope_stride = bias.slopes.head_stride,
          .mask = resolve(options.mask, of.queries.end - of.queries.begin, of.keys.end - of.keys.begin),
          .tolerance = tolerance,
          .kv_heads = k.heads};
    };
    run(kernel::Forward<F>{{}, q.heads, k.heads, q.head_dim, v.head_dim, scale, report}, sequences.count, sequence,
        options.executor, workspace, bias.table);
  });
}

/// What attention adds up in for arrays of this kind; also the scalar of slopes and lse.
template <class Array>
using SumOf = kernel::Sum<typename Adapter<Array>::Scalar>;

template <class Output, class Q, class K, class V, class Slopes>
void forward_into(Output& output, std::optional<std::span<SumOf<Q>>> lse, const Q& q, const K& k, const V& v,
                  const Slopes& slopes, const Options& options, Workspace& workspace) {
  using E = typename Adapter<Q>::Scalar;
  const auto into = Adapter<std::remove_const_t<Output>>::of(output, "output");
  check_scalars<E, typename Adapter<K>::Scalar, typename Adapter<V>::Scalar, decltype(into)>();
  const View<const E> queries = Adapter<Q>::of(q, "q"), keys = Adapter<K>::of(k, "k"), values = Adapter<V>::of(v, "v");
  const auto whole = [&](Index b) { return Part{b, {0, queries.tokens}, {0, keys.tokens}}; };
  forward_parts<E, SumOf<Q>>(into, lse, queries, keys, values, bias_view<SumOf<Q>>(slopes, queries.heads), options,
                             workspace, {queries.batch}, whole, [] {});
}

/// The result of q's kind for `v`'s head_dim.
template <class Q, class V>
auto new_output(const Q& q, const V& v) {
  static_assert(
      requires { typename Adapter<Q>::Output; },
      "alibi: for views there is no array type to return; use attention_into() with a view of your memory.");
  const auto queries = Adapter<Q>::of(q, "q");
  return Adapter<Q>::output(queries.batch, queries.heads, queries.tokens, Adapter<V>::of(v, "v").head_dim);
}

}  // namespace detail

/// Attention as defined at the top of this file, as a new array of q's kind: a tensor for tensors, a row-major matrix
/// for matrices of one head.
template <class Q, class K, class V, class Slopes>
auto attention(const Q& q, const K& k, const V& v, const Slopes& slopes, const Options& options = {}) {
  auto output = detail::new_output(q, v);
  Workspace workspace;
  detail::forward_into(output, std::nullopt, q, k, v, slopes, options, workspace);
  return output;
}

/// Attention and its log-sum-exp, as new arrays: auto [output, lse] = attention_forward(q, k, v, slopes).
template <class Q, class K, class V, class Slopes>
auto attention_forward(const Q& q, const K& k, const V& v, const Slopes& slopes, const Options& options = {}) {
  auto output = detail::new_output(q, v);
  const auto queries = Adapter<Q>::of(q, "q");
  auto lse = Adapter<Q>::lse(queries.batch, queries.heads, queries.tokens);
  Workspace workspace;
  detail::forward_into(output, lse_view<detail::SumOf<Q>>(lse), q, k, v, slopes, options, workspace);
  return ForwardResult<decltype(output), decltype(lse)>{std::move(output), std::move(lse)};
}

/// Attention into memory of the caller, [batch, heads, queries, value_dim], which may not overlap an input. Allocates
/// nothing once `workspace` has served a call of these shapes, as long as the executor does not.
template <class Output, class Q, class K, class V, class Slopes>
void attention_into(Output&& output, const Q& q, const K& k, const V& v, const Slopes& slopes, const Options& options,
                    Workspace& workspace) {
  detail::forward_into(output, std::nullopt, q, k, v, slopes, options, workspace);
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
  detail::forward_into(output, lse_view<detail::SumOf<Q>>(lse), q, k, v, slopes, options, workspace);
}
template <class Output, class Lse, class Q, class K, class V, class Slopes>
void attention_forward_into(Output&& output, Lse&& lse, const Q& q, const K& k, const V& v, const Slopes& slopes,
                            const Options& options = {}) {
  Workspace workspace;
  attention_forward_into(output, lse, q, k, v, slopes, options, workspace);
}

}  // namespace alibi::inline ALIBI_ISA
