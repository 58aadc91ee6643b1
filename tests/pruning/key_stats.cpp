// The statistics of keys are upper bounds: radii, masses and tail bounds, against long double.
#include <alibi/kernel/pruning/key_stats.hpp>

#include "common.hpp"

namespace {

using alibi::kernel::KeyTileBounds;
using alibi::kernel::kTile;
using alibi::kernel::Rows;
using test::Index;
using Real = long double;

template <class T>
struct Tile {
  test::RowMatrix<T> keys;
  test::Vector<T> center;

  Real distance(Index j) const { return (keys.row(j) - center.transpose()).template cast<Real>().norm(); }
};

/// log2 Σ 2^x
Real log_sum(const std::vector<Real>& x) {
  const Real most = *std::max_element(x.begin(), x.end());
  Real sum = 0;
  for (const Real one : x) sum += std::exp2(one - most);
  return most + std::log2(sum);
}

template <class T>
class KeyStats : public testing::Test {
 protected:
  test::Random random_{3};

  /// Keys around the centre at a given scale. Some of them lie at the same distance on opposite sides.
  Tile<T> tile(Index keys, Index head_dim, double scale) {
    Tile<T> x{T(scale) * random_.matrix<T>(keys, head_dim),
              T(scale) * random_.matrix<T>(1, head_dim).row(0).transpose()};
    for (Index j = 2; j < keys; j += 3) x.keys.row(j) = 2 * x.center.transpose() - x.keys.row(j - 1);
    return x;
  }
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(KeyStats, Scalars);

// The chord norms include values that magnify an ulp: one query may be a million times as long as the others.
TYPED_TEST(KeyStats, TileBoundsAreTightUpperBounds) {
  using T = TypeParam;
  for (const Index head_dim : {1, 3, 16, 40, 64})
    for (const double scale : {1e-30, 1e-3, 1., 1e4, 1e15})
      for (const double chord_norm : {0., 1e-6, 1., 12., 1e3, 1e5, 0x1p20, 0x1p40})
        for (const Index keys : {1, 7, 64}) {
          const Tile<T> x = this->tile(keys, head_dim, scale);
          const auto stats = alibi::kernel::measure_tile(Rows<const T>{x.keys.data(), head_dim}, 0, keys, head_dim,
                                                         x.center.data(), T(chord_norm));
          Real radius = 0;
          std::vector<Real> exponents;
          for (Index j = 0; j < keys; j++) {
            radius = std::max(radius, x.distance(j));
            exponents.push_back(Real(T(chord_norm)) * x.distance(j));
          }
          const Real log_mass = log_sum(exponents);
          const auto what = [&] {
            return testing::Message() << "head_dim " << head_dim << ", scale " << scale << ", chord_norm " << chord_norm
                                      << ", keys " << keys;
          };
          // The excess is at most the rounding of a norm, and 64 keys in the centre.
          const Real slack = 4 * Real(head_dim + 8) * std::numeric_limits<T>::epsilon();
          EXPECT_GE(Real(stats.radius), radius) << what();
          EXPECT_LE(Real(stats.radius), radius * (1 + slack) + 1e-17L) << what();
          EXPECT_GE(Real(stats.log_mass), log_mass - slack * std::abs(log_mass)) << what();
          EXPECT_LE(Real(stats.log_mass), std::max(log_mass, 0.L) * (1 + slack) + 6.1L + 1e-17L * chord_norm) << what();
        }
}

TYPED_TEST(KeyStats, TailBoundsAreUpperBounds) {
  using T = TypeParam;
  const Index tiles = 9, keys = tiles * kTile, head_dim = 16;
  for (const double slope : {1e-9, 0.01, 0.3, 2., 30.})
    for (const double chord_norm : {1., 8., 1e4}) {
      Tile<T> x = this->tile(keys, head_dim, 1);
      x.keys.middleRows(5 * kTile, 1) *= T(40);  // an outlier tile
      std::vector<T> numbers(std::size_t(alibi::kernel::KeyStatsMemory<T>::size(head_dim, tiles, 2)));
      std::vector<T> bounds_before(std::size_t(tiles), 0), bounds_after = bounds_before;
      std::vector<std::int32_t> outliers(std::size_t(tiles), 0);
      T* at = numbers.data();
      std::int32_t* list = outliers.data();
      const alibi::kernel::KeyStatsMemory<T> of(at, list, head_dim, tiles, 2);
      std::copy_n(x.center.data(), head_dim, of.center);
      for (Index t = 0; t < tiles; t++) {
        const auto stats = alibi::kernel::measure_tile(Rows<const T>{x.keys.data(), head_dim}, t * kTile,
                                                       (t + 1) * kTile, head_dim, x.center.data(), T(chord_norm));
        of.radius[t] = stats.radius;
        of.log_mass[t] = stats.log_mass;
      }
      const KeyTileBounds<T> key_bounds = alibi::kernel::summarize(of, head_dim, T(chord_norm));
      alibi::kernel::compute_tail_bounds(key_bounds, slope, bounds_before.data(), bounds_after.data());
      ASSERT_EQ(std::vector(outliers.begin(), outliers.begin() + key_bounds.outlier_count),
                (std::vector<std::int32_t>{0, 5}));
      for (Index t = 0; t < tiles; t++) {
        std::vector<Real> before = {-1e30L}, after = {-1e30L};
        for (Index j = 0; j < keys; j++) {
          if (j / kTile == 0 || j / kTile == 5) continue;
          const Real score = Real(T(chord_norm)) * x.distance(j);
          if (j / kTile <= t) before.push_back(score - Real(slope) * Real((t + 1) * kTile - 1 - j));
          if (j / kTile >= t) after.push_back(score - Real(slope) * Real(j - t * kTile));
        }
        const Real slack = 100 * std::numeric_limits<T>::epsilon();
        const auto expect_above = [&](T is, Real exact, const char* name) {
          EXPECT_GE(Real(is), exact - slack * std::abs(exact))
              << name << ' ' << t << ", slope " << slope << ", chord_norm " << chord_norm;
        };
        expect_above(bounds_before[std::size_t(t)], log_sum(before), "before");
        expect_above(bounds_after[std::size_t(t)], log_sum(after), "after");
      }
    }
}

// One long, finite query is among the 64 queries that typical_norm() reads. Whatever its length, the other queries stay
// within the tolerance.
TYPED_TEST(KeyStats, OneLongQueryDoesNotAffectTheOthers) {
  using T = TypeParam;
  constexpr Index kKeys = 1280;
  const T slope = T(0.05), tolerance = T(1e-3), far = 8312;
  test::RowMatrix<T> q(kKeys, 1), k(kKeys, 1), v(kKeys, 1);
  q.setConstant(T(25) / std::numbers::log2e_v<T> / far);
  for (Index j = 0; j < kKeys; j++) {
    k(j) = j < kKeys / 2 ? far : -far;
    v(j) = j < kKeys / 2 ? T(1) : T(0);
  }
  const auto of = [&](double largest) {
    return alibi::attention_with_lse(q, k, v, slope, {.scale = 1, .tolerance = largest});
  };
  for (const T length : {T(1e3), T(231170), T(1e6), T(3e15), std::numeric_limits<T>::max() / 2}) {
    q(10) = length;
    const auto every = of(0), pruned = of(double(tolerance));
    for (const Index i : {Index(11), kKeys / 2 + 10, kKeys - 1}) {
      EXPECT_NEAR(double(pruned.output(i, 0)), double(every.output(i, 0)), double(tolerance)) << length << ' ' << i;
      EXPECT_NEAR(double(pruned.lse(i)), double(every.lse(i)), 1.1 * double(tolerance)) << length << ' ' << i;
    }
  }
}

}  // namespace
