// That the test of the certificate sees a bound that is too low: by 6 in logarithms to base 2, a factor of 64. The
// headers are a spoiled copy (CMakeLists.txt).
#include <iostream>

#include "certificate_case.hpp"

namespace {

template <class T>
class CertificateWeakened : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(CertificateWeakened, Scalars);

TYPED_TEST(CertificateWeakened, IsFoundOut) {
  constexpr int kCases = 100;
  std::array<int, test::kTolerances.size()> beyond = {};
  int found = 0;
  for (int seed = 1; seed <= kCases; seed++) {
    const test::Outcome outcome = test::CertificateCase<TypeParam>(std::uint64_t(seed)).run();
    found += !outcome.broken.empty();
    for (std::size_t t = 0; t < test::kTolerances.size(); t++) beyond[t] += outcome.lost[t] > 2 * test::kTolerances[t];
  }
  std::cout << "found in " << found << " of " << kCases << " calls; more than twice the tolerance lost in";
  for (const int count : beyond) std::cout << ' ' << count;
  std::cout << '\n';
  EXPECT_GE(found, 1);
  for (const int count : beyond) EXPECT_GE(count, 1);
}

}  // namespace
