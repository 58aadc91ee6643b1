// expect: success
#include "alibi/alibi.hpp"

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Matrix control(const Matrix& q, const Matrix& k, const Matrix& v, const Eigen::VectorXf& slopes) {
  return alibi::attention(q, k, v, slopes);
}
