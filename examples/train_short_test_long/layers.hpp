// Layer norm and GELU, forward and backward. `rows` is batch x tokens.
#pragma once

#include <Eigen/Core>
#include <cmath>
#include <numbers>

#include "parameters.hpp"
#include "product.hpp"

namespace experiment {

constexpr float kNormEpsilon = 1e-5F;

/// A layer norm (Ba et al., arXiv 1607.06450) of the rows of x: y = n ⊙ weight + bias, n = (x - mean) / deviation.
class Norm {
 public:
  void resize(Index rows, Index dim) {
    normed_.resize(rows, dim);
    inverse_.resize(rows);
    output_.resize(rows, dim);
  }

  /// x [rows, dim]; returns y [rows, dim], which is kept until the next call.
  const Matrix& forward(const Matrix& x, const NormParameters& parameters) {
    for (Index r = 0; r < x.rows(); r++) {
      auto n = normed_.row(r).array();
      n = x.row(r).array() - x.row(r).mean();
      inverse_[r] = 1 / std::sqrt(n.square().mean() + kNormEpsilon);
      n *= inverse_[r];
      output_.row(r).array() = n * parameters.weight.row(0).array() + parameters.bias.row(0).array();
    }
    return output_;
  }

  const Matrix& output() const { return output_; }

  /// grad_y [rows, dim]; adds to grad_x [rows, dim] and overwrites the gradient of the parameters.
  void backward(const Matrix& grad_y, const NormParameters& parameters, Matrix& grad_x, NormParameters& grad) const {
    grad.weight.setZero();
    grad.bias.setZero();
    Eigen::Array<float, 1, Eigen::Dynamic> grad_n(grad_y.cols());
    for (Index r = 0; r < grad_x.rows(); r++) {
      const auto n = normed_.row(r).array(), g = grad_y.row(r).array();
      grad.weight.row(0).array() += g * n;
      grad.bias.row(0).array() += g;
      grad_n = g * parameters.weight.row(0).array();
      const float mean = grad_n.mean(), along = (grad_n * n).mean();
      grad_x.row(r).array() += inverse_[r] * (grad_n - mean - along * n);
    }
  }

 private:
  Matrix normed_;            // [rows, dim], n
  Eigen::VectorXf inverse_;  // [rows], 1 / deviation
  Matrix output_;            // [rows, dim], y
};

constexpr float kGeluCubic = 0.044715F;
inline const float kGeluScale = std::sqrt(2 / std::numbers::pi_v<float>);

/// x, y [rows, cols]: the approximation by tanh of Hendrycks and Gimpel, arXiv 1606.08415.
inline void gelu(const Matrix& x, Matrix& y) {
  for (Index r = 0; r < x.rows(); r++) {
    const auto a = x.row(r).array();
    y.row(r).array() = 0.5F * a * (1 + (kGeluScale * (a + kGeluCubic * a.cube())).tanh());
  }
}

/// Converts the gradient with respect to y to that with respect to x, in place.
inline void gelu_backward(const Matrix& x, Matrix& grad) {
  Eigen::Array<float, 1, Eigen::Dynamic> tanh(x.cols());
  for (Index r = 0; r < x.rows(); r++) {
    const auto a = x.row(r).array();
    // y = a (1 + tanh(s (a + c a³))) / 2
    tanh = (kGeluScale * (a + kGeluCubic * a.cube())).tanh();
    grad.row(r).array() *= 0.5F * (1 + tanh + a * (1 - tanh.square()) * kGeluScale * (1 + 3 * kGeluCubic * a.square()));
  }
}

}  // namespace experiment
