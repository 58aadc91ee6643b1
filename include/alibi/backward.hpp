// Gradients of attention (attention.hpp), from the gradient of its output and, if the loss depends on it, of its lse.
//
//   P_ij  = exp(s_ij - lse_i)                   the softmax, from the forward's log-sum-exp
//   dV_j  = Σ_i P_ij dO_i                       dP_ij = dO_i·v_j
//   dS_ij = P_ij (dP_ij - Σ_d dO_id o_id + dlse_i)
//   dQ_i  = τ Σ_j dS_ij k_j                     dK_j = τ Σ_i dS_ij q_i
//   dm_h  = -Σ_ij dS_ij |p_i - j|               of a table: dtable_ht = Σ_{p_i - j at entry t} dS_ij
//
// Arrays, options and errors are those of attention(). `output` and `lse` are the results of attention_with_lse() for
// the same arguments. grad_output is [batch, heads, queries, value_dim] and holds the scalar of q or the one that q is
// summed in. Gradients hold the scalar of the sums: double for double, float for float, bfloat16 and half.
//
// If the loss depends on the lse too, pass ForwardResult{grad_output, grad_lse} in place of grad_output. grad_lse is
// dlse, an lse array as attention_with_lse() returns it, of the scalar of the sums. Uses: a z-loss, and the gradient
// through merge(). A query that sees no key has lse -inf and no gradient, whatever its entry of grad_lse holds.
//
// Gradients are summed over everything that shares an argument: query heads that read one kv head, and batch entries
// that share slopes or a table. Given the output and lse of all keys, a call over a part of the keys gives the
// gradients of that part. dQ and the gradient of the slopes are then the sum over the parts (ring attention).
//
// Cost: five products of 2 head_dim operations for each visible pair of query and key, in one pass. Memory is linear in
// the tokens (detail/backward_dispatch.hpp). With a tolerance above 0, pruning may remove that share of the softmax
// mass of each row, as in the forward. The same input gives the same bits on any number of threads.
#pragma once

#include <optional>
#include <span>
#include <type_traits>
#include <utility>

#include "alibi/attention.hpp"
#include "alibi/detail/adapt.hpp"
#include "alibi/detail/call.hpp"
#include "alibi/error.hpp"
#include "alibi/options.hpp"
#include "alibi/relative_bias.hpp"
#include "alibi/token_positions.hpp"
#include "alibi/two_sided.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ABI {

/// The result of attention_backward() for slopes.
template <class Q, class K, class V, class Slopes>
struct BackwardResult {
  Q q;            ///< dQ, of the shape of q
  K k;            ///< dK, of the shape of k
  V v;            ///< dV, of the shape of v
  Slopes slopes;  ///< dm, [heads] or [batch, heads] as given; of two_sided() slopes .before and .after
};
/// The result of attention_backward() for a relative_bias().
template <class Q, class K, class V, class Table>
struct RelativeBiasBackwardResult {
  Q q;          ///< dQ, of the shape of q
  K k;          ///< dK, of the shape of k
  V v;          ///< dV, of the shape of v
  Table table;  ///< the gradient of the table, a row-major matrix [heads, entries]
};
/// The result of attention_backward() for no_bias.
template <class Q, class K, class V>
struct NoBiasBackwardResult {
  Q q;  ///< dQ, of the shape of q
  K k;  ///< dK, of the shape of k
  V v;  ///< dV, of the shape of v
};

/// The result of attention_backward() for positions() that queries and keys share.
template <class Q, class K, class V, class Slopes, class Positions>
struct PositionsBackwardResult {
  Q q;                  ///< dQ, of the shape of q
  K k;                  ///< dK, of the shape of k
  V v;                  ///< dV, of the shape of v
  Slopes slopes;        ///< dm, of the shape of the slopes; of two_sided() slopes .before and .after
  Positions positions;  ///< dc, of the shape of the positions
};
/// The result of attention_backward() for positions() of their own for keys and queries.
template <class Q, class K, class V, class Slopes, class KeyPositions, class QueryPositions>
struct TwoPositionsBackwardResult {
  Q q;                             ///< dQ, of the shape of q
  K k;                             ///< dK, of the shape of k
  V v;                             ///< dV, of the shape of v
  Slopes slopes;                   ///< dm, of the shape of the slopes; of two_sided() slopes .before and .after
  KeyPositions key_positions;      ///< dc_j, of the shape of the positions of the keys
  QueryPositions query_positions;  ///< dc_i, of the shape of the positions of the queries
};

/// The results of the forward that the backward pass reads. Written {output, lse}, or a ForwardResult. E is the scalar
/// of q.
template <class E, template <class> class AdapterOf = Adapter>
struct ForwardResultView {
  /// The rank of an lse: 3, or 2 for varlen.
  static constexpr int kRank = std::is_same_v<AdapterOf<View<E>>, Adapter<View<E>>> ? 3 : 2;
  View<const E> output;                 ///< [batch, heads, queries, value_dim]
  std::span<const detail::Sum<E>> lse;  ///< [batch, heads, queries], natural logarithm

  /// From an output and an lse, arrays as attention_with_lse() returns them.
  template <class Output, class Lse>
  ForwardResultView(const Output& o, const Lse& l)
      : output(AdapterOf<Output>::of(o, "output")), lse(lse_view<const detail::Sum<E>, kRank>(l)) {
    static_assert(std::is_same_v<typename AdapterOf<Output>::Scalar, E>,
                  "alibi: output must hold the same scalar as q, k and v.");
  }
  /// From the result of attention_with_lse().
  template <class Output, class Lse>
  ForwardResultView(const ForwardResult<Output, Lse>& result) : ForwardResultView(result.output, result.lse) {}
};

namespace detail {

/// Whether Gradient is that of an output and an lse.
template <class Gradient>
inline constexpr bool kIsForwardResult = false;
template <class Output, class Lse>
inline constexpr bool kIsForwardResult<ForwardResult<Output, Lse>> = true;

/// The gradient of a bias as a view. `array` is a scalar, a vector, a row-major matrix, a tensor or a contiguous range.
template <class T, class Array>
BiasEntries<T> entries_of(Array& array) {
  if constexpr (std::is_same_v<Array, T>) {
    return {&array, 1, 1};
  } else {
    static_assert(std::is_same_v<std::remove_reference_t<decltype(*array.data())>, T>,
                  "alibi: the gradient of the bias must not be const and must hold the scalar of the sums: double for "
                  "double, float for float, bfloat16 and half.");
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

}  // namespace detail

/// The arrays that gradients are written to. Written {grad_q, grad_k, grad_v, grad_slopes}, or {grad_q, grad_k, grad_v}
/// where the gradient of the bias is not wanted. T is the scalar of the sums: double for double, float for float,
/// bfloat16 and half.
template <class T, template <class> class AdapterOf = Adapter>
struct GradientViews {
  View<T> q,                          ///< dQ, of the sizes of q
      k,                              ///< dK, of the sizes of k
      v;                              ///< dV, of the sizes of v
  detail::BiasEntries<T> bias;        ///< of the sizes of the slopes or of the table; empty: not wanted
  detail::BiasEntries<T> after = {};  ///< of two-sided slopes: that of the slopes after a query; `bias`: before it
  View<T> key_positions = {},         ///< of the sizes of the positions of the keys, head_dim 1; empty: not wanted
      query_positions = {};           ///< … of the queries, unless both share them

  /// Without the gradient of the bias.
  template <class Q, class K, class V>
  GradientViews(Q&& grad_q, K&& grad_k, V&& grad_v)
      : q(view_of(grad_q, "grad_q")), k(view_of(grad_k, "grad_k")), v(view_of(grad_v, "grad_v")) {}
  /// With the gradient of the bias: of slopes [heads] or [batch, heads], of a table [heads, entries]. Of two_sided()
  /// slopes and of positions() it is two_sided() or positions() of the arrays.
  template <class Q, class K, class V, class Bias>
  GradientViews(Q&& grad_q, K&& grad_k, V&& grad_v, Bias&& grad_bias) : GradientViews(grad_q, grad_k, grad_v) {
    set_bias(grad_bias);
  }

 private:
  template <class Bias>
  void set_bias(Bias& grad_bias) {
    if constexpr (detail::kIsTwoSided<std::remove_const_t<Bias>>) {
      bias = detail::entries_of<T>(grad_bias.before);
      after = detail::entries_of<T>(grad_bias.after);
    } else if constexpr (detail::kIsPositions<std::remove_const_t<Bias>>) {
      set_bias(grad_bias.slopes);
      key_positions = positions_of(grad_bias.keys);
      if constexpr (!detail::kSharesPositions<std::remove_const_t<Bias>>)
        query_positions = positions_of(grad_bias.queries);
    } else {
      bias = detail::entries_of<T>(grad_bias);
    }
  }
  template <class X>
  static View<T> positions_of(X& x) {
    const auto view = detail::position_array(x);
    static_assert(std::is_same_v<std::remove_const_t<decltype(view)>, View<T>>,
                  "alibi: the gradient of positions must not be const and must hold the scalar of the sums: double for "
                  "double, float for float, bfloat16 and half.");
    return view;
  }
  template <class X>
  static View<T> view_of(X& x, const char* name) {
    const auto view = AdapterOf<std::remove_const_t<X>>::of(x, name);
    static_assert(std::is_same_v<std::remove_const_t<decltype(view)>, View<T>>,
                  "alibi: gradients must not be const and must hold the scalar of the sums: double for double, float "
                  "for float, bfloat16 and half.");
    return view;
  }
};

namespace detail {

/// Makes views of the arrays of a call and runs it. Fills in the sizes of the arrays, which `sequences` still lacks.
/// `gradient` is that of the output, or of a ForwardResult.
template <template <class> class AdapterOf, class Gradient, class Q, class K, class V, class Bias>
void backward_into(const GradientViews<Sum<typename AdapterOf<Q>::Scalar>, AdapterOf>& to, const Gradient& gradient,
                   const Q& q, const K& k, const V& v, const Bias& bias,
                   const ForwardResultView<typename AdapterOf<Q>::Scalar, AdapterOf>& given, SequenceList sequences,
                   const Options& options) {
  using E = typename AdapterOf<Q>::Scalar;
  using T = Sum<E>;
  const auto& grad_output = [&gradient]() -> const auto& {
    if constexpr (kIsForwardResult<Gradient>)
      return gradient.output;
    else
      return gradient;
  }();
  using G = typename AdapterOf<std::remove_cvref_t<decltype(grad_output)>>::Scalar;
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
  std::optional<std::span<const T>> grad_lse;
  if constexpr (kIsForwardResult<Gradient>)
    grad_lse = lse_view<const T, ForwardResultView<E, AdapterOf>::kRank>(gradient.lse, "grad_lse");
  if (sequences.kind != SequenceList::Kind::varlen) sequences.count = queries.batch;
  sequences.queries = queries.tokens;
  sequences.keys = keys.tokens;
  backward<E, kBiasKind<Bias>>(
      {queries, keys, values, given.output, of_output, grad_lse, given.lse, bias_view<T>(bias, queries.heads), to.q,
       to.k, to.v, to.bias, sequences, to.after, to.key_positions, to.query_positions},
      options);
}

/// Makes a new array of T of the shape of another, [batch, heads, tokens, head_dim].
template <class T>
struct NewLike {
  template <class X>
  auto operator()(const X& x, const char* name) const {
    const auto like = Adapter<X>::of(x, name);
    return Adapter<X>::template like<T>(like.batch, like.heads, like.tokens, like.head_dim);
  }
};

/// A new array of T for the gradient of slopes, or two for two-sided slopes.
template <class T, class Slopes>
auto new_slopes(const Slopes& slopes) {
  if constexpr (kIsTwoSided<Slopes>) {
    auto before = new_slopes<T>(slopes.before);
    auto after = new_slopes<T>(slopes.after);
    return TwoSidedSlopes<decltype(before), decltype(after)>{std::move(before), std::move(after)};
  } else {
    return SlopesLike<T, Slopes>::make(slopes);
  }
}

/// New arrays for the gradients, after fill() has written them.
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
    fill(GradientViews<T, AdapterOf>(grad_q, grad_k, grad_v));
    return NoBiasBackwardResult<decltype(grad_q), decltype(grad_k), decltype(grad_v)>{
        std::move(grad_q), std::move(grad_k), std::move(grad_v)};
  } else if constexpr (requires { bias.entries; }) {
    Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> table(bias.heads, bias.entries);
    fill(GradientViews<T, AdapterOf>(grad_q, grad_k, grad_v, table));
    return RelativeBiasBackwardResult<decltype(grad_q), decltype(grad_k), decltype(grad_v), decltype(table)>{
        std::move(grad_q), std::move(grad_k), std::move(grad_v), std::move(table)};
  } else if constexpr (kIsPositions<Bias>) {
    auto slopes = new_slopes<T>(bias.slopes);
    auto of_keys = new_slopes<T>(bias.keys);
    if constexpr (kSharesPositions<Bias>) {
      fill(GradientViews<T, AdapterOf>(grad_q, grad_k, grad_v, positions(slopes, of_keys)));
      return PositionsBackwardResult<decltype(grad_q), decltype(grad_k), decltype(grad_v), decltype(slopes),
                                     decltype(of_keys)>{std::move(grad_q), std::move(grad_k), std::move(grad_v),
                                                        std::move(slopes), std::move(of_keys)};
    } else {
      auto of_queries = new_slopes<T>(bias.queries);
      fill(GradientViews<T, AdapterOf>(grad_q, grad_k, grad_v, positions(slopes, of_keys, of_queries)));
      return TwoPositionsBackwardResult<decltype(grad_q), decltype(grad_k), decltype(grad_v), decltype(slopes),
                                        decltype(of_keys), decltype(of_queries)>{
          std::move(grad_q), std::move(grad_k),  std::move(grad_v),
          std::move(slopes), std::move(of_keys), std::move(of_queries)};
    }
  } else {
    auto slopes = new_slopes<T>(bias);
    fill(GradientViews<T, AdapterOf>(grad_q, grad_k, grad_v, slopes));
    return BackwardResult<decltype(grad_q), decltype(grad_k), decltype(grad_v), decltype(slopes)>{
        std::move(grad_q), std::move(grad_k), std::move(grad_v), std::move(slopes)};
  }
}

}  // namespace detail

/// Gradients into memory of the caller, {grad_q, grad_k, grad_v, grad_slopes}, which may not overlap an input or one
/// another. Previous contents are overwritten. grad_slopes may be omitted. With Options::workspace a repeated call
/// allocates nothing. Shapes and errors are those of attention_backward().
template <class GradOutput, class Q, class K, class V, class Bias>
void attention_backward_into(const GradientViews<detail::SumOf<Q>>& gradients, const GradOutput& grad_output,
                             const Q& q, const K& k, const V& v, const Bias& slopes,
                             const ForwardResultView<typename Adapter<Q>::Scalar>& forward,
                             const Options& options = {}) {
  detail::backward_into<Adapter>(gradients, grad_output, q, k, v, slopes, forward, {}, options);
}

/// Gradients of attention() as new arrays of the types of q, k, v and the slopes:
///
///     auto grad = attention_backward(grad_output, q, k, v, slopes, {output, lse});
///     grad.q, grad.k, grad.v, grad.slopes      for a relative_bias(): grad.table
///
/// grad_output is dO, [batch, heads, queries, value_dim]. The other arguments are those of attention_with_lse(), and
/// its results. The gradients have the shapes of q, k, v and the slopes; backward.hpp gives the equations. Throws
/// std::invalid_argument, before anything is written, for shapes, slopes or options that do not fit.
///
/// For a loss of the output and the lse, grad_output is ForwardResult{grad_output, grad_lse}, with dlse, [batch, heads,
/// queries]. A ForwardResult owns its arrays: move them into it, or give it views, to avoid copies.
template <class GradOutput, class Q, class K, class V, class Bias>
auto attention_backward(const GradOutput& grad_output, const Q& q, const K& k, const V& v, const Bias& slopes,
                        const ForwardResultView<typename Adapter<Q>::Scalar>& forward, const Options& options = {}) {
  using T = detail::SumOf<Q>;
  return detail::new_gradients<T, Adapter>(
      q, k, v, slopes, detail::NewLike<T>(), [&](const GradientViews<T>& gradients) {
        attention_backward_into(gradients, grad_output, q, k, v, slopes, forward, options);
      });
}

}  // namespace alibi::inline ALIBI_ABI

#if !defined(ALIBI_COMPILED)
#include "alibi/detail/backward_dispatch.hpp"
#endif
