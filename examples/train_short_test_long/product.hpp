// Matrix products, each form compiled only once, because Eigen's take long to compile and the model has twenty.
#pragma once

#include <Eigen/Core>

namespace experiment {

using Eigen::Index;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using MatrixMap = Eigen::Map<Matrix>;
using MatrixRef = Eigen::Ref<Matrix, 0, Eigen::OuterStride<>>;
using ConstMatrixRef = Eigen::Ref<const Matrix, 0, Eigen::OuterStride<>>;

/// A factor of a product: a row-major matrix, a block of one, or by transposed() its transpose.
struct Factor {
  ConstMatrixRef matrix;
  bool is_transposed = false;

  template <class M>
  Factor(const M& m, bool transposed = false) : matrix(m), is_transposed(transposed) {}

  Index rows() const { return is_transposed ? matrix.cols() : matrix.rows(); }
  Index cols() const { return is_transposed ? matrix.rows() : matrix.cols(); }
};
template <class M>
Factor transposed(const M& matrix) {
  return {matrix, true};
}

/// c = scale a b, or with `adds` c += scale a b. c has the size of the product and overlaps neither factor.
void product(MatrixRef c, const Factor& a, const Factor& b, float scale, bool adds);

/// c = scale a b. A Matrix is resized; a block must have the size of the product.
template <class C>
void multiply(C&& c, const Factor& a, const Factor& b, float scale = 1) {
  c.resize(a.rows(), b.cols());
  product(c, a, b, scale, false);
}

/// c += a b
inline void add_product(Matrix& c, const Factor& a, const Factor& b) { product(c, a, b, 1, true); }

}  // namespace experiment
