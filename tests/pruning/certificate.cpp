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
  return text ? std::atoi(text) : 500;
}

// Each scalar has its own seeds. The same numbers with another rounding would test little more.
template <class T>
constexpr std::uint64_t kFirstSeed = std::is_same_v<T, float>             ? 1
                                     : std::is_same_v<T, double>          ? 100'001
                                     : std::is_same_v<T, Eigen::bfloat16> ? 200'001
                                                                          : 300'001;

TYPED_TEST(Certificate, Holds) {
  test::Outcome all;
  std::array<std::uint64_t, test::kTolerances.size()> worst = {};
  int failures = 0;
  for (int n = 0; n < cases() && failures < 5; n++) {
    const std::uint64_t seed = kFirstSeed<TypeParam> + std::uint64_t(n);
    test::CertificateCase<TypeParam> call(seed);
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

}  // namespace
