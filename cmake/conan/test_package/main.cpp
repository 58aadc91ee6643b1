#include <alibi/alibi.hpp>
#include <cmath>
#include <cstdio>

// Equal keys: a head's weights fall by e^-m a token, and so the last row's mean of the positions is 1 / (e^m - 1) back.
int main() {
  using Tensor4 = Eigen::Tensor<float, 4, Eigen::RowMajor>;
  Tensor4 q(1, 8, 1024, 16), k(1, 8, 1024, 16), v(1, 8, 1024, 16);
  q.setConstant(0.5f);
  k.setConstant(0.5f);
  v = v.generate([](const auto& at) { return float(at[2]); });
  const Eigen::VectorXf slopes = alibi::slopes(8);
  const Tensor4 output = alibi::attention(q, k, v, slopes);
  const double back = 1023 - double(output(0, 0, 1023, 0)), expected = 1 / std::expm1(0.5);
  std::printf("alibi %d.%d.%d: %.4f tokens back, expected %.4f\n", ALIBI_VERSION_MAJOR, ALIBI_VERSION_MINOR,
              ALIBI_VERSION_PATCH, back, expected);
  return std::abs(back - expected) < 1e-3 ? 0 : 1;
}
