// The bound of pruning.hpp in floating point: whether a block of queries may prune its remaining keys.
//
// Scores are in base 2 and relative to the largest bias of the row, as in all kernels (kernel/tile/bias.hpp). Let a
// query have q' = τ log2(e) q and position c_i. Keys at distances d, d + 1, …, d + n - 1, at most R from the centre,
// have together a mass of at most
//
//   2^{ q'·c + |q'| R - m' d + tail(n) + margin },      tail(n) = log2((1 - 2^{-m' n}) / (1 - 2^{-m'}))
//
// The margin bounds all rounding errors (u = epsilon / 2):
//   scores     A dot product of h dims in any order, with or without fused multiply-adds, is off by at most
//              (h + 2) u |q'| |k| (Higham 2002, section 3.1), where |k| <= |c| + R_max =: K. The same holds for q'·c.
//              The norms themselves are rounded up.
//   bias       The sum of a score starts at the bias, which takes three roundings, or five for positions. Its size
//   counts only up to
//              2 |q'| K + 100. A score can compensate 2 |q'| K. Probabilities below 2^-100 are raised to 2^-100 in
//              float, and are less than the rounding of a sum in double. Scores and bias together add at most
//              (h + 5) u (3 |q'| K + 100).
//   sums       A sum of positive numbers takes 64 roundings and one for each tile. A tile that moves the reference adds
//              2 ulp and one rounding. All of them are relative: at most (64 + 6 keys / 64) u log2 e. 2^x is off by at
//              most 2 ulp.
//   the test   It takes two dozen roundings, those of series, tail_bound and rate included. If the test is close, the
//              numbers are at most 2^10. If scores are larger, the roundings are relative to |q'| K.
// The sum of all is less than  u (4 (h + 8) (|q'| K + 32) + keys / 4 + 2^15).  The margin is this value.
//
// NaN fails every comparison below, and an infinite radius fails every test, so that such keys are read. Internal.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <type_traits>

#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/bias.hpp"
#include "alibi/kernel/tile/key_bounds.hpp"
#include "alibi/kernel/tile/position_bias.hpp"
#include "alibi/kernel/tile/rows.hpp"
#include "alibi/kernel/tile/softmax.hpp"
#include "alibi/mask.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// Remaining keys that a block may prune: `count` keys, the nearest of them at `key`. For a query of norm x they have
/// together a mass of at most 2^(series + rate min(x, chord_norm) + radius max(x - chord_norm, 0)), relative to the
/// bias of `key`, without the factor 2^(q'·c).
template <class T>
struct RemainingKeys {
  Index key = 0, count = 0;
  T series = 0, rate = 0, chord_norm = 0, radius = 0;

  RemainingKeys() = default;

  /// `largest` is the radius of the keys. `tail_bound`, if it is not null, is a tail bound: at least f(chord_norm) of
  /// kernel/pruning/key_stats.hpp. It makes the rate smaller where it is sharper than the radius.
  RemainingKeys(Index nearest, Index keys, T tail, T largest, const KeyTileBounds<T>& key_bounds, const T* tail_bound)
      : key(nearest), count(keys), series(tail), rate(largest), chord_norm(key_bounds.chord_norm), radius(largest) {
    if (tail_bound && chord_norm > 0) rate = std::min(radius, std::max((*tail_bound - series) / chord_norm, T(0)));
  }
};

/// The margin, which is added to the exponent of every bound, for queries of norm `norm` and K = `key_norm`.
template <class T>
T margin(T norm, Index head_dim, T key_norm, Index keys) {
  constexpr T kUnit = std::numeric_limits<T>::epsilon() / 2;
  return kUnit * (T(4 * (head_dim + 8)) * (norm * key_norm + T(32)) + T(keys) / T(4) + T(1 << 15));
}

/// log2 Σ_{i < count} 2^{-m' i} for m' >= 0, rounded to T; the margin includes this rounding.
template <class T>
T log_geometric_series(double slope, Index count) {
  if (slope == 0) return T(std::log2(double(count)));
  const double nats = slope * std::numbers::ln2;
  const double sum = std::expm1(-nats * double(count)) / std::expm1(-nats);
  return T(std::log2(sum));
}

/// The ordinary keys of `keys` up to the last key of tile `number`. `slope` is m' in base 2, or 0 if all that is known
/// of the bias is that it does not rise with the distance. `tail_bounds` are those of the head (compute_tail_bounds()
/// of kernel/pruning/key_stats.hpp), or null.
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
/// The same from tile `number` on, before key `end`. Needs key tile bounds with `suffix_max`.
template <class T>
RemainingKeys<T> remaining_from(const KeyTileBounds<T>& key_bounds, const T* tail_bounds, double slope, Index number,
                                Index end) {
  const Index at = number - key_bounds.first, first = number * kTile, count = end - first;
  const T* const tail_bound = tail_bounds ? tail_bounds + key_bounds.tiles + at : nullptr;
  return {first, count, log_geometric_series<T>(slope, count), key_bounds.suffix_max[at], key_bounds, tail_bound};
}
/// One tile by itself, its keys before key `keys`, to the left or to the right of a block.
template <class T>
RemainingKeys<T> remaining_tile(const KeyTileBounds<T>& key_bounds, double slope, Index number, Index keys, bool left) {
  const Index nearest = left ? std::min((number + 1) * kTile, keys) - 1 : number * kTile;
  return {nearest, kTile, log_geometric_series<T>(slope, kTile), key_bounds.radius_of(number), key_bounds, nullptr};
}

/// The query bounds of a block, one query for each lane: what (1) of pruning.hpp needs. Lanes without a query never
/// prevent pruning.
template <class T>
struct QueryBounds {
  T center[kBlock<T>];  // q'·c plus the margin
  T norm[kBlock<T>];    // at least |q'|
};

/// Computes the query bounds of `rows` queries q [units][kBlock]. Pairs are not scaled yet: `scale` is their factor.
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

/// What the bias of the nearest remaining key takes from the score of each row: m' d.
template <class T>
class SlopePenalty {
 public:
  SlopePenalty(const Positions<T>& queries, T slope, Index key, bool left)
      : queries_(queries),
        slope_(slope),
        side_(left ? T(1) : T(-1)),
        from_key_(T(left ? queries.base - key : key - queries.base)) {}

  Vec<T> subtract_from(Vec<T> score, Index lane) const {
    const Vec<T> distance = fma(broadcast<T>(side_), load<T>(queries_.from_base + lane), broadcast<T>(from_key_));
    return fma(broadcast<T>(-slope_), distance, score);
  }

 private:
  const Positions<T>& queries_;
  T slope_, side_, from_key_;
};
/// The same for a bias of positions.
template <class T>
class PositionPenalty {
 public:
  PositionPenalty(const PositionBiasPolicy<T>& bias, const PositionLanes<T>& queries, Index key, bool left) {
    const LanePositions<T>& lanes = left ? queries.left : queries.right;
    const double slope = left ? bias.slope(true) : -bias.slope(false), at = bias.key(key);
    for (Index i = 0; i < kBlock<T>; i++) penalty_[i] = clamped<T>(slope * lanes.minus(at, i));
  }
  Vec<T> subtract_from(Vec<T> score, Index lane) const { return sub(score, load<T>(penalty_ + lane)); }

 private:
  T penalty_[kBlock<T>];
};

/// The penalty of a bias for `key`, the nearest of the remaining keys. `slope` is m' of a bias that has one.
template <class BiasPolicy, class T>
auto penalty_of(const BiasPolicy& bias, const Positions<T>& queries, double slope, Index key, bool left) {
  if constexpr (std::is_same_v<BiasPolicy, PositionBiasPolicy<T>>)
    return PositionPenalty<T>(bias, *queries.lanes, key, left);
  else
    return SlopePenalty<T>(queries, T(slope), key, left);
}
/// The slope m' on one side that holds for the indices of keys, for log_geometric_series().
template <class BiasPolicy>
double slope_per_key(const BiasPolicy& bias, double slope, bool left) {
  if constexpr (requires { bias.slope_per_key(left); })
    return bias.slope_per_key(left);
  else
    return slope;
}

/// Prunes the keys if for every row of a block the pruned mass, that of these keys included, is at most `share` of the
/// row's sum. Then updates `pruned_mass`, which is relative to the reference of the states, and returns true.
template <class T, class Penalty>
bool try_prune(const Penalty& penalty, const QueryBounds<T>& query_bounds, const SoftmaxState<T>* state,
               const RemainingKeys<T>& keys, T share, Vec<T>* pruned_mass) {
  Vec<T> sum[kVectors];
  for (int r = 0; r < kVectors; r++) {
    const Index at = r * kLanes<T>;
    const Vec<T> norm = load<T>(query_bounds.norm + at), up_to_chord = min(norm, broadcast<T>(keys.chord_norm));
    const Vec<T> beyond_chord =
        fma(sub(norm, up_to_chord), broadcast<T>(keys.radius), load<T>(query_bounds.center + at));
    const Vec<T> score = fma(up_to_chord, broadcast<T>(keys.rate), beyond_chord);
    const Vec<T> bound = add(penalty.subtract_from(score, at), broadcast<T>(keys.series));
    // A mass below 2^kSmallestExponent is far below every tolerance and counts as 0. 2^100 is above every tolerance, so
    // that larger exponents need not be told apart.
    const Vec<T> x = sub(bound, state[r].reference), max_exponent = broadcast<T>(T(100)),
                 min_exponent = broadcast<T>(kSmallestExponent<T>);
    const Vec<T> mass =
        select_lt(x, min_exponent, broadcast<T>(T(0)), exp2<T>(select_le(x, max_exponent, x, max_exponent)));
    sum[r] = add(pruned_mass[r], mass);
    if (!all_le(sum[r], mul(broadcast<T>(share), state[r].sum))) return false;
  }
  for (int r = 0; r < kVectors; r++) pruned_mass[r] = sum[r];
  return true;
}

}  // namespace alibi::inline ALIBI_ISA::kernel
