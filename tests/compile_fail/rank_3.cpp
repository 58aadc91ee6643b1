// expect: rank 4
#include "alibi/alibi.hpp"

using Tensor = Eigen::Tensor<float, 4, Eigen::RowMajor>;
using OfRank3 = Eigen::Tensor<float, 3, Eigen::RowMajor>;

void rank_3(const OfRank3& q, const Tensor& k, const Tensor& v, const Eigen::VectorXf& slopes) {
  alibi::attention(q, k, v, slopes);
}
