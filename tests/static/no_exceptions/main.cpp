// Compiled with -fno-exceptions. Correct calls return results; an invalid call passes its message to the handler.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(OWN_HANDLER)
[[noreturn]] inline void handle(const char* message) {
  const char* const expected = "alibi: k has head_dim 8; expected 16, the head_dim of q";
  std::puts(message);
  std::exit(std::strcmp(message, expected) == 0 ? 0 : 1);
}
#define ALIBI_HANDLE_ERROR(message) handle(message)
#endif

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
