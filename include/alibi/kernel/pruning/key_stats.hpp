// Measures the keys of a head for pruning: the centre, and the key tile bounds relative to it
// (kernel/tile/key_bounds.hpp). It takes one pass over the keys and 3 head_dim operations for each key. Each query that
// reads a key takes 4 head_dim operations for it.
//
// A radius is the largest distance of many keys, but most keys lie closer to the centre. The mass of the remaining
// keys, for a query of norm x, is at most 2^f(x), with f(x) = log2 Σ_j 2^(x |k_j - c| - m' d_j), in base 2. f is
// convex. Between 0 and the chord norm b it therefore lies below its chord. f(0) is the geometric series of the
// distances. f(b) is summed here, key by key, once for each query head. Beyond the chord norm f rises by at most the
// radius per unit of norm. Internal.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <utility>

#include "alibi/kernel/pruning/bound.hpp"
#include "alibi/kernel/simd/bf16.hpp"
#include "alibi/kernel/simd/exp2.hpp"
#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/key_bounds.hpp"
#include "alibi/kernel/tile/position_bias.hpp"
#include "alibi/kernel/tile/rows.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// The mean of up to 64 keys, spread evenly over all, rounded to S; 0 where it is not finite. Every centre is correct;
/// a mean makes the radii small.
template <class S, class T>
void find_center(Rows<const S> k, Index keys, Index head_dim, T* center) {
  const Index sample = std::min<Index>(keys, 64);
  std::fill_n(center, head_dim, T(0));
  for (Index i = 0; i < sample; i++) {
    const S* key = k[(2 * i + 1) * keys / (2 * sample)];
    for (Index d = 0; d < head_dim; d++) center[d] += T(key[d]);
  }
  for (Index d = 0; d < head_dim; d++) {
    center[d] = T(S(center[d] / T(sample)));
    if (!std::isfinite(center[d])) center[d] = T(0);
  }
}

/// Bounds of at most kTile keys: radius >= max |k_j - c|, log_mass >= log2 Σ 2^(chord_norm |k_j - c|).
template <class T>
struct TileStats {
  T radius, log_mass;
};
/// Measures keys [first, end), at most kTile.
template <class S, class T>
TileStats<T> measure_tile(Rows<const S> k, Index first, Index end, Index head_dim, const T* center, T chord_norm) {
  constexpr int W = kLanes<T>;
  // Missing keys count as keys in the centre, with norm 0. Square roots are computed one by one with the standard
  // library, because Eigen's vector version may be off by more than half an ulp in either direction.
  T norm[kTile] = {}, radius = 0;
  for (Index j = first; j < end; j++) {
    const S* key = k[j];
    Vec<T> sum[2] = {broadcast<T>(T(0)), broadcast<T>(T(0))};
    Index d = 0;
    for (; d + W <= head_dim; d += W) {
      const Vec<T> x = sub(widen<T>(key + d), load<T>(center + d));
      sum[d / W % 2] = fma(x, x, sum[d / W % 2]);
    }
    T all = reduce_add(add(sum[0], sum[1]));
    for (; d < head_dim; d++) all += (T(key[d]) - center[d]) * (T(key[d]) - center[d]);
    norm[j - first] = norm_above(all, head_dim);
    if (!(norm[j - first] <= std::numeric_limits<T>::max()))
      return {std::numeric_limits<T>::infinity(), std::numeric_limits<T>::infinity()};
    radius = std::max(radius, norm[j - first]);
  }
  Vec<T> sum = broadcast<T>(T(0));  // at least 1, the term of the farthest key
  for (int j = 0; j < kTile; j += W)
    sum = add(sum, exp2<T>(mul(sub(load<T>(norm + j), broadcast<T>(radius)), broadcast<T>(chord_norm))));
  return {radius, T(double(chord_norm) * double(radius) + std::log2(double(reduce_add(sum))) + 1e-5)};
}

/// A norm that few queries of a head exceed: a tenth above the largest norm of up to 64 queries, spread evenly over
/// all. Norms of 2^20 and above are ignored, so that products with the result do not overflow.
template <class E>
double typical_norm(Rows<const E> q, Index queries, Index head_dim) {
  const Index sample = std::min<Index>(queries, 64);
  double largest = 0;
  for (Index i = 0; i < sample; i++) {
    const E* query = q[(2 * i + 1) * queries / (2 * sample)];
    double square = 0;
    for (Index d = 0; d < head_dim; d++) square += double(query[d]) * double(query[d]);
    if (square < 0x1p40) largest = std::max(largest, square);
  }
  return 1.1 * std::sqrt(largest);
}

/// The memory of the statistics of a kv head that is measured for a call. `suffix_max` is null if no query sees keys
/// after it.
template <class T>
struct KeyStatsMemory {
  Index tiles;
  T *center, *radius, *log_mass, *prefix_max, *suffix_max;
  std::int32_t* outliers;

  static Index size(Index head_dim, Index tiles, Index sides) { return head_dim + (2 + sides) * tiles; }

  KeyStatsMemory() = default;
  /// Takes its memory from the front of both arrays.
  KeyStatsMemory(T*& numbers, std::int32_t*& list, Index head_dim, Index tile_count, Index sides)
      : tiles(tile_count),
        center(std::exchange(numbers, numbers + size(head_dim, tiles, sides))),
        radius(center + head_dim),
        log_mass(radius + tiles),
        prefix_max(log_mass + tiles),
        suffix_max(sides > 1 ? prefix_max + tiles : nullptr),
        outliers(std::exchange(list, list + tiles)) {}
};

/// The key tile bounds (kernel/tile/key_bounds.hpp) from the centre, the radii and the weights.
template <class T>
KeyTileBounds<T> summarize(const KeyStatsMemory<T>& keys, Index head_dim, T chord_norm) {
  KeyTileBounds<T> key_bounds{.center = keys.center,
                              .center_norm = norm_of(keys.center, head_dim),
                              .tiles = keys.tiles,
                              .radius = keys.radius,
                              .prefix_max = keys.prefix_max,
                              .suffix_max = keys.suffix_max,
                              .chord_norm = chord_norm,
                              .log_mass = keys.log_mass,
                              .outliers = keys.outliers};
  OutlierFilter<T> filter;
  for (Index t = 0; t < key_bounds.tiles; t++) {
    const T radius = keys.radius[t];
    key_bounds.largest = std::max(key_bounds.largest, radius);
    keys.prefix_max[t] = filter.largest(t, radius);
    if (filter.is_outlier(t, radius)) keys.outliers[key_bounds.outlier_count++] = std::int32_t(t);
    filter.add(t, radius);
  }
  if (!keys.suffix_max) return key_bounds;
  T largest = 0;
  for (Index t = key_bounds.tiles, left = key_bounds.outlier_count; t-- > 0;) {
    if (left > 0 && keys.outliers[left - 1] == t)
      left--;
    else
      largest = std::max(largest, keys.radius[t]);
    keys.suffix_max[t] = largest;
  }
  return key_bounds;
}

/// How a bias of slope m' > 0 in base 2 falls from tile to tile.
struct SlopeTiles {
  double slope;

  /// What the bias takes on the way from the nearest key of tile t to that of the next tile inward.
  double per_tile(Index, bool) const { return slope * kTile; }
  /// log2 Σ 2^(-m' d_j) over a tile, where d_j is the distance from its nearest key.
  double series(bool) const {
    return std::log2(std::expm1(-slope * kTile * std::numbers::ln2) / std::expm1(-slope * std::numbers::ln2));
  }
};
/// The same for a bias of positions: tiles whose nearest key is the last one on the left, the first one on the right.
template <class T>
struct PositionTiles {
  const PositionBiasPolicy<T>& bias;
  Index keys;

  double per_tile(Index t, bool left) const {
    if (!bias.has_positions()) return bias.slope(left) * kTile;
    const auto nearest = [&](Index tile) {
      return bias.key(left ? std::min((tile + 1) * kTile, keys) - 1 : std::min(tile * kTile, keys - 1));
    };
    return bias.slope(left) * std::abs(nearest(t) - nearest(std::max<Index>(left ? t - 1 : t + 1, 0)));
  }
  double series(bool left) const { return double(log_geometric_series<T>(bias.slope_per_key(left), kTile)) + 1e-6; }
};

/// The tail bounds of a query head, whose bias falls as `fall` says. prefix_max[t] is at least
/// log2 Σ 2^(chord_norm |k_j - c| - m' d_j) over the keys of the ordinary tiles up to t, where d_j is the distance from
/// the last key of tile t. suffix_max[t], if it is not null, is the same over the ordinary tiles from t on, where d_j
/// is the distance from the first key of tile t.
template <class T, class Fall>
void compute_tail_bounds(const KeyTileBounds<T>& key_bounds, const Fall& fall, T* prefix_tail, T* suffix_tail) {
  Index next_outlier = 0;
  bool left = true;
  double series = fall.series(left);
  const auto add = [&](double all, Index t, bool outlier) {
    all -= fall.per_tile(t, left);
    if (outlier) return all;
    const double here =
        std::min(double(key_bounds.log_mass[t]), double(key_bounds.chord_norm) * double(key_bounds.radius[t]) + series);
    if (!(here < std::numeric_limits<double>::infinity())) return std::numeric_limits<double>::infinity();  // or NaN
    const double larger = std::max(all, here);
    return larger + std::log2(1 + std::exp2(std::min(all, here) - larger)) + 1e-9;
  };
  constexpr double kLeast = -1e30;
  double all = kLeast;
  for (Index t = 0; t < key_bounds.tiles; t++) {
    const bool outlier = next_outlier < key_bounds.outlier_count && key_bounds.outliers[next_outlier] == t;
    next_outlier += outlier;
    prefix_tail[t] = T(all = add(all, t, outlier));
  }
  if (!suffix_tail) return;
  all = kLeast;
  left = false;
  series = fall.series(left);
  for (Index t = key_bounds.tiles; t-- > 0;) {
    const bool outlier = next_outlier > 0 && key_bounds.outliers[next_outlier - 1] == t;
    next_outlier -= outlier;
    suffix_tail[t] = T(all = add(all, t, outlier));
  }
}

/// The tail bounds of a query head of slope m' > 0 in base 2.
template <class T>
void compute_tail_bounds(const KeyTileBounds<T>& key_bounds, double slope, T* prefix_tail, T* suffix_tail) {
  compute_tail_bounds(key_bounds, SlopeTiles{slope}, prefix_tail, suffix_tail);
}

}  // namespace alibi::inline ALIBI_ISA::kernel
