// Gradients of attention over sequences of different lengths: those of backward.hpp, for the arrays of packed.hpp.
//
// Each sequence's gradients are those of a call of its own, to the last bit; of slopes that all sequences share, and of
// a table, they are the sum. Rows outside of the ranges get gradients of 0, and what their grad_output holds is not
// read.
#pragma once

#include "alibi/backward.hpp"
#include "alibi/options.hpp"
#include "alibi/packed.hpp"
#include "alibi/view.hpp"
#include "alibi/workspace.hpp"

namespace alibi::inline ALIBI_ABI {

/// Gradients of attention_packed_forward() into memory of the caller, {grad_q, grad_k, grad_v, grad_slopes}, as
/// attention_backward_into().
template <class GradOutput, class Q, class K, class V, class Bias>
void attention_packed_backward_into(const detail::Gradients<detail::VarlenSumOf<Q>, PackedAdapter>& to,
                                    const GradOutput& grad_output, const Q& q, const K& k, const V& v,
                                    const Bias& slopes, const PackedStarts& starts,
                                    const detail::Given<typename PackedAdapter<Q>::Scalar, PackedAdapter>& forward,
                                    const Options& options, Workspace& workspace) {
  detail::backward_into<PackedAdapter>(to, grad_output, q, k, v, slopes, forward, detail::varlen_sequences(starts),
                                       options, workspace);
}
template <class GradOutput, class Q, class K, class V, class Bias>
void attention_packed_backward_into(const detail::Gradients<detail::VarlenSumOf<Q>, PackedAdapter>& to,
                                    const GradOutput& grad_output, const Q& q, const K& k, const V& v,
                                    const Bias& slopes, const PackedStarts& starts,
                                    const detail::Given<typename PackedAdapter<Q>::Scalar, PackedAdapter>& forward,
                                    const Options& options = {}) {
  Workspace workspace;
  attention_packed_backward_into(to, grad_output, q, k, v, slopes, starts, forward, options, workspace);
}

/// The same as new tensors [tokens, heads, ·].
template <class GradOutput, class Q, class K, class V, class Bias>
auto attention_packed_backward(const GradOutput& grad_output, const Q& q, const K& k, const V& v, const Bias& slopes,
                               const PackedStarts& starts,
                               const detail::Given<typename PackedAdapter<Q>::Scalar, PackedAdapter>& forward,
                               const Options& options = {}) {
  using T = detail::VarlenSumOf<Q>;
  const auto make = []<class X>(const X& x, const char* name) {
    const auto like = PackedAdapter<X>::of(x, name);
    return PackedAdapter<X>::template like<T>(like.tokens, like.heads, like.head_dim);
  };
  return detail::new_gradients<T, PackedAdapter>(
      q, k, v, slopes, make, [&](const detail::Gradients<T, PackedAdapter>& to) {
        attention_packed_backward_into(to, grad_output, q, k, v, slopes, starts, forward, options);
      });
}

/// Gradients of attention_padded_forward() into memory of the caller, {grad_q, grad_k, grad_v, grad_slopes}, as
/// attention_backward_into().
template <class GradOutput, class Q, class K, class V, class Bias>
void attention_padded_backward_into(const detail::Gradients<detail::SumOf<Q>>& to, const GradOutput& grad_output,
                                    const Q& q, const K& k, const V& v, const Bias& slopes, const Padding& padding,
                                    const detail::Given<typename Adapter<Q>::Scalar>& forward, const Options& options,
                                    Workspace& workspace) {
  detail::backward_into<Adapter>(to, grad_output, q, k, v, slopes, forward, detail::padded_sequences(padding), options,
                                 workspace);
}
template <class GradOutput, class Q, class K, class V, class Bias>
void attention_padded_backward_into(const detail::Gradients<detail::SumOf<Q>>& to, const GradOutput& grad_output,
                                    const Q& q, const K& k, const V& v, const Bias& slopes, const Padding& padding,
                                    const detail::Given<typename Adapter<Q>::Scalar>& forward,
                                    const Options& options = {}) {
  Workspace workspace;
  attention_padded_backward_into(to, grad_output, q, k, v, slopes, padding, forward, options, workspace);
}

/// The same as new arrays of the kinds of q, k and v.
template <class GradOutput, class Q, class K, class V, class Bias>
auto attention_padded_backward(const GradOutput& grad_output, const Q& q, const K& k, const V& v, const Bias& slopes,
                               const Padding& padding, const detail::Given<typename Adapter<Q>::Scalar>& forward,
                               const Options& options = {}) {
  using T = detail::SumOf<Q>;
  return detail::new_gradients<T, Adapter>(q, k, v, slopes, detail::NewLike<T>(), [&](const detail::Gradients<T>& to) {
    attention_padded_backward_into(to, grad_output, q, k, v, slopes, padding, forward, options);
  });
}

}  // namespace alibi::inline ALIBI_ABI
