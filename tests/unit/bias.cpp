// The bias as a matrix: the lazy and the materialised form equal the formula, and the key-only row is exact and precise
// only in some cases.
#include <alibi/bias.hpp>

#include "common.hpp"

namespace {

using alibi::Mask;
using test::Index;
using test::kInfinity;

const std::vector<Mask> kMasks = {
    {},
    {.causal = false},
    {.window = 3},
    {.causal = false, .window = 3},
    {.query_offset = 0},
    {.query_offset = -4},
    {.query_offset = 5},
    {.causal = false, .window = 2, .query_offset = 1},
    {.query_offset = Index(1) << 40},
    {.causal = false, .query_offset = -(Index(1) << 40)},
    {.prefix = 4},
    {.window = 2, .prefix = 5, .sinks = 1},
    {.causal = false, .window = 1, .sinks = 2},
    {.window = 2, .query_offset = 20, .sinks = 3},
};

double formula(double m, Index i, Index j, Index queries, Index keys, const Mask& mask) {
  const Index p = i + mask.query_offset.value_or(keys - queries), d = std::abs(p - j);
  if (mask.causal && j > p && j >= mask.prefix) return -kInfinity;
  if (mask.window && d >= *mask.window && j >= mask.sinks.value_or(0)) return -kInfinity;
  return -m * double(d);
}

template <class T>
class Bias : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(Bias, Scalars);

TYPED_TEST(Bias, LazyEqualsMaterialisedEqualsFormula) {
  using T = TypeParam;
  const test::Vector<T> m = Eigen::Matrix<T, 5, 1>(T(0.5), T(1) / 256, T(0), T(-0.25), T(0.70710678));
  for (const auto& [queries, keys] : std::vector<std::pair<Index, Index>>{{7, 7}, {1, 9}, {3, 8}, {8, 3}, {1, 1}})
    for (const Mask& mask : kMasks) {
      const auto matrix = alibi::bias_matrix(m, queries, keys, mask);
      ASSERT_EQ(matrix.dimension(0), m.size());
      ASSERT_EQ(matrix.dimension(1), queries);
      ASSERT_EQ(matrix.dimension(2), keys);
      for (Index h = 0; h < m.size(); h++) {
        const auto lazy = alibi::bias_expression(m[h], queries, keys, mask);
        ASSERT_EQ(lazy.rows(), queries);
        ASSERT_EQ(lazy.cols(), keys);
        for (Index i = 0; i < queries; i++)
          for (Index j = 0; j < keys; j++) {
            const T expected = T(formula(double(m[h]), i, j, queries, keys, mask));
            EXPECT_EQ(lazy(i, j), expected) << "slope " << m[h] << ", query " << i << ", key " << j;
            EXPECT_EQ(matrix(h, i, j), expected) << "slope " << m[h] << ", query " << i << ", key " << j;
          }
      }
    }
}

TEST(BiasExpression, IsAnEigenExpression) {
  const auto row = alibi::bias_expression(0.5, 2, 3);
  const test::RowMatrix<double> logits = test::RowMatrix<double>::Constant(2, 3, 10.) + row;
  const std::vector<double> expected = {9.5, 10, -kInfinity, 9, 9.5, 10};
  EXPECT_TRUE(test::same(logits, expected));
  EXPECT_LE(sizeof(row), 96u) << "stores nothing";
}

TEST(BiasExpression, ADistanceOfZeroIsNotNegativeZero) {
  EXPECT_FALSE(std::signbit(alibi::bias_expression(0.5, 1, 1)(0, 0)));
  EXPECT_FALSE(std::signbit(alibi::bias_expression(0.0, 1, 9)(0, 0)));
}

TEST(BiasMatrix, TakesAnyEigenVector) {
  const auto all = alibi::slopes(8);
  const Eigen::RowVector2f fixed(all[2], all[3]);
  const Eigen::Map<const Eigen::VectorXf, 0, Eigen::InnerStride<>> every_second(all.data(), 4, Eigen::InnerStride<>(2));
  const auto expected = alibi::bias_matrix(all, 5, 6);
  const float* head_2 = &expected(2, 0, 0);
  const auto of_fixed = alibi::bias_matrix(fixed, 5, 6);
  const auto of_segment = alibi::bias_matrix(all.segment(2, 2), 5, 6);
  const auto of_array = alibi::bias_matrix((all.array() * 1.f).segment(2, 2), 5, 6);
  EXPECT_TRUE(std::equal(head_2, head_2 + 60, of_fixed.data()));
  EXPECT_TRUE(std::equal(head_2, head_2 + 60, of_segment.data()));
  EXPECT_TRUE(std::equal(head_2, head_2 + 60, of_array.data()));
  EXPECT_TRUE(std::equal(head_2, head_2 + 30, &alibi::bias_matrix(every_second, 5, 6)(1, 0, 0)));
}

TEST(BiasMatrix, Empty) {
  EXPECT_EQ(alibi::bias_matrix(alibi::slopes(0), 3, 3).size(), 0);
  EXPECT_EQ(alibi::bias_matrix(alibi::slopes(2), 0, 3).size(), 0);
  EXPECT_EQ(alibi::bias_matrix(alibi::slopes(2), 3, 0).size(), 0);
  EXPECT_EQ(alibi::bias_expression(1.f, 0, 3).size(), 0);
  EXPECT_EQ(alibi::key_bias(alibi::slopes(2), 0).size(), 0);
}

// At any position, an entry is its integer distance times the slope, rounded once.
TEST(BiasMatrix, FarPositions) {
  const Index far = Index(1) << 40;
  const auto m = Eigen::VectorXf::Constant(1, 0.3f);
  const auto matrix = alibi::bias_matrix(m, 2, 3, {.query_offset = far});
  for (Index i = 0; i < 2; i++)
    for (Index j = 0; j < 3; j++) EXPECT_EQ(matrix(0, i, j), float(-double(0.3f) * double(far + i - j)));
  // 2^24 + 1 is the first integer that a float cannot hold. Distances near a late query keep every digit.
  const Index late = (Index(1) << 24) + 1;
  const auto lazy = alibi::bias_expression(1.f, 1, late + 1, {.query_offset = late});
  EXPECT_EQ(lazy(0, late), 0);
  EXPECT_EQ(lazy(0, late - 1), -1);
  EXPECT_EQ(lazy(0, late - 3), -3);
}

std::vector<double> softmax(std::vector<double> s) {
  const double largest = *std::max_element(s.begin(), s.end());
  double sum = 0;
  for (double& x : s) sum += x = std::exp(x - largest);
  for (double& x : s) x /= sum;
  return s;
}

// For each query, the total variation distance (1/2) Σ |a_j - b_j| between the weights with the key-only row, its
// entries rounded to `Rounded`, and the weights with the bias, on `logits` [tokens, tokens].
template <class Rounded>
std::vector<double> key_bias_errors(double slope, const Mask& mask, const test::RowMatrix<double>& logits) {
  const Index n = logits.rows();
  const auto row = alibi::key_bias(test::Vector<double>::Constant(1, slope), n);
  const auto bias = alibi::bias_expression(slope, n, n, mask);
  std::vector<double> errors;
  for (Index i = 0; i < n; i++) {
    std::vector<double> with_row, with_bias;
    for (Index j = 0; j < n; j++) {
      with_bias.push_back(logits(i, j) + bias(i, j));
      with_row.push_back(bias(i, j) == -kInfinity ? -kInfinity : logits(i, j) + double(Rounded(row(0, j))));
    }
    const auto p = softmax(with_row), expected = softmax(with_bias);
    double error = 0;
    for (std::size_t j = 0; j < p.size(); j++) error += std::abs(p[j] - expected[j]) / 2;
    errors.push_back(error);
  }
  return errors;
}

double largest(const std::vector<double>& errors) { return *std::max_element(errors.begin(), errors.end()); }

TEST(KeyBias, IsSlopeTimesKey) {
  const auto rows = alibi::key_bias(Eigen::Vector2f(0.5f, 0.25f), 4);
  EXPECT_TRUE(test::same(rows, std::vector<float>{0, 0.5f, 1, 1.5f, 0, 0.25f, 0.5f, 0.75f}));
}

TEST(KeyBias, EqualsTheBiasAfterSoftmaxWhereCausal) {
  test::Random random(1);
  const auto logits = random.matrix<double>(40, 40);
  const auto error = [&](const Mask& mask) { return largest(key_bias_errors<double>(0.5, mask, logits)); };
  EXPECT_LE(error({}), 1e-14);
  EXPECT_LE(error({.window = 5}), 1e-14);
  EXPECT_LE(error({.causal = false, .query_offset = 39}), 1e-14) << "all keys at or before the queries";
  EXPECT_GE(error({.causal = false}), 0.1) << "keys on both sides: the weights differ";
}

TEST(KeyBias, CostOfRounding) {
  const test::RowMatrix<double> equal = test::RowMatrix<double>::Zero(2048, 2048);
  const auto errors = key_bias_errors<Eigen::bfloat16>(0.5, {}, equal);
  EXPECT_NEAR(errors.back(), 0.26, 0.005);
  EXPECT_NEAR(largest(errors), 0.50, 0.005);
}

template <class Call>
std::string message(Call call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

TEST(Bias, Errors) {
  const auto m = alibi::slopes(2);
  const Eigen::Vector2f bad(0.5f, std::numeric_limits<float>::quiet_NaN());
  const float infinite = std::numeric_limits<float>::infinity();
  EXPECT_EQ(message([&] { alibi::bias_matrix(m, -1, 3); }), "alibi: queries is -1; expected 0 or more");
  EXPECT_EQ(message([&] { alibi::bias_matrix(m, 3, -1); }), "alibi: keys is -1; expected 0 or more");
  EXPECT_EQ(message([&] { alibi::bias_expression(1.f, -1, 3); }), "alibi: queries is -1; expected 0 or more");
  EXPECT_EQ(message([&] { alibi::bias_expression(1.f, 3, -1); }), "alibi: keys is -1; expected 0 or more");
  EXPECT_EQ(message([&] { alibi::key_bias(m, -1); }), "alibi: keys is -1; expected 0 or more");
  EXPECT_EQ(message([&] { alibi::bias_expression(-infinite, 3, 3); }),
            "alibi: the slope is -inf; expected a finite number");
  EXPECT_EQ(message([&] { alibi::bias_matrix(bad, 3, 3); }),
            "alibi: the slope of head 1 is nan; expected a finite number");
  EXPECT_EQ(message([&] { alibi::key_bias(bad, 3); }), "alibi: the slope of head 1 is nan; expected a finite number");
  EXPECT_EQ(message([&] { alibi::bias_matrix(m, 3, 3, {.window = 0}); }),
            "alibi: mask.window is 0; expected at least 1, the query's own position");
  // Sizes whose product overflows: 2^81 entries, whose count has only zeros in its lowest 64 bits.
  constexpr Index kLong = Index(1) << 40;
  const std::string overflows = "alibi: the bias has more than 2^60 entries; expected a product of sizes up to that";
  EXPECT_EQ(message([&] { alibi::bias_matrix(m, kLong, kLong); }), overflows);
  EXPECT_EQ(message([&] { alibi::bias_expression(1.f, kLong, kLong); }), overflows);
  EXPECT_EQ(message([&] { alibi::key_bias(m, Index(1) << 60); }), overflows);
}

}  // namespace
