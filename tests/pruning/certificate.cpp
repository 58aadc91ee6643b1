// The certificate of pruning: no row loses more of its softmax than the tolerance, its output and lse move no further
// than that allows, and the report says so. ALIBI_TEST_CASES in the environment sets the number of calls of each
// scalar, each of which is made at every tolerance; a failure prints the seed, from which the whole call follows.
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

// Seeds of their own for every scalar: the same numbers rounded otherwise would try little else.
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
    EXPECT_EQ(outcome.broken, "") << "seed " << seed << ", " << call.description();
    failures += !outcome.broken.empty();
    all.visible += outcome.visible;
    for (std::size_t t = 0; t < test::kTolerances.size(); t++) {
      if (outcome.lost[t] > all.lost[t]) all.lost[t] = outcome.lost[t], worst[t] = seed;
      all.visited[t] += outcome.visited[t];
    }
  }
  for (std::size_t t = 0; t < test::kTolerances.size(); t++)
    std::cout << "tolerance " << test::kTolerances[t] << ": lost " << all.lost[t] << " at most, "
              << all.lost[t] / test::kTolerances[t] << " of it (seed " << worst[t] << "); visited "
              << 100 * double(all.visited[t]) / double(all.visible) << " % of " << all.visible << " tiles\n";
  EXPECT_GT(all.lost.back(), 1e-4) << "nothing was lost: the test shows nothing";
}

}  // namespace
