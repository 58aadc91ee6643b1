// NaN and infinity in the input: which outputs they reach, and that all other outputs are unchanged.
#include <alibi/kernel/simd/vec.hpp>
#include <alibi/reference.hpp>

#include "common.hpp"

namespace {

using alibi::Mask;
using test::Index;

const std::vector<Mask> kMasks = {{},
                                  {.causal = false},
                                  {.window = 20},
                                  {.causal = false, .window = 20},
                                  {.query_offset = -30},
                                  {.window = 20, .query_offset = 100},
                                  {.window = 20, .prefix = 70, .sinks = 5}};

template <class T>
class ForwardNan : public testing::Test {
 protected:
  static constexpr Index kTokens = 300, kDim = 12, kValueDim = 9;
  using Matrix = test::RowMatrix<T>;

  test::Random random_{1};
  Matrix q_ = random_.matrix<T>(kTokens, kDim), k_ = random_.matrix<T>(kTokens, kDim),
         v_ = random_.matrix<T>(kTokens, kValueDim);

  static auto forward(const Matrix& q, const Matrix& k, const Matrix& v, const Mask& mask,
                      std::optional<double> tolerance = std::nullopt) {
    return alibi::attention_with_lse(q, k, v, T(0.125), {.mask = mask, .tolerance = tolerance});
  }
  using Result = decltype(forward(Matrix(), Matrix(), Matrix(), Mask()));

  // Whether query i sees a key of [begin, end).
  static bool sees(const Mask& mask, Index i, Index begin, Index end) {
    for (Index j = begin; j < end; j++)
      if (alibi::reference::sees(mask, i + mask.query_offset.value_or(0), j)) return true;
    return false;
  }
  static Index block(Index i) { return i / alibi::kernel::kBlock<T>; }
  // Whether a query of i's block sees a key of [begin, end).
  static bool block_sees(const Mask& mask, Index i, Index begin, Index end) {
    for (Index n = 0; n < kTokens; n++)
      if (block(n) == block(i) && sees(mask, n, begin, end)) return true;
    return false;
  }

  static bool is_nan(const Result& x, Index i) { return std::isnan(x.lse[i]) && x.output.row(i).array().isNaN().all(); }
  static bool same(const Result& x, const Result& y, Index i) {
    return test::same(Matrix(x.output.row(i)), Matrix(y.output.row(i))) && x.lse[i] == y.lse[i];
  }
  static bool near(const Result& x, const Result& y, Index i) {
    return test::distance(Matrix(x.output.row(i)), Matrix(y.output.row(i))) <= test::kBound<T> &&
           (x.lse[i] == y.lse[i] || std::abs(x.lse[i] - y.lse[i]) <= 10 * test::kBound<T>);
  }
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ForwardNan, Scalars);

TYPED_TEST(ForwardNan, InAQueryStaysInItsRow) {
  for (std::size_t n = 0; n < kMasks.size(); n++) {
    const Mask& mask = kMasks[n];
    const auto expected = this->forward(this->q_, this->k_, this->v_, mask);
    for (const TypeParam nan : test::nans<TypeParam>())
      for (const Index at : {0, 70, 150, 299}) {
        auto q = this->q_;
        q(at, at % this->kDim) = nan;
        const auto result = this->forward(q, this->k_, this->v_, mask);
        for (Index i = 0; i < this->kTokens; i++) {
          const bool hit = i == at && this->sees(mask, i, 0, this->kTokens);
          EXPECT_TRUE(hit                                 ? this->is_nan(result, i)
                      : this->block(i) == this->block(at) ? this->near(result, expected, i)
                                                          : this->same(result, expected, i))
              << "mask " << n << ", NaN in query " << at << ", row " << i;
        }
      }
  }
}

TYPED_TEST(ForwardNan, InAKeyReachesTheQueriesThatSeeIt) {
  for (std::size_t n = 0; n < kMasks.size(); n++) {
    const Mask& mask = kMasks[n];
    const auto expected = this->forward(this->q_, this->k_, this->v_, mask);
    for (const TypeParam nan : test::nans<TypeParam>())
      for (const Index at : {0, 63, 64, 150, 299}) {
        auto k = this->k_;
        k(at, at % this->kDim) = nan;
        const auto result = this->forward(this->q_, k, this->v_, mask);
        // Sinks before a window are not pruned in a head with NaN, so that all its rows may round differently.
        for (Index i = 0; i < this->kTokens; i++)
          EXPECT_TRUE(this->sees(mask, i, at, at + 1)                       ? this->is_nan(result, i)
                      : this->block_sees(mask, i, at, at + 1) || mask.sinks ? this->near(result, expected, i)
                                                                            : this->same(result, expected, i))
              << "mask " << n << ", NaN in key " << at << ", row " << i;
      }
  }
}

// Queries of the same block that do not see the key may have any number in the same column. The tolerance is 0, because
// otherwise a value that cannot matter is not read.
TYPED_TEST(ForwardNan, InAValueReachesTheColumnOfTheQueriesThatSeeIt) {
  using T = TypeParam;
  std::vector<T> bad = test::nans<T>();
  bad.push_back(std::numeric_limits<T>::infinity());
  for (std::size_t n = 0; n < kMasks.size(); n++) {
    const Mask& mask = kMasks[n];
    const auto expected = this->forward(this->q_, this->k_, this->v_, mask, 0);
    for (const T x : bad)
      for (const Index at : {0, 63, 64, 150, 299}) {
        auto v = this->v_;
        const Index column = at % this->kValueDim;
        v(at, column) = x;
        auto result = this->forward(this->q_, this->k_, v, mask, 0);
        for (Index i = 0; i < this->kTokens; i++) {
          T& hit = result.output(i, column);
          if (this->sees(mask, i, at, at + 1)) {
            EXPECT_TRUE(std::isnan(x) ? std::isnan(hit) : !std::isfinite(hit))
                << "mask " << n << ", " << x << " in value " << at << ", row " << i << ": " << hit;
          }
          if (this->block_sees(mask, i, at, at + 1)) hit = expected.output(i, column);
          EXPECT_TRUE(this->same(result, expected, i))
              << "mask " << n << ", " << x << " in value " << at << ", row " << i;
        }
      }
  }
}

// Masked keys are skipped: whole ranges of keys and values are NaN, and a block that sees none of them is unchanged.
TYPED_TEST(ForwardNan, InMaskedKeysChangesNothing) {
  for (std::size_t n = 0; n < kMasks.size(); n++) {
    const Mask& mask = kMasks[n];
    const auto expected = this->forward(this->q_, this->k_, this->v_, mask);
    Index untouched = 0;
    for (const TypeParam nan : test::nans<TypeParam>())
      for (const auto& [begin, end] : {std::pair<Index, Index>(0, 64), std::pair<Index, Index>(0, 150),
                                       std::pair<Index, Index>(101, 300), std::pair<Index, Index>(192, 300)}) {
        auto k = this->k_, v = this->v_;
        k.middleRows(begin, end - begin).setConstant(nan);
        v.middleRows(begin, end - begin).setConstant(nan);
        const auto result = this->forward(this->q_, k, v, mask);
        for (Index i = 0; i < this->kTokens; i++)
          if (!this->block_sees(mask, i, begin, end)) {
            untouched++;
            EXPECT_TRUE(this->same(result, expected, i)) << "mask " << n << ", NaN from key " << begin << ", row " << i;
          }
      }
    EXPECT_EQ(untouched > 0, mask.causal || mask.window) << "mask " << n;
  }
}

}  // namespace
