// The bias of ALiBi as a matrix (Press et al., arXiv 2108.12409, section 3): what is added to the scaled logits,
//
//   b_ij = -m |p_i - j|        for the keys j that query i, at position p_i, sees (mask.hpp)
//   b_ij = -inf                for the others
//
//   bias_expression(m, queries, keys)        one head, an Eigen expression: stores nothing
//   bias_matrix(slopes, queries, keys)       [heads, queries, keys], materialised
//   key_bias(slopes, keys)                   [heads, keys], the key-only row m j: equal after the softmax where causal
//
// attention() needs none of them: its kernel makes the bias as it goes. They are for looking at, for drawing, and for
// handing to other attention code. Distances are integers; each entry is rounded once.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "alibi/error.hpp"
#include "alibi/mask.hpp"
#include "alibi/tensor.hpp"

namespace alibi::inline ALIBI_ABI {

namespace detail {

/// The bias of one head at (query, key), as a function object for Eigen.
template <class T>
struct Bias {
  double slope;
  ResolvedMask mask;

  T operator()(Index query, Index key) const { return of_distance(key - mask.position(query)); }

  /// For a key `ahead` positions after the query; before it where negative. The bias is a function of that alone.
  T of_distance(Index ahead) const {
    if (ahead < -mask.left || ahead > mask.right) return -std::numeric_limits<T>::infinity();
    return T(0.0 - slope * double(std::abs(ahead)));  // 0.0 - 0.0 is 0, where -0.0 would print as -0
  }
};

inline void check_bias_size(Index size, const char* name) {
  require(size >= 0, name, " is ", size, "; expected 0 or more");
}

/// `slopes` as a vector in memory, once each is known to be finite.
template <class Slopes>
typename Slopes::PlainObject finite_slopes(const Eigen::DenseBase<Slopes>& slopes) {
  static_assert(bool(Slopes::IsVectorAtCompileTime), "alibi: slopes of a bias is a vector, [heads].");
  typename Slopes::PlainObject m = slopes.derived();
  for (Index h = 0; h < m.size(); h++)
    require(std::isfinite(double(m(h))), "the slope of head ", h, " is ", double(m(h)), "; expected a finite number");
  return m;
}

}  // namespace detail

/// [queries, keys], row(i, j) = -m |p_i - j|, or -inf where the mask hides key j: an expression, made anew at every
/// access. Assign it to a matrix, or use it inside a larger expression: (q * k.transpose() + bias_expression(m, n, n)).
/// Throws std::invalid_argument for sizes that are negative or whose product overflows, a slope that is not finite, or
/// a mask out of range.
template <class T>
auto bias_expression(T slope, Index queries, Index keys, const Mask& mask = {}) {
  detail::check_bias_size(queries, "queries");
  detail::check_bias_size(keys, "keys");
  detail::checked_product({queries, keys}, "the bias");
  detail::require(std::isfinite(double(slope)), "the slope is ", double(slope), "; expected a finite number");
  using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  return Matrix::NullaryExpr(queries, keys, detail::Bias<T>{double(slope), resolve(mask, queries, keys)});
}

/// [heads, queries, keys] for slopes [heads], any Eigen vector: entry (h, i, j) is bias_expression(slopes[h], …)(i, j).
/// Throws as bias_expression() does.
template <class Slopes>
auto bias_matrix(const Eigen::DenseBase<Slopes>& slopes, Index queries, Index keys, const Mask& mask = {}) {
  using T = typename Slopes::Scalar;
  detail::check_bias_size(queries, "queries");
  detail::check_bias_size(keys, "keys");
  detail::checked_product({slopes.size(), queries, keys}, "the bias");
  const auto m = detail::finite_slopes(slopes);
  const ResolvedMask resolved = resolve(mask, queries, keys);
  Eigen::Tensor<T, 3, Eigen::RowMajor> matrix(m.size(), queries, keys);
  if (matrix.size() == 0) return matrix;

  // A head's bias, mask included, is a function of j - p_i: every row is a slice of one line, the last row's first.
  std::vector<T> line(std::size_t(queries + keys - 1));
  T* row = matrix.data();
  for (Index h = 0; h < m.size(); h++) {
    const detail::Bias<T> bias{double(m(h)), resolved};
    const Index first = -resolved.position(queries - 1);
    for (std::size_t i = 0; i < line.size(); i++) line[i] = bias.of_distance(first + Index(i));
    for (Index query = 0; query < queries; query++, row += keys)
      std::copy_n(line.data() + (queries - 1 - query), keys, row);
  }
  return matrix;
}

/// [heads, keys], entry (h, j) = m j: the key-only row that BLOOM and the authors' code add to every query's logits.
///
/// Since -m |p_i - j| = m j - m p_i for j <= p_i, and softmax does not see the constant m p_i of a row, it is equal to
/// bias_matrix() after the softmax under the causal mask, and under any other in which every visible key of a row is at
/// or before the query; not otherwise. Hidden keys are still to be hidden, and an lse is larger by m p_i.
///
/// What it costs is precision, for its numbers grow with the position where those of distances to the query do not:
/// rounded to bf16, with equal logits and slope 1/2, the weights of query 2,047 are wrong by 0.26 in total variation,
/// and those of the worst query before it by 0.50 (tests/bias.cpp). Throws std::invalid_argument for negative keys or a
/// slope that is not finite.
template <class Slopes>
auto key_bias(const Eigen::DenseBase<Slopes>& slopes, Index keys) {
  using T = typename Slopes::Scalar;
  detail::check_bias_size(keys, "keys");
  detail::checked_product({slopes.size(), keys}, "the bias");
  const auto m = detail::finite_slopes(slopes);
  Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> rows(m.size(), keys);
  for (Index h = 0; h < m.size(); h++)
    for (Index j = 0; j < keys; j++) rows(h, j) = T(double(m(h)) * double(j));
  return rows;
}

}  // namespace alibi::inline ALIBI_ABI
