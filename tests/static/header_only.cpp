// Makes every kind of call header-only: instantiates what a file without the compiled library uses, and checks that the
// calls agree with each other.
#include <alibi/alibi.hpp>
#include <alibi/kv_cache_file.hpp>
#include <cmath>
#include <cstdio>
#include <sstream>
#include <vector>

namespace {

using Tensor3 = Eigen::Tensor<float, 3, Eigen::RowMajor>;
using Tensor4 = Eigen::Tensor<float, 4, Eigen::RowMajor>;

int failures = 0;

template <class A, class B>
void expect_near(const char* what, const A& a, const B& b) {
  float difference = 0;
  for (Eigen::Index i = 0; i < a.size(); i++) difference = std::max(difference, std::abs(a.data()[i] - b.data()[i]));
  if (difference <= 1e-5F) return;
  std::printf("%s: differs by %g\n", what, double(difference));
  failures++;
}

}  // namespace

int main() {
  Tensor4 q(1, 2, 70, 8);
  q.setRandom();
  const auto slopes = alibi::slopes(2);
  const auto [output, lse] = alibi::attention_with_lse(q, q, q, slopes);
  const auto grad = alibi::attention_backward(q, q, q, q, slopes, {output, lse});

  // One sequence as varlen: [tokens, heads, head_dim].
  const Eigen::array<int, 3> order{1, 0, 2};
  const Tensor3 varlen = Tensor3(q.reshape(Eigen::array<Eigen::Index, 3>{2, 70, 8})).shuffle(order);
  const std::vector<alibi::Index> cu_seqlens = {0, 70};
  const auto [output_varlen, lse_varlen] =
      alibi::attention_varlen_with_lse(varlen, varlen, varlen, slopes, {cu_seqlens});
  expect_near("varlen", Tensor3(output_varlen.shuffle(order)), output);
  const auto grad_varlen = alibi::attention_varlen_backward(varlen, varlen, varlen, varlen, slopes, {cu_seqlens},
                                                            {output_varlen, lse_varlen});
  expect_near("varlen dq", Tensor3(grad_varlen.q.shuffle(order)), grad.q);

  const std::vector<alibi::KeyRange> all = {{0, 70}};
  expect_near("padded", alibi::attention(q, q, q, slopes, {.keys = all}), output);

  alibi::KvCache<float> cache({.kv_heads = 2, .head_dim = 8, .capacity = 70});
  cache.append(q, q);
  expect_near("cached", alibi::attention(q, cache, slopes), output);

  // A table of the slopes; the gradient of an lse that the loss does not depend on.
  Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> table(2, 70);
  for (Eigen::Index t = 0; t < 70; t++) table.col(t) = -float(t) * slopes;
  expect_near("a table over a cache", alibi::attention(q, cache, alibi::relative_bias(table)), output);
  Eigen::Tensor<float, 3, Eigen::RowMajor> grad_lse = lse;
  grad_lse.setZero();
  const auto of_both = alibi::attention_backward(alibi::ForwardResult{q, grad_lse}, q, q, q, slopes, {output, lse});
  expect_near("the gradient of the lse", of_both.q, grad.q);

  // Sequence 1 becomes sequence 0 through a file, and by a fork.
  alibi::KvCache<float> pair({.batch = 2, .kv_heads = 2, .head_dim = 8, .capacity = 70});
  pair.append(0, q, q);
  std::stringstream file;
  alibi::save(file, pair, 0);
  alibi::load(file, pair, 1);
  Tensor4 twice(2, 2, 70, 8), expected(2, 2, 70, 8);
  for (Eigen::Index i = 0; i < twice.size(); i++) {
    twice.data()[i] = q.data()[i % q.size()];
    expected.data()[i] = output.data()[i % q.size()];
  }
  expect_near("loaded", alibi::attention(twice, pair, slopes), expected);
  pair.clear(1);
  pair.fork(0, 1);
  pair.reorder(std::vector<alibi::Index>{1, 1});
  expect_near("forked", alibi::attention(twice, pair, slopes), expected);
  return failures;
}
