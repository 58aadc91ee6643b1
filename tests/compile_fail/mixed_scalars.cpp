// expect: q, k and v must hold the same scalar
#include "alibi/alibi.hpp"

using Tensor = Eigen::Tensor<float, 4, Eigen::RowMajor>;
using TensorOfDouble = Eigen::Tensor<double, 4, Eigen::RowMajor>;

void mixed_scalars(const Tensor& q, const TensorOfDouble& k, const Tensor& v, const Eigen::VectorXf& slopes) {
  alibi::attention(q, k, v, slopes);
}
