// Varlen and padded batches. Every sequence gives the same bits as a call of attention() of its own, and the memory of
// padding is never read. Invalid offsets and ranges give errors, whose whole text is tested.
#include <alibi/varlen.hpp>

#include "common.hpp"
#include "executors.hpp"

namespace {

using alibi::KeyRange, alibi::Mask, alibi::Options;
using test::Index;
using test::Tensor3;
using test::Tensor4;

template <class T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;
template <class T>
using Tensor2 = Eigen::Tensor<T, 2, Eigen::RowMajor>;
using CumulativeLengths = std::vector<Index>;

CumulativeLengths cu_seqlens_of(const std::vector<Index>& lengths) {
  CumulativeLengths cu_seqlens = {0};
  for (const Index length : lengths) cu_seqlens.push_back(cu_seqlens.back() + length);
  return cu_seqlens;
}

/// The lengths of `count` sequences, of all sizes up to `most`; some are empty.
std::vector<Index> random_lengths(test::Random& random, Index count, Index most) {
  std::vector<Index> lengths;
  for (Index s = 0; s < count; s++) lengths.push_back(Index(std::pow(double(most), random.uniform(0, 1))));
  lengths[1] = most;
  for (const Index s : {Index(2), count / 2, count - 1}) lengths[std::size_t(s)] = 0;
  return lengths;
}

template <class T>
class Varlen : public testing::Test {
 protected:
  static constexpr Index kHeads = 4, kKvHeads = 2, kDim = 24, kValueDim = 20;

  test::Random random_{21};

  Tensor3<T> varlen_tensor(Index tokens, Index heads, Index dim) {
    Tensor3<T> x(tokens, heads, dim);
    return random_.fill(x);
  }
  test::Vector<Sum<T>> slopes() { return alibi::slopes<Sum<T>>(kHeads); }

  // Tokens [begin, end) of a varlen tensor as [1, heads, tokens, dim].
  static Tensor4<T> sequence(const Tensor3<T>& x, Index begin, Index end) {
    Tensor4<T> y(1, x.dimension(1), end - begin, x.dimension(2));
    for (Index h = 0; h < x.dimension(1); h++)
      for (Index i = begin; i < end; i++) std::copy_n(&x(i, h, 0), x.dimension(2), &y(0, h, i - begin, 0));
    return y;
  }

  // Expects that the output, the lse and the pruning statistics of a varlen call equal those of one call for each
  // sequence.
  template <class Slopes>
  void expect_separate(const Tensor3<T>& q, const Tensor3<T>& k, const Tensor3<T>& v, const Slopes& slopes,
                       const CumulativeLengths& queries, const CumulativeLengths& keys, const Options& options) {
    const auto sequences = Index(queries.size()) - 1, heads = q.dimension(1);
    std::vector<alibi::PruningStats> stats(std::size_t(sequences * heads), {-1, -1, 7}), own((std::size_t(heads)));
    Options all = options, one = options;
    all.pruning_stats = stats;
    one.pruning_stats = own;
    const auto [output, lse] = alibi::attention_varlen_with_lse(q, k, v, slopes, {queries, keys}, all);
    ASSERT_EQ(output.dimension(0), q.dimension(0));
    ASSERT_EQ(output.dimension(1), heads);
    ASSERT_EQ(output.dimension(2), v.dimension(2));
    ASSERT_EQ(lse.dimension(0), heads);
    ASSERT_EQ(lse.dimension(1), q.dimension(0));
    const CumulativeLengths& of_k = keys.empty() ? queries : keys;
    Index different = 0;
    for (Index s = 0; s < sequences; s++) {
      const auto at = std::size_t(s);
      const Index begin = queries[at], end = queries[at + 1];
      if (!options.query_offsets.empty()) one.mask.query_offset = options.query_offsets[at];
      if (!options.prefixes.empty()) one.mask.prefix = options.prefixes[at];
      one.query_offsets = one.prefixes = {};
      const auto [o, l] = alibi::attention_with_lse(sequence(q, begin, end), sequence(k, of_k[at], of_k[at + 1]),
                                                    sequence(v, of_k[at], of_k[at + 1]), row(slopes, s), one);
      for (Index h = 0; h < heads; h++) {
        for (Index i = begin; i < end; i++) {
          for (Index d = 0; d < v.dimension(2); d++)
            different += !(double(output(i, h, d)) == double(o(0, h, i - begin, d)));
          different += !(lse(h, i) == l(0, h, i - begin));
        }
        const alibi::PruningStats &is = stats[std::size_t(s * heads + h)], &should = own[std::size_t(h)];
        different += is.tiles_computed != should.tiles_computed || is.tiles_total != should.tiles_total ||
                     is.mass_bound != should.mass_bound;
      }
    }
    EXPECT_EQ(different, 0);
    EXPECT_TRUE(test::same(alibi::attention_varlen(q, k, v, slopes, {queries, keys}, options), output));
  }
  static test::Vector<Sum<T>> row(const test::Vector<Sum<T>>& slopes, Index) { return slopes; }
  static test::Vector<Sum<T>> row(const test::RowMatrix<Sum<T>>& slopes, Index s) { return slopes.row(s); }
};
using Scalars = testing::Types<float, double, Eigen::bfloat16, Eigen::half>;
TYPED_TEST_SUITE(Varlen, Scalars);

TYPED_TEST(Varlen, SixtyFourSequencesAreSixtyFourCalls) {
  const CumulativeLengths cu_seqlens = cu_seqlens_of(random_lengths(this->random_, 64, 2000));
  const Index tokens = cu_seqlens.back();
  const auto q = this->varlen_tensor(tokens, 4, 24), k = this->varlen_tensor(tokens, 2, 24),
             v = this->varlen_tensor(tokens, 2, 20);
  this->expect_separate(q, k, v, this->slopes(), cu_seqlens, {}, {});
  this->expect_separate(q, k, v, this->slopes(), cu_seqlens, {}, {.tolerance = 0});
}

TYPED_TEST(Varlen, EveryOption) {
  const CumulativeLengths cu_seqlens = cu_seqlens_of(random_lengths(this->random_, 12, 300));
  const Index tokens = cu_seqlens.back();
  const auto q = this->varlen_tensor(tokens, 4, 17), k = this->varlen_tensor(tokens, 2, 17),
             v = this->varlen_tensor(tokens, 2, 33);
  test::RowMatrix<Sum<TypeParam>> slopes(12, 4);
  for (Index i = 0; i < slopes.size(); i++) slopes.data()[i] = Sum<TypeParam>(this->random_.uniform(-0.05, 1));
  const std::vector<Mask> masks = {{},
                                   {.causal = false},
                                   {.window = 20},
                                   {.causal = false, .window = 20},
                                   {.query_offset = 5},
                                   {.causal = false, .query_offset = -30},
                                   {.window = 20, .prefix = 50, .sinks = 7}};
  for (const Mask& mask : masks)
    for (const std::optional<double> tolerance : {std::optional<double>(), std::optional(1e-3)})
      this->expect_separate(q, k, v, slopes, cu_seqlens, {}, {.mask = mask, .scale = 0.3, .tolerance = tolerance});
  std::vector<Index> offsets(12), prefixes(12);
  for (Index& offset : offsets) offset = this->random_.integer(-40, 100);
  for (Index& prefix : prefixes) prefix = this->random_.integer(0, 200);
  this->expect_separate(q, k, v, slopes, cu_seqlens, {}, {.query_offsets = offsets, .prefixes = prefixes});
  this->expect_separate(q, k, v, slopes, cu_seqlens, {},
                        {.mask = {.causal = false, .window = 60, .sinks = 9}, .query_offsets = offsets});
}

// A sequence of one token: its output is its value, and its lse the logit. A logit that is not finite gives NaN, a
// token that does not see itself 0 and -inf.
TYPED_TEST(Varlen, OneToken) {
  using T = TypeParam;
  constexpr Index kTokens = 700, kQueryNan = 3, kKeyInfinity = 300, kValueNan = 301;
  auto q = this->varlen_tensor(kTokens, 4, 24), k = this->varlen_tensor(kTokens, 2, 24),
       v = this->varlen_tensor(kTokens, 2, 20);
  q(kQueryNan, 1, 5) = std::numeric_limits<T>::quiet_NaN();
  k(kKeyInfinity, 0, 0) = std::numeric_limits<T>::infinity();
  v(kValueNan, 1, 7) = std::numeric_limits<T>::quiet_NaN();
  std::vector<Index> cu_seqlens(kTokens + 1);
  for (Index i = 0; i <= kTokens; i++) cu_seqlens[std::size_t(i)] = i;
  test::Vector<Sum<T>> slopes = this->slopes();
  slopes[2] *= -1;
  for (const Mask& mask : std::vector<Mask>{{},
                                            {.causal = false, .query_offset = -40},
                                            {.query_offset = 1 << 20},
                                            {.window = 5, .query_offset = 9},
                                            {.query_offset = -1}}) {
    std::vector<alibi::PruningStats> stats(kTokens * 4);
    const Options options{.mask = mask, .scale = 0.5, .pruning_stats = stats};
    const auto [output, lse] = alibi::attention_varlen_with_lse(q, k, v, slopes, {cu_seqlens}, options);
    const Index offset = mask.query_offset.value_or(0);
    const bool sees = (!mask.causal || offset >= 0) && std::abs(offset) < mask.window.value_or(1 << 30);
    Index different = 0;
    for (Index i = 0; i < kTokens; i++)
      for (Index h = 0; h < 4; h++) {
        double dot = 0;
        for (Index d = 0; d < 24; d++) dot += double(q(i, h, d)) * double(k(i, h / 2, d));
        const double logit = 0.5 * dot - double(slopes[h]) * double(std::abs(offset));
        const bool finite = std::isfinite(logit);
        if (!sees) {
          different += lse(h, i) != -std::numeric_limits<Sum<T>>::infinity();
        } else if (finite) {
          different += !(std::abs(double(lse(h, i)) - logit) <= test::kBound<Sum<T>> * std::max(6., std::abs(logit)));
        }
        for (Index d = 0; d < 20; d++) {
          const double is = double(output(i, h, d)), value = double(v(i, h / 2, d));
          different += !sees ? is != 0 : finite && !std::isnan(value) ? is != value : !std::isnan(is);
        }
        const alibi::PruningStats& of = stats[std::size_t(i * 4 + h)];
        different += of.tiles_computed != Index(sees) || of.tiles_total != Index(sees) || of.mass_bound != 0;
      }
    EXPECT_EQ(different, 0) << "offset " << offset;
    for (const alibi::Executor& executor : test::executors()) {
      Options others = options;
      others.executor = executor;
      const auto result = alibi::attention_varlen_with_lse(q, k, v, slopes, {cu_seqlens}, others);
      Index other_bits = 0;  // NaN equals NaN
      for (Index i = 0; i < output.size(); i++)
        other_bits += !(result.output.data()[i] == output.data()[i] || std::isnan(double(output.data()[i])));
      EXPECT_EQ(other_bits, 0);
    }
  }
}

// Queries at the end of their keys, as in a chunked prefill; more queries than keys; queries without keys; keys without
// queries.
TYPED_TEST(Varlen, KeysOfTheirOwn) {
  const CumulativeLengths queries = cu_seqlens_of({5, 1, 100, 0, 7, 64, 3}),
                          keys = cu_seqlens_of({200, 65, 40, 30, 0, 64, 1500});
  const auto q = this->varlen_tensor(queries.back(), 4, 24), k = this->varlen_tensor(keys.back(), 4, 24),
             v = this->varlen_tensor(keys.back(), 4, 20);
  for (const bool causal : {true, false})
    this->expect_separate(q, k, v, this->slopes(), queries, keys, {.mask = {.causal = causal}});
}

TYPED_TEST(Varlen, IndependentOfTheExecutor) {
  const CumulativeLengths cu_seqlens = cu_seqlens_of(random_lengths(this->random_, 20, 1500));
  const auto q = this->varlen_tensor(cu_seqlens.back(), 4, 24), k = this->varlen_tensor(cu_seqlens.back(), 2, 24),
             v = this->varlen_tensor(cu_seqlens.back(), 2, 20);
  const auto expected = alibi::attention_varlen_with_lse(q, k, v, this->slopes(), {cu_seqlens});
  for (const alibi::Executor& executor : test::executors()) {
    const auto result = alibi::attention_varlen_with_lse(q, k, v, this->slopes(), {cu_seqlens}, {.executor = executor});
    EXPECT_TRUE(test::same(result.output, expected.output));
    EXPECT_TRUE(test::same(result.lse, expected.lse));
  }
}

TYPED_TEST(Varlen, NoSequenceAtAll) {
  const auto q = this->varlen_tensor(0, 4, 24), k = this->varlen_tensor(0, 2, 24), v = this->varlen_tensor(0, 2, 20);
  for (const CumulativeLengths& cu_seqlens :
       {CumulativeLengths{0}, CumulativeLengths{0, 0}, CumulativeLengths{0, 0, 0, 0}}) {
    const auto result = alibi::attention_varlen_with_lse(q, k, v, this->slopes(), {cu_seqlens});
    EXPECT_EQ(result.output.dimension(0), 0);
    EXPECT_EQ(result.output.dimension(2), 20);
    EXPECT_EQ(result.lse.dimension(0), 4);
  }
}

// Column-major tensors, maps, views of a fused QKV, output into memory of the caller, and a workspace that is used
// again.
TYPED_TEST(Varlen, EveryKindOfArray) {
  using T = TypeParam;
  const CumulativeLengths cu_seqlens = cu_seqlens_of({30, 0, 111, 5, 64});
  const Index tokens = cu_seqlens.back();
  const auto q = this->varlen_tensor(tokens, 4, 24), k = this->varlen_tensor(tokens, 2, 24),
             v = this->varlen_tensor(tokens, 2, 24);
  const auto m = this->slopes();
  const auto expected = alibi::attention_varlen_with_lse(q, k, v, m, {cu_seqlens});

  using Mirrored = Eigen::Tensor<T, 3>;
  const auto mirrored = [](const Tensor3<T>& x) {
    Mirrored y(x.dimension(2), x.dimension(1), x.dimension(0));
    std::copy_n(x.data(), x.size(), y.data());
    return y;
  };
  const auto result = alibi::attention_varlen_with_lse(mirrored(q), mirrored(k), mirrored(v), m, {cu_seqlens});
  static_assert(std::is_same_v<std::remove_const_t<decltype(result.output)>, Mirrored>);
  EXPECT_EQ(result.output.dimension(2), tokens);
  EXPECT_EQ(result.lse.dimension(0), tokens);
  EXPECT_TRUE(test::same(result.output, expected.output));
  EXPECT_TRUE(test::same(result.lse, expected.lse));

  const Eigen::TensorMap<const Tensor3<T>> q_map(q.data(), tokens, 4, 24);
  EXPECT_TRUE(test::same(alibi::attention_varlen(q_map, k, v, m, {cu_seqlens}), expected.output));

  constexpr Index kRow = (4 + 2 + 2) * 24 + 5;  // q, k and v of a token are adjacent
  std::vector<T> memory(std::size_t(tokens * kRow), std::numeric_limits<T>::quiet_NaN());
  const auto part = [&](const Tensor3<T>& x, Index first) {
    for (Index i = 0; i < tokens; i++)
      std::copy_n(&x(i, 0, 0), x.dimension(1) * 24, memory.data() + i * kRow + first * 24);
    return alibi::view(memory.data() + first * 24, {1, x.dimension(1), tokens, 24}, {0, 24, kRow, 1});
  };
  const auto q_view = part(q, 0), k_view = part(k, 4), v_view = part(v, 6);
  alibi::Workspace workspace;
  for (int time = 0; time < 2; time++) {
    std::vector<T> heads_first(std::size_t(4 * tokens * 24), std::numeric_limits<T>::quiet_NaN());
    alibi::attention_varlen_into(alibi::view(heads_first.data(), {1, 4, tokens, 24}, {0, tokens * 24, 24, 1}), q_view,
                                 k_view, v_view, m, {cu_seqlens}, {.workspace = &workspace});
    Index different = 0;
    for (Index i = 0; i < tokens; i++)
      for (Index h = 0; h < 4; h++)
        for (Index d = 0; d < 24; d++)
          different += !(heads_first[std::size_t((h * tokens + i) * 24 + d)] == expected.output(i, h, d));
    EXPECT_EQ(different, 0);
  }

  for (int time = 0; time < 2; time++) {
    Tensor3<T> output(tokens, 4, 24);
    auto lse = expected.lse;
    lse.setZero();
    time == 0 ? alibi::attention_varlen_with_lse_into(output, lse, q, k, v, m, {cu_seqlens})
              : alibi::attention_varlen_with_lse_into(output, std::span(lse.data(), std::size_t(lse.size())), q, k, v,
                                                      m, {cu_seqlens}, {.workspace = &workspace});
    EXPECT_TRUE(test::same(output, expected.output));
    EXPECT_TRUE(test::same(lse, expected.lse));
    output.setZero();
    alibi::attention_varlen_into(output, q, k, v, m, {cu_seqlens});
    EXPECT_TRUE(test::same(output, expected.output));
  }
}

// Sequences are adjacent in memory. NaN in one sequence does not reach the others.
TYPED_TEST(Varlen, SequencesAreIndependent) {
  using T = TypeParam;
  const CumulativeLengths cu_seqlens = cu_seqlens_of({70, 64, 1, 200});
  auto q = this->varlen_tensor(335, 4, 24), k = this->varlen_tensor(335, 2, 24), v = this->varlen_tensor(335, 2, 20);
  const auto expected =
      alibi::attention_varlen_with_lse(q, k, v, this->slopes(), {cu_seqlens}, {.mask = {.causal = false}});
  for (std::size_t s = 0; s < 4; s++) {
    auto q_bad = q, k_bad = k, v_bad = v;
    const auto fill_with_nan = [&](Tensor3<T>& x) {
      const Index token = x.dimension(1) * x.dimension(2);
      std::fill(x.data() + cu_seqlens[s] * token, x.data() + cu_seqlens[s + 1] * token,
                std::numeric_limits<T>::quiet_NaN());
    };
    fill_with_nan(q_bad), fill_with_nan(k_bad), fill_with_nan(v_bad);
    const auto result = alibi::attention_varlen_with_lse(q_bad, k_bad, v_bad, this->slopes(), {cu_seqlens},
                                                         {.mask = {.causal = false}});
    Index different = 0;
    for (Index i = 0; i < 335; i++)
      for (Index h = 0; h < 4; h++) {
        const bool in = cu_seqlens[s] <= i && i < cu_seqlens[s + 1];
        for (Index d = 0; d < 20; d++) {
          const double x = double(result.output(i, h, d));
          different += in ? !std::isnan(x) : !(x == double(expected.output(i, h, d)));
        }
        different += in ? !std::isnan(result.lse(h, i)) : !(result.lse(h, i) == expected.lse(h, i));
      }
    EXPECT_EQ(different, 0) << "NaN in sequence " << s;
  }
}

// A padded batch: each entry has numbers in [begin, end) and NaN around them.
template <class T>
class Padded : public Varlen<T> {
 protected:
  static constexpr Index kTokens = 260;

  static Tensor4<T> with_padding(test::Random& random, Index batch, Index heads, Index tokens, Index dim,
                                 const std::vector<KeyRange>& ranges) {
    Tensor4<T> x(batch, heads, tokens, dim);
    x.setConstant(std::numeric_limits<T>::quiet_NaN());
    for (Index b = 0; b < batch; b++)
      for (Index h = 0; h < heads; h++)
        for (Index i = ranges[std::size_t(b)].begin; i < ranges[std::size_t(b)].end; i++)
          for (Index d = 0; d < dim; d++) x(b, h, i, d) = T(random.normal());
    return x;
  }
  static Tensor4<T> part(const Tensor4<T>& x, Index b, const KeyRange& range) {
    Tensor4<T> y(1, x.dimension(1), range.end - range.begin, x.dimension(3));
    for (Index h = 0; h < x.dimension(1); h++)
      for (Index i = range.begin; i < range.end; i++)
        std::copy_n(&x(b, h, i, 0), x.dimension(3), &y(0, h, i - range.begin, 0));
    return y;
  }

  // `queries` are the real queries. The call gets them only if `pass_queries` is true.
  void expect_unpadded(Index query_tokens, const std::vector<KeyRange>& queries, Index key_tokens,
                       const std::vector<KeyRange>& keys, bool pass_queries, const Options& options) {
    const auto batch = Index(keys.size());
    const auto q = with_padding(this->random_, batch, 4, query_tokens, 24, queries),
               k = with_padding(this->random_, batch, 2, key_tokens, 24, keys),
               v = with_padding(this->random_, batch, 2, key_tokens, 20, keys);
    test::RowMatrix<Sum<T>> slopes(batch, 4);
    for (Index i = 0; i < slopes.size(); i++) slopes.data()[i] = Sum<T>(this->random_.uniform(0, 1));
    Options padded = options;
    padded.keys = keys;
    if (pass_queries) padded.queries = queries;
    const auto [output, lse] = alibi::attention_with_lse(q, k, v, slopes, padded);
    Index different = 0;
    for (Index b = 0; b < batch; b++) {
      const KeyRange real = queries[std::size_t(b)], range = keys[std::size_t(b)];
      Options own = options;
      own.query_offsets = own.prefixes = {};
      if (!options.query_offsets.empty()) own.mask.query_offset = options.query_offsets[std::size_t(b)];
      if (!options.prefixes.empty()) own.mask.prefix = options.prefixes[std::size_t(b)];
      if (!pass_queries) {  // with ranges of keys alone, the queries keep their positions in the arrays
        own.mask.query_offset = own.mask.query_offset.value_or(key_tokens - query_tokens) - range.begin;
        own.mask.prefix = std::max<Index>(own.mask.prefix - range.begin, 0);
        own.mask.sinks = std::max<Index>(own.mask.sinks.value_or(0) - range.begin, 0);
      }
      const auto [o, l] = alibi::attention_with_lse(part(q, b, real), part(k, b, range), part(v, b, range),
                                                    test::Vector<Sum<T>>(slopes.row(b)), own);
      for (Index h = 0; h < 4; h++)
        for (Index i = 0; i < query_tokens; i++) {
          const bool in = real.begin <= i && i < real.end;
          for (Index d = 0; d < 20; d++)
            different += !(double(output(b, h, i, d)) == (in ? double(o(0, h, i - real.begin, d)) : 0));
          different += !(double(lse(b, h, i)) == (in ? double(l(0, h, i - real.begin)) : -test::kInfinity));
        }
    }
    EXPECT_EQ(different, 0);
    EXPECT_TRUE(test::same(alibi::attention(q, k, v, slopes, padded), output));

    Tensor4<T> into(batch, 4, query_tokens, 20);
    into.setConstant(std::numeric_limits<T>::quiet_NaN());
    alibi::Workspace workspace;
    padded.workspace = &workspace;
    alibi::attention_into(into, q, k, v, slopes, padded);
    EXPECT_TRUE(test::same(into, output));
    auto lse_into = lse;
    lse_into.setZero();
    into.setZero();
    alibi::attention_with_lse_into(into, lse_into, q, k, v, slopes, padded);
    EXPECT_TRUE(test::same(into, output));
    EXPECT_TRUE(test::same(lse_into, lse));
  }
};
TYPED_TEST_SUITE(Padded, Scalars);

const std::vector<Options> kOptions = {{},
                                       {.mask = {.causal = false}},
                                       {.mask = {.window = 20}, .tolerance = 0},
                                       {.mask = {.query_offset = 3}},
                                       {.mask = {.window = 20, .prefix = 40, .sinks = 15}}};

TYPED_TEST(Padded, QueryOffsetsAndPrefixes) {
  const std::vector<KeyRange> ranges = {{10, 250}, {63, 65}, {260, 260}, {0, 260}, {30, 230}};
  const std::vector<KeyRange> all(5, {0, this->kTokens});
  const std::vector<Index> offsets = {0, 5, -3, 100, -70}, prefixes = {0, 40, 7, 150, 230};
  for (const bool with_offsets : {true, false})
    for (const bool with_prefixes : {true, false})
      for (const Mask& mask : {Mask{}, Mask{.window = 50, .sinks = 20}}) {
        Options options{.mask = mask};
        if (with_offsets) options.query_offsets = offsets;
        if (with_prefixes) options.prefixes = prefixes;
        this->expect_unpadded(this->kTokens, all, this->kTokens, ranges, false, options);
        this->expect_unpadded(this->kTokens, ranges, this->kTokens, ranges, true, options);
      }
}

TYPED_TEST(Padded, OnTheLeftAndOnTheRight) {
  const std::vector<Index> lengths = {260, 1, 0, 64, 65, 199};
  for (const bool left : {true, false}) {
    std::vector<KeyRange> ranges(lengths.size());
    std::transform(lengths.begin(), lengths.end(), ranges.begin(), [&](Index length) {
      return left ? KeyRange{this->kTokens - length, this->kTokens} : KeyRange{0, length};
    });
    const std::vector<KeyRange> all(lengths.size(), {0, this->kTokens});
    for (const Options& options : kOptions) {
      this->expect_unpadded(this->kTokens, all, this->kTokens, ranges, false, options);
      this->expect_unpadded(this->kTokens, ranges, this->kTokens, ranges, true, options);
    }
  }
}

TYPED_TEST(Padded, InBetween) {
  const std::vector<KeyRange> ranges = {{10, 250}, {63, 65}, {260, 260}, {100, 100}, {0, 260}};
  for (const Options& options : kOptions)
    this->expect_unpadded(this->kTokens, ranges, this->kTokens, ranges, true, options);
}

// Ranges of keys alone have the same meaning for any number of queries: no row is padding, and each row sees the real
// keys at their distances in the arrays.
TYPED_TEST(Padded, KeysAlone) {
  const std::vector<KeyRange> ranges = {{10, 250}, {0, 100}, {160, 260}, {63, 65}, {0, 260}};
  for (const Index queries : {259, 260, 261, 12})
    for (const Options& options : kOptions)
      this->expect_unpadded(queries, std::vector<KeyRange>(5, {0, queries}), this->kTokens, ranges, false, options);

  using T = TypeParam;
  Tensor4<T> q(1, 1, 12, 8), v(1, 1, 13, 8);
  q.setRandom(), v.setConstant(T(1));
  for (const Index keys : {12, 13}) {
    const std::vector<KeyRange> last = {{keys - 5, keys}};
    const auto k = this->random_.template tensor<T>(1, 1, keys, 8);
    const Tensor4<T> values = v.slice(Eigen::array<Index, 4>{0, 0, 0, 0}, Eigen::array<Index, 4>{1, 1, keys, 8});
    const auto output = alibi::attention(q, k, values, alibi::slopes(1), {.mask = {.causal = false}, .keys = last});
    for (Index i = 0; i < 12; i++)
      EXPECT_NEAR(double(output(0, 0, i, 0)), 1, 1e-6) << "query " << i << ", " << keys << " keys";
  }
}

// Decoding of a batch of sequences of different lengths. Every query is real.
TYPED_TEST(Padded, FewQueriesOfManyKeys) {
  const std::vector<KeyRange> keys = {{10, 250}, {0, 65}, {260, 260}, {195, 260}, {0, 260}};
  const std::vector<KeyRange> all(5, {0, 3}), some = {{0, 3}, {2, 3}, {1, 3}, {0, 0}, {0, 2}};
  for (const Options& options : kOptions) {
    this->expect_unpadded(3, all, this->kTokens, keys, false, options);
    this->expect_unpadded(3, some, this->kTokens, keys, true, options);
  }
}

// A padded batch and its varlen form give the same result.
TYPED_TEST(Padded, EqualsVarlen) {
  using T = TypeParam;
  const std::vector<KeyRange> ranges = {{0, 100}, {30, 260}, {160, 190}};
  const auto q = this->with_padding(this->random_, 3, 4, 260, 24, ranges),
             k = this->with_padding(this->random_, 3, 2, 260, 24, ranges),
             v = this->with_padding(this->random_, 3, 2, 260, 20, ranges);
  const CumulativeLengths cu_seqlens = cu_seqlens_of({100, 230, 30});
  const auto to_varlen = [&](const Tensor4<T>& x) {
    Tensor3<T> y(360, x.dimension(1), x.dimension(3));
    for (Index b = 0; b < 3; b++)
      for (Index h = 0; h < x.dimension(1); h++)
        for (Index i = 0; i < ranges[std::size_t(b)].end - ranges[std::size_t(b)].begin; i++)
          std::copy_n(&x(b, h, ranges[std::size_t(b)].begin + i, 0), x.dimension(3),
                      &y(cu_seqlens[std::size_t(b)] + i, h, 0));
    return y;
  };
  const auto output = alibi::attention(q, k, v, this->slopes(), {.queries = ranges, .keys = ranges});
  EXPECT_TRUE(test::same(to_varlen(output), alibi::attention_varlen(to_varlen(q), to_varlen(k), to_varlen(v),
                                                                    this->slopes(), {cu_seqlens})));
}

// A valid call. Each test makes one argument invalid. An error must precede every write.
class VarlenErrors : public testing::Test {
 protected:
  static constexpr float kUntouched = 42;

  test::Random random_{1};
  Tensor3<float> q_{10, 4, 8}, k_{12, 2, 8}, v_{12, 2, 3}, output_{10, 4, 3};
  CumulativeLengths queries_ = {0, 4, 4, 10}, keys_ = {0, 5, 6, 12};
  Eigen::VectorXf m_ = alibi::slopes(4);
  Options options_;

  VarlenErrors() { random_.fill(q_), random_.fill(k_), random_.fill(v_); }

  template <class Array, class Call>
  static std::string thrown(Array& output, Call call) {
    output.setConstant(kUntouched);
    try {
      call();
    } catch (const std::invalid_argument& error) {
      for (Index i = 0; i < output.size(); i++)
        EXPECT_EQ(output.data()[i], kUntouched) << "written before: " << error.what();
      return error.what();
    }
    return "no error";
  }
  template <class Slopes>
  std::string with_slopes(const Slopes& m) {
    return thrown(output_, [&] { alibi::attention_varlen_into(output_, q_, k_, v_, m, {queries_, keys_}, options_); });
  }
  std::string with(const CumulativeLengths& queries, const CumulativeLengths& keys) {
    queries_ = queries, keys_ = keys;
    return with_slopes(m_);
  }
  std::string with_options(const Options& options) {
    options_ = options;
    return with_slopes(m_);
  }
  const CumulativeLengths good_queries_ = queries_, good_keys_ = keys_;
};

TEST_F(VarlenErrors, ValidCall) { EXPECT_EQ(with(queries_, keys_), "no error"); }

TEST_F(VarlenErrors, Unsorted) {
  const std::string expected = "; expected no entry below the one before it";
  EXPECT_EQ(with({0, 5, 4, 10}, good_keys_), "alibi: cu_seqlens_q[2] is 4 after 5" + expected);
  EXPECT_EQ(with({0, 4, 11, 10}, good_keys_), "alibi: cu_seqlens_q[3] is 10 after 11" + expected);
  EXPECT_EQ(with({0, -1, 4, 10}, good_keys_), "alibi: cu_seqlens_q[1] is -1 after 0" + expected);
  EXPECT_EQ(with(good_queries_, {0, 7, 6, 12}), "alibi: cu_seqlens_k[2] is 6 after 7" + expected);
  EXPECT_EQ(with(good_queries_, {0, std::numeric_limits<Index>::max(), std::numeric_limits<Index>::min(), 12}),
            "alibi: cu_seqlens_k[2] is -9223372036854775808 after 9223372036854775807" + expected);
}

TEST_F(VarlenErrors, OutOfRange) {
  EXPECT_EQ(with({1, 4, 4, 10}, good_keys_), "alibi: cu_seqlens_q begins with 1; expected 0");
  EXPECT_EQ(with({-1, 4, 4, 10}, good_keys_), "alibi: cu_seqlens_q begins with -1; expected 0");
  EXPECT_EQ(with(good_queries_, {2, 5, 6, 12}), "alibi: cu_seqlens_k begins with 2; expected 0");
  EXPECT_EQ(with({0, 4, 4, 9}, good_keys_), "alibi: cu_seqlens_q ends with 9; expected 10, the tokens of q");
  EXPECT_EQ(with({0, 4, 4, 11}, good_keys_), "alibi: cu_seqlens_q ends with 11; expected 10, the tokens of q");
  EXPECT_EQ(with(good_queries_, {0, 5, 6, 13}), "alibi: cu_seqlens_k ends with 13; expected 12, the tokens of k");
  EXPECT_EQ(with(good_queries_, {}), "alibi: cu_seqlens_q ends with 10; expected 12, the tokens of k");
}

TEST_F(VarlenErrors, Count) {
  EXPECT_EQ(with({}, good_keys_),
            "alibi: cu_seqlens_q has 0 entries; expected at least 1, one more than there are sequences");
  EXPECT_EQ(with({}, {}), "alibi: cu_seqlens_q has 0 entries; expected at least 1, one more than there are sequences");
  EXPECT_EQ(with(good_queries_, {0, 5, 12}), "alibi: cu_seqlens_k has 3 entries; expected 4, as many as cu_seqlens_q");
  EXPECT_EQ(with({0, 10}, good_keys_), "alibi: cu_seqlens_k has 4 entries; expected 2, as many as cu_seqlens_q");
}

TEST_F(VarlenErrors, ThoseOfAttention) {
  EXPECT_EQ(with_slopes(alibi::slopes(2)), "alibi: slopes has heads 2; expected 4, the heads of q");
  EXPECT_EQ(with_options({.tolerance = 1}), "alibi: tolerance is 1; expected at least 0 and below 1");
  EXPECT_EQ(with_options({.mask = {.window = 0}}),
            "alibi: mask.window is 0; expected at least 1, the query's own position");
  k_ = Tensor3<float>(12, 3, 8);
  EXPECT_EQ(with_options({}), "alibi: v has heads 2; expected 3, the heads of k");
  k_ = Tensor3<float>(12, 2, 7);
  EXPECT_EQ(with_options({}), "alibi: k has head_dim 7; expected 8, the head_dim of q");
}

TEST_F(VarlenErrors, PerSequence) {
  EXPECT_EQ(with_slopes(test::RowMatrix<float>(test::RowMatrix<float>::Ones(2, 4))),
            "alibi: slopes has batch 2; expected 3, the number of sequences, or a vector of heads");
  EXPECT_EQ(with_slopes(test::RowMatrix<float>(test::RowMatrix<float>::Ones(3, 4))), "no error");
  std::vector<alibi::PruningStats> stats(4);
  EXPECT_EQ(with_options({.pruning_stats = stats}),
            "alibi: pruning_stats has 4 entries; expected 12, sequences x heads of q");
  stats.resize(12);
  EXPECT_EQ(with_options({.pruning_stats = stats}), "no error");
}

TEST_F(VarlenErrors, QueryOffsetsAndPrefixes) {
  const Index far = Index(1) << 61;
  const std::vector<Index> two = {1, 2}, three = {0, 5, 3}, beyond = {0, -far - 1, 0}, negative = {4, 0, -1};
  EXPECT_EQ(with_options({.query_offsets = three, .prefixes = three}), "no error");
  EXPECT_EQ(with_options({.query_offsets = two}),
            "alibi: options.query_offsets has 2 entries; expected 3, the number of sequences");
  EXPECT_EQ(with_options({.query_offsets = beyond}),
            "alibi: options.query_offsets[1] is -2305843009213693953; expected within ±2^61");
  EXPECT_EQ(with_options({.mask = {.query_offset = 0}, .query_offsets = three}),
            "alibi: options.query_offsets is given with mask.query_offset; expected one of them");
  EXPECT_EQ(with_options({.prefixes = two}),
            "alibi: options.prefixes has 2 entries; expected 3, the number of sequences");
  EXPECT_EQ(with_options({.prefixes = negative}), "alibi: options.prefixes[2] is -1; expected 0 or more");
  EXPECT_EQ(with_options({.mask = {.prefix = 3}, .prefixes = three}),
            "alibi: options.prefixes is given with mask.prefix; expected one of them");
  EXPECT_EQ(with_options({.mask = {.causal = false}, .prefixes = three}),
            "alibi: options.prefixes is given with a bidirectional mask; expected none, or a causal mask");
}

TEST_F(VarlenErrors, AViewOfABatch) {
  EXPECT_EQ(thrown(output_,
                   [&] {
                     alibi::attention_varlen_into(output_, alibi::view(q_.data(), {2, 4, 5, 8}, {160, 8, 32, 1}), k_,
                                                  v_, m_, {queries_, keys_}, options_);
                   }),
            "alibi: q has batch 2; expected 1, all sequences side by side");
}

class PaddedErrors : public testing::Test {
 protected:
  test::Random random_{1};
  Tensor4<float> q_ = random_.tensor<float>(2, 4, 5, 8), k_ = random_.tensor<float>(2, 2, 6, 8),
                 v_ = random_.tensor<float>(2, 2, 6, 3), output_{2, 4, 5, 3};

  std::string with(const std::vector<KeyRange>& keys, const std::vector<KeyRange>& queries = {},
                   const Options& options = {}) {
    output_.setConstant(42);
    try {
      Options padded = options;
      padded.keys = keys;
      padded.queries = queries;
      alibi::attention_into(output_, q_, k_, v_, alibi::slopes(4), padded);
    } catch (const std::invalid_argument& error) {
      for (Index i = 0; i < output_.size(); i++) EXPECT_EQ(output_.data()[i], 42) << "written before: " << error.what();
      return error.what();
    }
    return "no error";
  }
};

TEST_F(PaddedErrors, ValidCall) {
  EXPECT_EQ(with({{0, 6}, {6, 6}}), "no error");
  EXPECT_EQ(with({{0, 6}, {3, 4}}, {{0, 5}, {5, 5}}), "no error");
}

TEST_F(PaddedErrors, Ranges) {
  const std::string keys = "; expected 0 <= begin <= end <= 6, the tokens of k",
                    queries = "; expected 0 <= begin <= end <= 5, the tokens of q";
  EXPECT_EQ(with({{0, 6}, {4, 3}}), "alibi: options.keys[1] is [4, 3)" + keys);
  EXPECT_EQ(with({{-1, 6}, {3, 4}}), "alibi: options.keys[0] is [-1, 6)" + keys);
  EXPECT_EQ(with({{0, 7}, {3, 4}}), "alibi: options.keys[0] is [0, 7)" + keys);
  EXPECT_EQ(with({{7, 7}, {3, 4}}), "alibi: options.keys[0] is [7, 7)" + keys);
  EXPECT_EQ(with({{0, 6}, {3, 4}}, {{0, 5}, {0, 6}}), "alibi: options.queries[1] is [0, 6)" + queries);
  EXPECT_EQ(with({{0, 6}, {3, 4}}, {{2, 1}, {0, 5}}), "alibi: options.queries[0] is [2, 1)" + queries);
}

TEST_F(PaddedErrors, Count) {
  EXPECT_EQ(with({{0, 6}}), "alibi: options.keys has 1 entries; expected 2, the batch of q");
  EXPECT_EQ(with({}), "no error") << "without ranges all keys are real";
  EXPECT_EQ(with({{0, 6}, {0, 6}, {0, 6}}), "alibi: options.keys has 3 entries; expected 2, the batch of q");
  EXPECT_EQ(with({{0, 6}, {0, 6}}, {{0, 5}}), "alibi: options.queries has 1 entries; expected 2, the batch of q");
  const std::vector<Index> one = {0};
  EXPECT_EQ(with({}, {}, {.query_offsets = one}),
            "alibi: options.query_offsets has 1 entries; expected 2, the batch of q");
}

TEST_F(PaddedErrors, ThoseOfAttention) {
  EXPECT_EQ(with({{0, 6}, {0, 6}}, {}, {.tolerance = -1}), "alibi: tolerance is -1; expected at least 0 and below 1");
  std::vector<alibi::PruningStats> stats(7);
  EXPECT_EQ(with({{0, 6}, {0, 6}}, {}, {.pruning_stats = stats}),
            "alibi: pruning_stats has 7 entries; expected 8, batch x heads of q");
  k_ = Tensor4<float>(3, 2, 6, 8);
  EXPECT_EQ(with({{0, 6}, {0, 6}}), "alibi: k has batch 3; expected 2, the batch of q");
}

}  // namespace
