// Prompts of unequal length: one call for the batch gives the same as one call for each prompt, over a cache and over
// arrays.
#include "common.hpp"

namespace {

using alibi::KeyRange, alibi::Options;
using test::Index, test::Tensor4;

template <class T>
class Ragged : public testing::Test {
 protected:
  static constexpr Index kTokens = 90;
  static constexpr double kRounding = sizeof(T) == 8 ? 1e-13 : sizeof(T) == 4 ? 4e-6 : 2e-2;

  test::Random random_{11};

  // The tokens in `range` of sequence b.
  static Tensor4<T> prompt(const Tensor4<T>& x, Index b, const KeyRange& range) {
    return x.slice(Eigen::array<Index, 4>{b, 0, range.begin, 0},
                   Eigen::array<Index, 4>{1, x.dimension(1), range.end - range.begin, x.dimension(3)});
  }
  static KeyRange range_of(Index count) { return {0, count}; }
  static KeyRange range_of(const KeyRange& range) { return range; }

  template <class Output, class Lse>
  static void expect_prompt(const Output& output, const Lse& lse, Index b, const KeyRange& range, const Output& alone,
                            const Lse& lse_alone) {
    for (Index h = 0; h < output.dimension(1); h++)
      for (Index i = 0; i < output.dimension(2); i++) {
        const bool real = range.begin <= i && i < range.end;
        if (real)
          EXPECT_NEAR(lse(b, h, i), lse_alone(0, h, i - range.begin), kRounding) << "token " << i << " of prompt " << b;
        else
          EXPECT_EQ(lse(b, h, i), -test::kInfinity) << "token " << i << " of prompt " << b;
        for (Index d = 0; d < output.dimension(3); d++)
          EXPECT_NEAR(double(output(b, h, i, d)), real ? double(alone(0, h, i - range.begin, d)) : 0, kRounding)
              << "token " << i << " of prompt " << b;
      }
  }

  /// Appends two chunks of prompts, one after the other. `real` gives their real tokens, as counts or as ranges.
  /// `lists`: with a query offset and a prefix for each sequence.
  template <class Real>
  void expect_as_alone(const std::vector<Real>& real, const Options& with, bool lists = false) {
    const auto batch = Index(real.size());
    alibi::KvCache<T> cache({.batch = batch, .kv_heads = 2, .head_dim = 16, .capacity = 4 * kTokens});
    std::vector<alibi::KvCache<T>> own;
    for (Index b = 0; b < batch; b++)
      own.emplace_back(alibi::KvCacheConfig{.kv_heads = 2, .head_dim = 16, .capacity = 4 * kTokens});
    const auto m = alibi::slopes(4);
    for (int chunk = 0; chunk < 2; chunk++) {
      const auto q = random_.tensor<T>(batch, 4, kTokens, 16), k = random_.tensor<T>(batch, 2, kTokens, 16),
                 v = random_.tensor<T>(batch, 2, kTokens, 16);
      cache.append(k, v, real);
      Options options = with;
      options.queries = real;
      std::vector<Index> offsets, prefixes;
      for (Index b = 0; b < batch; b++) {
        offsets.push_back(cache.length(b) - random_.integer(0, 100)), prefixes.push_back(random_.integer(0, 150));
      }
      if (lists) options.query_offsets = offsets, options.prefixes = prefixes;
      const auto [output, lse] = alibi::attention_with_lse(q, cache, m, options);
      for (Index b = 0; b < batch; b++) {
        const KeyRange range = range_of(real[std::size_t(b)]);
        auto& alone = own[std::size_t(b)];
        alone.append(prompt(k, b, range), prompt(v, b, range));
        EXPECT_EQ(cache.length(b), alone.length());
        Options own_options = with;
        if (lists) own_options.mask.query_offset = offsets[std::size_t(b)];
        if (lists) own_options.mask.prefix = prefixes[std::size_t(b)];
        const auto result = alibi::attention_with_lse(prompt(q, b, range), alone, m, own_options);
        expect_prompt(output, lse, b, range, result.output, result.lse);
      }
    }
  }
};
using Scalars = testing::Types<float, double, Eigen::bfloat16, Eigen::half>;
TYPED_TEST_SUITE(Ragged, Scalars);

// A few queries, many, none, and all of them.
TYPED_TEST(Ragged, CountsOverACache) {
  for (const Options& options : {Options{}, Options{.mask = {.causal = false}}, Options{.mask = {.window = 20}}})
    this->expect_as_alone(std::vector<Index>{3, 90, 0, 8, 9, 64}, options);
}

TYPED_TEST(Ragged, QueryOffsetsAndPrefixesOverACache) {
  this->expect_as_alone(std::vector<Index>{3, 90, 0, 8, 9, 64}, {}, true);
  this->expect_as_alone(std::vector<KeyRange>{{87, 90}, {0, 90}, {90, 90}, {20, 85}},
                        {.mask = {.window = 30, .sinks = 5}}, true);
}

TYPED_TEST(Ragged, PromptsPaddedOnTheLeftOverACache) {
  this->expect_as_alone(std::vector<KeyRange>{{87, 90}, {0, 90}, {90, 90}, {20, 85}}, {});
}

// The rest of the batch changes no bit: a sequence with few queries always takes the kernel for few queries.
TYPED_TEST(Ragged, PromptsAreIndependent) {
  using T = TypeParam;
  const auto q = this->random_.template tensor<T>(2, 4, 90, 16), k = this->random_.template tensor<T>(2, 2, 90, 16),
             v = this->random_.template tensor<T>(2, 2, 90, 16);
  const auto output_of = [&](const std::vector<Index>& counts) {
    alibi::KvCache<T> cache({.batch = 2, .kv_heads = 2, .head_dim = 16, .capacity = 90});
    cache.append(k, v, counts);
    std::vector<alibi::PruningStats> stats(8);
    const Tensor4<T> output = alibi::attention(q, cache, alibi::slopes(4), {.pruning_stats = stats, .queries = counts});
    EXPECT_GT(stats[0].tiles_computed, 0);
    return Tensor4<T>(this->prompt(output, 0, {0, counts[0]}));
  };
  EXPECT_TRUE(test::same(output_of({5, 90}), output_of({5, 3})));
  EXPECT_TRUE(test::same(output_of({60, 90}), output_of({60, 3})));
}

TYPED_TEST(Ragged, Arrays) {
  using T = TypeParam;
  const auto q = this->random_.template tensor<T>(3, 4, 90, 16), k = this->random_.template tensor<T>(3, 2, 120, 16),
             v = this->random_.template tensor<T>(3, 2, 120, 16);
  const auto m = alibi::slopes(4);
  const std::vector<Index> counts = {40, 0, 90};
  const auto [output, lse] = alibi::attention_with_lse(q, k, v, m, Options{.queries = counts});
  for (Index b = 0; b < 3; b++) {
    const KeyRange range = {0, counts[std::size_t(b)]};
    const auto alone = alibi::attention_with_lse(this->prompt(q, b, range), this->prompt(k, b, {0, 120}),
                                                 this->prompt(v, b, {0, 120}), m);
    this->expect_prompt(output, lse, b, range, alone.output, alone.lse);
  }
}

TEST(RaggedErrors, AreNamed) {
  Tensor4<float> q(2, 2, 5, 8), output(2, 2, 5, 8);
  q.setRandom(), output.setConstant(42);
  const auto m = alibi::slopes(2);
  alibi::KvCache<float> cache({.batch = 2, .kv_heads = 2, .head_dim = 8, .capacity = 7});
  const auto message = [&](auto call) -> std::string {
    try {
      call();
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "no error";
  };
  const std::vector<Index> three = {1, 2, 3}, far = {1, 6};
  EXPECT_EQ(message([&] { alibi::attention_into(output, q, q, q, m, {.queries = three}); }),
            "alibi: options.queries has 3 entries; expected 2, the batch of q");
  EXPECT_EQ(message([&] { alibi::attention_into(output, q, cache, m, {.queries = far}); }),
            "alibi: options.queries[1] is [0, 6); expected 0 <= begin <= end <= 5, the tokens of q");
  const std::vector<KeyRange> ranges = {{0, 5}, {3, 2}}, whole = {{0, 5}, {0, 5}};
  EXPECT_EQ(message([&] { cache.append(q, q, ranges); }),
            "alibi: ranges[1] is [3, 2); expected 0 <= begin <= end <= 5, the tokens of k");
  EXPECT_EQ(message([&] { alibi::attention_into(output, q, cache, m, {.keys = whole}); }),
            "alibi: options.keys is given for attention over a cache; expected none: append real keys only");
  cache.append(q, q, whole);
  EXPECT_EQ(message([&] { cache.append(q, q, whole); }),
            "alibi: ranges[0] is a range of 5; expected at most 2, what is left of sequence 0's capacity 7");
  EXPECT_EQ(cache.length(0), 5);
  for (Index i = 0; i < output.size(); i++) EXPECT_EQ(output.data()[i], 42);
}

}  // namespace
