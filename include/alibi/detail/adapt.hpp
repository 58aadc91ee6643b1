// From the arrays of a user to views: the first lines of every public function. Internal.
#pragma once

#include <type_traits>

#include "alibi/detail/call.hpp"
#include "alibi/relative_bias.hpp"
#include "alibi/token_positions.hpp"
#include "alibi/two_sided.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// The scalar of the sums of attention over arrays of this type; also that of the lse and of gradients.
template <class Array>
using SumOf = Sum<typename Adapter<Array>::Scalar>;
/// The same for arrays of varlen attention.
template <class Array>
using VarlenSumOf = Sum<typename VarlenAdapter<Array>::Scalar>;

/// The compile-time checks that all forms of attention share. E, K and V are the scalars of q, k and v; Output is the
/// view of the output.
template <class E, class K, class V, class Output>
constexpr void check_scalars() {
  static_assert(kIsScalar<E>, "alibi: q, k and v must hold float, double, Eigen::bfloat16 or Eigen::half.");
  static_assert(std::is_same_v<E, K> && std::is_same_v<E, V>, "alibi: q, k and v must hold the same scalar.");
  static_assert(std::is_same_v<std::remove_const_t<Output>, View<E>>,
                "alibi: output must hold the same scalar as q, k and v, and not be const.");
}

/// A view of an array that is only read.
template <template <class> class AdapterOf = Adapter, class Array>
View<const typename AdapterOf<Array>::Scalar> view_of(const Array& array, const char* name) {
  return AdapterOf<Array>::of(array, name);
}

inline constexpr float kZeroSlope = 0;

/// The kind of a bias argument: a table for a RelativeBias, positions for TokenPositions and TwoSidedSlopes, otherwise
/// slopes.
template <class Bias>
inline constexpr BiasKind kBiasKind =
    requires {
      typename Bias::Scalar;
      &Bias::entries;
    }                                         ? BiasKind::table
    : kIsTwoSided<Bias> || kIsPositions<Bias> ? BiasKind::positions
                                              : BiasKind::slopes;

/// Slopes, or two-sided slopes, as a bias of positions.
template <class Slopes>
PositionBias position_bias(const Slopes& slopes) {
  static_assert(!std::is_same_v<Slopes, NoBias> && kBiasKind<Slopes> != BiasKind::table,
                "alibi: positions are measured with slopes or alibi::two_sided() slopes.");
  if constexpr (kIsTwoSided<Slopes>) {
    return {slope_view(slopes.before), slope_view(slopes.after)};
  } else if constexpr (kIsPositions<Slopes>) {
    PositionBias bias = position_bias(slopes.slopes);
    bias.has_positions = true;
    bias.keys = bias.queries = position_view(slopes.keys);
    bias.shared = kSharesPositions<Slopes>;
    if constexpr (!kSharesPositions<Slopes>) bias.queries = position_view(slopes.queries);
    bias.any_order = slopes.any_order;
    return bias;
  } else {
    return {slope_view(slopes), slope_view(slopes), true};
  }
}

/// A view of the bias argument of attention over `heads` heads, whose sums are in T.
template <class T, class Bias>
BiasView<T> bias_view(const Bias& bias, Index heads) {
  const SlopeView zero{&kZeroSlope, SlopeScalar::float32, 1, heads, 0, 0};
  if constexpr (std::is_same_v<Bias, NoBias>) {
    return {zero};
  } else if constexpr (kBiasKind<Bias> == BiasKind::table) {
    static_assert(std::is_same_v<typename Bias::Scalar, T>,
                  "alibi: a table must hold the scalar of q, k and v, or float where that is bfloat16 or half.");
    return {zero, bias};
  } else if constexpr (kBiasKind<Bias> == BiasKind::positions) {
    return {zero, {}, position_bias(bias)};
  } else {
    return {slope_view(bias)};
  }
}

}  // namespace alibi::inline ALIBI_ABI::detail
