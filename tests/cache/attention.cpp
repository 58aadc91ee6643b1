// Attention over a cache equals the forward over the same keys, after any history of the cache.
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "common.hpp"
#include "executors.hpp"

namespace {

using alibi::KvCache;
using alibi::Mask;
using alibi::Options;
using alibi::PruningStats;
using test::Index;
using test::Tensor4;

constexpr double kDefault = 0x1p-24;

// Tokens [begin, end) of x.
template <class T>
Tensor4<T> tokens(const Tensor4<T>& x, Index begin, Index end) {
  Tensor4<T> part(x.dimension(0), x.dimension(1), end - begin, x.dimension(3));
  for (Index b = 0; b < x.dimension(0); b++)
    for (Index h = 0; h < x.dimension(1); h++)
      std::copy_n(&x(b, h, begin, 0), part.dimension(2) * part.dimension(3), &part(b, h, 0, 0));
  return part;
}

// Converts element by element, because g++ 12 warns about Eigen's own conversion of packets.
template <class To, class From>
Tensor4<To> converted(const Tensor4<From>& x) {
  Tensor4<To> y(x.dimensions());
  for (Index i = 0; i < x.size(); i++) y.data()[i] = To(x.data()[i]);
  return y;
}

// Rounds to S, the scalar of a cache.
template <class S>
Tensor4<float> rounded(Tensor4<float> x) {
  for (Index i = 0; i < x.size(); i++) x.data()[i] = float(S(x.data()[i]));
  return x;
}

template <class S>
KvCache<S> cache_of(const Tensor4<float>& k, const Tensor4<float>& v, Index capacity) {
  KvCache<S> cache({.batch = k.dimension(0),
                    .kv_heads = k.dimension(1),
                    .head_dim = k.dimension(3),
                    .value_dim = v.dimension(3),
                    .capacity = capacity});
  cache.append(k, v);
  return cache;
}

double largest(const Tensor4<float>& x) {
  double most = 0;
  for (Index i = 0; i < x.size(); i++) most = std::max(most, double(std::abs(x.data()[i])));
  return most;
}

// The bound is 4 units in the last place of the largest output.
void expect_close(const Tensor4<float>& is, const Tensor4<float>& expected, const std::string& what) {
  EXPECT_LE(test::distance(is, expected), 4 * 0x1p-23 * std::max(1., largest(expected))) << what;
}

template <class S>
class Decode : public testing::Test {};
using Stored = testing::Types<float, Eigen::bfloat16, Eigen::half>;
TYPED_TEST_SUITE(Decode, Stored);

TYPED_TEST(Decode, EqualsTheForwardAtEveryLength) {
  test::Random random(1);
  constexpr Index kMost = 4097;
  const auto q = random.tensor<float>(1, 4, kMost, 64);
  const auto k = rounded<TypeParam>(random.tensor<float>(1, 2, kMost, 64)),
             v = rounded<TypeParam>(random.tensor<float>(1, 2, kMost, 64));
  const Eigen::VectorXf m = alibi::slopes(4);
  KvCache<TypeParam> cache({.kv_heads = 2, .head_dim = 64, .capacity = kMost});
  std::vector<Index> lengths = {4095, 4096, 4097};
  for (Index n = 300; n > 0; n--) lengths.insert(lengths.begin(), n);
  for (const Index n : lengths) {
    cache.append(tokens(k, cache.length(), n), tokens(v, cache.length(), n));
    const auto query = tokens(q, n - 1, n);
    for (const double tolerance : {0., kDefault}) {
      const auto expected =
          alibi::attention_with_lse(query, tokens(k, 0, n), tokens(v, 0, n), m, Options{.tolerance = tolerance});
      const auto result = alibi::attention_with_lse(query, cache, m, Options{.tolerance = tolerance});
      expect_close(result.output, expected.output, "length " + std::to_string(n));
      EXPECT_LE(test::distance(result.lse, expected.lse), 4e-6) << "length " << n;
    }
  }
}

TYPED_TEST(Decode, FewAndManyQueriesEqualTheForward) {
  test::Random random(2);
  const Index n = 700;
  const auto q = random.tensor<float>(2, 6, n, 33);
  const auto k = rounded<TypeParam>(random.tensor<float>(2, 2, n, 33)),
             v = rounded<TypeParam>(random.tensor<float>(2, 2, n, 19));
  Eigen::VectorXf m = alibi::slopes(6);
  m[1] = 0;
  m[4] = -0.01f;
  const auto cache = cache_of<TypeParam>(k, v, n);
  for (const Mask& mask :
       {Mask{}, Mask{.window = 100}, Mask{.causal = false}, Mask{.causal = false, .window = 90}, Mask{.prefix = 695},
        Mask{.window = 60, .prefix = 698, .sinks = 100}, Mask{.window = 5, .query_offset = 720, .sinks = 3}})
    for (const Index queries : {1, 2, 3, 5, 8, 9, 50, 700})
      for (const double tolerance : {0., kDefault}) {
        const auto some = tokens(q, n - queries, n);
        const Options options{.mask = mask, .tolerance = tolerance};
        const auto expected = alibi::attention_with_lse(some, k, v, m, options);
        const auto result = alibi::attention_with_lse(some, cache, m, options);
        expect_close(result.output, expected.output, std::to_string(queries) + " queries");
        EXPECT_LE(test::distance(result.lse, expected.lse), 1e-5) << queries << " queries";
      }
}

// A table of distances, shorter than the cache or longer, and no bias. Some queries have positions away from their
// keys.
TYPED_TEST(Decode, TablesAndNoBiasEqualTheForward) {
  using S = TypeParam;
  test::Random random(21);
  for (int n = 0; n < 60; n++) {
    const Index batch = random.integer(1, 2), kv_heads = random.integer(1, 2), heads = kv_heads * random.integer(1, 5);
    const Index keys = random.chance(0.1) ? 3000 : random.integer(1, 400), dim = random.integer(1, 40);
    const Index queries = random.chance(0.7) ? random.integer(1, 8) : random.integer(9, 120);
    const auto q = random.tensor<float>(batch, heads, queries, dim);
    const auto k = rounded<S>(random.tensor<float>(batch, kv_heads, keys, dim)),
               v = rounded<S>(random.tensor<float>(batch, kv_heads, keys, 24));
    const auto cache = cache_of<S>(k, v, keys);
    const auto table = random.matrix<float>(heads, random.integer(1, 300), 3);
    Options options;
    options.mask.causal = random.chance(0.5);
    if (random.chance(0.3)) options.mask.window = random.integer(1, keys + 10);
    if (random.chance(0.3)) options.mask.query_offset = random.integer(-20, keys + 200);
    if (random.chance(0.1)) options.mask.query_offset = (random.chance(0.5) ? 1 : -1) * (Index(1) << 40);
    const auto expect = [&](const auto& bias) {
      const auto expected = alibi::attention_with_lse(q, k, v, bias, options);
      const auto result = alibi::attention_with_lse(q, cache, bias, options);
      const std::string what = std::to_string(queries) + " queries, " + std::to_string(keys) + " keys";
      EXPECT_LE(test::distance(result.output, expected.output), test::kBound<float>) << what;
      EXPECT_LE(test::distance(result.lse, expected.lse), 1e-5) << what;
    };
    expect(alibi::relative_bias(table, random.integer(-keys - 5, 10)));
    expect(alibi::no_bias);
  }
}

// Token by token, as T5 decodes, in splits and on any executor.
TEST(DecodeFloat, T5TokenByToken) {
  test::Random random(22);
  const auto q = random.tensor<float>(1, 4, 300, 16), k = random.tensor<float>(1, 4, 300, 16),
             v = random.tensor<float>(1, 4, 300, 16);
  const auto table = alibi::t5_table(random.matrix<float>(4, 32));
  const auto bias = alibi::relative_bias(table);
  const auto expected = alibi::attention(q, k, v, bias, {.scale = 1.});
  KvCache<float> cache({.kv_heads = 4, .head_dim = 16, .capacity = 300});
  for (Index n = 0; n < 300; n++) {
    cache.append(tokens(k, n, n + 1), tokens(v, n, n + 1));
    const auto next = alibi::attention(tokens(q, n, n + 1), cache, bias, {.scale = 1.});
    EXPECT_LE(test::distance(next, tokens(expected, n, n + 1)), test::kBound<float>) << "token " << n;
  }
  const auto long_k = random.tensor<float>(1, 1, 9000, 16), long_v = random.tensor<float>(1, 1, 9000, 16);
  const auto long_cache = cache_of<float>(long_k, long_v, 9000);  // of 8 splits
  const auto some = tokens(q, 0, 3);
  const auto serial = alibi::attention_with_lse(some, long_cache, bias);
  expect_close(serial.output, alibi::attention(some, long_k, long_v, bias), "splits");
  for (const alibi::Executor& executor : test::executors()) {
    const auto result = alibi::attention_with_lse(some, long_cache, bias, Options{.executor = executor});
    EXPECT_TRUE(test::same(result.output, serial.output));
    EXPECT_TRUE(test::same(result.lse, serial.lse));
  }
}

// Tables of double, and of float with bfloat16, with the dot product instruction too.
TEST(DecodeFloat, TablesOfOtherScalars) {
  test::Random random(23);
  const auto q = random.tensor<double>(1, 4, 20, 24), k = random.tensor<double>(1, 2, 200, 24),
             v = random.tensor<double>(1, 2, 200, 20);
  const auto table = random.matrix<double>(4, 90);
  KvCache<double> cache({.kv_heads = 2, .head_dim = 24, .value_dim = 20, .capacity = 200});
  cache.append(k, v);
  for (const Index queries : {1, 8, 20}) {
    const auto some = tokens(q, 20 - queries, 20);
    const auto bias = alibi::relative_bias(table);
    EXPECT_LE(test::distance(alibi::attention(some, cache, bias), alibi::attention(some, k, v, bias)), 1e-14);
  }
  using Narrow = Eigen::bfloat16;
  const auto narrow = [](const Tensor4<double>& x) { return converted<Narrow>(x); };
  KvCache<Narrow> of_narrow({.kv_heads = 2, .head_dim = 24, .value_dim = 20, .capacity = 200});
  of_narrow.append(narrow(k), narrow(v));
  const test::RowMatrix<float> table_of_float = table.cast<float>();
  const auto bias = alibi::relative_bias(table_of_float);
  for (const Index queries : {1, 20})
    for (const bool dot : {true, false}) {
      const auto some = narrow(tokens(q, 20 - queries, 20));
      const Options options{.bf16_dot = dot};
      const auto expected = alibi::attention(some, narrow(k), narrow(v), bias, options);
      EXPECT_LE(test::distance(alibi::attention(some, of_narrow, bias, options), expected), 0.03) << queries;
    }
}

TYPED_TEST(Decode, QueriesOfTheCachesScalar) {
  test::Random random(3);
  const auto k = rounded<TypeParam>(random.tensor<float>(1, 2, 300, 40)),
             v = rounded<TypeParam>(random.tensor<float>(1, 2, 300, 40)),
             q = rounded<TypeParam>(random.tensor<float>(1, 4, 20, 40));
  const auto cache = cache_of<TypeParam>(k, v, 300);
  const auto stored = converted<TypeParam>(q);
  const Eigen::VectorXf m = alibi::slopes(4);
  for (const Index queries : {1, 20}) {
    const Options options{.bf16_dot = false};
    const auto result = converted<float>(alibi::attention(tokens(stored, 0, queries), cache, m, options));
    const auto expected = rounded<TypeParam>(alibi::attention(tokens(q, 0, queries), cache, m, options));
    EXPECT_LE(test::distance(result, expected), sizeof(TypeParam) == 4 ? 0 : 0x1p-8 * largest(expected));
  }
}

TYPED_TEST(Decode, TruncateAndAppendAgainIsTheSame) {
  test::Random random(4);
  const auto q = random.tensor<float>(1, 4, 1, 32), k = random.tensor<float>(1, 2, 500, 32),
             v = random.tensor<float>(1, 2, 500, 32);
  const Eigen::VectorXf m = alibi::slopes(4);
  auto cache = cache_of<TypeParam>(k, v, 503);
  const auto expected = alibi::attention(q, cache, m);
  for (const Index length : {499, 448, 447, 100, 1, 0}) {
    cache.truncate(length);
    cache.append(random.tensor<float>(1, 2, 3, 32, 100), random.tensor<float>(1, 2, 3, 32, 100).setConstant(NAN));
    cache.truncate(length);
    cache.append(tokens(k, length, 500), tokens(v, length, 500));
    EXPECT_TRUE(test::same(alibi::attention(q, cache, m), expected)) << "from " << length;
  }
}

TEST(DecodeDouble, EqualsTheForward) {
  test::Random random(5);
  const auto q = random.tensor<double>(1, 4, 300, 24), k = random.tensor<double>(1, 2, 300, 24),
             v = random.tensor<double>(1, 2, 300, 20);
  const Eigen::VectorXd m = alibi::slopes<double>(4);
  KvCache<double> cache({.kv_heads = 2, .head_dim = 24, .value_dim = 20, .capacity = 300});
  cache.append(k, v);
  for (const Index queries : {1, 8, 40}) {
    const auto some = tokens(q, 300 - queries, 300);
    EXPECT_LE(test::distance(alibi::attention(some, cache, m), alibi::attention(some, k, v, m)), 1e-14);
  }
}

// Every sequence has its own length.
TEST(DecodeFloat, SequencesOfABatchAreIndependent) {
  test::Random random(6);
  const auto q = random.tensor<float>(3, 4, 1, 16), k = random.tensor<float>(3, 2, 200, 16),
             v = random.tensor<float>(3, 2, 200, 16);
  const Eigen::VectorXf m = alibi::slopes(4);
  KvCache<float> cache({.batch = 3, .kv_heads = 2, .head_dim = 16, .capacity = 200});
  const std::vector<Index> counts = {200, 0, 77};
  cache.append(k, v, counts);
  const auto [output, lse] = alibi::attention_with_lse(q, cache, m);
  for (Index b = 0; b < 3; b++) {
    const Index n = counts[std::size_t(b)];
    for (Index h = 0; h < 4; h++) {
      const auto head = [&](const Tensor4<float>& x, Index at, Index count) {
        return test::RowMatrix<float>(Eigen::Map<const test::RowMatrix<float>>(&x(b, at, 0, 0), count, 16));
      };
      const auto expected = alibi::attention_with_lse(head(q, h, 1), test::RowMatrix<float>(head(k, h / 2, n)),
                                                      test::RowMatrix<float>(head(v, h / 2, n)), m[h]);
      EXPECT_EQ(n == 0, std::isinf(lse(b, h, 0)));
      for (Index d = 0; d < 16; d++) EXPECT_NEAR(output(b, h, 0, d), expected.output(0, d), 1e-6);
    }
  }
}

// One kv head makes 16 splits. The result does not depend on the executor or on the order of the tasks.
TEST(DecodeFloat, IndependentOfTheExecutor) {
  test::Random random(7);
  const auto q = random.tensor<float>(1, 8, 2, 24), k = random.tensor<float>(1, 1, 20'000, 24),
             v = random.tensor<float>(1, 1, 20'000, 24);
  const Eigen::VectorXf m = alibi::slopes(8);
  const auto cache = cache_of<float>(k, v, 20'000);
  for (const double tolerance : {0., kDefault, 1e-2}) {
    const auto expected = alibi::attention_with_lse(q, cache, m, Options{.tolerance = tolerance});
    if (tolerance <= kDefault)
      expect_close(expected.output, alibi::attention(q, k, v, m, Options{.tolerance = 0.}), "split");
    for (const alibi::Executor& executor : test::executors()) {
      const auto result = alibi::attention_with_lse(q, cache, m, Options{.tolerance = tolerance, .executor = executor});
      EXPECT_TRUE(test::same(result.output, expected.output));
      EXPECT_TRUE(test::same(result.lse, expected.lse));
    }
  }
}

TYPED_TEST(Decode, NoSlopeIsTooLarge) {
  using S = TypeParam;
  test::Random random(9);
  const auto q = random.tensor<float>(1, 2, 2, 8), k = random.tensor<float>(1, 2, 300, 8),
             v = random.tensor<float>(1, 2, 300, 8);
  const auto cache = cache_of<S>(k, v, 300);
  for (const float slope : {3.4e38F, 1e10F, -1e10F, -3.4e38F}) {
    const Eigen::Vector2f m(slope, 0.5F);
    const auto output = alibi::attention(q, cache, m);
    for (Index i = 0; i < 2; i++) {
      const Index key = slope > 0 ? 298 + i : 0;  // the only key that such a head sees
      for (Index d = 0; d < 8; d++) EXPECT_EQ(output(0, 0, i, d), float(S(v(0, 0, key, d)))) << slope << ' ' << i;
    }
  }
}

// Rows of a kv head share a register tile, whose width depends on their number and on value_dim.
TYPED_TEST(Decode, EqualsTheForwardAtEveryWidth) {
  test::Random random(12);
  for (const Index value_dim : {65, 81, 96, 113, 128, 129, 200})
    for (const Index heads : {1, 2, 3, 4, 5, 8}) {
      const auto q = random.tensor<float>(1, heads, 1, 20);
      const auto k = rounded<TypeParam>(random.tensor<float>(1, 1, 150, 20)),
                 v = rounded<TypeParam>(random.tensor<float>(1, 1, 150, value_dim));
      const Eigen::VectorXf m = alibi::slopes(heads);
      expect_close(alibi::attention(q, cache_of<TypeParam>(k, v, 150), m), alibi::attention(q, k, v, m),
                   "value_dim " + std::to_string(value_dim) + ", " + std::to_string(heads) + " heads");
    }
}

TEST(DecodeDouble, EqualsTheForwardAtEveryWidth) {
  test::Random random(13);
  for (const Index value_dim : {30, 60, 64, 100})
    for (const Index heads : {1, 2, 3, 8}) {
      const auto q = random.tensor<double>(1, heads, 1, 20), k = random.tensor<double>(1, 1, 150, 20),
                 v = random.tensor<double>(1, 1, 150, value_dim);
      KvCache<double> cache({.kv_heads = 1, .head_dim = 20, .value_dim = value_dim, .capacity = 150});
      cache.append(k, v);
      const Eigen::VectorXf m = alibi::slopes(heads);
      EXPECT_LE(test::distance(alibi::attention(q, cache, m), alibi::attention(q, k, v, m)), 0x1p-48)
          << "value_dim " << value_dim << ", " << heads << " heads";
    }
}

// The scratch of a task is adjacent to that of the next task for any head_dim. The sanitizers check its alignment.
TEST(DecodeFloat, OddHeadDimsOnManyThreads) {
  test::Random random(8);
  for (const Index head_dim : {1, 3, 5, 17}) {
    const auto q = random.tensor<float>(1, 3, 1, head_dim), k = random.tensor<float>(1, 1, 3000, head_dim),
               v = random.tensor<float>(1, 1, 3000, head_dim);
    const Eigen::VectorXf m = alibi::slopes(3);
    const auto cache = cache_of<float>(k, v, 3000);
    Eigen::ThreadPool pool(3);
    EXPECT_TRUE(
        test::same(alibi::attention(q, cache, m, {.executor = alibi::Executor(pool)}), alibi::attention(q, cache, m)));
  }
}

TEST(DecodeFloat, ACacheWithAWindowEqualsTheMask) {
  test::Random random(8);
  const auto q = random.tensor<float>(1, 2, 1, 16), k = random.tensor<float>(1, 2, 2000, 16),
             v = random.tensor<float>(1, 2, 2000, 16);
  const Eigen::VectorXf m = alibi::slopes(2);
  KvCache<float> windowed({.kv_heads = 2, .head_dim = 16, .window = 150});
  for (Index n = 1; n <= 2000; n++) {
    windowed.append(tokens(k, n - 1, n), tokens(v, n - 1, n));
    if (n % 37 != 0) continue;
    const auto expected =
        alibi::attention(q, tokens(k, 0, n), tokens(v, 0, n), m, Options{.mask = {.window = 150}, .tolerance = 0.});
    expect_close(alibi::attention(q, windowed, m), expected, "length " + std::to_string(n));
    expect_close(alibi::attention(q, windowed, m, Options{.tolerance = 0.}), expected, "length " + std::to_string(n));
  }
}

// Sinks stay when the window leaves them behind, after truncations and in clones too.
TYPED_TEST(Decode, ACacheWithSinksEqualsTheMask) {
  using S = TypeParam;
  test::Random random(14);
  const Index most = 900;
  const auto q = random.tensor<float>(1, 4, most, 16);
  const auto k = rounded<S>(random.tensor<float>(1, 2, most, 16)), v = rounded<S>(random.tensor<float>(1, 2, most, 12));
  Eigen::VectorXf m = alibi::slopes(4);
  m[3] = -0.01f;
  for (const Index sinks : {1, 64, 130}) {
    KvCache<S> cache({.kv_heads = 2, .head_dim = 16, .value_dim = 12, .window = 100, .rollback = 20, .sinks = sinks});
    const auto expect = [&](Index n, Index queries) {
      const auto some = tokens(q, n - queries, n);
      for (const std::optional<Index> fewer : {std::optional<Index>(), std::optional<Index>(sinks / 2)})
        for (const double tolerance : {0., kDefault}) {
          const auto expected = alibi::attention_with_lse(
              some, tokens(k, 0, n), tokens(v, 0, n), m,
              Options{.mask = {.window = 100, .sinks = fewer.value_or(sinks)}, .tolerance = 0.});
          const auto result =
              alibi::attention_with_lse(some, cache, m, Options{.mask = {.sinks = fewer}, .tolerance = tolerance});
          expect_close(result.output, expected.output, "length " + std::to_string(n));
          EXPECT_LE(test::distance(result.lse, expected.lse), 1e-5) << "length " << n;
        }
    };
    for (const Index n : {40, 99, 100, 101, 170, 300, 301, 302, 500, 700, 702}) {
      cache.append(tokens(k, cache.length(), n), tokens(v, cache.length(), n));
      expect(n, 1);
      expect(n, std::min<Index>(n, 12));
      if (n == 302) cache = cache.clone();
      if (n == 500) cache.truncate(496), expect(496, 1);
    }
    EXPECT_GT(cache.first_key(0, 0), sinks);
    cache.truncate(0);
    cache.append(tokens(k, 0, 300), tokens(v, 0, 300));
    expect(300, 3);
  }
}

// 20,000 tokens. Each query has at most the norm that the eviction was configured for.
TEST(DecodeFloat, EvictionStaysWithinTheTolerance) {
  test::Random random(9);
  constexpr Index kSteps = 20'000, kDim = 16;
  constexpr double kNorm = 4;
  for (const double tolerance : {1e-2, 0x1p-25}) {
    const std::vector<double> slopes = {0.5, 0.125};
    const Eigen::VectorXf m = Eigen::Map<const Eigen::VectorXd>(slopes.data(), 2).cast<float>();
    KvCache<float> full({.kv_heads = 2, .head_dim = kDim, .capacity = kSteps});
    KvCache<float> evicting(
        {.kv_heads = 2,
         .head_dim = kDim,
         .capacity = kSteps,
         .eviction = alibi::Eviction{.query_norm = kNorm, .slopes = slopes, .tolerance = tolerance}});
    std::size_t bytes = 0;
    for (Index n = 1; n <= kSteps; n++) {
      const auto k = random.tensor<float>(1, 2, 1, kDim), v = random.tensor<float>(1, 2, 1, kDim);
      full.append(k, v);
      evicting.append(k, v);
      if (n == 2000) bytes = evicting.bytes(0, 0);
      if (n > 2000) {
        ASSERT_LE(evicting.bytes(0, 0), bytes + 2 * 64 * 2 * kDim * sizeof(float)) << n << " tokens";
      }
      auto q = random.tensor<float>(1, 2, 1, kDim);
      for (Index h = 0; h < 2; h++) {
        double square = 0;
        for (Index d = 0; d < kDim; d++) square += double(q(0, h, 0, d)) * double(q(0, h, 0, d));
        for (Index d = 0; d < kDim; d++) q(0, h, 0, d) *= float(kNorm / std::sqrt(square) * 0.9999);
      }
      const auto expected = alibi::attention(q, full, m, Options{.tolerance = n % 100 == 0 ? 0. : kDefault});
      std::vector<PruningStats> stats(2);
      const auto result = alibi::attention(q, evicting, m, Options{.tolerance = tolerance, .pruning_stats = stats});
      ASSERT_LE(test::distance(result, expected), (tolerance + kDefault) * 10 + 2e-6) << n << " tokens";
      for (const PruningStats& head : stats) ASSERT_LE(head.mass_bound, tolerance * (1 + 1e-9));
    }
    EXPECT_GT(evicting.first_key(0, 0), kSteps - 2000) << "keys were evicted";
    EXPECT_EQ(full.first_key(0, 0), 0);
  }
}

// The values mark the tile of each key: a query has an output of exactly 0 for a tile that it did not compute.
TEST(DecodeFloat, TheCertificateHolds) {
  test::Random random(10);
  double max_pruned_mass = 0;
  Index pruned_heads = 0;
  for (int n = 0; n < 600; n++) {
    const Index keys = random.integer(65, 1600), kv_heads = random.integer(1, 2), group = random.integer(1, 5),
                queries = random.integer(1, 3), dim = random.integer(1, 40), tiles = (keys + 63) / 64;
    const double tolerances[] = {kDefault, 1e-5, 1e-3, 1e-2};
    const double tolerance = tolerances[random.integer(0, 3)];
    auto q = random.tensor<float>(1, kv_heads * group, queries, dim), k = random.tensor<float>(1, kv_heads, keys, dim);
    const Index kind = random.integer(0, 5);
    for (Index h = 0; h < kv_heads; h++)
      for (Index j = 0; j < keys; j++) {
        const bool outlier = kind == 1 ? j == 0 : kind == 2 ? j == keys / 2 : kind == 3 && j % 97 == 5;
        const double shrink = kind == 5 && j + 64 < keys ? 0.05 : 1;
        for (Index d = 0; d < dim; d++) {
          float& x = k(0, h, j, d);
          x = float(shrink * double(x) * (outlier ? 30 : 1) + (kind == 4 ? 10 : 0));
        }
      }
    // A distant key with the direction of a query: the worst case of the bound.
    if (random.chance(0.5))
      for (Index d = 0; d < dim; d++) k(0, 0, random.integer(0, keys - 1) / 2, d) = 2 * q(0, 0, 0, d);
    Tensor4<float> v(1, kv_heads, keys, tiles);
    v.setZero();
    for (Index h = 0; h < kv_heads; h++)
      for (Index j = 0; j < keys; j++) v(0, h, j, j / 64) = 1;
    Eigen::VectorXf m(kv_heads * group);
    for (Index h = 0; h < m.size(); h++) m[h] = float(std::exp2(random.uniform(-5, 2)));
    const auto cache = cache_of<float>(k, v, keys);
    std::vector<PruningStats> stats(std::size_t(m.size()));
    Options options{.tolerance = tolerance, .pruning_stats = stats};
    if (random.chance(0.3)) options.mask.window = random.integer(1, keys);
    if (options.mask.window && random.chance(0.5)) options.mask.sinks = random.integer(1, keys);
    const Index sinks = options.mask.sinks.value_or(0);
    const auto output = alibi::attention(q, cache, m, options);
    for (Index h = 0; h < m.size(); h++) {
      double worst = 0;
      for (Index i = 0; i < queries; i++) {
        const Index p = keys - queries + i, first = options.mask.window ? p - *options.mask.window + 1 : 0;
        long double all = 0, pruned_mass = 0, reference = -std::numeric_limits<long double>::infinity();
        for (Index pass = 0; pass < 2; pass++)
          for (Index j = sinks > 0 ? 0 : std::max<Index>(first, 0); j <= p; j++) {
            if (j < first && j >= sinks) continue;
            long double s = 0;
            for (Index d = 0; d < dim; d++) s += (long double)q(0, h, i, d) * (long double)k(0, h / group, j, d);
            s = s / std::sqrt((long double)dim) - (long double)m[h] * (long double)(p - j);
            if (pass == 0) {
              reference = std::max(reference, s);
            } else {
              all += std::exp(s - reference);
              if (output(0, h, i, j / 64) == 0) pruned_mass += std::exp(s - reference);
            }
          }
        worst = std::max(worst, double(pruned_mass / all));
      }
      EXPECT_LE(worst, tolerance) << "case " << n << ", head " << h;
      // In a tile with hidden keys, a weight below 2^-100 becomes 0 although it is computed.
      EXPECT_LE(worst, stats[std::size_t(h)].mass_bound * (1 + 1e-3) + 64 * 0x1p-100) << "case " << n << ", head " << h;
      EXPECT_LE(stats[std::size_t(h)].mass_bound, tolerance * (1 + 1e-9));
      max_pruned_mass = std::max(max_pruned_mass, worst);
      pruned_heads += stats[std::size_t(h)].tiles_computed < stats[std::size_t(h)].tiles_total;
    }
  }
  std::cout << pruned_heads << " heads pruned keys, pruned mass at most " << max_pruned_mass << "\n";
  EXPECT_GT(pruned_heads, 200);
}

TEST(DecodeFloat, NanIsNeverPruned) {
  test::Random random(11);
  const auto q = random.tensor<float>(1, 1, 1, 8), v = random.tensor<float>(1, 1, 3000, 8);
  for (const Index at : {0, 100, 1500, 2999}) {
    auto k = random.tensor<float>(1, 1, 3000, 8);
    k(0, 0, at, 3) = NAN;
    const auto cache = cache_of<float>(k, v, 3000);
    const auto [output, lse] = alibi::attention_with_lse(q, cache, std::vector<float>{2});
    EXPECT_TRUE(std::isnan(lse(0, 0, 0))) << at;
    for (Index d = 0; d < 8; d++) EXPECT_TRUE(std::isnan(output(0, 0, 0, d))) << at;
  }
}

template <class Call>
std::string thrown(Call call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

TEST(DecodeFloat, BadInput) {
  test::Random random(12);
  const Eigen::VectorXf m = alibi::slopes(4);
  const auto q = random.tensor<float>(1, 4, 1, 16);
  auto cache = cache_of<float>(random.tensor<float>(1, 2, 100, 16), random.tensor<float>(1, 2, 100, 16), 100);
  EXPECT_EQ(thrown([&] { alibi::attention(random.tensor<float>(2, 4, 1, 16), cache, m); }),
            "alibi: q has batch 2; expected 1, the batch of the cache");
  EXPECT_EQ(thrown([&] { alibi::attention(random.tensor<float>(1, 3, 1, 16), cache, m); }),
            "alibi: q has heads 3; expected a multiple of 2, the kv_heads of the cache");
  EXPECT_EQ(thrown([&] { alibi::attention(random.tensor<float>(1, 4, 1, 15), cache, m); }),
            "alibi: q has head_dim 15; expected 16, the head_dim of the cache");
  EXPECT_EQ(thrown([&] { alibi::attention(q, cache, Eigen::VectorXf(alibi::slopes(5))); }),
            "alibi: slopes has heads 5; expected 4, the heads of q");
  EXPECT_EQ(thrown([&] { alibi::attention(q, cache, m, Options{.tolerance = -1.}); }),
            "alibi: tolerance is -1; expected at least 0 and below 1");
  test::RowMatrix<float> table = test::RowMatrix<float>::Zero(4, 7);
  EXPECT_EQ(thrown([&] { alibi::attention(q, cache, alibi::relative_bias(table.topRows(3))); }),
            "alibi: the table has heads 3; expected 4, the heads of q");
  table(2, 1) = NAN;
  EXPECT_EQ(thrown([&] { alibi::attention(q, cache, alibi::relative_bias(table)); }),
            "alibi: entry 1 of head 2 of the table is nan; expected a finite number");
  table(2, 1) = 0;
  auto in_table = alibi::view(table.data(), {1, 4, 1, 7}, {28, 7, 7, 1});
  EXPECT_EQ(thrown([&] {
              auto of_7 = cache_of<float>(random.tensor<float>(1, 2, 9, 16), random.tensor<float>(1, 2, 9, 7), 9);
              alibi::attention_into(in_table, q, of_7, alibi::relative_bias(table));
            }),
            "alibi: output overlaps the table; expected memory of its own");
  std::vector<PruningStats> stats(3);
  EXPECT_EQ(thrown([&] { alibi::attention(q, cache, m, Options{.pruning_stats = stats}); }),
            "alibi: pruning_stats has 3 entries; expected 4, batch x heads of q");

  KvCache<float> windowed({.kv_heads = 2, .head_dim = 16, .window = 50, .rollback = 10});
  for (int n = 0; n < 5; n++) windowed.append(random.tensor<float>(1, 2, 100, 16), random.tensor<float>(1, 2, 100, 16));
  EXPECT_EQ(thrown([&] { alibi::attention(q, windowed, m, Options{.mask = {.window = 51}}); }),
            "alibi: mask.window is 51; expected at most 50, the window of the cache");
  EXPECT_EQ(thrown([&] { alibi::attention(q, windowed, m, Options{.mask = {.sinks = 1}}); }),
            "alibi: mask.sinks is 1; expected at most 0, the sinks of the cache");
  const std::vector<Index> offsets = {100}, more = {99, 98};
  EXPECT_EQ(thrown([&] { alibi::attention(q, windowed, m, Options{.query_offsets = offsets}); }).substr(0, 65),
            "alibi: the first query of sequence 0 has position 100; expected a");
  EXPECT_EQ(thrown([&] { alibi::attention(q, cache, m, Options{.query_offsets = more}); }),
            "alibi: options.query_offsets has 2 entries; expected 1, the batch of q");
  EXPECT_EQ(thrown([&] { alibi::attention(q, windowed, m, Options{.mask = {.query_offset = 100}}); }).substr(0, 65),
            "alibi: the first query of sequence 0 has position 100; expected a");

  KvCache<float> evicting({.kv_heads = 2,
                           .head_dim = 16,
                           .capacity = 5000,
                           .eviction = alibi::Eviction{.query_norm = 1, .slopes = {0.5, 0.5, 0.5, 0.5}}});
  const KvCache<float> rising({.kv_heads = 2,
                               .head_dim = 16,
                               .capacity = 500,
                               .eviction = alibi::Eviction{.query_norm = 100, .slopes = {-0.5, -0.3, 0, 0.1}}});
  EXPECT_EQ(thrown([&] { alibi::attention(q, rising, Eigen::VectorXf(Eigen::Vector4f(-0.5f, -0.3f, 0, 0.1f))); }),
            "no error")
      << "the slopes of the eviction, as floats";
  EXPECT_EQ(thrown([&] { alibi::attention(q, evicting, alibi::relative_bias(table)); }),
            "alibi: a table is given for attention over a cache with an eviction; expected slopes: its bound holds for "
            "them only");
  EXPECT_EQ(thrown([&] { alibi::attention(q, evicting, m); }).substr(0, 45),
            "alibi: the slope of head 0 in batch 0 is 0.25")
      << "before anything has been evicted";
  for (int n = 0; n < 20; n++)
    evicting.append(random.tensor<float>(1, 2, 200, 16), random.tensor<float>(1, 2, 200, 16));
  auto small = q;
  for (Index i = 0; i < small.size(); i++) small.data()[i] = 0.1f;
  const Eigen::VectorXf halves = Eigen::VectorXf::Constant(4, 0.5f);
  EXPECT_EQ(thrown([&] { alibi::attention(small, evicting, halves); }), "no error");
  EXPECT_EQ(thrown([&] { alibi::attention(small, evicting, m); }),
            "alibi: the slope of head 0 in batch 0 is 0.25; expected at least 0.5, that of the cache's eviction");
  EXPECT_EQ(thrown([&] { alibi::attention(small, evicting, halves, Options{.scale = 1}); }),
            "alibi: scale is 1; expected at most 0.25, that of the cache's eviction");
  small.setConstant(1.f);
  EXPECT_EQ(thrown([&] { alibi::attention(small, evicting, halves); }),
            "alibi: query 0 of head 0 in batch 0 has norm 4; expected at most 1, the query_norm of the cache's "
            "eviction");
}

}  // namespace
