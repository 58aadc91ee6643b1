// The bias of ALiBi as a matrix (Press et al., arXiv 2108.12409, section 3). It is added to the scaled logits:
//
//   b_ij = -m |p_i - j|        for the keys j that query i of position p_i sees (mask.hpp)
//   b_ij = -inf                for the other keys
//
//   bias_expression(m, queries, keys)        one head, an Eigen expression that stores nothing
//   bias_matrix(slopes, queries, keys)       [heads, queries, keys], materialised
//   key_bias(slopes, keys)                   [heads, keys], the key-only row m j; with the causal mask the softmax is
//                                            the same
//
// attention() uses none of these functions, because its kernel computes the bias on the fly. They are for inspection,
// for drawing, and for other attention code. Distances are integers, and each entry is rounded once.
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

/// The bias of one head as a function object for Eigen.
template <class T>
struct Bias {
  double slope;
  ResolvedMask mask;

  T operator()(Index query, Index key) const {
    const KeyRange seen = mask.visible(query);
    const bool hidden = (key < seen.begin || seen.end <= key) && mask.visible_sinks(query).end <= key;
    return hidden ? -std::numeric_limits<T>::infinity() : of_distance(key - mask.position(query));
  }

  /// The bias of a visible key `ahead` positions after the query; negative: before it.
  T of_distance(Index ahead) const {
    return T(0.0 - slope * double(std::abs(ahead)));  // 0.0 - 0.0 is 0, but -0.0 prints as -0
  }
};

inline void check_bias_size(Index size, const char* name) {
  require(size >= 0, name, " is ", size, "; expected 0 or more");
}

/// A copy of `slopes` as a vector. Throws std::invalid_argument if a slope is not finite.
template <class Slopes>
typename Slopes::PlainObject finite_slopes(const Eigen::DenseBase<Slopes>& slopes) {
  static_assert(bool(Slopes::IsVectorAtCompileTime), "alibi: slopes of a bias is a vector, [heads].");
  typename Slopes::PlainObject m = slopes.derived();
  for (Index h = 0; h < m.size(); h++)
    require(std::isfinite(double(m(h))), "the slope of head ", h, " is ", double(m(h)), "; expected a finite number");
  return m;
}

}  // namespace detail

/// [queries, keys], entry (i, j) = -m |p_i - j|, or -inf where the mask hides key j (Press et al., arXiv 2108.12409,
/// section 3). The result is an Eigen expression, evaluated at every access. Assign it to a matrix, or use it inside a
/// larger expression:
///
///     q * k.transpose() + bias_expression(m, n, n)
///
/// Throws std::invalid_argument for sizes that are negative or whose product overflows, for a slope that is not finite,
/// and for a mask out of range.
template <class T>
auto bias_expression(T slope, Index queries, Index keys, const Mask& mask = {}) {
  detail::check_bias_size(queries, "queries");
  detail::check_bias_size(keys, "keys");
  detail::checked_product({queries, keys}, "the bias");
  detail::require(std::isfinite(double(slope)), "the slope is ", double(slope), "; expected a finite number");
  using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  return Matrix::NullaryExpr(queries, keys, detail::Bias<T>{double(slope), resolve(mask, queries, keys)});
}

/// The bias of all heads, a row-major tensor [heads, queries, keys], for slopes [heads], any Eigen vector. Entry
/// (h, i, j) is entry (i, j) of the bias_expression() of slope h. Throws as bias_expression() does.
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

  // The bias of a head depends on j - p_i alone. Every row is therefore a slice of one line, without the hidden keys;
  // the slice of the last row begins the line.
  std::vector<T> line(std::size_t(queries + keys - 1));
  T* row = matrix.data();
  for (Index h = 0; h < m.size(); h++) {
    const detail::Bias<T> bias{double(m(h)), resolved};
    const Index first = -resolved.position(queries - 1);
    for (std::size_t i = 0; i < line.size(); i++) line[i] = bias.of_distance(first + Index(i));
    for (Index query = 0; query < queries; query++, row += keys) {
      std::copy_n(line.data() + (queries - 1 - query), keys, row);
      const KeyRange seen = resolved.visible(query);
      const Index sinks = resolved.visible_sinks(query).end, begin = std::clamp(seen.begin, sinks, keys),
                  end = std::clamp(seen.end, begin, keys);
      std::fill(row + sinks, row + begin, -std::numeric_limits<T>::infinity());
      std::fill(row + end, row + keys, -std::numeric_limits<T>::infinity());
    }
  }
  return matrix;
}

/// [heads, keys], entry (h, j) = m_h j: the key-only row that BLOOM and the authors' code add to the logits of every
/// query.
///
/// For j <= p_i, -m |p_i - j| = m j - m p_i, and softmax ignores the constant m p_i of a row. The softmax is therefore
/// the same as with bias_matrix() under the causal mask, and under any other mask in which every visible key of a row
/// is at or before the query. Under other masks it differs. The caller must still hide the hidden keys. An lse is
/// larger by m p_i.
///
/// The key-only row costs precision, because its numbers grow with the position, while distances to the query do not.
/// Rounded to bf16, with equal logits and slope 1/2, the weights of query 2,047 are wrong by 0.26 in total variation,
/// and those of the worst query before it by 0.50 (tests/unit/bias.cpp).
///
/// Throws std::invalid_argument for negative keys, for a product of heads and keys that overflows, and for a slope that
/// is not finite.
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
