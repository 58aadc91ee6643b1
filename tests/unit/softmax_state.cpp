// kernel::SoftmaxState: states of disjoint sets of keys form a monoid under merge(), up to rounding. Split keys,
// decoding and computing on several machines depend on this.
#include <alibi/kernel/tile/softmax.hpp>

#include "common.hpp"

namespace {

using test::Index;
namespace kernel = alibi::kernel;

template <class T>
constexpr Index kLanes = kernel::kLanes<T>;

// A row's state and its output of one value, for each lane.
template <class T>
struct Partial {
  kernel::SoftmaxState<T> state = kernel::SoftmaxState<T>::empty();
  kernel::Vec<T> output = kernel::broadcast<T>(T(0));
};

template <class T>
std::array<T, std::size_t(kLanes<T>)> lanes(const kernel::Vec<T>& vec) {
  std::array<T, std::size_t(kLanes<T>)> values;
  kernel::store<T>(values.data(), vec);
  return values;
}

template <class T>
kernel::Vec<T> vec(const std::vector<T>& values) {
  return kernel::load<T>(values.data());
}

// The meaning of the lanes, independent of the reference: ln Σ 2^s and the normalised output.
template <class T>
struct Meaning {
  std::vector<double> lse, output;

  explicit Meaning(const Partial<T>& x) {
    const auto reference = lanes<T>(x.state.reference), sum = lanes<T>(x.state.sum), o = lanes<T>(x.output);
    const auto normalizer = lanes<T>(x.state.normalizer());
    for (std::size_t i = 0; i < reference.size(); i++) {
      lse.push_back(double(reference[i]) + std::log2(double(sum[i])));
      output.push_back(double(o[i]) * double(normalizer[i]));
    }
  }
};

template <class T>
void expect_equal(const Partial<T>& a, const Partial<T>& b) {
  const Meaning<T> x(a), y(b);
  EXPECT_LE(test::distance(x.lse, y.lse), 300 * double(std::numeric_limits<T>::epsilon()));
  EXPECT_LE(test::distance(x.output, y.output), 10 * double(std::numeric_limits<T>::epsilon()));
}

template <class T>
Partial<T> merge(Partial<T> a, const Partial<T>& b) {
  const auto factors = a.state.merge(b.state);
  a.output = kernel::add(kernel::mul(a.output, factors.self), kernel::mul(b.output, factors.other));
  return a;
}

template <class T>
Partial<T> random_partial(test::Random& random) {
  std::vector<T> reference, sum, output;
  for (Index i = 0; i < kLanes<T>; i++) {
    reference.push_back(T(random.uniform(-100, 100)));
    sum.push_back(T(random.uniform(1, 50)));
    output.push_back(sum.back() * T(random.uniform(-1, 1)));
  }
  return {{vec(reference), vec(sum)}, vec(output)};
}

template <class T>
class SoftmaxState : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(SoftmaxState, Scalars);

TYPED_TEST(SoftmaxState, MergeIsAssociativeAndCommutative) {
  using T = TypeParam;
  test::Random random(1);
  for (int n = 0; n < 200; n++) {
    const auto a = random_partial<T>(random), b = random_partial<T>(random), c = random_partial<T>(random);
    expect_equal(merge(merge(a, b), c), merge(a, merge(b, c)));
    expect_equal(merge(a, b), merge(b, a));
  }
}

TYPED_TEST(SoftmaxState, EmptyIsTheIdentity) {
  using T = TypeParam;
  test::Random random(2);
  const auto a = random_partial<T>(random);
  for (const auto& b : {merge(a, Partial<T>()), merge(Partial<T>(), a)}) {
    EXPECT_EQ(lanes<T>(b.state.reference), lanes<T>(a.state.reference));
    EXPECT_EQ(lanes<T>(b.state.sum), lanes<T>(a.state.sum));
    EXPECT_EQ(lanes<T>(b.output), lanes<T>(a.output));
  }
  const auto nothing = merge(Partial<T>(), Partial<T>());
  for (const T x : lanes<T>(nothing.state.sum)) EXPECT_EQ(x, T(0));
  for (const T x : lanes<T>(nothing.state.normalizer())) EXPECT_EQ(x, T(0)) << "a row that saw no key";
}

TYPED_TEST(SoftmaxState, RaiseKeepsTheSum) {
  using T = TypeParam;
  test::Random random(3);
  for (int n = 0; n < 200; n++) {
    auto a = random_partial<T>(random);
    const Meaning<T> before(a);
    std::vector<T> largest;
    for (Index i = 0; i < kLanes<T>; i++) largest.push_back(T(random.uniform(-150, 150)));
    const auto reference = lanes<T>(a.state.reference);
    a.output = kernel::mul(a.output, a.state.raise(vec(largest)));
    const Meaning<T> after(a);
    for (std::size_t i = 0; i < largest.size(); i++) {
      EXPECT_EQ(lanes<T>(a.state.reference)[i], std::max(reference[i], largest[i]));
      // Sums below the smallest normal number are flushed. Beside a score at the reference they are negligible.
      if (after.lse[i] - double(lanes<T>(a.state.reference)[i]) < -100) continue;
      EXPECT_NEAR(after.lse[i], before.lse[i], 300 * double(std::numeric_limits<T>::epsilon()));
      EXPECT_NEAR(after.output[i], before.output[i], 10 * double(std::numeric_limits<T>::epsilon()));
    }
  }
}

TYPED_TEST(SoftmaxState, OutgrownBySlackOnly) {
  using T = TypeParam;
  kernel::SoftmaxState<T> state{kernel::broadcast<T>(T(1)), kernel::broadcast<T>(T(1))};
  std::vector<T> largest(std::size_t(kLanes<T>), T(1) + kernel::kSlack<T>);
  EXPECT_FALSE(state.outgrown(vec(largest)));
  largest.back() += T(0.125);
  EXPECT_TRUE(state.outgrown(vec(largest))) << "one lane is enough";
  EXPECT_TRUE(kernel::SoftmaxState<T>::empty().outgrown(kernel::broadcast<T>(T(-1e30))));
  EXPECT_FALSE(kernel::SoftmaxState<T>::empty().outgrown(kernel::broadcast<T>(-std::numeric_limits<T>::infinity())));
}

}  // namespace
