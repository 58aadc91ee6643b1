// Checks that the test of the certificate detects a bound that is too low by 6 in base 2 logarithms, a factor of 64.
// The headers are a mutated copy (CMakeLists.txt).
#include <iostream>

#include "certificate_case.hpp"

namespace {

template <class T>
class CertificateMutation : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(CertificateMutation, Scalars);

TYPED_TEST(CertificateMutation, IsDetected) {
  constexpr int kCases = 100;
  std::array<int, test::kTolerances.size()> beyond = {};
  int detected = 0;
  for (int seed = 1; seed <= kCases; seed++) {
    const test::Outcome outcome = test::CertificateCase<TypeParam>(std::uint64_t(seed)).run();
    detected += !outcome.violation.empty();
    for (std::size_t t = 0; t < test::kTolerances.size(); t++)
      beyond[t] += outcome.pruned_mass[t] > 2 * test::kTolerances[t];
  }
  std::cout << "detected in " << detected << " of " << kCases << " calls; pruned mass above twice the tolerance in";
  for (const int count : beyond) std::cout << ' ' << count;
  std::cout << '\n';
  EXPECT_GE(detected, 1);
  for (const int count : beyond) EXPECT_GE(count, 1);
}

}  // namespace
