// expect: grad_output must hold the scalar of q
#include "alibi/alibi.hpp"

using Tensor4 = Eigen::Tensor<float, 4, Eigen::RowMajor>;

auto double_gradient(const Eigen::Tensor<double, 4, Eigen::RowMajor>& grad_output, const Tensor4& q,
                     const Eigen::VectorXf& slopes, const Tensor4& output, const Eigen::VectorXf& lse) {
  return alibi::attention_backward(grad_output, q, q, q, slopes, {output, lse});
}
