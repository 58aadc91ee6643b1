// expect: lse must hold the scalar of q, k and v
#include "alibi/alibi.hpp"

using Tensor = Eigen::Tensor<float, 4, Eigen::RowMajor>;

void lse_scalar(Tensor& output, Eigen::VectorXd& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                const Eigen::VectorXf& slopes) {
  alibi::attention_with_lse_into(output, lse, q, k, v, slopes);
}
