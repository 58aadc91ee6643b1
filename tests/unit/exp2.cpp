// Tests the documented error of kernel::exp2 by a sweep.
#include <alibi/kernel/simd/exp2.hpp>
#include <bit>
#include <tuple>

#include "common.hpp"

namespace {

namespace kernel = alibi::kernel;
using test::Index;

template <class T>
std::array<T, std::size_t(kernel::kLanes<T>)> exp2(const std::array<T, std::size_t(kernel::kLanes<T>)>& x) {
  std::array<T, std::size_t(kernel::kLanes<T>)> y;
  kernel::store<T>(y.data(), kernel::exp2<T>(kernel::load<T>(x.data())));
  return y;
}

template <class T>
T exp2_of(T x) {
  std::array<T, std::size_t(kernel::kLanes<T>)> all;
  all.fill(x);
  return exp2<T>(all)[0];
}

// The worst error so far, in units in the last place of the result.
template <class T, class Wide>
struct Worst {
  double ulp = 0;
  T x = 0, y = 0;

  void see(T argument, T result) {
    const Wide exact = std::exp2(Wide(argument));
    int exponent = 0;
    std::frexp(exact, &exponent);
    const double error = double(std::abs(std::ldexp(Wide(result) - exact, std::numeric_limits<T>::digits - exponent)));
    if (error > ulp || std::isnan(error)) *this = {std::isnan(error) ? test::kInfinity : error, argument, result};
  }
  void print(const char* what) const {
    std::cout << what << ": worst " << ulp << " ulp at " << std::hexfloat << x << std::defaultfloat << " (" << x
              << ")\n";
  }
};

// Every `step`-th float from `nearer` to `farther`, which have the same sign, including `farther`.
template <class T, class Wide>
void sweep(Worst<T, Wide>& worst, float nearer, float farther, std::uint32_t step) {
  constexpr auto n = std::size_t(kernel::kLanes<T>);
  std::array<T, n> x;
  const std::uint32_t last = std::bit_cast<std::uint32_t>(farther);
  for (std::uint32_t bits = std::bit_cast<std::uint32_t>(nearer); bits <= last; bits += step * std::uint32_t(n)) {
    for (std::uint32_t i = 0; i < n; i++) x[i] = std::bit_cast<float>(std::min(bits + i * step, last));
    const auto y = exp2<T>(x);
    for (std::size_t i = 0; i < n; i++) worst.see(x[i], y[i]);
  }
}

TEST(Exp2, FloatWithinTwoUlp) {
  Worst<float, double> worst;
  sweep(worst, -0.f, -126.f, 16);
  sweep(worst, 0.f, 8.f, 4096);
  sweep(worst, 8.f, 127.f, 4096);
  worst.print("float, every 16th in [-126, 0], every 4096th in [0, 127]");
  EXPECT_LE(worst.ulp, 2);
}

TEST(Exp2, DoubleWithinTwoUlp) {
  constexpr auto n = std::size_t(kernel::kLanes<double>);
  test::Random random(1);
  Worst<double, long double> worst;
  std::array<double, n> x;
  // Most weights have arguments near 0.
  for (const auto& [low, high, count] :
       {std::tuple(-1022., 0., 500'000), std::tuple(-1., 0., 500'000), std::tuple(0., 1023., 500'000)})
    for (int i = 0; i < count; i += int(n)) {
      for (double& value : x) value = random.uniform(low, high);
      const auto y = exp2<double>(x);
      for (std::size_t j = 0; j < n; j++) worst.see(x[j], y[j]);
    }
  worst.print("double, 5e5 random in each of [-1022, 0], [-1, 0], [0, 1023]");
  EXPECT_LE(worst.ulp, 2);
}

template <class T>
class Exp2Of : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(Exp2Of, Scalars);

TYPED_TEST(Exp2Of, IntegersAreExact) {
  using T = TypeParam;
  const int lowest = int(kernel::kSmallestExponent<T>);
  for (int n = lowest; n <= -lowest; n++) ASSERT_EQ(exp2_of(T(n)), std::ldexp(T(1), n)) << n;
  EXPECT_EQ(exp2_of(T(-0.)), T(1)) << "a single key has weight 1";
}

TYPED_TEST(Exp2Of, BelowTheRange) {
  using T = TypeParam;
  const T lowest = kernel::kSmallestExponent<T>, smallest = std::numeric_limits<T>::min();
  for (const T x : {std::nextafter(lowest, T(-1e30)), lowest - T(0.5), lowest - 1, lowest - 30, T(-1e4), T(-1e30),
                    std::numeric_limits<T>::lowest(), -std::numeric_limits<T>::infinity()}) {
    const T y = exp2_of(x);
    EXPECT_TRUE(y == 0 || y == smallest) << "2^" << x << " = " << y;
  }
}

TYPED_TEST(Exp2Of, NanGoesThrough) {
  const auto nans = test::nans<TypeParam>();
  for (std::size_t i = 0; i < nans.size(); i++) EXPECT_TRUE(std::isnan(exp2_of(nans[i]))) << "NaN " << i;
}

}  // namespace
