// Attention over sequences of different lengths, side by side in one array: no work and no memory for padding.
//
// Shapes, over the tokens of all sequences together:
//   q        [tokens, heads, head_dim]
//   k        [keys, kv_heads, head_dim]
//   v        [keys, kv_heads, value_dim]
//   slopes   [heads] or [sequences, heads]
//   output   [tokens, heads, value_dim]
//   lse      [heads, tokens]
// Arrays are Eigen::Tensor or TensorMap of rank 3, row-major (column-major: mirrored), or alibi::view(pointer,
// {1, heads, tokens, head_dim}, strides).
//
// The results of each sequence have the bits of a separate call of attention(). Positions, mask.query_offset and its
// default count within the sequence, as do Options::query_offsets and prefixes. Options::pruning_stats has
// [sequences x heads] entries. For batches with padding, see Options::queries and Options::keys.
//
// Errors: those of attention(), and std::invalid_argument for offsets that do not fit, before anything is written.
#pragma once

#include <span>
#include <utility>

#include "alibi/attention.hpp"
#include "alibi/backward.hpp"
#include "alibi/detail/adapt.hpp"
#include "alibi/detail/call.hpp"
#include "alibi/options.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ABI {

/// Cumulative lengths: sequence s has tokens cu_seqlens[s], …, cu_seqlens[s + 1] - 1. There is one entry more than
/// there are sequences. The first is 0, the last is the number of tokens, and none is below the one before it.
struct CuSeqlens {
  std::span<const Index> cu_seqlens_q;       ///< [sequences + 1], of q
  std::span<const Index> cu_seqlens_k = {};  ///< [sequences + 1], of k and v. Default: cu_seqlens_q
};

namespace detail {

/// The sequences of a varlen call, not yet checked.
inline SequenceList varlen_sequences(const CuSeqlens& of) {
  return {.kind = SequenceList::Kind::varlen,
          .count = Index(of.cu_seqlens_q.size()) - 1,
          .cu_seqlens_q = of.cu_seqlens_q,
          .cu_seqlens_k = of.cu_seqlens_k};
}

/// A new output of the array type of q, with the value_dim of v.
template <class Q, class V>
auto new_varlen_output(const Q& q, const V& v) {
  static_assert(
      requires { typename VarlenAdapter<Q>::Output; },
      "alibi: for views there is no array type to return; use attention_varlen_into() with a view of your memory.");
  const auto queries = VarlenAdapter<Q>::of(q, "q");
  return VarlenAdapter<Q>::output(queries.tokens, queries.heads, VarlenAdapter<V>::of(v, "v").head_dim);
}

/// Makes a new array of T of the shape of another, [tokens, heads, head_dim].
template <class T>
struct NewVarlenLike {
  template <class X>
  auto operator()(const X& x, const char* name) const {
    const auto like = VarlenAdapter<X>::of(x, name);
    return VarlenAdapter<X>::template like<T>(like.tokens, like.heads, like.head_dim);
  }
};

}  // namespace detail

/// attention() of each sequence of an array that holds several, as a new tensor [tokens, heads, value_dim]. q is
/// [tokens, heads, head_dim], k [keys, kv_heads, head_dim], v [keys, kv_heads, value_dim], and slopes are [heads] or
/// [sequences, heads], a relative_bias() or no_bias. Throws as attention() does, and std::invalid_argument for
/// cu_seqlens that do not fit.
template <class Q, class K, class V, class Bias>
auto attention_varlen(const Q& q, const K& k, const V& v, const Bias& slopes, const CuSeqlens& cu_seqlens,
                      const Options& options = {}) {
  auto output = detail::new_varlen_output(q, v);
  detail::forward_into<VarlenAdapter>(output, std::nullopt, q, k, v, slopes, detail::varlen_sequences(cu_seqlens),
                                      options);
  return output;
}

/// attention_varlen() and the log-sum-exp, a tensor [heads, tokens], natural logarithm.
template <class Q, class K, class V, class Bias>
auto attention_varlen_with_lse(const Q& q, const K& k, const V& v, const Bias& slopes, const CuSeqlens& cu_seqlens,
                               const Options& options = {}) {
  auto output = detail::new_varlen_output(q, v);
  const auto queries = VarlenAdapter<Q>::of(q, "q");
  auto lse = VarlenAdapter<Q>::lse(queries.heads, queries.tokens);
  detail::forward_into<VarlenAdapter>(output, lse_view<detail::VarlenSumOf<Q>, 2>(lse), q, k, v, slopes,
                                      detail::varlen_sequences(cu_seqlens), options);
  return ForwardResult<decltype(output), decltype(lse)>{std::move(output), std::move(lse)};
}

/// attention_varlen() into memory of the caller, [tokens, heads, value_dim], which may not overlap an input. With
/// Options::workspace a repeated call allocates nothing.
template <class Output, class Q, class K, class V, class Bias>
void attention_varlen_into(Output&& output, const Q& q, const K& k, const V& v, const Bias& slopes,
                           const CuSeqlens& cu_seqlens, const Options& options = {}) {
  detail::forward_into<VarlenAdapter>(output, std::nullopt, q, k, v, slopes, detail::varlen_sequences(cu_seqlens),
                                      options);
}

/// attention_varlen_into() that also writes the log-sum-exp, [heads, tokens]: a tensor of rank 2, or any other array
/// that lse_view() takes.
template <class Output, class Lse, class Q, class K, class V, class Bias>
void attention_varlen_with_lse_into(Output&& output, Lse&& lse, const Q& q, const K& k, const V& v, const Bias& slopes,
                                    const CuSeqlens& cu_seqlens, const Options& options = {}) {
  detail::forward_into<VarlenAdapter>(output, lse_view<detail::VarlenSumOf<Q>, 2>(lse), q, k, v, slopes,
                                      detail::varlen_sequences(cu_seqlens), options);
}

/// Gradients of attention_varlen_with_lse() into memory of the caller, {grad_q, grad_k, grad_v, grad_slopes}, as
/// attention_backward_into() writes them. The gradients of each sequence have the bits of a separate call. The
/// gradients of a table, and of slopes that all sequences share, are the sum over the sequences. grad_output may be a
/// ForwardResult{grad_output, grad_lse}, with grad_lse [heads, tokens].
template <class GradOutput, class Q, class K, class V, class Bias>
void attention_varlen_backward_into(const GradientViews<detail::VarlenSumOf<Q>, VarlenAdapter>& gradients,
                                    const GradOutput& grad_output, const Q& q, const K& k, const V& v,
                                    const Bias& slopes, const CuSeqlens& cu_seqlens,
                                    const ForwardResultView<typename VarlenAdapter<Q>::Scalar, VarlenAdapter>& forward,
                                    const Options& options = {}) {
  detail::backward_into<VarlenAdapter>(gradients, grad_output, q, k, v, slopes, forward,
                                       detail::varlen_sequences(cu_seqlens), options);
}

/// Gradients of attention_varlen_with_lse() as new arrays: grad.q [tokens, heads, head_dim], grad.k [keys, kv_heads,
/// head_dim], grad.v [keys, kv_heads, value_dim], and grad.slopes or grad.table. grad_output is [tokens, heads,
/// value_dim]. Throws as attention_backward() does, and std::invalid_argument for cu_seqlens that do not fit.
template <class GradOutput, class Q, class K, class V, class Bias>
auto attention_varlen_backward(const GradOutput& grad_output, const Q& q, const K& k, const V& v, const Bias& slopes,
                               const CuSeqlens& cu_seqlens,
                               const ForwardResultView<typename VarlenAdapter<Q>::Scalar, VarlenAdapter>& forward,
                               const Options& options = {}) {
  using T = detail::VarlenSumOf<Q>;
  return detail::new_gradients<T, VarlenAdapter>(
      q, k, v, slopes, detail::NewVarlenLike<T>(), [&](const GradientViews<T, VarlenAdapter>& gradients) {
        attention_varlen_backward_into(gradients, grad_output, q, k, v, slopes, cu_seqlens, forward, options);
      });
}

}  // namespace alibi::inline ALIBI_ABI
