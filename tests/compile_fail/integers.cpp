// expect: q, k and v must hold float, double, Eigen::bfloat16 or Eigen::half
#include "alibi/alibi.hpp"

using Tensor = Eigen::Tensor<int, 4, Eigen::RowMajor>;

void integers(const Tensor& q, const Tensor& k, const Tensor& v, const Eigen::VectorXf& slopes) {
  alibi::attention(q, k, v, slopes);
}
