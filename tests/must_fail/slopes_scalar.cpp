// expect: slopes must hold the scalar
#include "alibi/alibi.hpp"

using Tensor = Eigen::Tensor<float, 4, Eigen::RowMajor>;

void slopes_scalar(const Tensor& q, const Tensor& k, const Tensor& v, const Eigen::VectorXd& m) {
  alibi::attention(q, k, v, m);
}
