// The bound of pruning.hpp, as the forward asks for it: may a block of queries drop the keys that lie farther out?
//
// In base 2 and in the frame of the kernels' scores, for a query of unit q' = τ log2(e) q at position c_i, keys at
// distances d, d + 1, …, d + n - 1 whose distance from the centre is at most R have together at most
//
//   2^{ q'·c + |q'| R - m' d + tail(n) + margin },      tail(n) = log2((1 - 2^{-m' n}) / (1 - 2^{-m'}))
//
// The margin pays for all rounding, u being half of epsilon:
//   scores     a dot product of h dims in any order, with or without fused multiply-adds, is off by at most
//              (h + 2) u |q'| |k| (Higham 2002, section 3.1), and |k| <= |c| + R_max =: K. So is q'·c; the norms
//              themselves are rounded up.
//   bias       the sums of a score start at it, and three roundings make it. Of its size only as much counts as a score
//              can outweigh, 2 |q'| K, and the 100 below which every probability is raised anyway. With the scores:
//              (h + 5) u (3 |q'| K + 100) in what has been summed.
//   sums       of positive numbers: 64 roundings and one a tile, and where a tile moves the reference, 2 ulp and a
//              rounding, all relative: (64 + 6 keys / 64) u log2 e at most; 2^x is good to 2 ulp.
//   the test   two dozen roundings of numbers that are at most 2^10 where it is close, those of series, weight and rate
//              among them; where scores are larger, relative to |q'| K.
// Together less than  u (4 (h + 8) (|q'| K + 32) + keys / 4 + 2^15),  which is what is added.
//
// NaN fails every comparison below, and an infinite radius every test: such keys are read.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/bias.hpp"
#include "alibi/kernel/tile/key_bounds.hpp"
#include "alibi/kernel/tile/rows.hpp"
#include "alibi/kernel/tile/softmax.hpp"
#include "alibi/mask.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// Keys that a block may drop: of `count` keys, the nearest is `key`. For a query of norm x they have together at most
/// 2^(series + rate min(x, chord_norm) + radius max(x - chord_norm, 0)) at the distance of that key, its center's part
/// aside.
template <class T>
struct RemainingKeys {
  Index key = 0, count = 0;
  T series = 0, rate = 0, chord_norm = 0, radius = 0;

  RemainingKeys() = default;

  /// By the radius alone, or if `weight` is given, at least f(chord_norm) of measure.hpp, by that if it is sharper.
  RemainingKeys(Index nearest, Index keys, T tail, T largest, const KeyTileBounds<T>& key_bounds, const T* weight)
      : key(nearest), count(keys), series(tail), rate(largest), chord_norm(key_bounds.chord_norm), radius(largest) {
    if (weight && chord_norm > 0) rate = std::min(radius, std::max((*weight - series) / chord_norm, T(0)));
  }
};

/// Base-2 units that are added to every bound, of an exponent relative to queries of norm `norm`.
template <class T>
T margin(T norm, Index head_dim, T key_norm, Index keys) {
  constexpr T kUnit = std::numeric_limits<T>::epsilon() / 2;
  return kUnit * (T(4 * (head_dim + 8)) * (norm * key_norm + T(32)) + T(keys) / T(4) + T(1 << 15));
}

/// log2 Σ_{i < count} 2^{-m' i}, rounded to T (the margin knows); m' > 0.
template <class T>
T log_geometric_series(double slope, Index count) {
  const double nats = slope * std::numbers::ln2;
  const double sum = std::expm1(-nats * double(count)) / std::expm1(-nats);
  return T(std::log2(sum));
}

/// Of a head of base-2 slope m' and tails (compute_tail_bounds() of measure.hpp; or null), the ordinary keys in `keys`
/// up to those of tile `number`.
template <class T>
RemainingKeys<T> remaining_until(const KeyTileBounds<T>& key_bounds, const T* tail_bounds, double slope, Index number,
                                 const KeyRange& keys) {
  const Index at = number - key_bounds.first, last = std::min((number + 1) * kTile, keys.end) - 1;
  const Index count = last + 1 - keys.begin;
  return {last,
          count,
          log_geometric_series<T>(slope, count),
          key_bounds.prefix_max[at],
          key_bounds,
          tail_bounds ? tail_bounds + at : nullptr};
}
/// The same from tile `number` on, before key `end`; for radii that have `behind`.
template <class T>
RemainingKeys<T> remaining_from(const KeyTileBounds<T>& key_bounds, const T* tail_bounds, double slope, Index number,
                                Index end) {
  const Index at = number - key_bounds.first, first = number * kTile, count = end - first;
  const T* const weight = tail_bounds ? tail_bounds + key_bounds.tiles + at : nullptr;
  return {first, count, log_geometric_series<T>(slope, count), key_bounds.suffix_max[at], key_bounds, weight};
}
/// One tile by itself, to the left of a block or to its right.
template <class T>
RemainingKeys<T> remaining_tile(const KeyTileBounds<T>& key_bounds, double slope, Index number, Index keys, bool left) {
  const Index nearest = left ? std::min((number + 1) * kTile, keys) - 1 : number * kTile;
  return {nearest,    kTile,  log_geometric_series<T>(slope, kTile), key_bounds.radius[number - key_bounds.first],
          key_bounds, nullptr};
}

/// Content of a block's queries, one a lane: what (1) of pruning.hpp needs. Lanes without a query never object.
template <class T>
struct QueryBounds {
  T center[kBlock<T>];  // q'·c and the margin
  T norm[kBlock<T>];    // at least |q'|
};

/// Fills in the content of `rows` queries, packed as [units][kBlock], pairs still to be multiplied with `scale`.
template <class U, class T>
void measure_queries(const U* q, Index head_dim, T scale, Index rows, const U* center,
                     const KeyTileBounds<T>& key_bounds, Index keys, QueryBounds<T>& query_bounds) {
  Vec<T> dot[kVectors], square[kVectors];
  for (int r = 0; r < kVectors; r++) dot[r] = square[r] = broadcast<T>(T(0));
  for (Index d = 0; d < units<U>(head_dim); d++)
    for (int r = 0; r < kVectors; r++) {
      const Vec<U> query = load<U>(q + d * kBlock<T> + r * kLanes<T>);
      dot[r] = fma(broadcast<U>(center[d]), query, dot[r]);
      square[r] = fma(query, query, square[r]);
    }
  for (int r = 0; r < kVectors; r++) {
    store<T>(query_bounds.center + r * kLanes<T>, dot[r]);
    store<T>(query_bounds.norm + r * kLanes<T>, square[r]);
  }
  const T factor = kDepth<U> == 1 ? T(1) : scale, key_norm = key_bounds.center_norm + key_bounds.largest;
  for (Index i = 0; i < kBlock<T>; i++) {
    const T norm =
        norm_above(query_bounds.norm[i], head_dim) * std::abs(factor) * (1 + std::numeric_limits<T>::epsilon());
    query_bounds.norm[i] = i < rows ? norm : T(0);
    query_bounds.center[i] = i < rows ? query_bounds.center[i] * factor + margin(norm, head_dim, key_norm, keys)
                                      : std::numeric_limits<T>::lowest();
  }
}

/// Whether every row of a block can afford to lose the keys: what it has lost so far and may lose now is at most
/// `share` of its sum. If so, it is counted in `lost`, in the frame of the states.
template <class T>
bool try_prune(const Positions<T>& queries, const QueryBounds<T>& query_bounds, const SoftmaxState<T>* state, T slope,
               const RemainingKeys<T>& keys, bool left, T share, Vec<T>* pruned_mass) {
  Vec<T> sum[kVectors];
  const T side = left ? T(1) : T(-1);
  const T from_key = T(left ? queries.base - keys.key : keys.key - queries.base);
  for (int r = 0; r < kVectors; r++) {
    const Index at = r * kLanes<T>;
    const Vec<T> distance = fma(broadcast<T>(side), load<T>(queries.from_base + at), broadcast<T>(from_key));
    const Vec<T> norm = load<T>(query_bounds.norm + at), below = min(norm, broadcast<T>(keys.chord_norm));
    const Vec<T> beyond = fma(sub(norm, below), broadcast<T>(keys.radius), load<T>(query_bounds.center + at));
    const Vec<T> score = fma(below, broadcast<T>(keys.rate), beyond);
    const Vec<T> bound = add(fma(broadcast<T>(-slope), distance, score), broadcast<T>(keys.series));
    // What is below 2^-126 of the frame is far below any tolerance there is; more than 2^100 is too much.
    const Vec<T> x = sub(bound, state[r].reference), most = broadcast<T>(T(100)),
                 least = broadcast<T>(kSmallestExponent<T>);
    const Vec<T> mass = select_lt(x, least, broadcast<T>(T(0)), exp2<T>(select_le(x, most, x, most)));
    sum[r] = add(pruned_mass[r], mass);
    if (!all_le(sum[r], mul(broadcast<T>(share), state[r].sum))) return false;
  }
  for (int r = 0; r < kVectors; r++) pruned_mass[r] = sum[r];
  return true;
}

}  // namespace alibi::inline ALIBI_ISA::kernel
