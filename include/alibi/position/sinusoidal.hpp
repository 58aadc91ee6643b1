// Sinusoidal position embeddings (Vaswani et al., "Attention Is All You Need", arXiv 1706.03762, section 3.5):
//
//   x(p, 2i) = sin(p base^(-2i / dim)),   x(p, 2i + 1) = cos(p base^(-2i / dim))
//
// They are added to the token embeddings once, before the first layer.
#pragma once

#include <Eigen/Core>
#include <cmath>

#include "alibi/error.hpp"
#include "alibi/kernel/simd/isa.hpp"

namespace alibi::inline ALIBI_ABI {

/// The embeddings of positions first, first + 1, … (Vaswani et al., arXiv 1706.03762, section 3.5), a row-major matrix
/// [tokens, dim]. Angles are computed in double. Throws std::invalid_argument for a negative size, sizes whose product
/// overflows, and a base that is not a finite number above 0.
template <class T = float>
Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> sinusoidal(Index tokens, Index dim, Index first = 0,
                                                                             double base = 10000) {
  detail::require(tokens >= 0, "tokens is ", tokens, "; expected 0 or more");
  detail::require(dim >= 0, "dim is ", dim, "; expected 0 or more");
  detail::checked_product({tokens, dim}, "the array of embeddings");
  detail::require(std::isfinite(base) && base > 0, "base is ", base, "; expected a finite number above 0");
  Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> x(tokens, dim);
  for (Index d = 0; d < dim; d++) {
    const Index even = d - d % 2;
    const double frequency = std::pow(base, -double(even) / double(dim));
    for (Index t = 0; t < tokens; t++) {
      const double angle = double(first + t) * frequency;
      x(t, d) = T(d % 2 == 0 ? std::sin(angle) : std::cos(angle));
    }
  }
  return x;
}

}  // namespace alibi::inline ALIBI_ABI
