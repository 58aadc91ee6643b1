// From the arrays of a user to views: what the public functions do in their first lines. Not a header for users.
#pragma once

#include <type_traits>

#include "alibi/detail/call.hpp"
#include "alibi/relative_bias.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// What attention adds up in for arrays of this kind; also the scalar of the lse and of gradients.
template <class Array>
using SumOf = Sum<typename Adapter<Array>::Scalar>;
template <class Array>
using VarlenSumOf = Sum<typename VarlenAdapter<Array>::Scalar>;

/// Compile-time misuse that every form shares: E of q, K of k, V of v, Output a view.
template <class E, class K, class V, class Output>
constexpr void check_scalars() {
  static_assert(kIsScalar<E>, "alibi: q, k and v must hold float, double, Eigen::bfloat16 or Eigen::half.");
  static_assert(std::is_same_v<E, K> && std::is_same_v<E, V>, "alibi: q, k and v must hold the same scalar.");
  static_assert(std::is_same_v<std::remove_const_t<Output>, View<E>>,
                "alibi: output must hold the same scalar as q, k and v, and not be const.");
}

/// An array that is read, as a view.
template <template <class> class AdapterOf = Adapter, class Array>
View<const typename AdapterOf<Array>::Scalar> view_of(const Array& array, const char* name) {
  return AdapterOf<Array>::of(array, name);
}

inline constexpr float kZeroSlope = 0;

template <class Bias>
inline constexpr BiasKind kBiasKind = requires {
  typename Bias::Scalar;
  &Bias::entries;
} ? BiasKind::table : BiasKind::slopes;

/// `bias` as it is given to attention over `heads` heads that adds up in T.
template <class T, class Bias>
BiasView<T> bias_view(const Bias& bias, Index heads) {
  const SlopeView zero{&kZeroSlope, SlopeScalar::float32, 1, heads, 0, 0};
  if constexpr (std::is_same_v<Bias, NoBias>) {
    return {zero};
  } else if constexpr (kBiasKind<Bias> == BiasKind::table) {
    static_assert(std::is_same_v<typename Bias::Scalar, T>,
                  "alibi: a table must hold the scalar of q, k and v, or float where that is bfloat16 or half.");
    return {zero, bias};
  } else {
    return {slope_view(bias)};
  }
}

}  // namespace alibi::inline ALIBI_ABI::detail
