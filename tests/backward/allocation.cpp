// The allocations of the backward pass: none after the first call with a workspace, whose size does not grow with the
// square of the tokens.
#include <alibi/backward.hpp>
#include <alibi/relative_bias.hpp>

#include "common.hpp"

namespace {

using heap::allocations_of;
using test::Index;
using test::RowMatrix;

// One head with every kind of bias. The test owns the memory.
template <class T>
struct Call {
  RowMatrix<T> q, k, v, output, grad_output, grad_q, grad_k, grad_v, table, grad_table;
  std::vector<T> lse;
  test::Vector<T> slope = test::Vector<T>::Constant(1, T(0.5)), grad_slope = test::Vector<T>(1);

  Call(Index queries, Index keys, Index head_dim)
      : q(RowMatrix<T>::Ones(queries, head_dim)),
        k(RowMatrix<T>::Ones(keys, head_dim)),
        v(RowMatrix<T>::Ones(keys, head_dim)),
        output(queries, head_dim),
        grad_output(RowMatrix<T>::Ones(queries, head_dim)),
        grad_q(queries, head_dim),
        grad_k(keys, head_dim),
        grad_v(keys, head_dim),
        table(RowMatrix<T>::Ones(1, 50)),
        grad_table(1, 50),
        lse(std::size_t(queries)) {}

  template <class Bias, class Gradient>
  void run(alibi::Workspace& workspace, const alibi::Mask& mask, const Bias& bias, Gradient& grad_bias) {
    alibi::attention_with_lse_into(output, lse, q, k, v, bias, {.mask = mask, .workspace = &workspace});
    alibi::attention_backward_into({grad_q, grad_k, grad_v, grad_bias}, grad_output, q, k, v, bias, {output, lse},
                                   {.mask = mask, .workspace = &workspace});
  }
  void run(alibi::Workspace& workspace, const alibi::Mask& mask = {}) {
    run(workspace, mask, slope, grad_slope);
    run(workspace, mask, alibi::relative_bias(table), grad_table);
  }
};

template <class T>
class BackwardAllocation : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(BackwardAllocation, Scalars);

TYPED_TEST(BackwardAllocation, NoneAfterTheFirstCall) {
  for (const alibi::Mask& mask : {alibi::Mask{}, {.causal = false}, {.window = 30}}) {
    Call<TypeParam> call(200, 300, 40), smaller(3, 70, 40);
    alibi::Workspace workspace;
    EXPECT_GE(allocations_of([&] { call.run(workspace, mask); }), 1u) << "the first call warms it";
    EXPECT_EQ(allocations_of([&] { call.run(workspace, mask); }), 0u);
    EXPECT_EQ(allocations_of([&] { smaller.run(workspace, mask); }), 0u);
  }
}

// One head. The window keeps the call cheap.
template <class T>
double bytes_per_token(Index tokens) {
  alibi::Workspace workspace;
  Call<T>(tokens, tokens, 64).run(workspace, {.window = 100});
  return double(workspace.size()) / double(tokens);
}

TYPED_TEST(BackwardAllocation, NothingQuadratic) {
  const double small = bytes_per_token<TypeParam>(10'000), large = bytes_per_token<TypeParam>(40'000);
  std::cout << "bytes a token: " << small << " at 10,000, " << large << " at 40,000\n";
  EXPECT_LE(large, small);
}

}  // namespace
