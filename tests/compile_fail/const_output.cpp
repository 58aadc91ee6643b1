// expect: not be const
#include "alibi/alibi.hpp"

using Tensor = Eigen::Tensor<float, 4, Eigen::RowMajor>;

void const_output(const Tensor& output, const Tensor& q, const Tensor& k, const Tensor& v,
                  const Eigen::VectorXf& slopes) {
  alibi::attention_into(output, q, k, v, slopes);
}
