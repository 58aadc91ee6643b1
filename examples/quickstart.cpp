// How far back each head looks. With every key's position as its value, attention returns a mean position.
#include <alibi/alibi.hpp>
#include <iostream>

int main() {
  using Tensor4 = Eigen::Tensor<float, 4, Eigen::RowMajor>;  // [batch, heads, tokens, head_dim]
  Tensor4 q(1, 8, 1024, 64), k(1, 8, 1024, 64), v(1, 8, 1024, 64);
  q.setRandom();
  k.setRandom();
  v = v.generate([](const auto& at) { return float(at[2]); });

  const Eigen::VectorXf m = alibi::slopes(8);      // 1/2, 1/4, ... 1/256
  const Tensor4 o = alibi::attention(q, k, v, m);  // causal, scale 1/sqrt(64), as large as v

  for (int h = 0; h < 8; h++)
    std::cout << "head " << h << ", slope 1/" << 1 / m[h] << ": " << 1023 - o(0, h, 1023, 0) << " tokens back\n";
}
