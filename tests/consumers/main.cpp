#include <alibi/alibi.hpp>
#include <unsupported/Eigen/CXX11/Tensor>

int main() {
  Eigen::Tensor<float, 4, Eigen::RowMajor> q(1, 8, 4, 16), k(1, 8, 4, 16), v(1, 8, 4, 16);
  q.setRandom();
  k.setRandom();
  v.setRandom();
  Eigen::VectorXf slopes = alibi::slopes(8);
  auto output = alibi::attention(q, k, v, slopes);

  // Under the causal mask the first query sees only one key, so its output is the first value.
  for (Eigen::Index head = 0; head < 8; ++head) {
    for (Eigen::Index d = 0; d < 16; ++d) {
      if (output(0, head, 0, d) != v(0, head, 0, d)) return 1;
    }
  }
  return 0;
}
