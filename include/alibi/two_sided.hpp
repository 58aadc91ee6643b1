// Slopes of their own for each side of a bidirectional head. They replace slopes in every call that accepts them,
// attention over a cache excepted.
//
//   s_ij = τ q_i·k_j - before_h (p_i - j)        for keys j <= p_i
//   s_ij = τ q_i·k_j - after_h (j - p_i)         for keys j > p_i
//
// The authors of ALiBi propose both forms for encoders: heads with a slope for each side, and heads that look one way.
// An infinite slope hides its side: the head sees no key there, and nothing is computed for it. The query's own
// position is always seen. Slopes must not be negative.
#pragma once

#include <type_traits>
#include <utility>

#include "alibi/kernel/simd/isa.hpp"

namespace alibi {

/// Slopes for each side of the queries, as two_sided() returns them. The types are references where arrays are not
/// copied.
template <class Before, class After>
struct TwoSidedSlopes {
  Before before;  ///< the slopes for keys before the query
  After after;    ///< the slopes for keys after the query
};

inline namespace ALIBI_ABI {

namespace detail {

template <class X>
inline constexpr bool kIsTwoSided = false;
template <class Before, class After>
inline constexpr bool kIsTwoSided<TwoSidedSlopes<Before, After>> = true;

}  // namespace detail

/// Slopes `before` for keys before a query and `after` for keys after it. Each is an array that slope_view() takes,
/// [heads] or [batch, heads], with entries of 0 or above; infinity hides the side. Calls throw std::invalid_argument
/// for other entries. Named arrays are not copied and must outlive the result; temporaries are moved into it.
template <class Before, class After>
TwoSidedSlopes<Before, After> two_sided(Before&& before, After&& after) {
  return {std::forward<Before>(before), std::forward<After>(after)};
}

}  // namespace ALIBI_ABI
}  // namespace alibi
