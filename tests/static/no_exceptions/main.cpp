// Compiled with -fno-exceptions. Correct calls return results; an invalid call prints its message and aborts.
#include <alibi/alibi.hpp>

int main() {
  using Tensor4 = Eigen::Tensor<float, 4, Eigen::RowMajor>;
  Tensor4 q(1, 2, 5, 16), k(1, 2, 5, 8);
  q.setConstant(1), k.setConstant(1);
  const Tensor4 output = alibi::attention(q, q, q, alibi::slopes(2));
  if (output(0, 1, 4, 0) != 1) return 2;
  alibi::attention(q, k, q, alibi::slopes(2));
  return 3;  // not reached
}
