// Every kind of call, header-only: what a file without the compiled library instantiates, and that it agrees with
// itself.
#include <alibi/alibi.hpp>
#include <cmath>
#include <cstdio>
#include <vector>

namespace {

using Tensor3 = Eigen::Tensor<float, 3, Eigen::RowMajor>;
using Tensor4 = Eigen::Tensor<float, 4, Eigen::RowMajor>;

int failures = 0;

template <class A, class B>
void expect_near(const char* what, const A& a, const B& b) {
  float apart = 0;
  for (Eigen::Index i = 0; i < a.size(); i++) apart = std::max(apart, std::abs(a.data()[i] - b.data()[i]));
  if (apart <= 1e-5F) return;
  std::printf("%s: %g apart\n", what, double(apart));
  failures++;
}

}  // namespace

int main() {
  Tensor4 q(1, 2, 70, 8);
  q.setRandom();
  const auto slopes = alibi::slopes(2);
  const auto [output, lse] = alibi::attention_with_lse(q, q, q, slopes);
  const auto grad = alibi::attention_backward(q, q, q, q, slopes, {output, lse});

  // One sequence, packed: [tokens, heads, head_dim].
  const Eigen::array<int, 3> order{1, 0, 2};
  const Tensor3 packed = Tensor3(q.reshape(Eigen::array<Eigen::Index, 3>{2, 70, 8})).shuffle(order);
  const std::vector<alibi::Index> starts = {0, 70};
  const auto [output_packed, lse_packed] = alibi::attention_varlen_with_lse(packed, packed, packed, slopes, {starts});
  expect_near("packed", Tensor3(output_packed.shuffle(order)), output);
  const auto grad_packed =
      alibi::attention_varlen_backward(packed, packed, packed, packed, slopes, {starts}, {output_packed, lse_packed});
  expect_near("packed dq", Tensor3(grad_packed.q.shuffle(order)), grad.q);

  const std::vector<alibi::KeyRange> all = {{0, 70}};
  expect_near("padded", alibi::attention(q, q, q, slopes, {.keys = all}), output);

  alibi::KvCache<float> cache({.kv_heads = 2, .head_dim = 8, .capacity = 70});
  cache.append(q, q);
  expect_near("cached", alibi::attention(q, cache, slopes), output);
  return failures;
}
