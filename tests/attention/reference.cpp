// The kernels against the definition, over random calls of every kind. ALIBI_TEST_CASES in the environment sets the
// number of calls. A failure prints the seed, which determines the call.
#include <cstdlib>

#include "forward_case.hpp"

namespace {

template <class T>
class ForwardReference : public test::AgainstReference<T> {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ForwardReference, Scalars);

int cases() {
  const char* text = std::getenv("ALIBI_TEST_CASES");
  return text ? std::atoi(text) : 1500;
}

TYPED_TEST(ForwardReference, RandomCalls) {
  int failures = 0;
  for (int seed = 1; seed <= cases() && failures < 5; seed++) {
    test::Random random{std::uint64_t(seed)};
    test::Call<TypeParam> call(random, test::random_shape(random));
    failures += !this->expect(call, "seed " + std::to_string(seed));
  }
}

}  // namespace
