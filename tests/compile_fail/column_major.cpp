// expect: a matrix of one head is \[tokens, head_dim\] and must be row-major
#include "alibi/alibi.hpp"

void column_major(const Eigen::MatrixXf& q, const Eigen::MatrixXf& k, const Eigen::MatrixXf& v,
                  const Eigen::VectorXf& slopes) {
  alibi::attention(q, k, v, slopes);
}
