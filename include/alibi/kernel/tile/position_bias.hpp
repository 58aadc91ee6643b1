// The bias of two-sided slopes and of positions (two_sided.hpp, token_positions.hpp), as kernels add it:
//
//   -b (c_i - c_j)   for c_j <= c_i        -a (c_j - c_i)   for c_j >= c_i
//
// b and a are the slopes before and after a query. Without arrays of positions, c is the index of a token.
//
// As in kernel/tile/bias.hpp the bias is relative to the largest bias of a row. Let c'_i be c_i clamped to the
// positions of the keys that query i sees (in any order: of all keys), and let it lie between two of them, at distances
// d and e. The nearest of the two has the bias -B = -min(b d, a e). With
//
//   λ_i = c'_i - B / b       ρ_i = c'_i + B / a          (c'_i if B = 0, for example because a key lies at c'_i)
//
// the bias relative to it is min(-b (λ_i - c_j), -a (c_j - ρ_i)) for every key. Both differences are small for the keys
// that matter, however large the positions and the gaps between them are.
//
// Positions are read as double. What the sums of a tile start from is computed in double, relative to a position of the
// tile, and then rounded once. In a tile on both sides of the queries, a float is too short for a position, which is a
// sum of two floats.
// A tile takes some 64 operations for each block, beside some 200,000 for its products.
//
// A key lies on the left of a query if its position is smaller, or if it is equal and the index of the key is not above
// that of the query. The side decides which way a gradient of a position goes. Internal.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/bias.hpp"
#include "alibi/kernel/tile/block.hpp"
#include "alibi/mask.hpp"
#include "alibi/token_positions.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// The positions of the tokens of one head; none: their indices.
struct HeadPositions {
  PositionView view;
  Index head = 0;

  explicit operator bool() const { return view.data; }
  double operator[](Index token) const { return view(0, view.heads > 1 ? head : 0, token); }
};

/// A position for each lane, as a sum, so that it is not rounded to the digits of a large position.
template <class T>
struct LanePositions {
  double base[kBlock<T>], rest[kBlock<T>];

  double minus(double position, Index lane) const { return (base[lane] - position) + rest[lane]; }
};

/// What a bias of positions needs to know of the queries of a block, one lane for each.
template <class T>
struct PositionLanes {
  LanePositions<T> at, left, right;  // c'_i, λ_i, ρ_i
  Index keys_before[kBlock<T>];      // the number of keys on the left of the query
  T gradient[kBlock<T>];             // -dc_i so far (kernel/tile/position_gradient.hpp)
};

/// x rounded to T; a number beyond its range becomes the largest or the smallest number.
template <class T>
T clamped(double x) {
  constexpr double kLargest = std::numeric_limits<T>::max();
  return T(std::clamp(x, -kLargest, kLargest));
}

/// x as a sum of two numbers of T. Numbers beyond a quarter of the range of T are clamped.
template <class T>
void split(double x, T& high, T& low) {
  constexpr double kLargest = std::numeric_limits<T>::max() / 4;
  x = std::clamp(x, -kLargest, kLargest);
  high = T(x);
  low = T(x - double(high));
}

/// The start of the sums of a tile that lies wholly on one side of the queries.
template <class T>
struct PositionSide {
  T ramp[kTile];
  Vec<T> offset[kVectors];  // for each lane; must be added to all sums of the tile

  EIGEN_ALWAYS_INLINE Vec<T> start(Index key, int) const { return broadcast<T>(ramp[key]); }
};

/// The differences of the positions of lanes and keys, in two parts each.
template <class T>
struct KeyParts {
  T high[kTile], low[kTile];
};
template <class T>
struct LaneParts {
  T high[kBlock<T>], low[kBlock<T>];

  /// key - lane
  EIGEN_ALWAYS_INLINE Vec<T> from(Vec<T> key_high, Vec<T> key_low, int r) const {
    return add(sub(key_high, load<T>(high + r * kLanes<T>)), sub(key_low, load<T>(low + r * kLanes<T>)));
  }
};

/// The start of the sums of any other tile.
template <class T>
struct PositionEdge {
  T before, after;
  KeyParts<T> keys;
  LaneParts<T> left, right;
  Vec<T> offset[kVectors];  // 0

  EIGEN_ALWAYS_INLINE Vec<T> start(Index key, int r) const {
    const Vec<T> high = broadcast<T>(keys.high[key]), low = broadcast<T>(keys.low[key]);
    return min(mul(broadcast<T>(before), left.from(high, low, r)), mul(broadcast<T>(-after), right.from(high, low, r)));
  }
};

/// The bias of one head.
template <class T>
class PositionBiasPolicy {
 public:
  /// Slopes for logits in base e; those of a hidden side are infinite. Views of one sequence.
  PositionBiasPolicy(double before, double after, const HeadPositions& keys, const HeadPositions& queries,
                     bool any_order, Index key_count)
      : slope_{before, after}, keys_(keys), queries_(queries), any_order_(any_order), count_(key_count) {
    for (int side = 0; side < 2; side++) base2_[side] = std::isinf(slope_[side]) ? 0 : double(base2<T>(slope_[side]));
    if (!any_order || !keys_ || key_count == 0) return;
    lowest_ = highest_ = keys_[0];
    for (Index j = 1; j < key_count; j++)
      lowest_ = std::min(lowest_, keys_[j]), highest_ = std::max(highest_, keys_[j]);
  }

  /// The position of a key.
  double key(Index j) const { return keys_ ? keys_[j] : double(j); }
  /// The slope of a side in base 2, rounded to T; 0 if it is hidden.
  double slope(bool left) const { return base2_[left ? 0 : 1]; }
  /// The least difference of the bias, in base 2, of neighbouring keys of a side that is known without their positions.
  double slope_per_key(bool left) const { return keys_ ? 0 : slope(left); }
  bool has_positions() const { return bool(keys_); }

  /// The mask of the head: an infinite slope hides a side.
  ResolvedMask mask_of(ResolvedMask mask) const {
    if (std::isinf(slope_[0])) mask.left = 0;
    if (std::isinf(slope_[1])) mask.right = mask.prefix = 0;
    return mask;
  }

  /// A query: c'_i; c_i - c'_i; λ_i and ρ_i, each as a sum; B in base e; the number of keys on its left; and the keys
  /// that it sees.
  struct Query {
    double at, beyond, left, right, left_rest = 0, right_rest = 0, nearest_penalty = 0;
    Index keys_before;
    KeyRange seen;
  };
  Query query_of(const ResolvedMask& mask, Index query) const {
    const Index p = mask.position(query);
    Query of = clamped_query(mask, query);
    of.left = of.right = of.at;
    of.keys_before = p + 1;
    if (!keys_ || of.seen.begin >= of.seen.end) return of;
    if (of.beyond != 0) {
      of.keys_before = of.beyond > 0 ? of.seen.end : of.seen.begin;
    } else if (!any_order_) {
      of.keys_before = keys_before(of.at, p, of.seen);
      if (of.seen.begin < of.keys_before && of.keys_before < of.seen.end) widen(of);
    }
    return of;
  }

  /// c_i - c'_i, which all distances of the row have in common.
  double beyond_keys(const ResolvedMask& mask, Index query) const { return clamped_query(mask, query).beyond; }
  double common_distance(const ResolvedMask& mask, Index query) const { return std::abs(beyond_keys(mask, query)); }
  /// What the bias takes from the logits of all visible keys of a row, in base e. A shifted lse is larger by this.
  double common_penalty(const ResolvedMask& mask, Index query) const {
    const Query of = query_of(mask, query);
    return of.beyond == 0 ? of.nearest_penalty : slope_[of.beyond > 0 ? 0 : 1] * std::abs(of.beyond);
  }

  /// The largest bias difference, in base e, between the nearest and the farthest visible key of any query.
  double largest_penalty(const ResolvedMask& mask, Index queries) const {
    if (any_order_ || queries == 0) return 0;
    const Query first = clamped_query(mask, 0), last = clamped_query(mask, queries - 1);
    double most = 0;
    if (last.seen.begin < last.seen.end) most = slope_or_zero(0) * (last.at - key(last.seen.begin));
    if (first.seen.begin < first.seen.end)
      most = std::max(most, slope_or_zero(1) * (key(first.seen.end - 1) - first.at));
    return most;
  }

  /// Fills in the lanes of a block, and the keys up to which, and from which on, all keys are on one side of it.
  void place(const ResolvedMask& mask, Block<T>& block, PositionLanes<T>& lanes) const {
    block.positions.lanes = &lanes;
    std::fill_n(lanes.gradient, kBlock<T>, T(0));
    if (keys_) {
      block.lowest = -1, block.highest = std::numeric_limits<Index>::max();
    } else {  // a query beyond the keys has all of them on one side
      block.lowest = std::min(block.lowest, mask.position(block.first));
      block.highest = std::max(block.highest, mask.position(block.first + block.rows - 1));
    }
    bool any = false;
    for (Index i = 0; i < kBlock<T>; i++) {
      const Query of = query_of(mask, block.first + std::min(i, block.rows - 1));
      lanes.at.base[i] = of.at, lanes.at.rest[i] = 0;
      lanes.left.base[i] = of.left, lanes.left.rest[i] = of.left_rest;
      lanes.right.base[i] = of.right, lanes.right.rest[i] = of.right_rest;
      lanes.keys_before[i] = of.keys_before;
      if (!keys_ || any_order_ || of.seen.begin >= of.seen.end) continue;
      block.lowest = any ? std::min(block.lowest, of.keys_before - 1) : of.keys_before - 1;
      block.highest = any ? std::max(block.highest, of.keys_before) : of.keys_before;
      any = true;
    }
  }

  /// For keys [begin, end) of the tile, all on the left of every query.
  PositionSide<T> left(const Positions<T>& queries, Index tile, Index begin, Index end) const {
    return side(queries.lanes->left, -base2_[0], tile, tile + end - 1, begin, end);
  }
  /// For keys [begin, end) of the tile, all on the right of every query.
  PositionSide<T> right(const Positions<T>& queries, Index tile, Index begin, Index end) const {
    return side(queries.lanes->right, base2_[1], tile, tile + begin, begin, end);
  }
  /// For any keys of the tile.
  PositionEdge<T> edge(const Positions<T>& queries, Index tile) const {
    PositionEdge<T> bias;
    bias.before = T(base2_[0]), bias.after = T(base2_[1]);
    const double origin = origin_of(queries.lanes->at);
    split_keys(tile, origin, bias.keys);
    split_lanes(queries.lanes->left, origin, bias.left);
    split_lanes(queries.lanes->right, origin, bias.right);
    for (Vec<T>& x : bias.offset) x = broadcast<T>(T(0));
    return bias;
  }

  /// What positions in two parts are relative to: a position of the block, if its queries are close to each other
  /// compared with their size, else 0. Double needs none.
  static double origin_of(const LanePositions<T>& lanes) {
    if (sizeof(T) == sizeof(double)) return 0;
    const double first = lanes.base[0];
    double spread = 0, largest = 0;
    for (const double at : lanes.base) {
      spread = std::max(spread, std::abs(at - first));
      largest = std::max(largest, std::abs(at));
    }
    return spread < largest / 2 ? first : 0;
  }
  /// The keys of a tile in two parts, relative to `origin`. Keys beyond the last one repeat it.
  void split_keys(Index tile, double origin, KeyParts<T>& parts) const {
    const Index in_tile = std::min<Index>(kTile, count_ - tile);
    for (Index j = 0; j < kTile; j++) split(key(tile + std::min(j, in_tile - 1)) - origin, parts.high[j], parts.low[j]);
  }
  /// Lanes in two parts, relative to `origin`.
  static void split_lanes(const LanePositions<T>& lanes, double origin, LaneParts<T>& parts) {
    for (Index i = 0; i < kBlock<T>; i++) {
      split(sizeof(T) == sizeof(double) ? lanes.base[i] : lanes.minus(origin, i), parts.high[i], parts.low[i]);
      if (sizeof(T) == sizeof(double)) parts.low[i] = T(lanes.rest[i]);
    }
  }

 private:
  double slope_or_zero(int side) const { return std::isinf(slope_[side]) ? 0 : slope_[side]; }

  /// A query without λ, ρ, B and its side.
  Query clamped_query(const ResolvedMask& mask, Index query) const {
    Query of{};
    of.seen = mask.visible(query);
    of.seen = {std::max<Index>(of.seen.begin, 0), std::min(of.seen.end, mask.keys)};
    if (!keys_) {
      const Index p = mask.position(query), c = mask.nearest_key(query);
      of.at = double(c), of.beyond = double(p - c);
      return of;
    }
    const double c = of.at = queries_[query];
    if (of.seen.begin >= of.seen.end) return of;
    of.at = any_order_ ? std::clamp(c, lowest_, highest_) : std::clamp(c, key(of.seen.begin), key(of.seen.end - 1));
    of.beyond = c - of.at;
    return of;
  }

  /// The number of keys on the left of a query at `at` with index p, for positions in order.
  Index keys_before(double at, Index p, const KeyRange& seen) const {
    // Most often the query lies between the keys p and p + 1.
    if (seen.begin <= p && p < seen.end && key(p) <= at && (p + 1 == seen.end || at <= key(p + 1))) return p + 1;
    const auto first = [&](auto is_beyond) {
      Index begin = seen.begin, end = seen.end;
      while (begin < end) {
        const Index middle = begin + (end - begin) / 2;
        is_beyond(key(middle)) ? end = middle : begin = middle + 1;
      }
      return begin;
    };
    return std::clamp(p + 1, first([&](double x) { return x >= at; }), first([&](double x) { return x > at; }));
  }

  /// Finds λ, ρ and B of a query between two keys that it sees. The biases of the two differ by what their exact slopes
  /// say.
  void widen(Query& of) const {
    constexpr double kFar = 1e300;
    const double left = key(of.keys_before - 1), right = key(of.keys_before);
    const double of_left = slope_[0] * (of.at - left), of_right = slope_[1] * (right - of.at);
    if (!(of_left > 0 && of_right > 0 && base2_[0] > 0 && base2_[1] > 0)) return;
    const double difference = std::clamp(of_right - of_left, -kFar, kFar) * std::numbers::log2e;
    of.left = left, of.right = right;
    if (difference >= 0)
      of.right_rest = std::max(-difference / base2_[1], -kFar);
    else
      of.left_rest = std::min(-difference / base2_[0], kFar);
    of.nearest_penalty = std::min(of_left, of_right);
  }

  /// A tile on one side. `nearest` is its key with the largest bias; `fall` is the slope, negative on the left.
  PositionSide<T> side(const LanePositions<T>& lanes, double fall, Index tile, Index nearest, Index begin,
                       Index end) const {
    PositionSide<T> bias;
    const double origin = key(nearest);
    for (Index j = begin; j < end; j++) bias.ramp[j] = clamped<T>(-fall * (key(tile + j) - origin));
    T offset[kBlock<T>];
    for (Index i = 0; i < kBlock<T>; i++) offset[i] = clamped<T>(fall * lanes.minus(origin, i));
    for (int r = 0; r < kVectors; r++) bias.offset[r] = load<T>(offset + r * kLanes<T>);
    return bias;
  }

  double slope_[2], base2_[2];  // before and after: in base e, as given; in base 2, rounded to T
  HeadPositions keys_, queries_;
  bool any_order_;
  Index count_;                      // of keys
  double lowest_ = 0, highest_ = 0;  // positions of keys in any order
};

}  // namespace alibi::inline ALIBI_ISA::kernel
