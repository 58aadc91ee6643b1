// What pruning must not change, and what it must save. certificate.cpp tests that the pruned mass is within the
// tolerance.
#include <alibi/kernel/simd/vec.hpp>
#include <alibi/reference.hpp>
#include <iostream>

#include "common.hpp"
#include "executors.hpp"

namespace {

using alibi::Mask;
using test::Index;
using test::same;
using test::Tensor4;

const std::vector<Mask> kMasks = {
    {},
    {.causal = false},
    {.window = 300},
    {.causal = false, .window = 300},
    {.prefix = 500},
    {.window = 50, .sinks = 60}};  // no window shares a tile with sinks where there are more keys than queries

template <class T>
class PruningProperties : public testing::Test {
 protected:
  using Array = Tensor4<T>;
  using Result = alibi::ForwardResult<Array, test::Tensor3<T>>;

  test::Random random_{11};

  Array normal(Index heads, Index tokens, Index dim) { return random_.tensor<T>(1, heads, tokens, dim); }

  static void expect_same(const Result& a, const Result& b) {
    EXPECT_TRUE(same(a.output, b.output));
    EXPECT_TRUE(same(a.lse, b.lse));
  }
  static Index total(const std::vector<alibi::PruningStats>& stats, Index alibi::PruningStats::* count) {
    Index sum = 0;
    for (const alibi::PruningStats& head : stats) sum += head.*count;
    return sum;
  }
  /// The share of the visible tiles that a call computes.
  static double computed_share(const Array& q, const Array& k, const Array& v, const test::Vector<T>& m) {
    std::vector<alibi::PruningStats> stats(std::size_t(m.size()));
    alibi::attention(q, k, v, m, {.pruning_stats = stats});
    return double(total(stats, &alibi::PruningStats::tiles_computed)) /
           double(total(stats, &alibi::PruningStats::tiles_total));
  }
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(PruningProperties, Scalars);

// The difference is at most one unit in the last place of the largest number of the output.
TYPED_TEST(PruningProperties, TheDefaultChangesOneUlpAtMost) {
  using T = TypeParam;
  const auto q = this->normal(8, 2048, 64), k = this->normal(8, 2048, 64), v = this->normal(8, 2048, 64);
  const auto m = alibi::slopes<T>(8);
  const auto pruned = alibi::attention_with_lse(q, k, v, m),
             dense = alibi::attention_with_lse(q, k, v, m, {.tolerance = 0});
  double scale = 0;
  for (Index i = 0; i < dense.output.size(); i++) scale = std::max(scale, double(std::abs(dense.output.data()[i])));
  const double ulp = std::exp2(std::floor(std::log2(scale))) * double(std::numeric_limits<T>::epsilon());
  EXPECT_LE(test::distance(pruned.output, dense.output), ulp);
  EXPECT_LE(test::distance(pruned.lse, dense.lse), 8 * double(std::numeric_limits<T>::epsilon()));
  std::cout << "changed by " << test::distance(pruned.output, dense.output) / ulp << " ulp\n";
}

TYPED_TEST(PruningProperties, IndependentOfTheExecutor) {
  using T = TypeParam;
  const auto q = this->normal(4, 1500, 24), k = this->normal(2, 1500, 24), v = this->normal(2, 1500, 20);
  const auto m = alibi::slopes<T>(4);
  for (const Mask& mask : kMasks)
    for (const double tolerance : {0x1p-24, 1e-2}) {
      std::vector<alibi::PruningStats> stats(4), other(4);
      const auto expected =
          alibi::attention_with_lse(q, k, v, m, {.mask = mask, .tolerance = tolerance, .pruning_stats = stats});
      for (const alibi::Executor& executor : test::executors()) {
        this->expect_same(
            alibi::attention_with_lse(
                q, k, v, m, {.mask = mask, .tolerance = tolerance, .executor = executor, .pruning_stats = other}),
            expected);
        for (std::size_t h = 0; h < 4; h++) {
          EXPECT_EQ(other[h].tiles_computed, stats[h].tiles_computed);
          EXPECT_EQ(other[h].tiles_total, stats[h].tiles_total);
          EXPECT_EQ(other[h].mass_bound, stats[h].mass_bound);
        }
      }
    }
}

TYPED_TEST(PruningProperties, NonPositiveSlopesPruneNothing) {
  using T = TypeParam;
  const auto q = this->normal(4, 1000, 24), k = this->normal(4, 1000, 24), v = this->normal(4, 1000, 20);
  test::Vector<T> m(4);
  for (const Mask& mask : kMasks)
    for (const T slope : {T(0), T(-0.0), T(-1e-3), T(-0.5), T(-100)}) {
      m.setConstant(slope);
      std::vector<alibi::PruningStats> stats(4);
      this->expect_same(alibi::attention_with_lse(q, k, v, m, {.mask = mask, .tolerance = 0.5, .pruning_stats = stats}),
                        alibi::attention_with_lse(q, k, v, m, {.mask = mask, .tolerance = 0}));
      for (const alibi::PruningStats& head : stats) {
        EXPECT_EQ(head.tiles_computed, head.tiles_total);
        EXPECT_EQ(head.mass_bound, 0);
      }
    }
}

// The values mark the tile of each key, so the output shows which tiles a query computed. The reference counts them
// block by block.
TYPED_TEST(PruningProperties, StatsCountTiles) {
  using T = TypeParam;
  constexpr Index kBlock = alibi::kernel::kBlock<T>, kTile = alibi::kernel::kTile, kTokens = 1130;
  constexpr Index kTiles = (kTokens + kTile - 1) / kTile;
  const auto q = this->normal(3, 1010, 16), k = this->normal(3, kTokens, 16);
  Tensor4<T> v(1, 3, kTokens, kTiles);
  v.setZero();
  for (Index h = 0; h < 3; h++)
    for (Index j = 0; j < kTokens; j++) v(0, h, j, j / kTile) = 1;
  const test::Vector<T> m =
      Eigen::Vector3d(0.2, 0.05, 0.01).cast<T>();  // no visible weight is below 2^-100 with a window
  std::vector<Mask> masks = kMasks;
  masks.push_back({.query_offset = -500});
  masks.push_back({.causal = false, .query_offset = 700});
  masks.push_back({.window = 300, .prefix = 700});
  for (const Mask& mask : masks)
    for (const double tolerance : {0., 0x1p-24, 1e-2}) {
      std::vector<alibi::PruningStats> stats(3);
      const auto output = alibi::attention(q, k, v, m, {.mask = mask, .tolerance = tolerance, .pruning_stats = stats});
      for (Index h = 0; h < 3; h++) {
        Index total_tiles = 0, computed_tiles = 0;
        for (Index begin = 0; begin < 1010; begin += kBlock)
          for (Index tile = 0; tile < kTiles; tile++) {
            bool sees = false, computes = false;
            for (Index i = begin; i < std::min<Index>(begin + kBlock, 1010); i++) {
              for (Index j = tile * kTile; j < std::min((tile + 1) * kTile, kTokens); j++)
                sees |= alibi::reference::sees(mask, i + mask.query_offset.value_or(kTokens - 1010), j);
              computes |= output(0, h, i, tile) != 0;
            }
            total_tiles += sees;
            computed_tiles += computes;
          }
        const alibi::PruningStats& head = stats[std::size_t(h)];
        const std::string what = "head " + std::to_string(h) + ", tolerance " + std::to_string(tolerance);
        EXPECT_EQ(head.tiles_total, total_tiles) << what;
        EXPECT_EQ(head.tiles_computed, computed_tiles) << what;
        EXPECT_GE(head.mass_bound, 0) << what;
        EXPECT_LE(head.mass_bound, tolerance) << what;
      }
    }
}

// Two keys outweigh the query's own key at any distance, so even close tiles may be pruned. No tile is computed twice,
// and no tile that matters is pruned.
TYPED_TEST(PruningProperties, OutlierTilesAreComputedOnce) {
  using T = TypeParam;
  constexpr Index kTokens = 900;
  auto q = this->normal(2, kTokens, 16);
  for (Index h = 0; h < 2; h++)
    for (Index i = 0; i < kTokens; i++) q(0, h, i, 0) = 1 + std::abs(q(0, h, i, 0));
  const auto k = this->normal(2, kTokens, 16), v = this->normal(2, kTokens, 3);
  const test::Vector<T> m = Eigen::Vector2d(0.5, 0.03).cast<T>();
  for (std::size_t n = 0; n < kMasks.size(); n++)
    for (const Index at : {3, 100, 300, 450, 640, 899})
      for (const T length : {T(4), T(30), T(200), T(2000)})
        for (const double tolerance : {0x1p-24, 1e-5, 1e-2, 0.3}) {
          auto outlier = k;
          for (Index h = 0; h < 2; h++) outlier(0, h, at, 0) = outlier(0, h, at / 2, 0) = length;
          std::vector<alibi::PruningStats> stats(2);
          const auto dense = alibi::attention_with_lse(q, outlier, v, m, {.mask = kMasks[n], .tolerance = 0});
          const auto pruned = alibi::attention_with_lse(
              q, outlier, v, m, {.mask = kMasks[n], .tolerance = tolerance, .pruning_stats = stats});
          const double rounding = test::kBound<T> * double(10 + length), lse_bound = -std::log1p(-tolerance);
          const std::string what = "mask " + std::to_string(n) + ", outliers of " + std::to_string(double(length)) +
                                   " at " + std::to_string(at) + ", tolerance " + std::to_string(tolerance);
          for (Index i = 0; i < dense.lse.size(); i++) {
            const double less = double(dense.lse.data()[i]) - double(pruned.lse.data()[i]);
            ASSERT_TRUE(-rounding <= less && less <= lse_bound + rounding) << what << ", row " << i << ": " << less;
          }
          EXPECT_LE(test::distance(pruned.output, dense.output), 8 * tolerance + rounding) << what;
          for (const alibi::PruningStats& head : stats) EXPECT_LE(head.tiles_computed, head.tiles_total) << what;
        }
}

TYPED_TEST(PruningProperties, EveryHeadOfEverySequenceHasStats) {
  using T = TypeParam;
  const auto q = this->random_.template tensor<T>(2, 4, 700, 16), k = this->random_.template tensor<T>(2, 2, 700, 16),
             v = this->random_.template tensor<T>(2, 2, 700, 16);
  test::RowMatrix<T> m(2, 4);
  m << T(2), T(0), T(0.1), T(0.02), T(0), T(2), T(0.02), T(0.1);
  std::vector<alibi::PruningStats> stats(8, {-1, -1, 7});
  alibi::attention(q, k, v, m, {.pruning_stats = stats});
  for (const alibi::PruningStats& head : stats) EXPECT_EQ(head.tiles_total, stats[0].tiles_total);
  for (const std::size_t head : std::vector<std::size_t>{1, 4})
    EXPECT_EQ(stats[head].tiles_computed, stats[head].tiles_total);
  EXPECT_LT(stats[0].tiles_computed, stats[2].tiles_computed);
  EXPECT_LT(stats[2].tiles_computed, stats[3].tiles_computed);
  EXPECT_LT(stats[5].tiles_computed, stats[7].tiles_computed);
  EXPECT_LT(stats[7].tiles_computed, stats[6].tiles_computed);
}

TYPED_TEST(PruningProperties, NoVisibleKeyGivesZeroStats) {
  using T = TypeParam;
  const auto q = this->normal(2, 70, 8), none = this->normal(2, 0, 8), k = this->normal(2, 100, 8);
  const auto m = alibi::slopes<T>(2);
  std::vector<alibi::PruningStats> stats;
  const auto expect_nothing = [&] {
    for (const alibi::PruningStats& head : stats) {
      EXPECT_EQ(head.tiles_computed, 0);
      EXPECT_EQ(head.tiles_total, 0);
      EXPECT_EQ(head.mass_bound, 0);
    }
  };
  stats.assign(2, {-1, -1, 7});
  alibi::attention(q, none, none, m, {.pruning_stats = stats});
  expect_nothing();
  stats.assign(2, {-1, -1, 7});
  alibi::attention(none, k, k, m, {.pruning_stats = stats});
  expect_nothing();
  stats.assign(2, {-1, -1, 7});
  alibi::attention(q, k, k, m, {.mask = {.query_offset = -1000}, .pruning_stats = stats});
  expect_nothing();
}

/// Expects NaN and infinity in the same places, and the other numbers equal within the tolerance.
template <class Result>
void expect_same_kind(const Result& pruned, const Result& dense, double tolerance, const std::string& what) {
  int different = 0;
  const auto compare = [&](auto x, auto y) {
    const double bound = 10 * (tolerance + test::kBound<decltype(x)> * std::max(1., std::abs(double(y))));
    different += std::isnan(x) != std::isnan(y) || (!std::isnan(x) && x != y && !(std::abs(double(x - y)) <= bound));
  };
  for (Index i = 0; i < dense.output.size(); i++) compare(pruned.output.data()[i], dense.output.data()[i]);
  for (Index i = 0; i < dense.lse.size(); i++) compare(pruned.lse.data()[i], dense.lse.data()[i]);
  EXPECT_EQ(different, 0) << what;
}

// A NaN is never pruned, at any distance. A query that sees it is NaN, as without pruning.
TYPED_TEST(PruningProperties, NanIsNeverPruned) {
  using T = TypeParam;
  constexpr Index kTokens = 1100;
  const auto q = this->normal(1, kTokens, 12), k = this->normal(1, kTokens, 12), v = this->normal(1, kTokens, 9);
  std::vector<T> bad = test::nans<T>();
  bad.push_back(std::numeric_limits<T>::infinity());
  bad.push_back(-std::numeric_limits<T>::infinity());
  const test::Vector<T> steep = test::Vector<T>::Constant(1, T(0.5));
  for (std::size_t n = 0; n < kMasks.size(); n++)
    for (const T x : bad)
      for (const bool in_key : {true, false})
        for (const Index at : {0, 5, 63, 64, 500, 1099}) {
          auto q_bad = q, k_bad = k;
          (in_key ? k_bad : q_bad)(0, 0, at, at % 12) = x;
          const auto of = [&](std::optional<double> tolerance) {
            return alibi::attention_with_lse(q_bad, k_bad, v, steep, {.mask = kMasks[n], .tolerance = tolerance});
          };
          const auto dense = of(0);
          for (const std::optional<double> tolerance : {std::optional<double>(), std::optional(1e-5)})
            expect_same_kind(of(tolerance), dense, tolerance.value_or(0),
                             "mask " + std::to_string(n) + ", " + std::to_string(double(x)) + " in " +
                                 (in_key ? "key " : "query ") + std::to_string(at));
        }
}

// Infinite keys of both signs, huge finite keys, and their mean.
TYPED_TEST(PruningProperties, HugeKeysAreNeverPruned) {
  using T = TypeParam;
  const auto q = this->normal(1, 900, 12), k = this->normal(1, 900, 12), v = this->normal(1, 900, 9);
  const test::Vector<T> steep = test::Vector<T>::Constant(1, T(0.5));
  const T huge = std::numeric_limits<T>::max() / 16, infinity = std::numeric_limits<T>::infinity();
  for (const auto& [x, y] : {std::pair(huge, huge), std::pair(huge, -huge), std::pair(infinity, -infinity),
                             std::pair(std::sqrt(huge), T(0)), std::pair(-infinity, T(0))})
    for (const Index at : {0, 100, 450}) {
      auto changed = k;
      for (Index d = 0; d < 12; d++) changed(0, 0, at, d) = x, changed(0, 0, at + 64, d) = y;
      expect_same_kind(alibi::attention_with_lse(q, changed, v, steep),
                       alibi::attention_with_lse(q, changed, v, steep, {.tolerance = 0}), 0,
                       std::to_string(double(x)) + " and " + std::to_string(double(y)) + " at " + std::to_string(at));
    }
}

class PruningSaves : public PruningProperties<float> {};

TEST_F(PruningSaves, ASteepHeadComputesFewTiles) {
  const auto q = normal(1, 16384, 64), k = normal(1, 16384, 64), v = normal(1, 16384, 8);
  const double share = computed_share(q, k, v, test::Vector<float>::Constant(1, 0.5f));
  std::cout << "computed " << 100 * share << " %\n";
  EXPECT_LT(share, 0.03);
}

TEST_F(PruningSaves, OnShiftedKeysAndOutliersToo) {
  const auto q = normal(8, 4096, 64), k = normal(8, 4096, 64), v = normal(8, 4096, 8);
  const auto m = alibi::slopes(8);
  const double plain = computed_share(q, k, v, m);

  auto shifted = k;
  const auto mean = random_.matrix<float>(8, 64);
  for (Index h = 0; h < 8; h++)
    for (Index j = 0; j < 4096; j++)
      for (Index d = 0; d < 64; d++) shifted(0, h, j, d) += 10 * mean(h, d);
  auto outlier = k;
  for (Index h = 0; h < 8; h++)
    for (Index d = 0; d < 64; d++) outlier(0, h, 0, d) *= 10;

  const double of_shifted = computed_share(q, shifted, v, m), of_outlier = computed_share(q, outlier, v, m);
  std::cout << "computed " << 100 * plain << " %; with a mean of 10, " << 100 * of_shifted << " %; with a first key of "
            << "10 times the length, " << 100 * of_outlier << " %\n";
  EXPECT_LT(plain, 0.6);
  EXPECT_LT(of_shifted, 1.25 * plain);
  EXPECT_LT(of_outlier, 1.25 * plain);
}

// Keys that are twice as long from some token on are no outliers. They cost the same as if all keys were that long.
TEST_F(PruningSaves, AfterKeysHaveBecomeLonger) {
  const auto q = normal(8, 4096, 64), v = normal(8, 4096, 8);
  const auto m = alibi::slopes(8);
  auto longer = normal(8, 4096, 64);
  for (Index i = 0; i < longer.size(); i++) longer.data()[i] *= 2;
  auto mixed = longer;
  for (Index h = 0; h < 8; h++)
    for (Index j = 0; j < 256; j++)
      for (Index d = 0; d < 64; d++) mixed(0, h, j, d) /= 2;
  EXPECT_LT(computed_share(q, mixed, v, m), 1.05 * computed_share(q, longer, v, m));

  alibi::KvCache<float> cache({.kv_heads = 8, .head_dim = 64, .value_dim = 8, .capacity = 4096});
  cache.append(mixed, v);
  EXPECT_LE(alibi::detail::CacheAccess::head(cache, 0, 0).key_bounds.outlier_count, 4096 / 64 / 16 + 5)
      << "outlier tiles";
}

// Checks the whole text of each message, and that nothing was written.
class PruningErrors : public testing::Test {
 protected:
  static constexpr float kUntouched = 42;
  test::Random random_{1};
  Tensor4<float> q_ = random_.tensor<float>(2, 4, 5, 8), k_ = random_.tensor<float>(2, 2, 6, 8),
                 v_ = random_.tensor<float>(2, 2, 6, 3);

  std::string with(const alibi::Options& options) {
    Tensor4<float> output(2, 4, 5, 3);
    output.setConstant(kUntouched);
    std::vector<float> lse(40, kUntouched);
    try {
      alibi::attention_with_lse_into(output, lse, q_, k_, v_, alibi::slopes(4), options);
    } catch (const std::invalid_argument& error) {
      for (Index i = 0; i < output.size(); i++) EXPECT_EQ(output.data()[i], kUntouched) << error.what();
      for (const float x : lse) EXPECT_EQ(x, kUntouched) << error.what();
      return error.what();
    }
    return "no error";
  }
};

TEST_F(PruningErrors, Tolerance) {
  EXPECT_EQ(with({.tolerance = 1}), "alibi: tolerance is 1; expected at least 0 and below 1");
  EXPECT_EQ(with({.tolerance = 2.5}), "alibi: tolerance is 2.5; expected at least 0 and below 1");
  EXPECT_EQ(with({.tolerance = -1e-9}), "alibi: tolerance is -1e-09; expected at least 0 and below 1");
  EXPECT_EQ(with({.tolerance = std::nan("")}), "alibi: tolerance is nan; expected at least 0 and below 1");
  EXPECT_EQ(with({.tolerance = test::kInfinity}), "alibi: tolerance is inf; expected at least 0 and below 1");
  EXPECT_EQ(with({.tolerance = 0}), "no error");
  EXPECT_EQ(with({.tolerance = -0.}), "no error");
  EXPECT_EQ(with({.tolerance = 0.999}), "no error");
}

TEST_F(PruningErrors, Stats) {
  for (const std::size_t size : std::vector<std::size_t>{1, 3, 4, 7, 9}) {
    std::vector<alibi::PruningStats> stats(size, {-1, -1, 7});
    EXPECT_EQ(with({.pruning_stats = stats}),
              "alibi: pruning_stats has " + std::to_string(size) + " entries; expected 8, batch x heads of q");
    for (const alibi::PruningStats& head : stats) EXPECT_EQ(head.mass_bound, 7);
  }
  std::vector<alibi::PruningStats> stats(8, {-1, -1, 7});
  EXPECT_EQ(with({.pruning_stats = stats}), "no error");
  for (const alibi::PruningStats& head : stats) EXPECT_EQ(head.tiles_total, 1);
}

}  // namespace
