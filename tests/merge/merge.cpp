// Merged results over parts of the keys equal the result over all keys, in any order and grouping. Reductions over
// split keys, in a ring and in a tree, with their gradients.
#include <alibi/merge.hpp>
#include <cmath>
#include <limits>
#include <utility>

#include "common.hpp"

namespace {

using alibi::KeyRange, alibi::Options;
using test::error_of, test::Index, test::Random, test::Tensor4;

template <class T>
using Result = alibi::ForwardResult<Tensor4<T>, Eigen::Tensor<alibi::detail::Sum<T>, 3, Eigen::RowMajor>>;

template <class T>
Result<T> over(const Tensor4<T>& q, const Tensor4<T>& k, const Tensor4<T>& v, const Eigen::VectorXd& slopes,
               Options options, Index begin, Index end) {
  const std::vector<KeyRange> range(std::size_t(q.dimension(0)), KeyRange{begin, end});
  options.keys = range;
  return alibi::attention_with_lse(q, k, v, slopes, options);
}

/// The largest difference of outputs, and of those lse that are finite, in units of the last place of T; infinite if
/// other lse differ.
template <class T>
double ulps(const Result<T>& a, const Result<T>& b) {
  double most = test::distance(a.output, b.output);
  for (Index i = 0; i < a.lse.size(); i++) {
    const double x = double(a.lse.data()[i]), y = double(b.lse.data()[i]);
    if (x != y) most = std::max(most, std::abs(x - y) / std::max(1., std::abs(y)));
  }
  return most / double(std::numeric_limits<alibi::detail::Sum<T>>::epsilon());
}

template <class T>
Result<T> result_of(const Tensor4<T>& output, Index batch, Index heads, Index queries) {
  Result<T> result{output, {}};
  result.lse.resize(batch, heads, queries);
  result.lse.setZero();
  return result;
}

template <class T>
class Merge : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(Merge, Scalars);

TYPED_TEST(Merge, EqualsAttentionOverAllKeysInAnyOrder) {
  using T = TypeParam;
  for (std::uint64_t seed = 1; seed <= 200; seed++) {
    Random random(seed);
    const Index batch = random.integer(1, 2), heads = random.integer(1, 3), queries = random.integer(1, 40),
                keys = random.integer(1, 300);
    const auto q = random.tensor<T>(batch, heads, queries, 16), k = random.tensor<T>(batch, heads, keys, 16),
               v = random.tensor<T>(batch, heads, keys, 20);
    Eigen::VectorXd slopes(heads);
    for (double& m : slopes) m = std::exp2(-random.uniform(0, 8));
    Options options;
    options.tolerance = 0;
    options.mask.causal = random.chance(0.5);
    if (random.chance(0.3)) options.mask.window = random.integer(1, keys + 10);
    options.mask.query_offset = random.integer(-5, keys);  // of all parts: it would follow the keys of each
    if (options.mask.causal && random.chance(0.3)) options.mask.prefix = random.integer(0, keys);
    if (options.mask.window && random.chance(0.5)) options.mask.sinks = random.integer(1, keys);
    const Index first = random.integer(0, keys), second = random.integer(first, keys);  // parts may be empty
    const Result<T> a = over(q, k, v, slopes, options, 0, first), b = over(q, k, v, slopes, options, first, second),
                    c = over(q, k, v, slopes, options, second, keys);
    const auto all = alibi::attention_with_lse(q, k, v, slopes, options);

    const auto merged = alibi::merge(a, b, c);
    // An lse is rounded by half a unit of its own size, and the weights with it.
    double bound = 2;
    for (Index i = 0; i < merged.lse.size(); i++)
      if (std::isfinite(merged.lse.data()[i])) bound = std::max(bound, 2 * std::abs(double(merged.lse.data()[i])));
    EXPECT_LE(ulps<T>(merged, {all.output, all.lse}), 8 * bound) << "seed " << seed;
    EXPECT_LE(ulps<T>(alibi::merge(c, a, b), merged), bound) << "seed " << seed;
    EXPECT_LE(ulps<T>(alibi::merge(alibi::merge(a, b), c), merged), bound) << "seed " << seed;
    EXPECT_LE(ulps<T>(alibi::merge(a, alibi::merge(c, b)), merged), bound) << "seed " << seed;
    EXPECT_EQ(ulps<T>(alibi::merge(b), b), 0) << "seed " << seed;

    Result<T> in_place = a;
    alibi::merge_into(in_place.output, in_place.lse, {{in_place.output, in_place.lse}, b, {c.output, c.lse}});
    EXPECT_EQ(ulps<T>(in_place, merged), 0) << "seed " << seed;
  }
}

template <class T>
Tensor4<T> tokens(const Tensor4<T>& x, Index begin, Index end) {
  return x.slice(Eigen::array<Index, 4>{0, 0, begin, 0},
                 Eigen::array<Index, 4>{x.dimension(0), x.dimension(1), end - begin, x.dimension(3)});
}

// 4 processes with a quarter of the tokens each. Keys, values and their gradients go round.
TYPED_TEST(Merge, Ring) {
  using T = TypeParam;
  Random random(5);
  constexpr Index kProcesses = 4, kPart = 70, kTokens = kProcesses * kPart;
  const auto q = random.tensor<T>(1, 4, kTokens, 16), k = random.tensor<T>(1, 2, kTokens, 16),
             v = random.tensor<T>(1, 2, kTokens, 16), grad_output = random.tensor<T>(1, 4, kTokens, 16);
  const auto slopes = alibi::slopes<T>(4);
  for (const bool causal : {true, false}) {
    const auto all = alibi::attention_with_lse(q, k, v, slopes, {.mask = {.causal = causal}});
    const auto grad = alibi::attention_backward(grad_output, q, k, v, slopes, all, {.mask = {.causal = causal}});
    Tensor4<T> grad_k(k.dimensions()), grad_v(v.dimensions());
    grad_k.setZero(), grad_v.setZero();
    test::Vector<T> grad_slopes = test::Vector<T>::Zero(4);
    for (Index p = 0; p < kProcesses; p++) {
      const auto own = [&](const Tensor4<T>& x) { return tokens(x, p * kPart, (p + 1) * kPart); };
      // Calls body(keys, values, options) with each part, that of the process itself first.
      const auto for_each_part = [&](const auto& body) {
        for (Index step = 0; step < kProcesses; step++) {
          const Index begin = (p + step) % kProcesses * kPart;
          body(begin, tokens(k, begin, begin + kPart), tokens(v, begin, begin + kPart),
               Options{.mask = {.causal = causal, .query_offset = p * kPart - begin}});
        }
      };
      Result<T> result = result_of(own(q), 1, 4, kPart);
      result.lse.setConstant(-std::numeric_limits<T>::infinity());
      for_each_part([&](Index, const auto& keys, const auto& values, const Options& options) {
        alibi::merge_into(result.output, result.lse,
                          {result, alibi::attention_with_lse(own(q), keys, values, slopes, options)});
      });
      EXPECT_LE(test::distance(result.output, own(all.output)), test::kBound<T>) << "process " << p;

      Tensor4<T> grad_q(own(q).dimensions());
      grad_q.setZero();
      for_each_part([&](Index begin, const auto& keys, const auto& values, const Options& options) {
        const auto part = alibi::attention_backward(own(grad_output), own(q), keys, values, slopes, result, options);
        grad_q += part.q;
        grad_slopes += part.slopes;
        for (auto [to, from] : {std::pair(&grad_k, &part.k), std::pair(&grad_v, &part.v)})
          to->slice(Eigen::array<Index, 4>{0, 0, begin, 0}, from->dimensions()) += *from;
      });
      EXPECT_LE(test::distance(grad_q, own(grad.q)), 10 * test::kBound<T>) << "process " << p;
    }
    EXPECT_LE(test::distance(grad_k, grad.k), 10 * test::kBound<T>);
    EXPECT_LE(test::distance(grad_v, grad.v), 10 * test::kBound<T>);
    EXPECT_LE(test::distance(grad_slopes, grad.slopes), kTokens * 10 * test::kBound<T>)
        << "terms of the distances cancel";
  }
}

// 7 parts, merged in pairs, and these in pairs.
TYPED_TEST(Merge, Tree) {
  using T = TypeParam;
  Random random(6);
  const auto q = random.tensor<T>(1, 2, 3, 16), k = random.tensor<T>(1, 2, 400, 16),
             v = random.tensor<T>(1, 2, 400, 20);
  const Eigen::VectorXd slopes = alibi::slopes<double>(2);
  const Options options{.mask = {.query_offset = 397}};
  std::vector<Result<T>> parts;
  for (Index p = 0; p < 7; p++) parts.push_back(over(q, k, v, slopes, options, p * 50, p == 6 ? 400 : (p + 1) * 50));
  for (; parts.size() > 1; parts.resize((parts.size() + 1) / 2))
    for (std::size_t p = 0; p < parts.size() / 2; p++)
      alibi::merge_into(parts[p].output, parts[p].lse, {parts[p], parts[parts.size() - 1 - p]});
  const auto all = over(q, k, v, slopes, options, 0, 400);
  EXPECT_LE(test::distance(parts[0].output, all.output), test::kBound<T>);
  EXPECT_LE(test::distance(parts[0].lse, all.lse), 10 * test::kBound<T>);
}

// The gradient through merge(), as automatic differentiation finds it: from the gradients of the merged output and lse
// to those of each part, and through the attention of the part. It equals the gradient of the whole.
TYPED_TEST(Merge, TheGradientThroughMergeIsThatOfTheWhole) {
  using T = TypeParam;
  Random random(7);
  constexpr Index kQueries = 60, kKeys = 300, kCut = 130;
  const auto q = random.tensor<T>(2, 3, kQueries, 16), k = random.tensor<T>(2, 3, kKeys, 16),
             v = random.tensor<T>(2, 3, kKeys, 20);
  Result<T> gradient = result_of(random.tensor<T>(2, 3, kQueries, 20), 2, 3, kQueries);
  random.fill(gradient.lse);
  const auto slopes = alibi::slopes<T>(3);
  const auto all = alibi::attention_with_lse(q, k, v, slopes);
  const auto grad = alibi::attention_backward(gradient, q, k, v, slopes, all);

  Tensor4<T> grad_q(q.dimensions());
  grad_q.setZero();
  test::Vector<T> grad_slopes = test::Vector<T>::Zero(3);
  for (const auto& [begin, end] : {std::pair<Index, Index>(0, kCut), std::pair<Index, Index>(kCut, kKeys)}) {
    const auto keys = tokens(k, begin, end), values = tokens(v, begin, end);
    const Options options{.mask = {.query_offset = kKeys - kQueries - begin}};
    const Result<T> part = alibi::attention_with_lse(q, keys, values, slopes, options);
    Result<T> of_part = gradient;  // do_s = w_s do, dlse_s = w_s (dlse + do·(o_s - o)), with w_s = exp(lse_s - lse)
    for (Index b = 0; b < 2; b++)
      for (Index h = 0; h < 3; h++)
        for (Index i = 0; i < kQueries; i++) {
          const T weight = std::exp(part.lse(b, h, i) - all.lse(b, h, i));
          for (Index d = 0; d < 20; d++) {
            of_part.lse(b, h, i) += gradient.output(b, h, i, d) * (part.output(b, h, i, d) - all.output(b, h, i, d));
            of_part.output(b, h, i, d) *= weight;
          }
          of_part.lse(b, h, i) *= weight;
        }
    const auto of = alibi::attention_backward(of_part, q, keys, values, slopes, part, options);
    grad_q += of.q;
    grad_slopes += of.slopes;
    EXPECT_LE(test::distance(of.k, tokens(grad.k, begin, end)), 10 * test::kBound<T>);
    EXPECT_LE(test::distance(of.v, tokens(grad.v, begin, end)), 10 * test::kBound<T>);
  }
  EXPECT_LE(test::distance(grad_q, grad.q), 10 * test::kBound<T>);
  EXPECT_LE(test::distance(grad_slopes, grad.slopes), kKeys * 10 * test::kBound<T>) << "terms of the distances cancel";
}

TEST(MergeFloat, RowsThatSeeNoKey) {
  Random random(1);
  const auto x = random.tensor<float>(1, 1, 3, 4);
  Result<float> seen = result_of(x, 1, 1, 3), none = seen;
  seen.lse.setConstant(-2.f);
  none.lse.setConstant(-std::numeric_limits<float>::infinity());
  none.output.setConstant(std::numeric_limits<float>::quiet_NaN());  // of weight 0
  EXPECT_EQ(ulps<float>(alibi::merge(none, seen, none), seen), 0);
  const auto nothing = alibi::merge(none, none);
  for (Index i = 0; i < nothing.output.size(); i++) EXPECT_EQ(nothing.output.data()[i], 0);
  for (Index i = 0; i < nothing.lse.size(); i++) EXPECT_EQ(nothing.lse.data()[i], none.lse.data()[i]);
}

TEST(MergeFloat, NanOfAnyPartStays) {
  const Result<float> finite = result_of<float>(Tensor4<float>(1, 1, 1, 2).setConstant(1), 1, 1, 1);
  Result<float> nan = finite, none = finite;
  nan.lse.setConstant(std::numeric_limits<float>::quiet_NaN());
  none.lse.setConstant(-std::numeric_limits<float>::infinity());
  for (const auto& all : {alibi::merge(nan, nan), alibi::merge(nan, none), alibi::merge(none, nan),
                          alibi::merge(finite, nan), alibi::merge(nan, finite)}) {
    EXPECT_TRUE(std::isnan(all.output(0, 0, 0, 0)));
    EXPECT_TRUE(std::isnan(all.lse.data()[0]));
  }
}

TEST(MergeFloat, ArraysOfAnyKind) {
  using Matrix = test::RowMatrix<float>;
  Random random(2);
  const Matrix q = random.matrix<float>(5, 8), k = random.matrix<float>(30, 8);
  const auto part = [&](Index begin, Index end) {
    return alibi::attention_with_lse(q, Matrix(k.middleRows(begin, end - begin)),
                                     Matrix(k.middleRows(begin, end - begin)), 0.25f,
                                     {.mask = {.query_offset = 25 - begin}});
  };
  const auto all = part(0, 30);
  const auto merged = alibi::merge(part(0, 12), part(12, 30));
  EXPECT_LE((merged.output - all.output).cwiseAbs().maxCoeff(), 1e-6f);

  using Tensor3 = Eigen::Tensor<float, 3, Eigen::RowMajor>;  // varlen: [tokens, heads, head_dim]
  Tensor3 x(6, 2, 4);
  x.setRandom();
  const std::vector<Index> cu_seqlens = {0, 2, 6};
  const auto varlen = alibi::attention_varlen_with_lse(x, x, x, Eigen::Vector2f(0.5f, 0.25f), {cu_seqlens});
  const auto same = alibi::merge(varlen, varlen);  // the same keys twice: the same output
  for (Index i = 0; i < x.size(); i++) EXPECT_NEAR(same.output.data()[i], varlen.output.data()[i], 1e-6f);
  for (Index i = 0; i < same.lse.size(); i++)
    EXPECT_NEAR(same.lse.data()[i], varlen.lse.data()[i] + std::log(2.f), 1e-6f);

  using Half = Eigen::half;
  const auto h = random.tensor<Half>(1, 1, 4, 8);
  const auto of_half = alibi::attention_with_lse(h, h, h, 0.5f);
  EXPECT_EQ(ulps<Half>(alibi::merge(of_half, of_half), of_half) > 0, true);  // the lse rises by ln 2
}

TEST(MergeErrors, NameThePart) {
  Random random(3);
  const auto a = result_of(random.tensor<float>(1, 2, 3, 4), 1, 2, 3),
             b = result_of(random.tensor<float>(1, 2, 3, 5), 1, 2, 3), c = result_of(a.output, 1, 2, 2);
  Result<float> into = a;
  EXPECT_EQ(error_of([&] { alibi::merge_into(into.output, into.lse, {}); }),
            "alibi: there are no parts to merge; expected at least one");
  EXPECT_EQ(error_of([&] { alibi::merge(a, b); }),
            "alibi: the output of part 1 is [1, 2, 3, 5]; expected [1, 2, 3, 4], the shape of output");
  EXPECT_EQ(error_of([&] { alibi::merge(a, c); }),
            "alibi: the lse of part 1 has 4 entries; expected 6, one for each row of output");
  EXPECT_EQ(error_of([&] { alibi::merge(c, a); }), "alibi: lse has 4 entries; expected 6, one for each row of output");
}

}  // namespace
