// Gradients of attention (attention.hpp), from the gradient of its output.
//
//   P_ij = exp(s_ij - lse_i)                   the softmax, from the forward's log-sum-exp
//   dV_j = Σ_i P_ij dO_i                       dP_ij = dO_i·v_j
//   dS_ij = P_ij (dP_ij - Σ_d dO_id o_id)
//   dQ_i = τ Σ_j dS_ij k_j                     dK_j = τ Σ_i dS_ij q_i
//   dm_h = -Σ_ij dS_ij |p_i - j|               of a table: dtable_ht = Σ_{p_i - j at entry t} dS_ij
//
// Arrays, options and errors are those of attention(); `output` and `lse` are what attention_forward() gave for the
// same arguments, grad_output [batch, heads, queries, value_dim] holds their scalar or the one that they are summed up
// in. Gradients hold the latter: double for double, float for float, bfloat16 and half. Of kv heads that several query
// heads read the gradient is the sum, of slopes or a table that the whole batch shares as well.
//
// Five products of 2 head_dim operations for every visible pair of query and key, in one pass; memory grows with the
// tokens (detail/backward_dispatch.hpp). With a tolerance above 0 each row may leave out that share of its softmax
// mass, as in the forward. The same input gives the same bits on any number of threads.
#pragma once

#include <span>
#include <type_traits>
#include <utility>

#include "alibi/attention.hpp"
#include "alibi/detail/adapt.hpp"
#include "alibi/detail/call.hpp"
#include "alibi/error.hpp"
#include "alibi/options.hpp"
#include "alibi/table_bias.hpp"
#include "alibi/view.hpp"
#include "alibi/workspace.hpp"

namespace alibi::inline ALIBI_ABI {

/// What attention_backward() returns: of q, k and v, and of the slopes, [heads] or [batch, heads] as they were given.
template <class Q, class K, class V, class Slopes>
struct BackwardResult {
  Q q;
  K k;
  V v;
  Slopes slopes;
};
/// The same of a table, a row-major matrix [heads, entries].
template <class Q, class K, class V, class Table>
struct TableBackwardResult {
  Q q;
  K k;
  V v;
  Table table;
};
/// The same without a bias.
template <class Q, class K, class V>
struct NoBiasBackwardResult {
  Q q;
  K k;
  V v;
};

namespace detail {

/// What the forward gave, in place of which a call is written {output, lse} or a ForwardResult. E is the scalar of q.
template <class E, template <class> class AdapterOf = Adapter>
struct Given {
  static constexpr int kRank = std::is_same_v<AdapterOf<View<E>>, Adapter<View<E>>> ? 3 : 2;
  View<const E> output;
  std::span<const Sum<E>> lse;

  template <class Output, class Lse>
  Given(const Output& o, const Lse& l)
      : output(AdapterOf<Output>::of(o, "output")), lse(lse_view<const Sum<E>, kRank>(l)) {
    static_assert(std::is_same_v<typename AdapterOf<Output>::Scalar, E>,
                  "alibi: output must hold the same scalar as q, k and v.");
  }
  template <class Output, class Lse>
  Given(const ForwardResult<Output, Lse>& result) : Given(result.output, result.lse) {}
};

template <class T, class Array>
BiasEntries<T> entries_of(Array& array) {
  if constexpr (std::is_same_v<Array, T>) {
    return {&array, 1, 1};
  } else {
    static_assert(std::is_same_v<std::remove_reference_t<decltype(*array.data())>, T>,
                  "alibi: the gradient of the bias must hold the scalar that q, k and v are summed up in, float for "
                  "bfloat16 and half, and not be const.");
    if constexpr (is_matrix<Array>) {
      static_assert(bool(Array::IsVectorAtCompileTime) || bool(Array::IsRowMajor),
                    "alibi: the gradient of the bias is a matrix and must be row-major; Eigen's default is not.");
      const bool dense =
          array.innerStride() == 1 && (array.rows() <= 1 || array.cols() <= 1 || array.outerStride() == array.cols());
      require(dense, "the gradient of the bias has gaps between its entries; expected them side by side");
      if (bool(Array::IsVectorAtCompileTime)) return {array.data(), 1, array.size()};
      return {array.data(), array.rows(), array.cols()};
    } else if constexpr (requires { Array::NumDimensions; }) {
      static_assert(Array::NumDimensions <= 2,
                    "alibi: the gradient of the bias is a tensor of rank 1, [heads], or 2, [batch, heads] or [heads, "
                    "entries].");
      if constexpr (Array::NumDimensions == 2) {
        constexpr bool kRowMajor = int(Array::Layout) == int(Eigen::RowMajor);
        return {array.data(), Index(array.dimensions()[kRowMajor ? 0 : 1]),
                Index(array.dimensions()[kRowMajor ? 1 : 0]), !kRowMajor};
      }
    }
    return {array.data(), 1, Index(array.size())};
  }
}

/// Where gradients go, in place of which a call is written {grad_q, grad_k, grad_v, grad_slopes}; without the last one
/// the gradient of the bias is not wanted.
template <class T, template <class> class AdapterOf = Adapter>
struct Gradients {
  View<T> q, k, v;
  BiasEntries<T> bias;

  template <class Q, class K, class V>
  Gradients(Q&& to_q, K&& to_k, V&& to_v)
      : q(view_of(to_q, "grad_q")), k(view_of(to_k, "grad_k")), v(view_of(to_v, "grad_v")) {}
  template <class Q, class K, class V, class Bias>
  Gradients(Q&& to_q, K&& to_k, V&& to_v, Bias&& to_bias) : Gradients(to_q, to_k, to_v) {
    bias = entries_of<T>(to_bias);
  }

 private:
  template <class X>
  static View<T> view_of(X& x, const char* name) {
    const auto view = AdapterOf<std::remove_const_t<X>>::of(x, name);
    static_assert(std::is_same_v<std::remove_const_t<decltype(view)>, View<T>>,
                  "alibi: gradients must hold the scalar that q, k and v are summed up in, float for bfloat16 and "
                  "half, and not be const.");
    return view;
  }
};

/// The arrays of a call as views, over sequences that are known but for the tokens there are.
template <template <class> class AdapterOf, class GradOutput, class Q, class K, class V, class Bias>
void backward_into(const Gradients<Sum<typename AdapterOf<Q>::Scalar>, AdapterOf>& to, const GradOutput& grad_output,
                   const Q& q, const K& k, const V& v, const Bias& bias,
                   const Given<typename AdapterOf<Q>::Scalar, AdapterOf>& given, Sequences sequences,
                   const Options& options, Workspace& workspace) {
  using E = typename AdapterOf<Q>::Scalar;
  using T = Sum<E>;
  using G = typename AdapterOf<GradOutput>::Scalar;
  check_scalars<E, typename AdapterOf<K>::Scalar, typename AdapterOf<V>::Scalar, View<E>>();
  static_assert(std::is_same_v<G, E> || std::is_same_v<G, T>,
                "alibi: grad_output must hold the scalar of q, or float where that is bfloat16 or half.");
  const View<const E> queries = view_of<AdapterOf>(q, "q"), keys = view_of<AdapterOf>(k, "k"),
                      values = view_of<AdapterOf>(v, "v");
  EitherView<E> of_output{};
  if constexpr (std::is_same_v<G, E>)
    of_output.of_scalar = view_of<AdapterOf>(grad_output, "grad_output");
  else
    of_output.of_sum = view_of<AdapterOf>(grad_output, "grad_output"), of_output.is_sum = true;
  if (sequences.kind != Sequences::Kind::varlen) sequences.count = queries.batch;
  sequences.queries = queries.tokens;
  sequences.keys = keys.tokens;
  backward<E, kBiasKind<Bias>>({queries, keys, values, given.output, of_output, given.lse,
                                bias_view<T>(bias, queries.heads), to.q, to.k, to.v, to.bias, sequences},
                               options, workspace);
}

/// Makes a new array of T as large as another, [batch, heads, tokens, head_dim].
template <class T>
struct NewLike {
  template <class X>
  auto operator()(const X& x, const char* name) const {
    const auto like = Adapter<X>::of(x, name);
    return Adapter<X>::template like<T>(like.batch, like.heads, like.tokens, like.head_dim);
  }
};

/// New arrays for the gradients, handed to fill().
template <class T, template <class> class AdapterOf, class Q, class K, class V, class Bias, class New, class Fill>
auto new_gradients(const Q& q, const K& k, const V& v, const Bias& bias, const New& make, const Fill& fill) {
  static_assert(
      requires { typename AdapterOf<Q>::Output; } && requires { typename AdapterOf<K>::Output; } &&
          requires { typename AdapterOf<V>::Output; },
      "alibi: for views there is no array type to return; use the form that ends in _into() with your memory.");
  auto grad_q = make(q, "q");
  auto grad_k = make(k, "k");
  auto grad_v = make(v, "v");
  if constexpr (std::is_same_v<Bias, NoBias>) {
    fill(Gradients<T, AdapterOf>(grad_q, grad_k, grad_v));
    return NoBiasBackwardResult<decltype(grad_q), decltype(grad_k), decltype(grad_v)>{
        std::move(grad_q), std::move(grad_k), std::move(grad_v)};
  } else if constexpr (requires { bias.entries; }) {
    Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> table(bias.heads, bias.entries);
    fill(Gradients<T, AdapterOf>(grad_q, grad_k, grad_v, table));
    return TableBackwardResult<decltype(grad_q), decltype(grad_k), decltype(grad_v), decltype(table)>{
        std::move(grad_q), std::move(grad_k), std::move(grad_v), std::move(table)};
  } else {
    auto slopes = SlopesLike<T, Bias>::make(bias);
    fill(Gradients<T, AdapterOf>(grad_q, grad_k, grad_v, slopes));
    return BackwardResult<decltype(grad_q), decltype(grad_k), decltype(grad_v), decltype(slopes)>{
        std::move(grad_q), std::move(grad_k), std::move(grad_v), std::move(slopes)};
  }
}

}  // namespace detail

/// Gradients into memory of the caller, {grad_q, grad_k, grad_v, grad_slopes}, which may not overlap an input or one
/// another; what was there is overwritten. The last of them may be left out where it is not wanted. Allocates nothing
/// once `workspace` has served a call of these shapes, as long as the executor does not.
template <class GradOutput, class Q, class K, class V, class Bias>
void attention_backward_into(const detail::Gradients<detail::SumOf<Q>>& to, const GradOutput& grad_output, const Q& q,
                             const K& k, const V& v, const Bias& slopes,
                             const detail::Given<typename Adapter<Q>::Scalar>& forward, const Options& options,
                             Workspace& workspace) {
  detail::backward_into<Adapter>(to, grad_output, q, k, v, slopes, forward, {}, options, workspace);
}
template <class GradOutput, class Q, class K, class V, class Bias>
void attention_backward_into(const detail::Gradients<detail::SumOf<Q>>& to, const GradOutput& grad_output, const Q& q,
                             const K& k, const V& v, const Bias& slopes,
                             const detail::Given<typename Adapter<Q>::Scalar>& forward, const Options& options = {}) {
  Workspace workspace;
  attention_backward_into(to, grad_output, q, k, v, slopes, forward, options, workspace);
}

/// Gradients as new arrays of the kinds of q, k, v and the slopes:
///   auto grad = attention_backward(grad_output, q, k, v, slopes, {output, lse});
///   grad.q, grad.k, grad.v, grad.slopes      grad.table for a table_bias()
template <class GradOutput, class Q, class K, class V, class Bias>
auto attention_backward(const GradOutput& grad_output, const Q& q, const K& k, const V& v, const Bias& slopes,
                        const detail::Given<typename Adapter<Q>::Scalar>& forward, const Options& options = {}) {
  using T = detail::SumOf<Q>;
  return detail::new_gradients<T, Adapter>(q, k, v, slopes, detail::NewLike<T>(), [&](const detail::Gradients<T>& to) {
    attention_backward_into(to, grad_output, q, k, v, slopes, forward, options);
  });
}

}  // namespace alibi::inline ALIBI_ABI

#if !defined(ALIBI_COMPILED)
#include "alibi/detail/backward_dispatch.hpp"
#endif
