// Properties of the gradients that hold for any numbers, some exactly and some up to rounding.
#include <alibi/backward.hpp>
#include <alibi/relative_bias.hpp>

#include "backward_case.hpp"
#include "executors.hpp"

namespace {

using alibi::Mask, alibi::Options;
using test::Case;
using test::Index;
using test::RowMatrix;
using test::same;
using test::Tensor3;
using test::Tensor4;

const std::vector<Mask> kMasks = {
    {}, {.causal = false}, {.window = 20}, {.causal = false, .window = 20}, {.window = 20, .prefix = 90, .sinks = 3}};

/// The gradient of slopes or of a table.
template <class Gradients>
auto of_bias(const Gradients& grad) {
  if constexpr (requires { grad.slopes; })
    return grad.slopes;
  else if constexpr (requires { grad.table; })
    return grad.table;
  else
    return std::vector<float>();
}

template <class A, class B>
void expect_same(const A& a, const B& b) {
  EXPECT_TRUE(same(a.q, b.q));
  EXPECT_TRUE(same(a.k, b.k));
  EXPECT_TRUE(same(a.v, b.v));
  EXPECT_TRUE(same(of_bias(a), of_bias(b)));
}

/// The largest difference, relative to the largest number of b.
template <class A, class B>
double relative_difference(const A& a, const B& b) {
  const double difference = test::distance(a, b);
  return difference == 0 ? 0 : difference / test::largest(b);
}
template <class A, class B>
void expect_near(const A& a, const B& b, double bound) {
  EXPECT_LE(relative_difference(a.q, b.q), bound);
  EXPECT_LE(relative_difference(a.k, b.k), bound);
  EXPECT_LE(relative_difference(a.v, b.v), bound);
  EXPECT_LE(relative_difference(of_bias(a), of_bias(b)), 10 * bound) << "terms of the distances cancel";
}

// Head h of the result is head heads[h] of x.
template <class T>
Tensor4<T> heads_of(const Tensor4<T>& x, const std::vector<Index>& heads) {
  Tensor4<T> part(x.dimension(0), Index(heads.size()), x.dimension(2), x.dimension(3));
  for (Index b = 0; b < x.dimension(0); b++)
    for (Index h = 0; h < part.dimension(1); h++)
      std::copy_n(&x(b, heads[std::size_t(h)], 0, 0), x.dimension(2) * x.dimension(3), &part(b, h, 0, 0));
  return part;
}

// Swaps both batch entries.
template <class T>
Tensor4<T> swapped(Tensor4<T> x) {
  std::rotate(x.data(), x.data() + x.size() / 2, x.data() + x.size());
  return x;
}

// Entries -m_h |d| for the distances -(tokens - 1) … tokens - 1.
template <class T>
RowMatrix<T> table_of(const test::Vector<T>& m, Index tokens) {
  RowMatrix<T> table(m.size(), 2 * tokens - 1);
  for (Index h = 0; h < m.size(); h++)
    for (Index t = 0; t < table.cols(); t++) table(h, t) = -m[h] * T(std::abs(t - (tokens - 1)));
  return table;
}

template <class T>
class BackwardProperties : public testing::Test {
 protected:
  static constexpr Index kTokens = 150;
  static constexpr double kRounding = 4 * test::kBound<T>;

  test::Random random_{31};
  Case<T> case_{random_, 2, 2, 2, kTokens, 24, 20};
  test::Vector<T> m_ = alibi::slopes<T>(4);

  // The gradients of the case with its heads in another order.
  auto permuted(const std::vector<Index>& order, const std::vector<Index>& kv_order, const Mask& mask) const {
    test::Vector<T> m(4);
    for (Index h = 0; h < 4; h++) m[h] = m_[order[std::size_t(h)]];
    Case<T> permuted = case_;
    permuted.q = heads_of(permuted.q, order), permuted.grad_output = heads_of(permuted.grad_output, order);
    permuted.k = heads_of(permuted.k, kv_order), permuted.v = heads_of(permuted.v, kv_order);
    return permuted.backward(m, {.mask = mask});
  }
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(BackwardProperties, Scalars);

// The result does not depend on the executor or on the order of the tasks.
template <class T, class Bias>
void expect_any_executor(const Case<T>& of, const Bias& bias, const Mask& mask) {
  const auto expected = of.backward(bias, {.mask = mask});
  for (const alibi::Executor& executor : test::executors())
    expect_same(of.backward(bias, {.mask = mask, .executor = executor}), expected);
}

TYPED_TEST(BackwardProperties, IndependentOfTheExecutor) {
  using T = TypeParam;
  const Case<T> long_head(this->random_, 1, 1, 1, 1500, 24, 20), many_heads(this->random_, 2, 4, 3, 90, 17, 33),
      shared_keys(this->random_, 1, 1, 4, 700, 24, 20);
  for (const Mask& mask : kMasks) {
    expect_any_executor(long_head, alibi::slopes<T>(1), mask);
    expect_any_executor(many_heads, alibi::slopes<T>(12), mask);
    expect_any_executor(shared_keys, alibi::slopes<T>(4), mask);
  }
  const auto table = table_of(alibi::slopes<T>(4), 700);
  expect_any_executor(shared_keys, alibi::relative_bias(table, -699), {.causal = false});
  expect_any_executor(many_heads, this->random_.template matrix<T>(2, 12), {});
  expect_any_executor(long_head, alibi::no_bias, {});
}

TYPED_TEST(BackwardProperties, HeadsAreIndependent) {
  const std::vector<Index> order = {2, 3, 1, 0}, kv_order = {1, 0};  // keeps the groups together
  for (const Mask& mask : kMasks) {
    const auto grad = this->permuted(order, kv_order, mask), whole = this->case_.backward(this->m_, {.mask = mask});
    EXPECT_TRUE(same(grad.q, heads_of(whole.q, order)));
    EXPECT_LE(relative_difference(grad.k, heads_of(whole.k, kv_order)), this->kRounding)
        << "the heads of a group are summed in another order";
    EXPECT_LE(relative_difference(grad.v, heads_of(whole.v, kv_order)), this->kRounding);
    for (Index h = 0; h < 4; h++) EXPECT_EQ(grad.slopes[h], whole.slopes[order[std::size_t(h)]]);
  }
}

TYPED_TEST(BackwardProperties, KvHeadsAreIndependent) {
  const std::vector<Index> order = {2, 3, 0, 1}, kv_order = {1, 0};
  for (const Mask& mask : kMasks) {
    const auto grad = this->permuted(order, kv_order, mask), whole = this->case_.backward(this->m_, {.mask = mask});
    EXPECT_TRUE(same(grad.q, heads_of(whole.q, order)));
    EXPECT_TRUE(same(grad.k, heads_of(whole.k, kv_order)));
    EXPECT_TRUE(same(grad.v, heads_of(whole.v, kv_order)));
  }
}

TYPED_TEST(BackwardProperties, BatchEntriesAreIndependent) {
  using T = TypeParam;
  RowMatrix<T> m(2, 4), m_swapped(2, 4);
  m << T(0.5), T(0.25), T(0.1), T(0), T(1), T(0.3), T(-0.01), T(2);
  m_swapped << m.row(1), m.row(0);
  Case<T> permuted = this->case_;
  for (Tensor4<T>* x : {&permuted.q, &permuted.k, &permuted.v, &permuted.grad_output}) *x = swapped(*x);
  for (const Mask& mask : kMasks) {
    const auto grad = permuted.backward(m_swapped, {.mask = mask}), whole = this->case_.backward(m, {.mask = mask});
    EXPECT_TRUE(same(grad.q, swapped(whole.q)));
    EXPECT_TRUE(same(grad.k, swapped(whole.k)));
    EXPECT_TRUE(same(grad.v, swapped(whole.v)));
    for (Index h = 0; h < 4; h++) {
      EXPECT_EQ(grad.slopes(0, h), whole.slopes(1, h));
      EXPECT_EQ(grad.slopes(1, h), whole.slopes(0, h));
    }
  }
}

// The gradient of slopes that a batch shares is the sum of the gradients of separate slopes.
TYPED_TEST(BackwardProperties, SharedSlopesSumOverTheBatch) {
  for (const Mask& mask : kMasks) {
    const RowMatrix<TypeParam> each = this->m_.transpose().replicate(2, 1);
    const auto shared = this->case_.backward(this->m_, {.mask = mask});
    const auto own = this->case_.backward(each, {.mask = mask});
    ASSERT_EQ(shared.slopes.size(), 4);
    ASSERT_EQ(own.slopes.rows(), 2);
    const double bound = this->kRounding * test::largest(own.slopes);
    for (Index h = 0; h < 4; h++) EXPECT_NEAR(shared.slopes[h], own.slopes(0, h) + own.slopes(1, h), bound);
    EXPECT_TRUE(same(shared.q, own.q));
    EXPECT_TRUE(same(shared.k, own.k));
    EXPECT_TRUE(same(shared.v, own.v));
  }
}

TYPED_TEST(BackwardProperties, GroupedHeadsAreRepeatedKvHeads) {
  using T = TypeParam;
  const std::vector<Index> repeated = {0, 0, 1, 1};
  Case<T> repeated_heads = this->case_;
  repeated_heads.k = heads_of(repeated_heads.k, repeated), repeated_heads.v = heads_of(repeated_heads.v, repeated);
  const auto summed = [](const Tensor4<T>& x) {
    Tensor4<T> sum = heads_of(x, {0, 2});
    const Tensor4<T> other = heads_of(x, {1, 3});
    for (Index i = 0; i < sum.size(); i++) sum.data()[i] += other.data()[i];
    return sum;
  };
  for (const Mask& mask : kMasks) {
    const auto grouped = this->case_.backward(this->m_, {.mask = mask});
    auto expected = repeated_heads.backward(this->m_, {.mask = mask});
    expected.k = summed(expected.k), expected.v = summed(expected.v);
    expect_near(grouped, expected, this->kRounding);
  }
}

TYPED_TEST(BackwardProperties, AWindowOfAllTokensIsNoWindow) {
  for (const bool causal : {true, false})
    for (const Index window : {this->kTokens, this->kTokens + 1, Index(1) << 62})
      expect_same(this->case_.backward(this->m_, {.mask = {.causal = causal, .window = window}}),
                  this->case_.backward(this->m_, {.mask = {.causal = causal}}));
}

TYPED_TEST(BackwardProperties, ZeroSlopesAreNoBias) {
  const test::Vector<TypeParam> zero = test::Vector<TypeParam>::Zero(4);
  for (const Mask& mask : kMasks) {
    const auto slopes = this->case_.backward(zero, {.mask = mask});
    const auto none = this->case_.backward(alibi::no_bias, {.mask = mask});
    EXPECT_TRUE(same(slopes.q, none.q));
    EXPECT_TRUE(same(slopes.k, none.k));
    EXPECT_TRUE(same(slopes.v, none.v));
  }
}

// dm_h = -Σ_d |d| dtable[h][d]
TYPED_TEST(BackwardProperties, ATableOfDistancesEqualsSlopes) {
  using T = TypeParam;
  const auto table = table_of(this->m_, this->kTokens);
  const Index first = 1 - this->kTokens;
  for (const Mask& mask : kMasks) {
    const auto slopes = this->case_.backward(this->m_, {.mask = mask});
    const auto grad = this->case_.backward(alibi::relative_bias(table, first), {.mask = mask});
    EXPECT_LE(relative_difference(grad.q, slopes.q), this->kRounding);
    EXPECT_LE(relative_difference(grad.k, slopes.k), this->kRounding);
    EXPECT_LE(relative_difference(grad.v, slopes.v), this->kRounding);
    ASSERT_EQ(grad.table.rows(), 4);
    ASSERT_EQ(grad.table.cols(), table.cols());
    for (Index h = 0; h < 4; h++) {
      double folded = 0, terms = 0;
      for (Index t = 0; t < table.cols(); t++) {
        folded -= double(std::abs(first + t)) * double(grad.table(h, t));
        terms += double(std::abs(first + t)) * std::abs(double(grad.table(h, t)));
      }
      EXPECT_NEAR(folded, slopes.slopes[h], this->kRounding * terms);
      for (Index t = 0; mask.causal && mask.prefix == 0 && t < -first; t++)
        EXPECT_EQ(grad.table(h, t), 0) << "a causal query sees no later key";
    }
  }
  static_assert(std::is_same_v<std::remove_cvref_t<decltype(this->case_.backward(alibi::relative_bias(table)).table)>,
                               RowMatrix<T>>);
}

// The end entries of a table are used for all distances beyond it. A table of one entry changes no other gradient.
TYPED_TEST(BackwardProperties, DistancesBeyondATableUseItsEnds) {
  using T = TypeParam;
  constexpr Index kFirst = -9, kEntries = 40;
  const RowMatrix<T> table = this->random_.template matrix<T>(4, kEntries);
  RowMatrix<T> wide(4, 2 * this->kTokens - 1);
  const Index first = 1 - this->kTokens;
  const auto at = [&](Index t) { return std::clamp<Index>(first + t - kFirst, 0, kEntries - 1); };
  for (Index h = 0; h < 4; h++)
    for (Index t = 0; t < wide.cols(); t++) wide(h, t) = table(h, at(t));
  for (const Mask& mask : kMasks) {
    const auto clamped = this->case_.backward(alibi::relative_bias(table, kFirst), {.mask = mask});
    auto expected = this->case_.backward(alibi::relative_bias(wide, first), {.mask = mask});
    RowMatrix<T> folded = RowMatrix<T>::Zero(4, kEntries);
    for (Index h = 0; h < 4; h++)
      for (Index t = 0; t < wide.cols(); t++) folded(h, at(t)) += expected.table(h, t);
    expected.table = folded;
    expect_near(clamped, expected, this->kRounding);

    const RowMatrix<T> flat = RowMatrix<T>::Constant(4, 1, T(3));
    const auto shifted = this->case_.backward(alibi::relative_bias(flat), {.mask = mask});
    EXPECT_LE(relative_difference(shifted.q, this->case_.backward(alibi::no_bias, {.mask = mask}).q), this->kRounding);
    double terms = 0;
    for (Index i = 0; i < this->case_.grad_output.size(); i++)
      terms += std::abs(double(this->case_.grad_output.data()[i]));
    EXPECT_LE(test::largest(shifted.table), this->kRounding * terms) << "the rows of dS sum to 0";
  }
}

TYPED_TEST(BackwardProperties, LinearInGradOutput) {
  Case<TypeParam> doubled = this->case_, other = this->case_, sum = this->case_;
  this->random_.fill(other.grad_output);
  for (Index i = 0; i < sum.grad_output.size(); i++) {
    doubled.grad_output.data()[i] *= TypeParam(2);
    sum.grad_output.data()[i] += other.grad_output.data()[i];
  }
  const auto add = [](auto& x, const auto& y) {
    for (Index i = 0; i < Index(x.size()); i++) x.data()[i] += y.data()[i];
  };
  for (const Mask& mask : kMasks) {
    const auto grad = this->case_.backward(this->m_, {.mask = mask});
    auto twice = grad, both = grad;
    add(twice.q, grad.q), add(twice.k, grad.k), add(twice.v, grad.v), add(twice.slopes, grad.slopes);
    expect_same(doubled.backward(this->m_, {.mask = mask}), twice);  // a factor of 2 is exact
    const auto second = other.backward(this->m_, {.mask = mask});
    add(both.q, second.q), add(both.k, second.k), add(both.v, second.v), add(both.slopes, second.slopes);
    expect_near(sum.backward(this->m_, {.mask = mask}), both, this->kRounding);
  }
}

// A gradient of the lse of 0 changes no bit. Gradients of the output and of the lse add up.
TYPED_TEST(BackwardProperties, LinearInTheGradientOfTheLse) {
  using T = TypeParam;
  const Case<T>& x = this->case_;
  Tensor3<T> zero(2, 4, this->kTokens), grad_lse = zero;
  zero.setZero();
  this->random_.fill(grad_lse);
  Tensor4<T> none = x.grad_output;
  none.setZero();
  const auto table = this->random_.template matrix<T>(4, 90);
  for (const Mask& mask : kMasks) {
    const auto expect = [&](const auto& bias) {
      const Options options{.mask = mask};
      const auto forward = alibi::attention_with_lse(x.q, x.k, x.v, bias, options);
      const auto backward = [&](const auto& gradient) {
        return alibi::attention_backward(gradient, x.q, x.k, x.v, bias, forward, options);
      };
      const auto of_output = backward(x.grad_output);
      expect_same(backward(alibi::ForwardResult{x.grad_output, zero}), of_output);
      auto sum = backward(alibi::ForwardResult{none, grad_lse});
      EXPECT_EQ(test::largest(sum.v), 0) << "the lse does not depend on the values";
      for (Index i = 0; i < sum.q.size(); i++) sum.q.data()[i] += of_output.q.data()[i];
      for (Index i = 0; i < sum.k.size(); i++) sum.k.data()[i] += of_output.k.data()[i];
      sum.v = of_output.v;
      if constexpr (requires { sum.slopes; }) sum.slopes += of_output.slopes;
      if constexpr (requires { sum.table; }) sum.table += of_output.table;
      expect_near(backward(alibi::ForwardResult{x.grad_output, grad_lse}), sum, 2 * this->kRounding);
    };
    expect(this->m_);
    expect(alibi::relative_bias(table, -40));
    expect(alibi::no_bias);
  }
}

// A row with one key has lse = s, and with it dq = τ dlse k, dk = τ dlse q and dm = -dlse |p - j|, exactly.
TYPED_TEST(BackwardProperties, TheLseOfOneKeyIsItsLogit) {
  using T = TypeParam;
  const RowMatrix<T> q = this->random_.template matrix<T>(1, 8), k = this->random_.template matrix<T>(1, 8),
                     none = RowMatrix<T>::Zero(1, 8);
  for (const Index offset : {Index(0), Index(7), Index(1) << 26, Index(1) << 40, -(Index(1) << 40)})
    for (const T slope : {T(0.5), T(0), T(-3)}) {
      const Options options{.mask = {.causal = false, .query_offset = offset}, .scale = 2.0};
      const auto forward = alibi::attention_with_lse(q, k, k, slope, options);
      const test::Vector<T> grad_lse = test::Vector<T>::Constant(1, T(0.75));
      const auto grad =
          alibi::attention_backward(alibi::ForwardResult{none, grad_lse}, q, k, k, slope, forward, options);
      EXPECT_LE(test::distance(grad.q, RowMatrix<T>(T(1.5) * k)), this->kRounding) << offset << ' ' << slope;
      EXPECT_LE(test::distance(grad.k, RowMatrix<T>(T(1.5) * q)), this->kRounding) << offset << ' ' << slope;
      EXPECT_NEAR(grad.slopes, -0.75 * double(std::abs(offset)), this->kRounding * double(std::abs(offset)))
          << offset << ' ' << slope;
    }
}

// The z-loss, Σ lse². A row without keys has lse -inf and no gradient, whatever its gradient of the lse is.
TYPED_TEST(BackwardProperties, ZLoss) {
  using T = TypeParam;
  const Case<T>& x = this->case_;
  Tensor4<T> none = x.grad_output;
  none.setZero();
  for (const Index offset : {0, -30, 500}) {
    const Options options{.mask = {.query_offset = offset}};
    const auto forward = alibi::attention_with_lse(x.q, x.k, x.v, this->m_, options);
    Tensor3<T> grad_lse = forward.lse;
    std::vector<double> exact;
    for (Index i = 0; i < grad_lse.size(); i++) exact.push_back(double(grad_lse.data()[i] *= T(2)));  // -inf too
    const auto grad =
        alibi::attention_backward(alibi::ForwardResult{none, grad_lse}, x.q, x.k, x.v, this->m_, forward, options);
    const auto expected =
        alibi::reference::attention_backward(none, x.q, x.k, x.v, this->m_, options.mask, options.scale, exact);
    const double rounding = 100 * this->kRounding;  // a lse of 250 has lost so many digits
    EXPECT_LE(relative_difference(grad.q, expected.q), rounding) << offset;
    EXPECT_LE(relative_difference(grad.k, expected.k), rounding) << offset;
    EXPECT_LE(relative_difference(grad.slopes, RowMatrix<double>(expected.bias.colwise().sum())), rounding) << offset;
    for (Index i = 0; i < std::max<Index>(-offset, 0); i++)
      for (Index d = 0; d < 24; d++) EXPECT_EQ(grad.q(1, 2, i, d), 0) << "row " << i;
  }
}

// At most half an ulp of a row's softmax mass is pruned.
TYPED_TEST(BackwardProperties, TheDefaultToleranceChangesFewUlps) {
  using T = TypeParam;
  const Case<T> of(this->random_, 1, 8, 1, 2048, 64, 64);
  const auto m = alibi::slopes<T>(8);
  const auto pruned = of.backward(m), dense = of.backward(m, {.tolerance = 0});
  const double ulp = double(std::numeric_limits<T>::epsilon());
  const double worst[] = {relative_difference(pruned.q, dense.q), relative_difference(pruned.k, dense.k),
                          relative_difference(pruned.v, dense.v), relative_difference(pruned.slopes, dense.slopes)};
  std::cout << "changed by, of the largest, in ulp: dq " << worst[0] / ulp << ", dk " << worst[1] / ulp << ", dv "
            << worst[2] / ulp << ", dm " << worst[3] / ulp << '\n';
  for (const double x : worst) EXPECT_LE(x, 4 * ulp);
}

// A NaN in one row of grad_output reaches the dq of that row, and dk and dv of the keys that it sees. It reaches no
// other head, no other batch entry, and the dq of no other row.
TYPED_TEST(BackwardProperties, NanReachesOnlyDependentGradients) {
  using T = TypeParam;
  const Index b = 1, h = 2, i = 70;
  for (const Mask& mask : kMasks) {
    const auto expected = this->case_.backward(this->m_, {.mask = mask});
    Case<T> with_nan = this->case_;
    with_nan.grad_output(b, h, i, 3) = std::numeric_limits<T>::quiet_NaN();
    const auto grad = with_nan.backward(this->m_, {.mask = mask});
    const auto differ = [](T x, T y) { return std::isnan(x) || x != y; };
    for (Index e = 0; e < 2; e++)
      for (Index of = 0; of < 4; of++)
        for (Index row = 0; row < this->kTokens; row++) {
          const bool own = e == b && of == h && row == i;
          EXPECT_EQ(own, std::isnan(grad.q(e, of, row, 0))) << "dq of row " << row << " of head " << of;
          EXPECT_EQ(own, differ(grad.q(e, of, row, 0), expected.q(e, of, row, 0))) << "dq of row " << row;
        }
    for (Index e = 0; e < 2; e++)
      for (Index kv = 0; kv < 2; kv++)
        for (Index j = 0; j < this->kTokens; j++) {
          const bool of_head = e == b && kv == h / 2;
          const bool seen = of_head && alibi::reference::sees(mask, i, j);
          EXPECT_TRUE(!seen || std::isnan(grad.k(e, kv, j, 0))) << "dk of key " << j << " that the row sees";
          EXPECT_TRUE(!seen || std::isnan(grad.v(e, kv, j, 3))) << "dv of key " << j << " that the row sees";
          if (of_head) continue;
          EXPECT_FALSE(differ(grad.k(e, kv, j, 0), expected.k(e, kv, j, 0))) << "dk of another head";
          EXPECT_FALSE(differ(grad.v(e, kv, j, 3), expected.v(e, kv, j, 3))) << "dv of another head";
        }
    for (Index of = 0; of < 4; of++) EXPECT_EQ(of == h, std::isnan(grad.slopes[of]));
  }
}

TYPED_TEST(BackwardProperties, NanDoesNotReachDistantKeys) {
  using T = TypeParam;
  Case<T> of(this->random_, 1, 1, 1, 1500, 24, 20);
  const auto m = alibi::slopes<T>(1);
  const auto expected = of.backward(m);
  of.grad_output(0, 0, 100, 3) = std::numeric_limits<T>::quiet_NaN();
  const auto grad = of.backward(m);
  Index different = 0;
  for (Index j = 400; j < 1500; j++)  // farther than a block of queries and a tile of keys extend
    for (Index d = 0; d < 20; d++)
      different += !(grad.k(0, 0, j, d) == expected.k(0, 0, j, d) && grad.v(0, 0, j, d) == expected.v(0, 0, j, d));
  EXPECT_EQ(different, 0);
}

TYPED_TEST(BackwardProperties, RowsWithoutVisibleKeysHaveZeroGradients) {
  using T = TypeParam;
  for (const auto& bias : {this->m_, test::Vector<T>(test::Vector<T>::Zero(4))}) {
    const auto none = this->case_.backward(bias, {.mask = {.query_offset = -200}});
    for (const Tensor4<T>* x : {&none.q, &none.k, &none.v}) EXPECT_EQ(test::largest(*x), 0);
    EXPECT_EQ(test::largest(none.slopes), 0);

    const auto some = this->case_.backward(bias, {.mask = {.query_offset = -30}});
    for (Index i = 0; i < this->kTokens; i++) {
      bool zero = true;
      for (Index d = 0; d < 24; d++) zero = zero && some.q(1, 3, i, d) == 0;
      // Row 30 sees one key, so its gradient is 0 up to rounding.
      if (i != 30) {
        EXPECT_EQ(zero, i < 30) << "row " << i;
      }
    }
    Case<T> with_nan = this->case_;  // the contents of these rows do not matter
    for (Index i = 0; i < 30; i++)
      with_nan.q(1, 3, i, 2) = with_nan.grad_output(1, 3, i, 5) = std::numeric_limits<T>::quiet_NaN();
    expect_same(with_nan.backward(bias, {.mask = {.query_offset = -30}}), some);
  }
}

TYPED_TEST(BackwardProperties, EmptyInput) {
  for (const auto& [batch, tokens] : {std::pair<Index, Index>(0, 5), {1, 0}}) {
    const auto grad = Case<TypeParam>(this->random_, batch, 2, 2, tokens, 8, 4).backward(this->m_);
    EXPECT_EQ(grad.q.size(), 0);
    EXPECT_EQ(grad.k.size(), 0);
    EXPECT_EQ(grad.v.size(), 0);
    ASSERT_EQ(grad.slopes.size(), 4);
    EXPECT_EQ(test::largest(grad.slopes), 0);
  }
}

// The gradients of narrow inputs equal those of the same numbers widened to float, and are float.
template <class T>
class BackwardTypes : public testing::Test {};
using Narrow = testing::Types<Eigen::bfloat16, Eigen::half>;
TYPED_TEST_SUITE(BackwardTypes, Narrow);

TYPED_TEST(BackwardTypes, EqualTheWidenedNumbers) {
  using T = TypeParam;
  test::Random random(33);
  const Case<T> of(random, 2, 2, 2, 150, 24, 20);
  const auto wide = [](const Tensor4<T>& x) {
    Tensor4<float> y(x.dimensions());
    std::transform(x.data(), x.data() + x.size(), y.data(), [](T value) { return float(value); });
    return y;
  };
  const auto m = alibi::slopes<float>(4);
  for (const Mask& mask : kMasks) {
    const Options options{.mask = mask, .bf16_dot = false};
    const auto forward = alibi::attention_with_lse(of.q, of.k, of.v, m, options);
    const auto grad = alibi::attention_backward(of.grad_output, of.q, of.k, of.v, m, forward, options);
    static_assert(std::is_same_v<std::remove_cvref_t<decltype(grad.q)>, Tensor4<float>>);
    const alibi::ForwardResult<Tensor4<float>, Tensor3<float>> forward_wide{wide(forward.output), forward.lse};
    const auto expected =
        alibi::attention_backward(wide(of.grad_output), wide(of.q), wide(of.k), wide(of.v), m, forward_wide, options);
    expect_near(grad, expected, 4 * test::kBound<float>);
    expect_same(alibi::attention_backward(wide(of.grad_output), of.q, of.k, of.v, m, forward, options), grad);
  }
}

}  // namespace
