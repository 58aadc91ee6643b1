// The bound of horizon.hpp, as the forward asks for it: may a block of queries drop the keys that lie farther out?
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

#include "alibi/kernel/bias.hpp"
#include "alibi/kernel/radii.hpp"
#include "alibi/kernel/rows.hpp"
#include "alibi/kernel/simd.hpp"
#include "alibi/kernel/softmax.hpp"
#include "alibi/mask.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// Keys that a block may drop: of `count` keys, the nearest is `key`. For a query of norm x they have together at most
/// 2^(series + rate min(x, knee) + radius max(x - knee, 0)) at the distance of that key, its center's part aside.
template <class T>
struct Unread {
  Index key = 0, count = 0;
  T series = 0, rate = 0, knee = 0, radius = 0;

  Unread() = default;

  /// By the radius alone, or if `weight` is given, at least f(knee) of measure.hpp, by that if it is sharper.
  Unread(Index nearest, Index keys, T tail, T largest, const Radii<T>& radii, const T* weight)
      : key(nearest), count(keys), series(tail), rate(largest), knee(radii.knee), radius(largest) {
    if (weight && knee > 0) rate = std::min(radius, std::max((*weight - series) / knee, T(0)));
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
T tail(double slope, Index count) {
  const double nats = slope * std::numbers::ln2;
  const double sum = std::expm1(-nats * double(count)) / std::expm1(-nats);
  return T(std::log2(sum));
}

/// Of a head of base-2 slope m' and tails (weigh_tails() of measure.hpp; or null), the ordinary keys in `keys` up to
/// those of tile `number`.
template <class T>
Unread<T> unread_until(const Radii<T>& radii, const T* tails, double slope, Index number, const KeyRange& keys) {
  const Index at = number - radii.first, last = std::min((number + 1) * kTile, keys.end) - 1;
  const Index count = last + 1 - keys.begin;
  return {last, count, tail<T>(slope, count), radii.before[at], radii, tails ? tails + at : nullptr};
}
/// The same from tile `number` on, before key `end`; for radii that have `behind`.
template <class T>
Unread<T> unread_from(const Radii<T>& radii, const T* tails, double slope, Index number, Index end) {
  const Index at = number - radii.first, first = number * kTile, count = end - first;
  const T* const weight = tails ? tails + radii.tiles + at : nullptr;
  return {first, count, tail<T>(slope, count), radii.behind[at], radii, weight};
}
/// One tile by itself, to the left of a block or to its right.
template <class T>
Unread<T> unread_tile(const Radii<T>& radii, double slope, Index number, Index keys, bool left) {
  const Index nearest = left ? std::min((number + 1) * kTile, keys) - 1 : number * kTile;
  return {nearest, kTile, tail<T>(slope, kTile), radii.radius[number - radii.first], radii, nullptr};
}

/// What all keys of a side may lose together, with nothing or with half for the other side: a sixteenth of the
/// tolerance is kept for the tiles that stand apart.
template <class T>
T side_share(T tolerance, bool half) {
  return tolerance * T(half ? 0x1.ep-2 : 0x1.ep-1);
}

/// Content of a block's queries, one a lane: what (1) of horizon.hpp needs. Lanes without a query never object.
template <class T>
struct Content {
  T center[kBlock<T>];  // q'·c and the margin
  T norm[kBlock<T>];    // at least |q'|
};

/// Fills in the content of `rows` queries, packed as [units][kBlock], pairs still to be multiplied with `scale`.
template <class U, class T>
void measure_queries(const U* q, Index head_dim, T scale, Index rows, const U* center, const Radii<T>& radii,
                     Index keys, Content<T>& content) {
  Pack<T> dot[kVectors], square[kVectors];
  for (int r = 0; r < kVectors; r++) dot[r] = square[r] = splat<T>(T(0));
  for (Index d = 0; d < units<U>(head_dim); d++)
    for (int r = 0; r < kVectors; r++) {
      const Pack<U> query = load<U>(q + d * kBlock<T> + r * kLanes<T>);
      dot[r] = fma(splat<U>(center[d]), query, dot[r]);
      square[r] = fma(query, query, square[r]);
    }
  for (int r = 0; r < kVectors; r++) {
    store<T>(content.center + r * kLanes<T>, dot[r]);
    store<T>(content.norm + r * kLanes<T>, square[r]);
  }
  const T factor = kDepth<U> == 1 ? T(1) : scale, key_norm = radii.center_norm + radii.largest;
  for (Index i = 0; i < kBlock<T>; i++) {
    const T norm = norm_above(content.norm[i], head_dim) * std::abs(factor) * (1 + std::numeric_limits<T>::epsilon());
    content.norm[i] = i < rows ? norm : T(0);
    content.center[i] = i < rows ? content.center[i] * factor + margin(norm, head_dim, key_norm, keys)
                                 : std::numeric_limits<T>::lowest();
  }
}

/// Whether every row of a block can afford to lose the keys: what it has lost so far and may lose now is at most
/// `share` of its sum. If so, it is counted in `lost`, in the frame of the states.
template <class T>
bool affordable(const Positions<T>& queries, const Content<T>& content, const SoftmaxState<T>* state, T slope,
                const Unread<T>& keys, bool left, T share, Pack<T>* lost) {
  Pack<T> sum[kVectors];
  const T side = left ? T(1) : T(-1);
  const T from_key = T(left ? queries.base - keys.key : keys.key - queries.base);
  for (int r = 0; r < kVectors; r++) {
    const Index at = r * kLanes<T>;
    const Pack<T> distance = fma(splat<T>(side), load<T>(queries.from_base + at), splat<T>(from_key));
    const Pack<T> norm = load<T>(content.norm + at), below = min(norm, splat<T>(keys.knee));
    const Pack<T> beyond = fma(sub(norm, below), splat<T>(keys.radius), load<T>(content.center + at));
    const Pack<T> score = fma(below, splat<T>(keys.rate), beyond);
    const Pack<T> bound = add(fma(splat<T>(-slope), distance, score), splat<T>(keys.series));
    // What is below 2^-126 of the frame is far below any tolerance there is; more than 2^100 is too much.
    const Pack<T> x = sub(bound, state[r].reference), most = splat<T>(T(100)), least = splat<T>(kSmallestExponent<T>);
    const Pack<T> mass = select_lt(x, least, splat<T>(T(0)), exp2<T>(select_le(x, most, x, most)));
    sum[r] = add(lost[r], mass);
    if (!all_le(sum[r], mul(splat<T>(share), state[r].sum))) return false;
  }
  for (int r = 0; r < kVectors; r++) lost[r] = sum[r];
  return true;
}

}  // namespace alibi::inline ALIBI_ISA::kernel
