// The reference against an example calculated by hand.
#include <alibi/reference.hpp>

#include "common.hpp"

namespace {

using test::Index;
using test::kInfinity;

// One head, slope ln 2, scale 1; three keys and queries. Every product q·k is 0 or ln 3, so the weights are integers
// times powers of 1/2:
//
//   q = (1), (0), (1)      k = (0), (ln 3), (0)      v = (1, 0), (0, 1), (8, 8)
//
//   logits q_i k_j         0  ln 3  0      exp:  1 3 1
//                          0  0     0            1 1 1
//                          0  ln 3  0            1 3 1
//   bias -ln 2 |i - j|     exp:  1    1/2  1/4
//                                1/2  1    1/2
//                                1/4  1/2  1
class Example : public testing::Test {
 protected:
  const double ln2_ = std::log(2.), ln3_ = std::log(3.);
  const test::RowMatrix<double> q_ = test::matrix_of<double>(3, 1, {1, 0, 1});
  const test::RowMatrix<double> k_ = test::matrix_of<double>(3, 1, {0, ln3_, 0});
  const test::RowMatrix<double> v_ = test::matrix_of<double>(3, 2, {1, 0, 0, 1, 8, 8});

  // `output` is [3, 2] in row-major order; `sums` holds exp(lse).
  void expect(const alibi::Mask& mask, const std::vector<double>& output, std::vector<double> sums) {
    const auto result = alibi::reference::attention(q_, k_, v_, ln2_, mask, 1.);
    EXPECT_LE(test::distance(result.output, output), 2e-15);
    for (double& x : sums) x = std::log(x);
    EXPECT_LE(test::distance(result.lse, sums), 2e-15);
  }
};

// Row 0: weight 1 on v_0. Row 1: 1/2, 1, sum 3/2. Row 2: 1/4, 3/2, 1, sum 11/4: (1/4 + 8, 3/2 + 8) / (11/4).
TEST_F(Example, Causal) { expect({}, {1, 0, 1 / 3., 2 / 3., 33 / 11., 38 / 11.}, {1, 1.5, 2.75}); }

// Row 0: 1, 3/2, 1/4, sum 11/4: (1 + 2, 3/2 + 2). Row 1: 1/2, 1, 1/2, sum 2: (1/2 + 4, 1 + 4) / 2.
TEST_F(Example, Bidirectional) {
  expect({.causal = false}, {12 / 11., 14 / 11., 2.25, 2.5, 33 / 11., 38 / 11.}, {2.75, 2, 2.75});
}

// Row 2 sees keys 1 and 2 only: 3/2, 1, sum 5/2: (8, 3/2 + 8) / (5/2).
TEST_F(Example, Window) {
  expect({.window = 2}, {1, 0, 1 / 3., 2 / 3., 3.2, 3.8}, {1, 1.5, 2.5});
  expect({.window = 1}, {1, 0, 0, 1, 8, 8}, {1, 1, 1});
  expect({.window = 3}, {1, 0, 1 / 3., 2 / 3., 33 / 11., 38 / 11.}, {1, 1.5, 2.75});
}

// Row 0 sees keys 0 and 1: 1, 3/2, sum 5/2: (1, 3/2) / (5/2).
TEST_F(Example, Prefix) {
  expect({.prefix = 2}, {0.4, 0.6, 1 / 3., 2 / 3., 33 / 11., 38 / 11.}, {2.5, 1.5, 2.75});
  expect({.prefix = 1}, {1, 0, 1 / 3., 2 / 3., 33 / 11., 38 / 11.}, {1, 1.5, 2.75});
  expect({.window = 1, .prefix = 2}, {1, 0, 0, 1, 8, 8}, {1, 1, 1});
}

// Row 1: 1/2 and 1, as without a window. Row 2 sees keys 0 and 2: 1/4, 1, sum 5/4: (1/4 + 8, 8) / (5/4).
TEST_F(Example, Sinks) {
  expect({.window = 1, .sinks = 1}, {1, 0, 1 / 3., 2 / 3., 6.6, 6.4}, {1, 1.5, 1.25});
  expect({.window = 1, .sinks = 0}, {1, 0, 0, 1, 8, 8}, {1, 1, 1});
  expect({.sinks = 2}, {1, 0, 1 / 3., 2 / 3., 33 / 11., 38 / 11.}, {1, 1.5, 2.75});
}

// Queries shifted back by one position: row 0 sees no key; row 1 has position 0; row 2 has position 1: 1/2, 3, sum 7/2.
TEST_F(Example, RowsThatSeeNothing) {
  expect({.query_offset = -1}, {0, 0, 1, 0, 1 / 7., 6 / 7.}, {0, 1, 3.5});
  expect({.query_offset = -3}, {0, 0, 0, 0, 0, 0}, {0, 0, 0});
  expect({.window = 1, .query_offset = 2}, {8, 8, 0, 0, 0, 0}, {1, 0, 0});
}

// From position 2^40 on, all weights keep their ratios, 1/4 : 3/2 : 1, and the lse falls by ln 2 with each position.
TEST_F(Example, FarOffset) {
  const Index far = Index(1) << 40;
  const auto result = alibi::reference::attention(q_, k_, v_, ln2_, {.query_offset = far}, 1.);
  EXPECT_NEAR(result.output(0, 0), 33 / 11., 2e-15);
  EXPECT_NEAR(result.output(2, 1), 38 / 11., 2e-15);
  EXPECT_NEAR(result.lse[2], std::log(2.75) - ln2_ * double(far), 1e-3) << "an ulp there is 1.2e-4";
}

// The default scale is 1 / sqrt(head_dim): four equal entries of 1 give a logit of 4 / 2.
TEST(Reference, DefaultScale) {
  const test::RowMatrix<double> ones = test::RowMatrix<double>::Ones(1, 4);
  EXPECT_EQ(alibi::reference::attention(ones, ones, ones, 0.5).lse[0], 2);
  EXPECT_EQ(alibi::reference::attention(ones, ones, ones, 0.5, {}, 0.25).lse[0], 1);
}

// [2, 4, 1, 1] queries on [2, 2, 1, 1] keys. Rows are (b * heads + h) * queries + i, and query head h reads kv head h /
// 2.
TEST(Reference, GroupedHeads) {
  test::Tensor4<float> q(2, 4, 1, 1), k(2, 2, 1, 1), v(2, 2, 1, 1);
  q.setConstant(1);
  k.setConstant(1);
  v.setValues({{{{1}}, {{2}}}, {{{3}}, {{4}}}});
  const auto result = alibi::reference::attention(q, k, v, alibi::slopes(4));
  const std::vector<double> expected = {1, 1, 2, 2, 3, 3, 4, 4};
  EXPECT_TRUE(test::same(result.output, expected));
}

TEST(Reference, NoKeys) {
  const test::Tensor4<float> q(1, 1, 2, 3), k(1, 1, 0, 3), v(1, 1, 0, 5);
  const auto result = alibi::reference::attention(q, k, v, 1.f);
  EXPECT_TRUE(test::same(result.output, std::vector<double>(10, 0.)));
  EXPECT_EQ(result.lse[0], -kInfinity);
  EXPECT_EQ(result.lse[1], -kInfinity);
}

TEST(Reference, Error) {
  const test::Tensor4<float> q(1, 1, 2, 3), k(1, 1, 2, 4);
  EXPECT_THROW(alibi::reference::attention(q, k, k, 1.f), std::invalid_argument);
}

}  // namespace
