// Two-sided slopes and positions: the forward against the definition over random calls, the laws that relate them to
// plain slopes, the forget gates of the Forgetting Transformer, and the text of each error. Gradients are tested in
// backward/reference.cpp, the certificate in pruning/certificate.cpp.
#include <cstdlib>
#include <numeric>

#include "backward_case.hpp"

namespace {

using test::Index, test::Tensor3, test::Tensor4;
using Array = Tensor4<float>;

template <class T>
class Positions : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(Positions, Scalars);

int cases(int usual) {
  const char* text = std::getenv("ALIBI_TEST_CASES");
  return text ? std::atoi(text) : usual;
}

/// The errors of the library's forward, in units of the bound of Call::run().
template <class T>
std::array<double, 2> forward_errors(test::BackwardCall<T>& call) {
  constexpr double order_one = 6;
  call.bias.visit([&](const auto& bias) {
    alibi::attention_with_lse_into(call.output.view(), call.lse, call.q.view(), call.k.view(), call.v.view(), bias,
                                   call.options);
  });
  const alibi::reference::Result expected = call.exact().forward();
  const double logit = std::max(1., call.largest_logit() / order_one);
  double value = order_one, of_lse = 0;
  call.v.for_each([&](T x) { value = std::max(value, double(std::abs(x))); });
  const double of_output =
      test::distance(call.output.take(), expected.output) / (test::kBound<T> * logit * value / order_one);
  for (std::size_t i = 0; i < call.lse.size(); i++) {
    const double is = double(call.lse[i]), should = expected.lse[Index(i)];
    const double error =
        is == should ? 0 : std::abs(is - should) / (test::kBound<T> * std::max(logit, std::abs(should)));
    of_lse = std::max(of_lse, std::isnan(error) ? test::kInfinity : error);
  }
  return {of_output, of_lse};
}

TYPED_TEST(Positions, RandomCalls) {
  std::array<double, 2> worst = {};
  int failures = 0;
  for (int seed = 1; seed <= cases(700) && failures < 5; seed++) {
    test::Random random{std::uint64_t(seed)};
    test::BackwardCall<TypeParam> call(random, test::random_shape(random));
    call.bias = test::random_position_bias(random, call.s, call.slopes, 50);
    call.fit_mask();
    if (random.chance(0.3)) call.options.tolerance = 0;
    const auto errors = forward_errors(call);
    EXPECT_LE(errors[0], 1) << "output, in units of the bound: " << call.description();
    EXPECT_LE(errors[1], 1) << "lse, in units of the bound: " << call.description();
    failures += !(errors[0] <= 1 && errors[1] <= 1);
    for (std::size_t i = 0; i < 2; i++) worst[i] = std::max(worst[i], errors[i]);
  }
  std::cout << "worst output " << worst[0] << ", worst lse " << worst[1] << " of the bound\n";
}

/// q, k and v [2, 4, 300, 16], and slopes that prune some heads.
class Laws : public testing::Test {
 protected:
  static constexpr Index kTokens = 300;
  test::Random random_{7};
  Array q_ = random_.tensor<float>(2, 4, kTokens, 16), k_ = random_.tensor<float>(2, 2, kTokens, 16),
        v_ = random_.tensor<float>(2, 2, kTokens, 16);
  Eigen::VectorXf m_ = Eigen::Vector4f(1, 0.25f, 0.03125f, 0);
  std::vector<alibi::PruningStats> stats_ = std::vector<alibi::PruningStats>(8);

  template <class Bias>
  auto run(const Bias& bias, alibi::Options options = {}) {
    options.pruning_stats = stats_;
    return alibi::attention_with_lse(q_, k_, v_, bias, options);
  }
  Index computed() const {
    return std::accumulate(stats_.begin(), stats_.end(), Index(0),
                           [](Index sum, const auto& of) { return sum + of.tiles_computed; });
  }
  Index total() const {
    return std::accumulate(stats_.begin(), stats_.end(), Index(0),
                           [](Index sum, const auto& of) { return sum + of.tiles_total; });
  }
  static Eigen::VectorXd indices(double start) {
    return Eigen::VectorXd::LinSpaced(kTokens, start, start + double(kTokens - 1));
  }
  template <class A, class B>
  static void expect_same(const A& a, const B& b) {
    EXPECT_TRUE(test::same(a.output, b.output));
    EXPECT_TRUE(test::same(a.lse, b.lse));
  }
};

TEST_F(Laws, EqualSlopesHaveTheBitsOfOneSlope) {
  for (const bool causal : {true, false}) {
    const auto plain = run(m_, {.mask = {.causal = causal}});
    const Index of_plain = computed();
    expect_same(plain, run(alibi::two_sided(m_, m_), {.mask = {.causal = causal}}));
    EXPECT_EQ(computed(), of_plain);
    EXPECT_LT(computed(), total());
  }
}

TEST_F(Laws, AHeadThatLooksBackIsCausal) {
  const auto causal = run(m_);
  const Index of_causal = total();
  const float infinite = std::numeric_limits<float>::infinity();
  const Eigen::VectorXf hidden = Eigen::VectorXf::Constant(4, infinite);
  expect_same(causal, run(alibi::two_sided(m_, hidden), {.mask = {.causal = false}}));
  EXPECT_EQ(total(), of_causal) << "nothing is computed for the hidden side";

  // Both sides hidden: the query's own value.
  const auto own = run(alibi::two_sided(hidden, hidden), {.mask = {.causal = false}});
  for (Index i = 0; i < kTokens; i += 37) EXPECT_NEAR(own.output(1, 3, i, 5), v_(1, 1, i, 5), 1e-6);
}

TEST_F(Laws, AHeadThatLooksAheadIsTheMirrorImage) {
  const Eigen::VectorXf hidden = Eigen::VectorXf::Constant(4, std::numeric_limits<float>::infinity());
  const auto ahead = run(alibi::two_sided(hidden, m_), {.mask = {.causal = false}});
  const Eigen::array<bool, 4> tokens{false, false, true, false};
  for (Array* x : {&q_, &k_, &v_}) *x = Array(x->reverse(tokens));
  const auto back = run(m_);
  EXPECT_LE(test::distance(Array(back.output.reverse(tokens)), ahead.output), test::kBound<float>);
}

// Differences of integers are exact, however large the integers are.
TEST_F(Laws, PositionsMayBeLarge) {
  const auto small = run(alibi::positions(m_, indices(0)));
  const Index of_small = computed();
  EXPECT_LT(of_small, total());
  expect_same(small, run(alibi::positions(m_, indices(1e9))));
  EXPECT_EQ(computed(), of_small);
  expect_same(small, run(alibi::positions(m_, indices(-1e12))));
  const auto plain = run(m_);
  EXPECT_LE(test::distance(small.output, plain.output), test::kBound<float>);
  EXPECT_LE(test::distance(small.lse, plain.lse), test::kBound<float>);
}

// A key at an extreme position costs its neighbours in the tile no digits.
TEST_F(Laws, OneKeyMayBeFarFromTheOthersOfItsTile) {
  Eigen::VectorXd c = indices(0) * 1.5;
  c[0] = -1e280;
  const auto with_first = run(alibi::positions(m_, c));
  const std::vector<alibi::KeyRange> rest(2, {1, kTokens});
  const auto without = run(Eigen::VectorXf(m_ * 1.5F), {.queries = rest, .keys = rest});
  for (Index h = 0; h < 3; h++)  // the slope of head 3 is 0
    for (Index i = 1; i < kTokens; i++) {
      EXPECT_NEAR(with_first.lse(0, h, i), without.lse(0, h, i), 2e-6);
      EXPECT_NEAR(with_first.output(0, h, i, 2), without.output(0, h, i, 2), 2e-6);
    }
}

TEST_F(Laws, TypesOfPositions) {
  const Eigen::VectorXd c = indices(5);
  const auto expected = run(alibi::positions(m_, c));
  const Eigen::VectorXf in_float = c.cast<float>();
  expect_same(expected, run(alibi::positions(m_, in_float)));
  expect_same(expected, run(alibi::positions(m_, std::vector<double>(c.data(), c.data() + c.size()), c)));
  const Eigen::MatrixXd of_heads = c.transpose().replicate(4, 1);  // column-major
  expect_same(expected, run(alibi::positions(m_, of_heads)));
  Tensor3<float> of_batch(2, 1, kTokens);
  for (Index i = 0; i < 2 * kTokens; i++) of_batch.data()[i] = float(5 + i % kTokens);
  expect_same(expected, run(alibi::positions(alibi::two_sided(m_, m_), of_batch)));
  Eigen::Tensor<double, 3> mirrored(kTokens, 4, 2);  // column-major: [tokens, heads, batch]
  for (Index i = 0; i < 8 * kTokens; i++) mirrored.data()[i] = double(5 + i % kTokens);
  expect_same(expected, run(alibi::positions(m_, mirrored)));
}

TEST_F(Laws, TheSameBitsOnAnyExecutor) {
  const Eigen::VectorXd c = indices(0).array().pow(1.5);
  const auto one = run(alibi::positions(m_, c), {.mask = {.causal = false}});
  alibi::Executor executor(3, [](Index count, alibi::Task task) {
    for (Index i = count; i-- > 0;) task(i);
  });
  expect_same(one, run(alibi::positions(m_, c), {.mask = {.causal = false}, .executor = executor}));
}

// A gap keeps documents apart: each has the results of a call by itself.
TEST_F(Laws, PackedDocuments) {
  constexpr Index kFirst = 130;
  Eigen::VectorXd c = indices(0);
  c.tail(kTokens - kFirst).array() += 1e9;
  const Eigen::VectorXf m = Eigen::Vector4f(1, 0.25f, 0.03125f, 0.0078125f);
  for (const bool causal : {true, false}) {
    const auto packed = run(alibi::positions(m, c), {.mask = {.causal = causal}});
    for (const alibi::KeyRange& part : {alibi::KeyRange{0, kFirst}, alibi::KeyRange{kFirst, kTokens}}) {
      const std::vector<alibi::KeyRange> range(2, part);
      const auto alone = run(m, {.mask = {.causal = causal}, .queries = range, .keys = range});
      for (Index h = 0; h < 4; h++)
        for (Index i = part.begin; i < part.end; i++) {
          EXPECT_NEAR(packed.lse(1, h, i), alone.lse(1, h, i), 1e-5);
          for (Index d = 0; d < 16; d++) EXPECT_NEAR(packed.output(1, h, i, d), alone.output(1, h, i, d), 2e-6);
        }
    }
  }
}

TEST_F(Laws, AnyOrderIsThatOfTheKeys) {
  Eigen::VectorXd c = indices(0) * 1.5, shuffled = c;
  const auto sorted = run(alibi::positions(m_, c), {.mask = {.causal = false}});
  const Array k = k_, v = v_;
  for (Index j = 0; j < kTokens; j++) {
    const Index from = j * 7 % kTokens;
    shuffled[j] = c[from];
    for (Index b = 0; b < 2; b++)
      for (Index h = 0; h < 2; h++)
        for (Index d = 0; d < 16; d++) k_(b, h, j, d) = k(b, h, from, d), v_(b, h, j, d) = v(b, h, from, d);
  }
  const auto any = run(alibi::positions_in_any_order(m_, shuffled, c), {.mask = {.causal = false}});
  EXPECT_EQ(computed(), total()) << "nothing is pruned";
  EXPECT_LE(test::distance(any.output, sorted.output), test::kBound<float>);
  EXPECT_LE(test::distance(any.lse, sorted.lse), test::kBound<float>);
}

// Weights of equal logits, [queries, keys], by the bias alone.
template <class Bias>
test::RowMatrix<float> weights_of(Index queries, Index keys, const Bias& bias, const alibi::Options& options) {
  const test::RowMatrix<float> zero = test::RowMatrix<float>::Zero(std::max(queries, keys), 2),
                               identity = test::RowMatrix<float>::Identity(keys, keys);
  return alibi::attention(zero.topRows(queries), zero.topRows(keys), identity, bias, options);
}

// All visible keys are 1e8 away from the query, beyond the digits of their differences in float.
TEST(FarPositions, NoKeyIsNearTheQuery) {
  const double e = std::exp(-0.5);
  const alibi::Options all{.mask = {.causal = false}};
  const std::vector<double> keys = {1e8 + 0.5, -1e8, 1e8}, at = {0};
  const auto any = weights_of(1, 3, alibi::positions_in_any_order(1.0, keys, at), all);
  EXPECT_NEAR(any(0, 0), e / (2 + e), 1e-6);
  EXPECT_NEAR(any(0, 1), 1 / (2 + e), 1e-6);
  EXPECT_NEAR(any(0, 2), 1 / (2 + e), 1e-6);
  const std::vector<double> ordered = {-1e8, 1e8, 1e8 + 0.5};
  const auto in_order = weights_of(1, 3, alibi::positions(1.0, ordered, at), all);
  EXPECT_NEAR(in_order(0, 2), e / (2 + e), 1e-6);

  // The nearest key of query 1 is hidden.
  const std::vector<double> hidden = {-1e8, -1e8 - 0.5, 0}, queries = {-3e8, 0, 0};
  const auto causal = weights_of(3, 3, alibi::positions_in_any_order(1.0, hidden, queries), {});
  EXPECT_NEAR(causal(1, 0), 1 / (1 + e), 1e-6);
  EXPECT_EQ(causal(1, 2), 0);
  EXPECT_EQ(causal(2, 2), 1);
}

// One tile spans 2^50 times the smallest difference. Queries are at their keys, or a quarter beside them.
TEST(FarPositions, TheSpreadOfATileCostsNoDigits) {
  constexpr Index kTokens = 40;
  for (const double beside : {0., 0.25})
    for (const bool causal : {true, false}) {
      Eigen::VectorXd c(kTokens), at(kTokens);
      for (Index i = 0; i < kTokens; i++) {
        c[i] = i < 9 ? double(i) : 1.60000005e15 + double(i);
        at[i] = c[i] + beside;
      }
      const alibi::Options options{.mask = {.causal = causal}};
      const auto in_order = weights_of(kTokens, kTokens, alibi::positions(1.0, c, at), options),
                 in_any = weights_of(kTokens, kTokens, alibi::positions_in_any_order(1.0, c, at), options);
      for (Index i = 0; i < kTokens; i++) {
        Eigen::VectorXd expected = Eigen::VectorXd::Zero(kTokens);
        for (Index j = i < 9 ? 0 : 9; j < (causal ? i + 1 : i < 9 ? 9 : kTokens); j++)
          expected[j] = std::exp(-std::abs(double(j - i) - beside));
        expected /= expected.sum();
        for (Index j = 0; j < kTokens; j++) {
          EXPECT_NEAR(in_order(i, j), expected[j], 1e-6) << i << ", " << j;
          EXPECT_NEAR(in_any(i, j), expected[j], 1e-6) << i << ", " << j;
        }
      }
    }
}

// bias_ij = Σ_{l = j+1..i} log f_l, and its gradient with respect to log f by finite differences.
TEST(ForgettingTransformer, GatesAndTheirGradient) {
  constexpr Index kTokens = 90, kDim = 4;
  test::Random random(3);
  const auto q = random.matrix<double>(kTokens, kDim), k = random.matrix<double>(kTokens, kDim),
             v = random.matrix<double>(kTokens, kDim), grad_output = random.matrix<double>(kTokens, kDim);
  Eigen::VectorXd log_f(kTokens);
  for (Index i = 0; i < kTokens; i++) log_f[i] = i % 11 == 0 ? 0 : std::log(random.uniform(0.3, 1));  // open gates too

  const auto naive = [&](const Eigen::VectorXd& gates) {
    test::RowMatrix<double> output = test::RowMatrix<double>::Zero(kTokens, kDim);
    for (Index i = 0; i < kTokens; i++) {
      double bias = 0, sum = 0;
      for (Index j = i; j >= 0; j--) {
        double logit = bias;
        for (Index d = 0; d < kDim; d++) logit += q(i, d) * k(j, d) / 2;
        sum += std::exp(logit);
        for (Index d = 0; d < kDim; d++) output(i, d) += std::exp(logit) * v(j, d);
        bias += gates[j];
      }
      output.row(i) /= sum;
    }
    return output;
  };
  Eigen::VectorXd c(kTokens);
  std::partial_sum(log_f.data(), log_f.data() + kTokens, c.data());
  c = -c;
  const auto forward = alibi::attention_with_lse(q, k, v, alibi::positions(1.0, c));
  EXPECT_LE(test::distance(forward.output, naive(log_f)), 1e-13);

  const auto grad = alibi::attention_backward(grad_output, q, k, v, alibi::positions(1.0, c), forward);
  double after = 0;  // dlog f_l = -Σ_{i >= l} dc_i
  for (Index l = kTokens - 1; l >= 0; l--) {
    after -= grad.positions[l];
    const double step = 1e-4;
    Eigen::VectorXd up = log_f, down = log_f;
    up[l] += step, down[l] -= step;
    const double difference = (naive(up) - naive(down)).cwiseProduct(grad_output).sum() / (2 * step);
    EXPECT_NEAR(after, difference, 1e-6) << "gate " << l;
  }
}

TEST(PositionGradients, Shapes) {
  test::Random random(4);
  const auto q = random.tensor<float>(2, 2, 5, 3), k = random.tensor<float>(2, 1, 7, 3);
  const Eigen::VectorXf m = alibi::slopes(2);
  const alibi::Options options{.mask = {.causal = false}};
  const auto grad_of = [&](const auto& bias) {
    return alibi::attention_backward(q, q, k, k, bias, alibi::attention_with_lse(q, k, k, bias, options), options);
  };
  const auto two = grad_of(alibi::two_sided(m, std::vector<float>{1, 2}));
  static_assert(std::is_same_v<std::remove_cv_t<decltype(two.slopes.before)>, Eigen::VectorXf>);
  static_assert(std::is_same_v<std::remove_cv_t<decltype(two.slopes.after)>, std::vector<float>>);
  EXPECT_EQ(two.slopes.before.size(), 2);

  const Eigen::VectorXd keys = Eigen::VectorXd::LinSpaced(7, 0, 3);
  const test::RowMatrix<float> queries = test::RowMatrix<float>::Constant(2, 5, 1.25f);
  const auto both = grad_of(alibi::positions(alibi::two_sided(m, m), keys, queries));
  EXPECT_EQ(both.key_positions.size(), 7);
  EXPECT_EQ(both.query_positions.rows(), 2);
  EXPECT_EQ(both.slopes.after.size(), 2);
  EXPECT_NEAR(both.key_positions.sum(), -both.query_positions.sum(), 1e-5) << "a common shift changes nothing";
}

// Each sequence of a varlen call, and each padded one, has the bits of a call by itself.
TEST(PositionSequences, VarlenAndPadding) {
  test::Random random(5);
  constexpr Index kTokens = 200, kCut = 70;
  Tensor3<float> q(kTokens, 2, 8), k(kTokens, 2, 8), v(kTokens, 2, 8);
  random.fill(q), random.fill(k), random.fill(v);
  Eigen::VectorXd c(kTokens);
  for (Index i = 0; i < kTokens; i++) c[i] = double(i % kCut) * 0.75 + (i < kCut ? 1e6 : 0);
  const Eigen::VectorXf m = alibi::slopes(2);
  const std::vector<Index> cu_seqlens = {0, kCut, kTokens};
  c.tail(kTokens - kCut) = Eigen::VectorXd::LinSpaced(kTokens - kCut, 0, 60);  // may begin anew with each sequence
  const auto [output, lse] = alibi::attention_varlen_with_lse(q, k, v, alibi::positions(m, c), {cu_seqlens});
  const auto grad = alibi::attention_varlen_backward(q, q, k, v, alibi::positions(m, c), {cu_seqlens}, {output, lse});
  ASSERT_EQ(grad.positions.size(), kTokens);
  for (std::size_t s = 0; s < 2; s++) {
    const Index begin = cu_seqlens[s], count = cu_seqlens[s + 1] - begin;
    const Eigen::array<Index, 3> from{begin, 0, 0}, size{count, 2, 8};
    const std::vector<Index> alone = {0, count};
    const auto part = [&](const Tensor3<float>& x) { return Tensor3<float>(x.slice(from, size)); };
    const Eigen::VectorXd positions = c.segment(begin, count);
    const auto bias = alibi::positions(m, positions);
    const auto one = alibi::attention_varlen_with_lse(part(q), part(k), part(v), bias, {alone});
    EXPECT_TRUE(test::same(part(output), one.output));
    const auto of_one = alibi::attention_varlen_backward(part(q), part(q), part(k), part(v), bias, {alone}, one);
    EXPECT_TRUE(test::same(part(grad.k), of_one.k));
    EXPECT_TRUE(test::same(Eigen::VectorXf(grad.positions.segment(begin, count)), of_one.positions));
  }
}

class PositionErrors : public testing::Test {
 protected:
  test::Random random_{1};
  Array q_ = random_.tensor<float>(2, 4, 5, 8), k_ = random_.tensor<float>(2, 2, 6, 8);
  Eigen::VectorXf m_ = alibi::slopes(4);
  Eigen::VectorXd keys_ = Eigen::VectorXd::LinSpaced(6, 0, 5), queries_ = Eigen::VectorXd::LinSpaced(5, 0, 4);

  template <class Bias>
  std::string with(const Bias& bias) {
    return test::error_of([&] { alibi::attention(q_, k_, k_, bias); });
  }
};

TEST_F(PositionErrors, Slopes) {
  const float infinite = std::numeric_limits<float>::infinity();
  EXPECT_EQ(with(alibi::two_sided(m_, m_)), "nothing was thrown");
  const std::vector<Index> prefixes = {1, 2};
  const auto masked = [&](const alibi::Options& options) {
    return test::error_of([&] { alibi::attention(q_, k_, k_, alibi::two_sided(m_, m_), options); });
  };
  EXPECT_EQ(masked({.mask = {.prefix = 3}}), "alibi: mask.prefix is 3 with two-sided slopes or positions; expected 0");
  EXPECT_EQ(masked({.mask = {.sinks = 2}}), "alibi: mask.sinks is 2 with two-sided slopes or positions; expected 0");
  EXPECT_EQ(masked({.prefixes = prefixes}),
            "alibi: options.prefixes is given with two-sided slopes or positions; expected none");
  EXPECT_EQ(with(alibi::two_sided(alibi::slopes(2), m_)),
            "alibi: slopes before has heads 2; expected 4, the heads of q");
  EXPECT_EQ(with(alibi::two_sided(m_, test::RowMatrix<float>(test::RowMatrix<float>::Ones(3, 4)))),
            "alibi: slopes after has batch 3; expected 2, the batch of q, or a vector of heads");
  EXPECT_EQ(with(alibi::two_sided(Eigen::Vector4f(1, -0.5f, 1, 1), m_)),
            "alibi: the slope before of head 1 in batch 0 is -0.5; expected 0 or more");
  EXPECT_EQ(with(alibi::two_sided(m_, Eigen::Vector4f(1, 1, 1, std::nanf("")))),
            "alibi: the slope after of head 3 in batch 0 is nan; expected 0 or more");
  EXPECT_EQ(with(alibi::two_sided(m_, Eigen::Map<const Eigen::VectorXf>(nullptr, 4))),
            "alibi: slopes after is null; expected 4 slopes");
  EXPECT_EQ(with(alibi::positions(Eigen::Vector4f(1, 1, infinite, 1), keys_, queries_)),
            "alibi: the slope of head 2 in batch 0 is inf; expected a finite number, 0 or more");
  EXPECT_EQ(with(alibi::positions(alibi::two_sided(m_, Eigen::Vector4f(1, 1, infinite, 1)), keys_, queries_)),
            "alibi: the slope after of head 2 in batch 0 is inf; expected a finite number, 0 or more");
}

TEST_F(PositionErrors, Positions) {
  EXPECT_EQ(with(alibi::positions(m_, keys_, queries_)), "nothing was thrown");
  EXPECT_EQ(with(alibi::positions(m_, keys_)), "alibi: positions has tokens 6; expected 5, the tokens of q");
  EXPECT_EQ(with(alibi::positions(m_, queries_, queries_)),
            "alibi: key positions has tokens 5; expected 6, the tokens of k");
  EXPECT_EQ(with(alibi::positions(m_, Eigen::VectorXd(), queries_)),
            "alibi: key positions has tokens 0; expected 6, the tokens of k");
  EXPECT_EQ(with(alibi::positions(m_, keys_, Eigen::MatrixXd(Eigen::MatrixXd::Zero(2, 5)))),
            "alibi: query positions has heads 2; expected 4, the heads of q, or 1");
  EXPECT_EQ(with(alibi::positions(m_, keys_, Tensor3<float>(3, 1, 5))),
            "alibi: query positions has batch 3; expected 2, the batch of q, or 1");
  keys_[4] = 2.5;
  EXPECT_EQ(with(alibi::positions(m_, keys_, queries_)),
            "alibi: key position 4 of head 0 in batch 0 is 2.5 after 3; expected no position below the one before it, "
            "or positions_in_any_order()");
  EXPECT_EQ(with(alibi::positions_in_any_order(m_, keys_, queries_)), "nothing was thrown");
  queries_[1] = std::nan("");
  EXPECT_EQ(with(alibi::positions_in_any_order(m_, keys_, queries_)),
            "alibi: query position 1 of head 0 in batch 0 is nan; expected a finite number within ±1e300");
  queries_[1] = -test::kInfinity;
  EXPECT_EQ(with(alibi::positions_in_any_order(m_, keys_, queries_)),
            "alibi: query position 1 of head 0 in batch 0 is -inf; expected a finite number within ±1e300");
}

TEST_F(PositionErrors, Memory) {
  Array output(2, 4, 5, 8);
  output.setConstant(1);
  EXPECT_EQ(test::error_of([&] {
              alibi::attention_into(output, q_, k_, k_,
                                    alibi::positions(m_, keys_, Eigen::Map<const Eigen::VectorXf>(output.data(), 5)));
            }),
            "alibi: output overlaps query positions; expected memory of its own");
  EXPECT_EQ(test::error_of([&] {
              alibi::attention_into(output, q_, k_, k_,
                                    alibi::two_sided(m_, Eigen::Map<const Eigen::VectorXf>(output.data(), 4)));
            }),
            "alibi: output overlaps slopes; expected memory of its own");
}

TEST_F(PositionErrors, Gradients) {
  Array grad_q(2, 4, 5, 8), grad_k(2, 2, 6, 8), grad_v(2, 2, 6, 8);
  Eigen::VectorXf before(4), after(4), keys(6), queries(5);
  const auto with_gradients = [&](const auto& bias, const auto& grad) {
    const auto forward = alibi::attention_with_lse(q_, k_, k_, bias);
    return test::error_of(
        [&] { alibi::attention_backward_into({grad_q, grad_k, grad_v, grad}, q_, q_, k_, k_, bias, forward); });
  };
  const auto sides = alibi::two_sided(m_, m_);
  const auto positions = alibi::positions(m_, keys_, queries_);
  EXPECT_EQ(with_gradients(sides, alibi::two_sided(before, after)), "nothing was thrown");
  EXPECT_EQ(with_gradients(positions, alibi::positions(before, keys, queries)), "nothing was thrown");
  EXPECT_EQ(with_gradients(sides, alibi::two_sided(before, keys)),
            "alibi: the gradient of the slopes after is [1, 6]; expected [1, 4], the sizes of slopes");
  EXPECT_EQ(with_gradients(positions, alibi::positions(before, keys, keys)),
            "alibi: the gradient of query positions is [1, 1, 6]; expected [1, 1, 5], the sizes of query positions");
  EXPECT_EQ(with_gradients(positions, alibi::positions(before, keys)),
            "alibi: the gradient of the bias has one array for positions; expected two, as the bias has");
  EXPECT_EQ(with_gradients(m_, alibi::two_sided(before, after)),
            "alibi: the gradient of the bias is alibi::two_sided(); expected one array");
  EXPECT_EQ(with_gradients(sides, alibi::positions(alibi::two_sided(before, after), keys)),
            "alibi: the gradient of the bias is alibi::positions(); expected none, because the bias has no positions");
  Eigen::Map<Eigen::VectorXf> same(keys.data(), 5);
  EXPECT_EQ(with_gradients(positions, alibi::positions(before, keys, same)),
            "alibi: the gradient of key positions overlaps the gradient of query positions; expected memory of its "
            "own");

  std::vector<float> grad_lse(2 * 4 * 5);
  const auto forward = alibi::attention_with_lse(q_, k_, k_, positions);
  EXPECT_EQ(
      test::error_of([&] {
        alibi::attention_backward_into(
            {grad_q, grad_k, grad_v, alibi::positions(before, keys, Eigen::Map<Eigen::VectorXf>(grad_lse.data(), 5))},
            alibi::ForwardResult{q_, std::span<const float>(grad_lse)}, q_, k_, k_, positions, forward);
      }),
      "alibi: the gradient of query positions overlaps grad_lse; expected memory of its own");
}

}  // namespace
