// Measures the keys of a head for pruning: a centre, and how far each tile reaches from it (radii.hpp). One pass over
// the keys, 3 head_dim operations a key against the 4 head_dim of each query that meets it.
//
// Keys differ in how far they reach, and a radius is the farthest of many. What unread keys have together, for a query
// of norm x, is at most 2^f(x), f(x) = log2 Σ_j 2^(x |k_j - c| - m' d_j), in base 2. f is convex, so that between 0 and
// a norm b, the chord_norm, it lies below its chord: f(0) is the geometric series of the distances, and f(b) is summed
// up here, key by key, once for each query head. Beyond the chord_norm f rises by no more than the radius.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <utility>

#include "alibi/kernel/simd/bf16.hpp"
#include "alibi/kernel/simd/exp2.hpp"
#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/key_bounds.hpp"
#include "alibi/kernel/tile/rows.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// The mean of up to 64 keys spread over all, rounded to S; 0 where it is not finite. Any centre is right, a mean makes
/// the radii small.
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

/// Of keys [first, end), at most kTile: at least max |k_j - c|, and at least log2 Σ 2^(chord_norm |k_j - c|).
template <class T>
struct TileMeasure {
  T radius, weight;
};
template <class S, class T>
TileMeasure<T> measure_tile(Rows<const S> k, Index first, Index end, Index head_dim, const T* center, T chord_norm) {
  constexpr int W = kLanes<T>;
  // Norms, and what is missing counts as if it were in the centre. Square roots are those of the standard library, one
  // by one: Eigen's of a vector may be off by more than half an ulp, either way.
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
  Vec<T> sum = broadcast<T>(T(0));  // of at least 1: the farthest key's
  for (int j = 0; j < kTile; j += W)
    sum = add(sum, exp2<T>(mul(sub(load<T>(norm + j), broadcast<T>(radius)), broadcast<T>(chord_norm))));
  return {radius, T(double(chord_norm) * double(radius) + std::log2(double(reduce_add(sum))) + 1e-5)};
}

/// A norm that few of a head's queries exceed: a tenth above the largest of up to 64, spread over all. One that is
/// beyond all sense is passed over, so that nothing which is multiplied with it overflows.
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

/// Where the numbers of a kv head's tiles go that are measured for a call; `behind` is null where nobody looks ahead.
template <class T>
struct KeyNumbers {
  Index tiles;
  T *center, *radius, *weight, *prefix_max, *suffix_max;
  std::int32_t* outliers;

  static Index size(Index head_dim, Index tiles, Index sides) { return head_dim + (2 + sides) * tiles; }

  KeyNumbers() = default;
  /// Takes what it needs from either list.
  KeyNumbers(T*& numbers, std::int32_t*& list, Index head_dim, Index tile_count, Index sides)
      : tiles(tile_count),
        center(std::exchange(numbers, numbers + size(head_dim, tiles, sides))),
        radius(center + head_dim),
        weight(radius + tiles),
        prefix_max(weight + tiles),
        suffix_max(sides > 1 ? prefix_max + tiles : nullptr),
        outliers(std::exchange(list, list + tiles)) {}
};

/// All that radii.hpp derives from the centre, the radii and the weights.
template <class T>
KeyTileBounds<T> summarize(const KeyNumbers<T>& keys, Index head_dim, T chord_norm) {
  KeyTileBounds<T> key_bounds{.center = keys.center,
                              .center_norm = norm_of(keys.center, head_dim),
                              .tiles = keys.tiles,
                              .radius = keys.radius,
                              .prefix_max = keys.prefix_max,
                              .suffix_max = keys.suffix_max,
                              .chord_norm = chord_norm,
                              .weight = keys.weight,
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

/// For a query head of slope m' > 0 in base 2: before[t] is at least log2 Σ 2^(chord_norm |k_j - c| - m' d_j) over the
/// keys of the ordinary tiles up to t, d_j being the distance from the last of them; behind[t], if it is not null, the
/// same from t on, d_j being the distance from the first.
template <class T>
void compute_tail_bounds(const KeyTileBounds<T>& key_bounds, double slope, T* prefix_max, T* suffix_max) {
  const double per_tile = slope * kTile,
               series = std::log2(std::expm1(-per_tile * std::numbers::ln2) / std::expm1(-slope * std::numbers::ln2));
  Index next_outlier = 0;
  const auto add = [&](double all, Index t, bool outlier) {
    all -= per_tile;
    if (outlier) return all;
    const double here =
        std::min(double(key_bounds.weight[t]), double(key_bounds.chord_norm) * double(key_bounds.radius[t]) + series);
    if (!(here < std::numeric_limits<double>::infinity())) return std::numeric_limits<double>::infinity();  // or NaN
    const double larger = std::max(all, here);
    return larger + std::log2(1 + std::exp2(std::min(all, here) - larger)) + 1e-9;
  };
  constexpr double kLeast = -1e30;
  double all = kLeast;
  for (Index t = 0; t < key_bounds.tiles; t++) {
    const bool outlier = next_outlier < key_bounds.outlier_count && key_bounds.outliers[next_outlier] == t;
    next_outlier += outlier;
    prefix_max[t] = T(all = add(all, t, outlier));
  }
  if (!suffix_max) return;
  all = kLeast;
  for (Index t = key_bounds.tiles; t-- > 0;) {
    const bool outlier = next_outlier > 0 && key_bounds.outliers[next_outlier - 1] == t;
    next_outlier -= outlier;
    suffix_max[t] = T(all = add(all, t, outlier));
  }
}

}  // namespace alibi::inline ALIBI_ISA::kernel
