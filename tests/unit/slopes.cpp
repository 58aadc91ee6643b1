// The slopes against the authors' rule, implemented here as in their code, and against exponents calculated by hand.
#include <alibi/slopes.hpp>

#include "common.hpp"

namespace {

using test::Index;
using Exponents = std::vector<double>;

// get_slopes(n) of github.com/ofirpress/attention_with_linear_biases. Its constant 8 is a parameter, as in MPT.
std::vector<double> of_power_of_two(int n, double max_bias) {
  const double start = std::pow(2, -std::pow(2, -(std::log2(n) - std::log2(max_bias))));
  std::vector<double> m(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < m.size(); i++) m[i] = start * std::pow(start, i);
  return m;
}

std::vector<double> authors(int n, double max_bias) {
  const int closest = int(std::pow(2, std::floor(std::log2(n))));
  if (closest == n) return of_power_of_two(n, max_bias);
  std::vector<double> m = of_power_of_two(closest, max_bias);
  const std::vector<double> twice = authors(2 * closest, max_bias);
  for (int i = 0; int(m.size()) < n; i += 2) m.push_back(twice[std::size_t(i)]);
  return m;
}

void expect_exponents(const Exponents& expected, double max_bias = 8) {
  const auto m = alibi::slopes<double>(Index(expected.size()), max_bias);
  const auto single = alibi::slopes(Index(expected.size()), max_bias);
  for (std::size_t h = 0; h < expected.size(); h++) {
    EXPECT_NEAR(std::log2(m[Index(h)]), -expected[h], 1e-14) << "head " << h << " of " << expected.size();
    EXPECT_EQ(single[Index(h)], float(m[Index(h)])) << "head " << h << " of " << expected.size();
  }
}

// Appends `count` exponents: first, first + step, …
void append(Exponents& list, double first, double step, int count) {
  for (int i = 0; i < count; i++) list.push_back(first + step * i);
}

TEST(Slopes, FollowTheAuthors) {
  double worst = 0;
  for (const double max_bias : {8., 16.})
    for (int n = 1; n <= 256; n++) {
      const auto m = alibi::slopes(n, max_bias);
      const auto expected = authors(n, max_bias);
      ASSERT_EQ(m.size(), n);
      for (int h = 0; h < n; h++) {
        const double error = std::abs(double(m[h]) / expected[std::size_t(h)] - 1);
        worst = std::max(worst, error);
        ASSERT_LE(error, 1e-7) << "head " << h << " of " << n << ", max_bias " << max_bias;
      }
    }
  std::cout << "worst relative error " << worst << "\n";
}

// A slope is 2^-e. Let c be the largest power of two below n. The first c exponents are max_bias h / c. The others are
// those of 2c heads, max_bias h / 2c, for h = 1, 3, 5, …
TEST(Slopes, OneTwoFourEight) {
  expect_exponents({8});
  expect_exponents({4, 8});
  expect_exponents({2, 4, 6, 8});
  expect_exponents({1, 2, 3, 4, 5, 6, 7, 8});
}

TEST(Slopes, Six) { expect_exponents({2, 4, 6, 8, 1, 3}); }

TEST(Slopes, Twelve) { expect_exponents({1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5}); }

TEST(Slopes, TwelveOfMaxBias16) { expect_exponents({2, 4, 6, 8, 10, 12, 14, 16, 1, 3, 5, 7}, 16); }

TEST(Slopes, Twenty) {
  expect_exponents({0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5, 8, 0.25, 0.75, 1.25, 1.75});
}

// BLOOM-7b1 has 32 heads; falcon-7b has 71. c = 64: eighths 1/8 … 64/8, then seven odd sixteenths.
TEST(Slopes, SeventyOne) {
  Exponents e;
  append(e, 1 / 8., 1 / 8., 64);
  for (const double sixteenths : {1., 3., 5., 7., 9., 11., 13.}) e.push_back(sixteenths / 16);
  expect_exponents(e);
}

// BLOOM-176b. c = 64: eighths 1/8 … 64/8, then 48 odd sixteenths, 1/16 … 95/16.
TEST(Slopes, HundredTwelve) {
  Exponents e;
  append(e, 1 / 8., 1 / 8., 64);
  append(e, 1 / 16., 2 / 16., 48);
  ASSERT_EQ(e.size(), 112u);
  ASSERT_EQ(e.back(), 95 / 16.);
  expect_exponents(e);
}

TEST(Slopes, ThePaperDescribesAnotherRule) {
  const auto six = alibi::geometric_slopes<double>(6);
  for (int h = 1; h <= 6; h++) EXPECT_NEAR(std::log2(six[h - 1]), -8. * h / 6, 1e-14);
  EXPECT_NEAR(alibi::geometric_slopes<double>(3, 16)[0], std::exp2(-16. / 3), 1e-16);
  for (const int n : {1, 2, 4, 8, 16, 32, 64, 128})
    EXPECT_TRUE(test::same(alibi::geometric_slopes(n), alibi::slopes(n)));
}

TEST(Slopes, NoHeads) {
  EXPECT_EQ(alibi::slopes(0).size(), 0);
  EXPECT_EQ(alibi::geometric_slopes(0).size(), 0);
}

std::string message(Index heads, double max_bias, bool geometric) {
  try {
    geometric ? alibi::geometric_slopes(heads, max_bias) : alibi::slopes(heads, max_bias);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

TEST(Slopes, Errors) {
  for (const bool geometric : {false, true}) {
    EXPECT_EQ(message(-1, 8, geometric), "alibi: heads is -1; expected 0 or more");
    EXPECT_EQ(message(8, 0, geometric), "alibi: max_bias is 0; expected a finite number above 0");
    EXPECT_EQ(message(8, -8, geometric), "alibi: max_bias is -8; expected a finite number above 0");
    EXPECT_EQ(message(8, std::nan(""), geometric), "alibi: max_bias is nan; expected a finite number above 0");
    EXPECT_EQ(message(8, test::kInfinity, geometric), "alibi: max_bias is inf; expected a finite number above 0");
  }
}

}  // namespace
