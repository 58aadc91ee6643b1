// The slopes m_h of the heads: the bias of head h is -m_h |p_i - j| (Press et al., arXiv 2108.12409, section 3 and the
// authors' code).
//
// With tensor-parallel heads, compute the slopes of all heads and take your part: slopes(heads).segment(first, count).
// slopes(count) for the part alone gives other slopes.
#pragma once

#include <Eigen/Core>
#include <bit>
#include <cmath>
#include <cstdint>

#include "alibi/error.hpp"
#include "alibi/kernel/simd/isa.hpp"

namespace alibi::inline ALIBI_ABI {

namespace detail {

inline void check_slope_arguments(Index heads, double max_bias) {
  require(heads >= 0, "heads is ", heads, "; expected 0 or more");
  require(std::isfinite(max_bias) && max_bias > 0, "max_bias is ", max_bias, "; expected a finite number above 0");
}

}  // namespace detail

/// Slopes [heads] by the rule of the authors' code, which BLOOM, MPT and others follow. If heads is a power of two,
/// slope h = 1…heads is 2^(-max_bias h / heads). Otherwise let c be the largest power of two below heads: the first c
/// slopes are those of c heads, and the others are the odd-numbered slopes of 2c heads. `max_bias` is 8 in the paper;
/// MPT calls it alibi_bias_max. Throws std::invalid_argument for heads < 0 or a max_bias that is not a finite number
/// above 0.
template <class T = float>
Eigen::Matrix<T, Eigen::Dynamic, 1> slopes(Index heads, double max_bias = 8) {
  detail::check_slope_arguments(heads, max_bias);
  const auto c = Index(std::bit_floor(std::uint64_t(heads)));
  Eigen::Matrix<T, Eigen::Dynamic, 1> m(heads);
  for (Index h = 0; h < heads; h++) {
    const double step = h < c ? double(h + 1) / double(c) : double(2 * (h - c) + 1) / double(2 * c);
    m[h] = T(std::exp2(-max_bias * step));
  }
  return m;
}

/// Slopes [heads] by the formula in the text of the paper, for every number of heads: 2^(-max_bias h / heads),
/// h = 1…heads. They differ from slopes() unless heads is a power of two; published models use slopes(). Throws as
/// slopes() does.
template <class T = float>
Eigen::Matrix<T, Eigen::Dynamic, 1> geometric_slopes(Index heads, double max_bias = 8) {
  detail::check_slope_arguments(heads, max_bias);
  Eigen::Matrix<T, Eigen::Dynamic, 1> m(heads);
  for (Index h = 0; h < heads; h++) m[h] = T(std::exp2(-max_bias * double(h + 1) / double(heads)));
  return m;
}

}  // namespace alibi::inline ALIBI_ABI
