// The header-only library on another processor: 250 random calls against the definition, within the bounds of the tests
// in the folders beside this one. Each call is one test and follows from its seed, which a failure prints. The last
// line counts them. run.sh builds this program for 64-bit ARM and runs it.
#include <cstdio>

#include "backward_case.hpp"
#include "forward_case.hpp"

namespace {

using Eigen::bfloat16, Eigen::half;
using test::Index, test::Tensor4;

// [batch, heads, tokens, head_dim] in double, contiguous.
template <class T>
Tensor4<double> in_double(const test::Strided<T>& x) {
  const alibi::View<T> view = x.view();
  Tensor4<double> y(view.batch, view.heads, view.tokens, view.head_dim);
  double* to = y.data();
  x.for_each([&](const T& value) { *to++ = double(value); });
  return y;
}
template <class T>
Tensor4<double> in_double(const Tensor4<T>& x) {
  Tensor4<double> y(x.dimensions());
  for (Index i = 0; i < x.size(); i++) y.data()[i] = double(x.data()[i]);
  return y;
}

/// Output and lse, causal and bidirectional, windows, grouped heads, any strides, the default tolerance.
template <class T>
void forward(test::Random& random) {
  test::Call<T> call(random, test::random_shape(random));
  const test::Worst error = call.run();
  EXPECT_LE(error.output, 1) << "output, in units of the bound: " << call.description();
  EXPECT_LE(error.lse, 1) << "lse, in units of the bound: " << call.description();
}

/// The same for 16-bit scalars, against the definition on the rounded inputs. `digits` and `least`: the significand and
/// the smallest normal exponent of T, which the output is rounded to.
template <class T>
void forward_16(test::Random& random, int digits, int least) {
  const test::Shape s = test::random_shape(random);
  const Index heads = s.kv_heads * s.group;
  test::Strided<T> q(random, s.batch, heads, s.queries, s.head_dim), k(random, s.batch, s.kv_heads, s.keys, s.head_dim),
      v(random, s.batch, s.kv_heads, s.keys, s.value_dim), output(random, s.batch, heads, s.queries, s.value_dim);
  for (const auto* x : {&q, &k, &v}) x->for_each([&](T& value) { value = T(random.normal()); });
  std::vector<float> lse(std::size_t(s.batch * heads * s.queries), std::numeric_limits<float>::quiet_NaN());
  const auto slopes = test::random_slopes<float>(random, s);
  alibi::Options options;
  options.mask = test::random_mask(random, s);
  if (random.chance(0.3)) options.scale = random.uniform(-1, 1) / std::sqrt(double(s.head_dim));

  alibi::attention_with_lse_into(output.view(), lse, q.view(), k.view(), v.view(), slopes, options);
  const auto expected =
      alibi::reference::attention(in_double(q), in_double(k), in_double(v), slopes, options.mask, options.scale);

  double worst_output = 0, worst_lse = 0;
  const std::vector<double> is = output.take();
  for (std::size_t i = 0; i < is.size(); i++) {
    const double should = expected.output.data()[i], error = std::abs(is[i] - should);
    const int exponent = should == 0 ? least : std::max(std::ilogb(should), least);
    const double share = error / (1e-5 + std::ldexp(1, exponent - digits));
    worst_output = std::max(worst_output, std::isnan(share) ? test::kInfinity : share);
  }
  for (std::size_t i = 0; i < lse.size(); i++) {
    const double should = expected.lse[Index(i)], error = double(lse[i]) == should ? 0 : std::abs(lse[i] - should);
    const double share = error / (1e-4 + test::kBound<float> * std::abs(should));
    worst_lse = std::max(worst_lse, std::isnan(share) ? test::kInfinity : share);
  }
  const std::string description = test::describe(s, options, slopes);
  EXPECT_LE(worst_output, 1) << "output, in units of the bound: " << description;
  EXPECT_LE(worst_lse, 1) << "lse, in units of the bound: " << description;
}

/// Gradients of q, k, v and of slopes, a table or no bias.
template <class T>
void backward(test::Random& random) {
  test::BackwardCall<T> call(random, test::random_shape(random));
  const test::Exact exact = call.exact();
  const test::BackwardErrors error = test::errors(call.run(), exact.backward(), exact.magnitudes());
  for (std::size_t a = 0; a < error.of_magnitude.size(); a++)
    EXPECT_LE(error.of_magnitude[a], test::kBound<T>)
        << 'd' << test::BackwardErrors::kNames[a] << ": " << call.description();
}

/// One or some queries over a cache of S, filled by several appends and once taken back.
template <class S>
void cached(test::Random& random) {
  using T = typename alibi::KvCache<S>::Accumulate;
  const Index batch = random.integer(1, 2), kv_heads = random.integer(1, 3), heads = kv_heads * random.integer(1, 3);
  const Index keys = random.integer(1, 500), head_dim = random.integer(1, 80), value_dim = random.integer(1, 80);
  const Index queries = random.chance(0.5) ? 1 : random.integer(1, std::min<Index>(keys, 40));
  const auto q = random.tensor<T>(batch, heads, queries, head_dim);
  const auto k = random.tensor<S>(batch, kv_heads, keys, head_dim),
             v = random.tensor<S>(batch, kv_heads, keys, value_dim);
  const auto slopes = alibi::slopes<T>(heads);
  alibi::Options options;
  if (random.chance(0.4)) options.mask.window = random.integer(1, keys);

  alibi::KvCache<S> cache({.batch = batch,
                           .kv_heads = kv_heads,
                           .head_dim = head_dim,
                           .value_dim = value_dim,
                           .capacity = keys,
                           .window = options.mask.window});
  const auto tokens = [&](const Tensor4<S>& x, Index begin, Index count) {
    const Index dim = x.dimension(3);
    return alibi::view(x.data() + begin * dim, {batch, kv_heads, count, dim},
                       {kv_heads * keys * dim, keys * dim, dim, 1});
  };
  bool taken_back = false;
  while (cache.length() < keys) {
    const Index begin = cache.length(), count = random.integer(1, keys - begin);
    cache.append(tokens(k, begin, count), tokens(v, begin, count));
    if (!taken_back && begin >= cache.min_length()) cache.truncate(begin), taken_back = true;
  }
  const auto [output, lse] = alibi::attention_with_lse(q, cache, slopes, options);
  const auto expected = alibi::reference::attention(in_double(q), in_double(k), in_double(v), slopes, options.mask);

  const double logit = std::max(1., test::largest(expected.lse) / 6), value = std::max(1., test::largest(v) / 6);
  const std::string description =
      test::describe<T>({batch, kv_heads, heads / kv_heads, queries, keys, head_dim, value_dim}, options, slopes);
  EXPECT_LE(test::distance(output, expected.output), test::kBound<T> * logit * value) << "output: " << description;
  EXPECT_LE(test::distance(lse, expected.lse), test::kBound<T> * 6 * logit) << "lse: " << description;
}

/// One call as a test.
class Call : public testing::Test {
 public:
  using Run = void (*)(test::Random&);

  Call(Run run, int seed) : run_(run), seed_(seed) {}
  void TestBody() override {
    test::Random random{std::uint64_t(seed_)};
    run_(random);
  }

 private:
  Run run_;
  int seed_;
};

void add(const char* kind, int calls, Call::Run run) {
  for (int seed = 1; seed <= calls; seed++)
    testing::RegisterTest(kind, std::to_string(seed).c_str(), nullptr, nullptr, __FILE__, __LINE__,
                          [=]() -> testing::Test* { return new Call(run, seed); });
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  add("forward_float", 70, forward<float>);
  add("forward_double", 50, forward<double>);
  add("forward_bfloat16", 40, [](test::Random& random) { forward_16<bfloat16>(random, 8, -126); });
  add("forward_half", 20, [](test::Random& random) { forward_16<half>(random, 11, -14); });
  add("backward_float", 20, backward<float>);
  add("backward_double", 10, backward<double>);
  add("cached_float", 15, cached<float>);
  add("cached_double", 10, cached<double>);
  add("cached_bfloat16", 15, cached<bfloat16>);
  const int status = RUN_ALL_TESTS();
  const testing::UnitTest& run = *testing::UnitTest::GetInstance();
  std::printf("%d passed, %d failed\n", run.successful_test_count(), run.failed_test_count());
  return status;
}
