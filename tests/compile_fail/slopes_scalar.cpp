// expect: slopes must hold float, double, Eigen::bfloat16 or Eigen::half
#include "alibi/alibi.hpp"

using Tensor = Eigen::Tensor<float, 4, Eigen::RowMajor>;

void slopes_scalar(const Tensor& q, const Tensor& k, const Tensor& v, const Eigen::VectorXi& slopes) {
  alibi::attention(q, k, v, slopes);
}
