// bfloat16 and half: calls of every kind against the definition, in double, on the rounded inputs. ALIBI_TEST_CASES in
// the environment sets the number of calls for each type. A failure prints the seed, which determines the call.
#include <cstdlib>
#include <iostream>

#include "forward_case.hpp"

namespace {

using alibi::Mask;
using Eigen::bfloat16, Eigen::half;
using test::Index;
using test::Tensor4;

template <class T>
inline constexpr bool kIsHalf = std::is_same_v<T, half>;
template <class T>
inline constexpr int kDigits = kIsHalf<T> ? 11 : 8;
constexpr double kLseError = 1e-4;

/// Half an ulp of T at x: the rounding error of an output.
template <class T>
double half_ulp(double x) {
  constexpr int kLeast = kIsHalf<T> ? -14 : -126;
  return std::ldexp(1, (x == 0 ? kLeast : std::max(std::ilogb(x), kLeast)) - kDigits<T>);
}

template <class T>
Tensor4<double> doubles(const test::Strided<T>& x) {
  const alibi::View<T> view = x.view();
  Tensor4<double> y(view.batch, view.heads, view.tokens, view.head_dim);
  double* to = y.data();
  x.for_each([&](const T& value) { *to++ = double(value); });
  return y;
}

/// Errors in units of their bounds; at most 1 is correct.
struct Errors {
  double output = 0, lse = 0;
};

template <class T>
class TypesCall {
 public:
  TypesCall(test::Random& random, const test::Shape& shape)
      : s(shape),
        q(random, s.batch, s.kv_heads * s.group, s.queries, s.head_dim),
        k(random, s.batch, s.kv_heads, s.keys, s.head_dim),
        v(random, s.batch, s.kv_heads, s.keys, s.value_dim),
        output(random, s.batch, s.kv_heads * s.group, s.queries, s.value_dim),
        lse(std::size_t(s.batch * s.kv_heads * s.group * s.queries), std::numeric_limits<float>::quiet_NaN()),
        slopes(test::random_slopes<float>(random, s)) {
    options.mask = test::random_mask(random, s);
    if (random.chance(0.3)) options.scale = random.uniform(-1, 1) / std::sqrt(double(s.head_dim));
    if (random.chance(0.3))
      options.executor = alibi::Executor(int(random.integer(2, 5)), [](Index count, alibi::Task task) {
        for (Index i = count; i-- > 0;) task(i);
      });
    options.bf16_dot = random.chance(0.5);
    for (const auto* x : {&q, &k, &v}) x->for_each([&](T& value) { value = T(random.normal()); });
  }

  // The dot product instruction for bfloat16 rounds each probability to 8 digits: |Δo| <= 2^-8 Σ_j p_j |v_j|. Without
  // it only the output is rounded.
  Errors run() {
    alibi::attention_with_lse_into(output.view(), lse, q.view(), k.view(), v.view(), slopes, options);
    const auto reference = [&](const Tensor4<double>& values) {
      return alibi::reference::attention(doubles(q), doubles(k), values,
                                         test::RowMatrix<double>(slopes.template cast<double>()), options.mask,
                                         options.scale);
    };
    Tensor4<double> values = doubles(v);
    const auto expected = reference(values);
    for (Index i = 0; i < values.size(); i++) values.data()[i] = std::abs(values.data()[i]);
    const auto weight = reference(values);
    const double rounded = kIsHalf<T> || !options.bf16_dot ? 0 : 0x1p-8;
    Errors worst;
    const std::vector<double> is = output.take();
    for (Index i = 0; i < Index(is.size()); i++) {
      const double should = expected.output.data()[i], error = std::abs(is[std::size_t(i)] - should);
      const double share = error / (1e-5 + rounded * weight.output.data()[i] + half_ulp<T>(should));
      worst.output = std::max(worst.output, std::isnan(share) ? test::kInfinity : share);
    }
    for (std::size_t i = 0; i < lse.size(); i++) {
      const double should = expected.lse[Index(i)], error = double(lse[i]) == should ? 0 : std::abs(lse[i] - should);
      const double share = error / (kLseError + test::kBound<float> * std::abs(should));
      worst.lse = std::max(worst.lse, std::isnan(share) ? test::kInfinity : share);
    }
    return worst;
  }

  std::string description() const { return test::describe(s, options, slopes); }

 private:
  test::Shape s;
  test::Strided<T> q, k, v, output;
  std::vector<float> lse;
  test::RowMatrix<float> slopes;
  alibi::Options options;
};

template <class T>
class Types : public testing::Test {};
using Scalars = testing::Types<bfloat16, half>;
TYPED_TEST_SUITE(Types, Scalars);

int cases() {
  const char* text = std::getenv("ALIBI_TEST_CASES");
  return text ? std::atoi(text) : 1000;
}

TYPED_TEST(Types, RandomCalls) {
  Errors worst;
  int failures = 0;
  for (int seed = 1; seed <= cases() && failures < 5; seed++) {
    test::Random random{std::uint64_t(seed)};
    TypesCall<TypeParam> call(random, test::random_shape(random));
    const Errors errors = call.run();
    const bool ok = errors.output <= 1 && errors.lse <= 1;
    EXPECT_TRUE(ok) << "seed " << seed << ": output " << errors.output << " of its bound, lse " << errors.lse
                    << " of its bound: " << call.description();
    failures += !ok;
    worst.output = std::max(worst.output, errors.output);
    worst.lse = std::max(worst.lse, errors.lse);
  }
  std::cout << "errors, of their bounds: output " << worst.output << ", lse " << worst.lse << '\n';
}

// The usual benchmark case, a long sequence and a shallow slope, with the dot product instruction and without.
TYPED_TEST(Types, ALongSequence) {
  using T = TypeParam;
  for (const Index head_dim : {64, 128}) {
    test::Random random{std::uint64_t(head_dim)};
    const auto q = random.tensor<T>(1, 1, 1024, head_dim), k = random.tensor<T>(1, 1, 1024, head_dim),
               v = random.tensor<T>(1, 1, 1024, head_dim);
    const Eigen::VectorXf m = Eigen::VectorXf::Constant(1, 1.f / 256);
    const auto expected = alibi::reference::attention(
        Tensor4<double>(q.template cast<double>()), Tensor4<double>(k.template cast<double>()),
        Tensor4<double>(v.template cast<double>()), Eigen::VectorXd(m.cast<double>()));
    for (const bool bf16_dot : {true, false}) {
      const auto output = alibi::attention(q, k, v, m, {.bf16_dot = bf16_dot});
      double worst = 0;  // before the rounding of the output
      for (Index i = 0; i < output.size(); i++) {
        const double should = expected.output.data()[i], error = std::abs(double(output.data()[i]) - should);
        worst = std::max(worst, std::isnan(error) ? test::kInfinity : error - half_ulp<T>(should));
      }
      std::cout << "head_dim " << head_dim << ", bf16_dot " << bf16_dot << ": error " << worst << '\n';
      EXPECT_LE(worst, kIsHalf<T> || !bf16_dot ? 1e-5 : 2e-3) << "head_dim " << head_dim;
    }
  }
}

// Every head_dim and value_dim, to cover the ends of registers and of pairs.
TYPED_TEST(Types, EveryDim) {
  for (Index dim = 1; dim <= 130; dim++) {
    test::Random random{std::uint64_t(dim)};
    TypesCall<TypeParam> call(random, {1, 1, 2, 70, 131, dim, 131 - dim});
    const Errors errors = call.run();
    EXPECT_LE(errors.output, 1) << "head_dim " << dim;
    EXPECT_LE(errors.lse, 1) << "head_dim " << dim;
  }
}

// Both types hold these numbers and weights exactly, so the result equals the definition bit by bit.
TYPED_TEST(Types, WhatIsExactStaysExact) {
  using T = TypeParam;
  for (const Mask& mask : {Mask{}, Mask{.causal = false}, Mask{.window = 8}, Mask{.causal = false, .window = 3}}) {
    Tensor4<T> q(1, 2, 64, 16), k(1, 1, 64, 16), v(1, 1, 64, 5);
    q.setConstant(T(0.5f));
    k.setConstant(T(-3.f));
    v.setConstant(T(1.5f));
    const auto output = alibi::attention(q, k, v, alibi::slopes<float>(2), {.mask = mask});
    static_assert(std::is_same_v<std::remove_const_t<decltype(output)>, Tensor4<T>>);
    for (Index i = 0; i < output.size(); i++) EXPECT_EQ(float(output.data()[i]), 1.5f);
  }
  // A single key.
  test::Random random(3);
  const auto q = random.tensor<T>(1, 2, 1, 24), k = random.tensor<T>(1, 2, 1, 24), v = random.tensor<T>(1, 2, 1, 40);
  EXPECT_TRUE(test::same(alibi::attention(q, k, v, alibi::slopes<float>(2)), v));
}

TYPED_TEST(Types, TheLseIsFloat) {
  using T = TypeParam;
  test::Random random(5);
  const auto q = random.tensor<T>(1, 2, 30, 24), k = random.tensor<T>(1, 2, 30, 24), v = random.tensor<T>(1, 2, 30, 8);
  const auto [output, lse] = alibi::attention_with_lse(q, k, v, alibi::slopes<float>(2));
  static_assert(std::is_same_v<std::remove_cvref_t<decltype(lse)>, test::Tensor3<float>>);
  EXPECT_EQ(lse.dimension(2), 30);
}

// Queries that see no key, a NaN in a key, and values near the largest number of the type.
TYPED_TEST(Types, SpecialNumbers) {
  using T = TypeParam;
  test::Random random(6);
  auto q = random.tensor<T>(1, 1, 100, 24), k = random.tensor<T>(1, 1, 100, 24), v = random.tensor<T>(1, 1, 100, 8);
  const auto m = alibi::slopes<float>(1);
  const auto unseen = alibi::attention_with_lse(q, k, v, m, {.mask = {.query_offset = -200}});
  for (Index i = 0; i < 100; i++) EXPECT_EQ(unseen.lse(0, 0, i), -test::kInfinity);
  for (Index i = 0; i < unseen.output.size(); i++) EXPECT_EQ(float(unseen.output.data()[i]), 0);

  const auto expected = alibi::attention(q, k, v, m);
  k(0, 0, 50, 3) = std::numeric_limits<T>::quiet_NaN();
  const auto result = alibi::attention_with_lse(q, k, v, m);
  for (Index i = 0; i < 100; i++)
    for (Index d = 0; d < 8; d++)
      EXPECT_TRUE(i >= 50 ? std::isnan(float(result.output(0, 0, i, d)))
                          : std::abs(float(result.output(0, 0, i, d)) - float(expected(0, 0, i, d))) <= 0.02f)
          << "row " << i;

  v.setConstant(std::numeric_limits<T>::max());
  k(0, 0, 50, 3) = T(0);
  const auto largest = alibi::attention(q, k, v, m);
  const float most = float(std::numeric_limits<T>::max());
  for (Index i = 0; i < largest.size(); i++) {
    EXPECT_GE(float(largest.data()[i]), 0.99f * most);
    // The range of bfloat16 is that of the float sums, which may overflow before they are normalised.
    if (std::is_same_v<T, Eigen::half>) {
      EXPECT_LE(float(largest.data()[i]), most);
    }
  }
}

}  // namespace
