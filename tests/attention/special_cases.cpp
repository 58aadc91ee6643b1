// Calls with extreme numbers and positions, against the definition or exactly.
#include "forward_case.hpp"

namespace {

using test::Call;
using test::Index;
using test::Random;

template <class T>
class ForwardSpecialCases : public test::AgainstReference<T> {
 protected:
  /// Random calls that `change` modifies.
  template <class Change>
  void expect_all(Change change) {
    for (std::uint64_t seed = 1; seed <= 60; seed++) {
      Random random(seed);
      test::Shape shape = test::random_shape(random);
      shape.batch = std::max<Index>(shape.batch, 1);
      Call<T> call(random, shape);
      change(call, random);
      this->expect(call, "seed " + std::to_string(seed));
    }
  }
  /// A few queries against many keys, which random_shape() does not reach.
  static constexpr test::Shape kLong{1, 1, 2, 3, 9'001, 16, 24};
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ForwardSpecialCases, Scalars);

TYPED_TEST(ForwardSpecialCases, LogitsOfTenThousand) {
  this->expect_all([](auto& call, Random&) {
    const double largest = std::max(call.largest_logit(), 1e-3);
    call.q.for_each([&](auto& x) { x *= TypeParam(1e4 / largest); });
  });
}

TYPED_TEST(ForwardSpecialCases, IdenticalKeys) {
  this->expect_all([](auto& call, Random&) {
    const auto& shape = call.s;
    for (Index b = 0; b < shape.batch; b++)
      for (Index h = 0; h < shape.kv_heads; h++)
        for (Index j = 0; j < shape.keys; j++)
          for (Index d = 0; d < shape.head_dim; d++) call.k(b, h, j, d) = call.k(b, h, 0, d);
  });
}

TYPED_TEST(ForwardSpecialCases, FarOffsets) {
  for (const Index far : {Index(1) << 26, (Index(1) << 26) + 1, Index(1) << 40, -(Index(1) << 26), -(Index(1) << 40)})
    this->expect_all([&](auto& call, Random&) {
      call.options.query_offsets = {};
      call.options.mask.query_offset = far;
    });
}

// m |p_i - j| up to 1e6 within a call: one key has all the weight, and all others are far below the range of exp2.
TYPED_TEST(ForwardSpecialCases, SteepSlopes) {
  for (const double slope : {30., -30., 1e4, -1e4})
    this->expect_all([&](auto& call, Random&) { call.slopes.setConstant(TypeParam(slope)); });
}

// The output is finite for slopes up to the largest number.
TYPED_TEST(ForwardSpecialCases, SlopesUpToTheLargestNumber) {
  using T = TypeParam;
  for (const T slope : {T(1e30), std::numeric_limits<T>::max(), T(-1e30), std::numeric_limits<T>::lowest()})
    for (const bool causal : {true, false})
      for (const Index keys : {1, 8, 70, 200}) {
        Random random(1);
        const auto q = random.matrix<T>(keys, 8), k = random.matrix<T>(keys, 8), v = random.matrix<T>(keys, 8);
        const auto output = alibi::attention(q, k, v, slope, {.mask = {.causal = causal}});
        for (Index i = 0; i < output.size(); i++)
          ASSERT_LE(std::abs(output.data()[i]), T(10))
              << "slope " << slope << ", causal " << causal << ", keys " << keys;
      }
}

// A row may read distant tiles before its own tile. Beside such penalties, rounding changes the row's reference by more
// than the range of the exponential. The row must still give its own key all the weight.
TYPED_TEST(ForwardSpecialCases, DistantTilesFirst) {
  using T = TypeParam;
  constexpr Index kKeys = 400;
  Random random(4);
  const test::RowMatrix<T> q = random.matrix<T>(kKeys, 8, 25), k = random.matrix<T>(kKeys, 8, 25);
  test::RowMatrix<T> v(kKeys, 1);
  for (Index j = 0; j < kKeys; j++) v(j) = T(j);
  for (const double slope : {1e5, 1e7, 1e8, 1e10, 1e15, 1e20, 1e38})
    for (const Index queries : {Index(1), kKeys}) {
      const test::RowMatrix<T> some = q.topRows(queries);
      const auto output =
          alibi::attention(some, k, v, T(slope), {.mask = {.causal = false, .query_offset = 0}, .tolerance = 0});
      for (Index i = 0; i < queries; i++) ASSERT_NEAR(double(output(i, 0)), double(i), 1e-20) << "slope " << slope;
    }
}

TYPED_TEST(ForwardSpecialCases, LongContext) {
  for (const double slope : {1 / 256., 0.5, 0., -1 / 256., -0.5})
    for (const bool causal : {true, false}) {
      Random random(1);
      Call<TypeParam> call(random, this->kLong);
      call.slopes.setConstant(TypeParam(slope));
      call.options = {.mask = {.causal = causal}};
      this->expect(call, "long context");
    }
}

// Decoding, with the last key in every place of its tile.
TYPED_TEST(ForwardSpecialCases, SingleQueryAtEveryLength) {
  for (Index keys = 1; keys <= 140; keys++) {
    Random random{std::uint64_t(keys)};
    Call<TypeParam> call(random, {1, 1, 12, 1, keys, 128, 16});
    call.slopes = alibi::slopes<TypeParam>(12).transpose();
    call.options = {};
    this->expect(call, "keys " + std::to_string(keys));
  }
}

TYPED_TEST(ForwardSpecialCases, ASingleKeyGivesItsValueExactly) {
  using T = TypeParam;
  Random random(1);
  for (const T slope : {T(0), T(0.70710678), T(-0.3), T(1e4)})
    for (const Index offset : {0, 1, 70, 1000, 1 << 26}) {
      const auto q = random.matrix<T>(40, 20, 5), k = random.matrix<T>(1, 20, 5), v = random.matrix<T>(1, 20);
      const auto output = alibi::attention(q, k, v, slope, {.mask = {.query_offset = offset}});
      for (Index i = 0; i < 40; i++)
        ASSERT_TRUE(test::same(test::Vector<T>(output.row(i)), test::Vector<T>(v.row(0))))
            << "slope " << slope << " row " << i;
    }
}

TYPED_TEST(ForwardSpecialCases, AWindowOfOneGivesTheOwnValueExactly) {
  using T = TypeParam;
  Random random(2);
  for (const T slope : {T(0), T(0.70710678), T(-0.3), T(1e4)})
    for (const bool causal : {true, false})
      for (const Index n : {1, 31, 64, 200}) {
        const auto q = random.matrix<T>(n, 20, 5), k = random.matrix<T>(n, 20, 5), v = random.matrix<T>(n, 20);
        const auto output = alibi::attention(q, k, v, slope, {.mask = {.causal = causal, .window = 1}});
        ASSERT_TRUE(test::same(output, v)) << "slope " << slope << ", causal " << causal << ", tokens " << n;
      }
}

TYPED_TEST(ForwardSpecialCases, RowsThatSeeNothing) {
  using T = TypeParam;
  Random random(3);
  const auto q = random.matrix<T>(100, 12), k = random.matrix<T>(100, 12), v = random.matrix<T>(100, 7);
  const auto none = random.matrix<T>(0, 12), no_values = random.matrix<T>(0, 7);
  const auto expect_nothing = [](const auto& result, Index begin, Index end) {
    for (Index i = begin; i < end; i++) {
      EXPECT_EQ(result.lse[i], -std::numeric_limits<T>::infinity()) << "row " << i;
      for (Index d = 0; d < result.output.cols(); d++) EXPECT_EQ(result.output(i, d), T(0)) << "row " << i;
    }
    for (Index i = 0; i < result.lse.size(); i++)
      EXPECT_TRUE((begin <= i && i < end) || std::isfinite(result.lse[i])) << "row " << i;
  };
  for (const T slope : {T(0.5), T(0), T(-0.5)}) {
    expect_nothing(alibi::attention_with_lse(q, none, no_values, slope), 0, 100);
    expect_nothing(alibi::attention_with_lse(q, k, v, slope, {.mask = {.query_offset = -37}}), 0, 37);
    expect_nothing(alibi::attention_with_lse(q, k, v, slope, {.mask = {.query_offset = -1000}}), 0, 100);
    expect_nothing(alibi::attention_with_lse(q, k, v, slope, {.mask = {.window = 5, .query_offset = 50}}), 54, 100);
    expect_nothing(
        alibi::attention_with_lse(q, k, v, slope, {.mask = {.causal = false, .window = 5, .query_offset = -50}}), 0,
        46);
  }
}

}  // namespace
