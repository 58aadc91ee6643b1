// Prints how far back each head looks. Every value is the position of its key, so attention returns a mean position.
#include <alibi/alibi.hpp>
#include <iostream>

int main() {
  using Tensor4 = Eigen::Tensor<float, 4, Eigen::RowMajor>;  // [batch, heads, tokens, head_dim]
  Tensor4 q(1, 8, 1024, 64), k(1, 8, 1024, 64), v(1, 8, 1024, 64);
  q.setConstant(0.5f);
  k.setConstant(0.5f);
  v = v.generate([](const auto& at) { return float(at[2]); });

  const Eigen::VectorXf slopes = alibi::slopes(8);           // 1/2, 1/4, ... 1/256
  const Tensor4 output = alibi::attention(q, k, v, slopes);  // causal, scale 1/sqrt(64)

  std::cout.precision(3);
  for (int h = 0; h < 8; h++)
    std::cout << "slope 1/" << 1 / slopes[h] << ": " << 1023 - output(0, h, 1023, 0) << " tokens back\n";
}
