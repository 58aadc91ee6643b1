// Tests the certificate of pruning: the pruned mass of every row is within the tolerance, the output and lse change no
// more than that allows, and the pruning statistics bound the pruned mass. ALIBI_TEST_CASES in the environment sets the
// number of calls for each scalar; each call runs at every tolerance. A failure prints the seed, which determines the
// call.
#include <cstdlib>
#include <iostream>

#include "certificate_case.hpp"

namespace {

template <class T>
class Certificate : public testing::Test {};
using Scalars = testing::Types<float, double, Eigen::bfloat16, Eigen::half>;
TYPED_TEST_SUITE(Certificate, Scalars);

int cases() {
  const char* text = std::getenv("ALIBI_TEST_CASES");
  return text ? std::atoi(text) : 200;
}

// Each scalar has its own seeds. The same numbers with another rounding would test little more.
template <class T>
constexpr std::uint64_t kFirstSeed = std::is_same_v<T, float>             ? 1
                                     : std::is_same_v<T, double>          ? 100'001
                                     : std::is_same_v<T, Eigen::bfloat16> ? 200'001
                                                                          : 300'001;

/// Two-sided slopes, which hide a side now and then, or positions with gaps.
class SidesAndPositions {
 public:
  template <class Slopes>
  void choose(test::Random& random, const Slopes& slopes, test::Index queries, test::Index keys, test::Index first,
              const alibi::Mask&) {
    using test::Index;
    before_ = slopes.template cast<double>().cwiseAbs();
    after_ = before_;
    has_positions_ = random.chance(0.6);
    for (Index i = 0; i < after_.size(); i++) {
      after_.data()[i] = double(float(after_.data()[i] * std::exp2(random.uniform(-3, 3))));
      for (auto* side : {&before_, &after_})
        if (!has_positions_ && random.chance(0.1)) side->data()[i] = test::kInfinity;
    }
    if (!has_positions_) return;
    const Index batch = before_.rows(), heads = before_.cols(), kind = random.integer(0, 3);
    const double start = random.chance(0.5) ? 0 : 1e6, far = std::exp2(random.uniform(0, 20));
    keys_ = test::Tensor3<double>(batch, heads, keys);
    queries_ = test::Tensor3<double>(batch, heads, queries);
    for (Index row = 0; row < batch * heads; row++) {
      double* const at = keys_.data() + row * keys;
      for (Index j = 0; j < keys; j++) {
        const double x = random.uniform(0, 1), gaps[] = {1, -std::log(1 - x), x < 0.01 ? far : 1, x < 0.6 ? 0. : 2.};
        at[j] = j == 0 ? start : at[j - 1] + gaps[kind];
      }
      // At the key of the same index, or some way after it.
      const double beyond = random.chance(0.5) ? 0 : random.uniform(0, 20);
      for (Index i = 0; i < queries; i++)
        queries_.data()[row * queries + i] = at[std::clamp<Index>(first + i, 0, keys - 1)] + beyond;
    }
  }
  template <class Slopes, class Body>
  void visit(const Slopes& slopes, Body body) const {
    const Slopes before = before_.template cast<typename Slopes::Scalar>(),
                 after = after_.template cast<typename Slopes::Scalar>();
    static_cast<void>(slopes);
    if (has_positions_)
      body(alibi::positions(alibi::two_sided(before, after), keys_, queries_));
    else
      body(alibi::two_sided(before, after));
  }
  bool sees(test::Index b, test::Index h, test::Index p, test::Index j) const {
    return j == p || std::isfinite((j < p ? before_ : after_)(b, h));
  }
  long double operator()(double, test::Index b, test::Index h, test::Index i, test::Index p, test::Index j,
                         test::Index) const {
    using Long = long double;
    const Long ahead = has_positions_ ? Long(keys_(b, h, j)) - Long(queries_(b, h, i)) : Long(j) - Long(p);
    return ahead == 0 ? 0 : ahead < 0 ? Long(before_(b, h)) * ahead : -Long(after_(b, h)) * ahead;
  }
  void describe(std::ostream& text) const {
    text << "; after";
    for (test::Index i = 0; i < after_.size(); i++) text << ' ' << after_.data()[i];
    if (has_positions_) text << "; positions";
  }

 private:
  test::RowMatrix<double> before_, after_;
  bool has_positions_ = false;
  test::Tensor3<double> keys_, queries_;
};

template <class Call>
void expect_held(std::uint64_t first_seed, int count) {
  test::Outcome all;
  std::array<std::uint64_t, test::kTolerances.size()> worst = {};
  int failures = 0;
  for (int n = 0; n < count && failures < 5; n++) {
    const std::uint64_t seed = first_seed + std::uint64_t(n);
    Call call(seed);
    const test::Outcome outcome = call.run();
    EXPECT_EQ(outcome.violation, "") << "seed " << seed << ", " << call.description();
    failures += !outcome.violation.empty();
    all.total += outcome.total;
    for (std::size_t t = 0; t < test::kTolerances.size(); t++) {
      if (outcome.pruned_mass[t] > all.pruned_mass[t]) all.pruned_mass[t] = outcome.pruned_mass[t], worst[t] = seed;
      all.computed[t] += outcome.computed[t];
    }
  }
  for (std::size_t t = 0; t < test::kTolerances.size(); t++)
    std::cout << "tolerance " << test::kTolerances[t] << ": pruned mass at most " << all.pruned_mass[t] << ", "
              << all.pruned_mass[t] / test::kTolerances[t] << " of it (seed " << worst[t] << "); computed "
              << 100 * double(all.computed[t]) / double(all.total) << " % of " << all.total << " tiles\n";
  EXPECT_GT(all.pruned_mass.back(), 1e-4) << "nothing was pruned, so the test shows nothing";
}

TYPED_TEST(Certificate, Holds) { expect_held<test::CertificateCase<TypeParam>>(kFirstSeed<TypeParam>, cases()); }

TYPED_TEST(Certificate, HoldsForTwoSidedSlopesAndPositions) {
  expect_held<test::CertificateCase<TypeParam, SidesAndPositions>>(kFirstSeed<TypeParam> + 50'000, cases() / 3);
}

}  // namespace
