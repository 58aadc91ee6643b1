// Properties of attention that hold for any numbers, some exactly and some up to rounding.

#include "common.hpp"
#include "executors.hpp"

namespace {

using alibi::Mask;
using test::Index;
using test::RowMatrix;
using test::same;
using test::Tensor4;

const std::vector<Mask> kMasks = {
    {}, {.causal = false}, {.window = 20}, {.causal = false, .window = 20}, {.window = 20, .prefix = 90, .sinks = 3}};
const std::vector<Mask> kCausal = {{}, {.window = 20}, {.window = 20, .sinks = 3}};

template <class T>
class ForwardProperties : public testing::Test {
 protected:
  static constexpr Index kBatch = 2, kHeads = 4, kKvHeads = 2, kTokens = 150, kDim = 24, kValueDim = 20;
  using Array = Tensor4<T>;
  using Result = alibi::ForwardResult<Array, test::Tensor3<T>>;

  test::Random random_{7};
  Array q_ = random_.tensor<T>(kBatch, kHeads, kTokens, kDim), k_ = random_.tensor<T>(kBatch, kKvHeads, kTokens, kDim),
        v_ = random_.tensor<T>(kBatch, kKvHeads, kTokens, kValueDim);
  test::Vector<T> m_ = alibi::slopes<T>(kHeads);

  Result forward(const Mask& mask) { return alibi::attention_with_lse(q_, k_, v_, m_, {.mask = mask}); }

  static void expect_near(const Result& a, const Result& b, double factor = 1) {
    EXPECT_LE(test::distance(a.output, b.output), factor * test::kBound<T>);
    EXPECT_LE(test::distance(a.lse, b.lse), 10 * factor * test::kBound<T>);
  }
  static void expect_same(const Result& a, const Result& b) {
    EXPECT_TRUE(same(a.output, b.output));
    EXPECT_TRUE(same(a.lse, b.lse));
  }

  // Tokens [begin, end) of x.
  static Array tokens(const Array& x, Index begin, Index end) {
    Array part(x.dimension(0), x.dimension(1), end - begin, x.dimension(3));
    for (Index b = 0; b < x.dimension(0); b++)
      for (Index h = 0; h < x.dimension(1); h++)
        std::copy_n(&x(b, h, begin, 0), (end - begin) * x.dimension(3), &part(b, h, 0, 0));
    return part;
  }
  // Head h of the result is head heads[h] of x.
  static Array heads(const Array& x, const std::vector<Index>& heads) {
    Array part(x.dimension(0), Index(heads.size()), x.dimension(2), x.dimension(3));
    for (Index b = 0; b < x.dimension(0); b++)
      for (Index h = 0; h < part.dimension(1); h++)
        std::copy_n(&x(b, heads[std::size_t(h)], 0, 0), x.dimension(2) * x.dimension(3), &part(b, h, 0, 0));
    return part;
  }
  // Swaps both batch entries.
  static Array swapped(const Array& x) {
    Array y = x;
    std::rotate(y.data(), y.data() + y.size() / 2, y.data() + y.size());
    return y;
  }
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ForwardProperties, Scalars);

// q·(k + c) = q·k + q·c: the same addend for every key of a row, which changes only the lse.
TYPED_TEST(ForwardProperties, ACommonShiftOfTheKeysChangesOnlyTheLse) {
  using T = TypeParam;
  const auto c = this->random_.template matrix<T>(1, this->kDim);
  for (const Mask& mask : kMasks) {
    auto expected = this->forward(mask);
    auto shifted = this->k_;
    for (Index i = 0; i < shifted.size(); i++) shifted.data()[i] += c(0, i % this->kDim);
    for (Index row = 0; row < expected.lse.size(); row++) {
      double dot = 0;
      for (Index d = 0; d < this->kDim; d++) dot += double(this->q_.data()[row * this->kDim + d]) * double(c(0, d));
      expected.lse.data()[row] += T(dot / std::sqrt(double(this->kDim)));
    }
    this->expect_near(alibi::attention_with_lse(this->q_, shifted, this->v_, this->m_, {.mask = mask}), expected);
  }
}

TYPED_TEST(ForwardProperties, HeadsAreIndependent) {
  const std::vector<Index> order = {2, 3, 1, 0}, kv_order = {1, 0};  // keeps the groups together
  test::Vector<TypeParam> m(4);
  for (Index h = 0; h < 4; h++) m[h] = this->m_[order[std::size_t(h)]];
  for (const Mask& mask : kMasks) {
    const auto permuted = alibi::attention(this->heads(this->q_, order), this->heads(this->k_, kv_order),
                                           this->heads(this->v_, kv_order), m, {.mask = mask});
    EXPECT_TRUE(same(permuted, this->heads(this->forward(mask).output, order)));
  }
}

TYPED_TEST(ForwardProperties, BatchEntriesAreIndependent) {
  for (const Mask& mask : kMasks) {
    const auto permuted = alibi::attention(this->swapped(this->q_), this->swapped(this->k_), this->swapped(this->v_),
                                           this->m_, {.mask = mask});
    EXPECT_TRUE(same(permuted, this->swapped(this->forward(mask).output)));
  }
}

TYPED_TEST(ForwardProperties, GroupedHeadsAreRepeatedKvHeads) {
  const std::vector<Index> repeated = {0, 0, 1, 1};
  for (const Mask& mask : kMasks)
    this->expect_same(alibi::attention_with_lse(this->q_, this->heads(this->k_, repeated),
                                                this->heads(this->v_, repeated), this->m_, {.mask = mask}),
                      this->forward(mask));
}

// The result does not depend on the executor or on the order of the tasks.
TYPED_TEST(ForwardProperties, IndependentOfTheExecutor) {
  const auto q = this->random_.template tensor<TypeParam>(1, 2, 1100, 24),
             k = this->random_.template tensor<TypeParam>(1, 2, 1100, 24),
             v = this->random_.template tensor<TypeParam>(1, 2, 1100, 20);
  for (const Mask& mask : kMasks) {
    const auto expected = alibi::attention_with_lse(q, k, v, alibi::slopes<TypeParam>(2), {.mask = mask});
    for (const alibi::Executor& executor : test::executors())
      this->expect_same(
          alibi::attention_with_lse(q, k, v, alibi::slopes<TypeParam>(2), {.mask = mask, .executor = executor}),
          expected);
  }
}

TYPED_TEST(ForwardProperties, ASingleQueryIsARowOfTheWhole) {
  for (const Mask& mask : kMasks) {
    const auto whole = this->forward(mask);
    for (const Index i : {0, 1, 15, 16, 63, 64, 100, 149}) {
      Mask at = mask;
      at.query_offset = i;
      const auto row =
          alibi::attention_with_lse(this->tokens(this->q_, i, i + 1), this->k_, this->v_, this->m_, {.mask = at});
      EXPECT_LE(test::distance(row.output, this->tokens(whole.output, i, i + 1)), test::kBound<TypeParam>)
          << "row " << i;
      for (Index n = 0; n < row.lse.size(); n++)
        EXPECT_NEAR(row.lse.data()[n], whole.lse.data()[n * this->kTokens + i], 10 * test::kBound<TypeParam>);
    }
  }
}

TYPED_TEST(ForwardProperties, ChunkedPrefillIsTheWhole) {
  for (const Mask& mask : kCausal) {
    const auto whole = this->forward(mask);
    for (Index begin = 0, end = 0; begin < this->kTokens; begin = end) {
      end =
          std::min(begin + 41, this->kTokens);  // queries [begin, end) at the end of keys [0, end): the default offset
      const auto chunk = alibi::attention(this->tokens(this->q_, begin, end), this->tokens(this->k_, 0, end),
                                          this->tokens(this->v_, 0, end), this->m_, {.mask = mask});
      EXPECT_LE(test::distance(chunk, this->tokens(whole.output, begin, end)), test::kBound<TypeParam>);
    }
  }
}

// Keys after a causal query are never read.
TYPED_TEST(ForwardProperties, KeysAfterTheLastQueryChangeNothing) {
  for (Mask mask : kCausal) {
    mask.query_offset = 0;
    for (const Index queries : {2, 40, 100}) {  // one query over one key takes a kernel of its own
      const auto q = this->tokens(this->q_, 0, queries);
      this->expect_same(alibi::attention_with_lse(q, this->k_, this->v_, this->m_, {.mask = mask}),
                        alibi::attention_with_lse(q, this->tokens(this->k_, 0, queries),
                                                  this->tokens(this->v_, 0, queries), this->m_, {.mask = mask}));
    }
  }
}

TYPED_TEST(ForwardProperties, AWindowOfAllTokensIsNoWindow) {
  for (const bool causal : {true, false})
    for (const Index window : {this->kTokens, this->kTokens + 1, Index(1) << 62})
      this->expect_same(this->forward({.causal = causal, .window = window}), this->forward({.causal = causal}));
}

TYPED_TEST(ForwardProperties, ZeroSlopesArePlainAttention) {
  using T = TypeParam;
  const auto q = this->random_.template matrix<T>(70, 24), k = this->random_.template matrix<T>(70, 24),
             v = this->random_.template matrix<T>(70, 20);
  for (const bool causal : {true, false}) {
    const auto output = alibi::attention(q, k, v, T(0), {.mask = {.causal = causal}});
    for (Index i = 0; i < 70; i++) {
      std::vector<double> weighted(20);
      double sum = 0;
      for (Index j = 0; j < (causal ? i + 1 : 70); j++) {
        double dot = 0;
        for (Index d = 0; d < 24; d++) dot += double(q(i, d)) * double(k(j, d));
        const double p = std::exp(dot / std::sqrt(24.));
        sum += p;
        for (Index d = 0; d < 20; d++) weighted[std::size_t(d)] += p * double(v(j, d));
      }
      for (Index d = 0; d < 20; d++) EXPECT_NEAR(output(i, d), weighted[std::size_t(d)] / sum, test::kBound<T>);
    }
  }
}

// Parts of the keys, each with its (output, lse), merge to the whole: o = Σ e^lse_n o_n / Σ e^lse_n.
TYPED_TEST(ForwardProperties, SplitKeysMergeToTheWhole) {
  for (const Mask& mask : kMasks)
    for (const Index split : {1, 64, 77, 149}) {
      Mask first = mask, second = mask;
      first.query_offset = 0;
      second.query_offset = -split;  // its key 0 is key `split` of the whole
      second.prefix = std::max<Index>(mask.prefix - split, 0);
      second.sinks = std::max<Index>(mask.sinks.value_or(0) - split, 0);
      const auto whole = this->forward(mask);
      auto a = alibi::attention_with_lse(this->q_, this->tokens(this->k_, 0, split), this->tokens(this->v_, 0, split),
                                         this->m_, {.mask = first});
      const auto b =
          alibi::attention_with_lse(this->q_, this->tokens(this->k_, split, this->kTokens),
                                    this->tokens(this->v_, split, this->kTokens), this->m_, {.mask = second});
      for (Index row = 0; row < a.lse.size(); row++) {
        const double x = double(a.lse.data()[row]), y = double(b.lse.data()[row]), most = std::max(x, y);
        const double lse = most + std::log(std::exp(x - most) + std::exp(y - most));
        for (Index d = 0; d < this->kValueDim; d++) {
          TypeParam& o = a.output.data()[row * this->kValueDim + d];
          o = TypeParam(std::exp(x - lse) * double(o) +
                        std::exp(y - lse) * double(b.output.data()[row * this->kValueDim + d]));
        }
        a.lse.data()[row] = TypeParam(lse);
      }
      this->expect_near(a, whole, 2);
    }
}

TYPED_TEST(ForwardProperties, LinearInTheValues) {
  auto other = this->v_, doubled = this->v_, sum = this->v_;
  this->random_.fill(other);
  for (Index i = 0; i < sum.size(); i++) {
    doubled.data()[i] *= TypeParam(2);
    sum.data()[i] += other.data()[i];
  }
  for (const Mask& mask : kMasks) {
    const auto attend = [&](const auto& v) {
      return alibi::attention(this->q_, this->k_, v, this->m_, {.mask = mask});
    };
    auto of_v = attend(this->v_), added = attend(other);
    for (Index i = 0; i < of_v.size(); i++) added.data()[i] += of_v.data()[i];
    EXPECT_LE(test::distance(attend(sum), added), 2 * test::kBound<TypeParam>);
    for (Index i = 0; i < of_v.size(); i++) of_v.data()[i] *= TypeParam(2);
    EXPECT_TRUE(same(attend(doubled), of_v)) << "a factor of 2 is exact";
  }
}

}  // namespace
