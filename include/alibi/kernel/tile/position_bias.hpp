// The bias of two-sided slopes and of positions (two_sided.hpp, token_positions.hpp), as kernels add it:
//
//   -b (c_i - c_j)   for c_j <= c_i        -a (c_j - c_i)   for c_j >= c_i
//
// b and a are the slopes before and after a query. Without arrays of positions, c is the index of a token.
//
// As in kernel/tile/bias.hpp the bias is relative to the largest bias of a row. Let l_i be the nearest key that query i
// sees on its left, and r_i the nearest one on its right. If there is none on one side, let c'_i be the position of the
// other: all distances have c_i - c'_i in common. Else c'_i = c_i, and the nearest keys have the bias
// -B = -min(b (c_i - l_i), a (r_i - c_i)). With
//
//   λ_i = c'_i - B / b       ρ_i = c'_i + B / a          (c'_i if B = 0, for example because a key lies at c'_i)
//
// the bias relative to it is -b (λ_i - c_j) on the left, and -a (c_j - ρ_i) on the right. Both differences are small
// for the keys that matter, however large the positions and the gaps between them are.
//
// Positions are read as double. All differences of positions are computed in double and then rounded once, because a
// float is too short for a position. A tile on one side of the queries takes one for each key and each query, any other
// tile one or two for each pair, beside the 4 head_dim operations of the products for each pair.
//
// Gradients of slopes count distances from c'_i. In a row between far keys these are large: the gradient of a float
// then has the digits that dS_ij times such a distance leaves.
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
  double at[kBlock<T>];          // c'_i
  LanePositions<T> left, right;  // λ_i, ρ_i
  double beyond[kBlock<T>];      // c_i - c'_i
  double common[kBlock<T>];      // what the bias takes from the logits of all visible keys of the row, in base e
  Index keys_before[kBlock<T>];  // the number of keys on the left of the query
  T gradient[kBlock<T>];         // -dc_i so far (kernel/tile/position_gradient.hpp)
  bool widened = false;          // whether λ_i or ρ_i of a lane is not c'_i
};

/// The positions of the nearest keys that the queries of a block see on both sides; infinite if there is none.
template <class T>
struct NearestKeys {
  double left[kBlock<T>], right[kBlock<T>];
};

/// x rounded to T. Numbers beyond a quarter of its range are clamped, so that sums of a few of them are finite.
template <class T>
T clamped(double x) {
  constexpr double kLargest = std::numeric_limits<T>::max() / 4;
  return T(std::clamp(x, -kLargest, kLargest));
}

/// The start of the sums of a tile that lies wholly on one side of the queries.
template <class T>
struct PositionSide {
  T ramp[kTile];
  Vec<T> offset[kVectors];  // for each lane; must be added to all sums of the tile

  EIGEN_ALWAYS_INLINE Vec<T> start(Index key, int) const { return broadcast<T>(ramp[key]); }
};

/// The start of the sums of any other tile.
template <class T>
struct PositionEdge {
  T bias[kTile][kBlock<T>];
  Vec<T> offset[kVectors];  // 0

  EIGEN_ALWAYS_INLINE Vec<T> start(Index key, int r) const { return load<T>(bias[key] + r * kLanes<T>); }
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

  /// Whether all keys of some row may have a penalty in common or, if `distances` count, a distance.
  bool has_common(const ResolvedMask& mask, Index queries, bool distances) const {
    for (Index query = 0; query < queries; query++) {
      const KeyRange seen = visible_keys(mask, query);
      if (seen.begin >= seen.end) continue;
      if (searches()) {
        if (!is_at_own_key(mask, query, seen)) return true;
        continue;
      }
      const Query of = query_of(mask, query);
      if (of.common > 0 || (distances && of.beyond != 0)) return true;
    }
    return false;
  }

  /// The largest bias difference, in base e, between the nearest and the farthest visible key of any query.
  double largest_penalty(const ResolvedMask& mask, Index queries) const {
    if (any_order_ || queries == 0) return 0;
    const KeyRange of_first = visible_keys(mask, 0), of_last = visible_keys(mask, queries - 1);
    double most = 0;
    if (of_last.begin < of_last.end) most = slope_or_zero(0) * (query_of(mask, queries - 1).at - key(of_last.begin));
    if (of_first.begin < of_first.end)
      most = std::max(most, slope_or_zero(1) * (key(of_first.end - 1) - query_of(mask, 0).at));
    return most;
  }

  /// Whether place() searches for the nearest keys of a block, which takes some operations for each key.
  bool searches() const { return keys_ && any_order_; }

  /// Fills in the lanes of a block, and the keys up to which, and from which on, all keys are on one side of it. If
  /// searches(), `nearest` receives what it found, or, if `is_found`, replaces the search.
  void place(const ResolvedMask& mask, Block<T>& block, PositionLanes<T>& lanes, NearestKeys<T>* nearest = nullptr,
             bool is_found = false) const {
    block.positions.lanes = &lanes;
    std::fill_n(lanes.gradient, kBlock<T>, T(0));
    lanes.widened = false;
    if (keys_) {
      block.lowest = -1, block.highest = std::numeric_limits<Index>::max();
    } else {  // a query beyond the keys has all of them on one side
      block.lowest = std::min(block.lowest, mask.position(block.first));
      block.highest = std::max(block.highest, mask.position(block.first + block.rows - 1));
    }
    if (searches()) {
      NearestKeys<T> found;
      return place_in_any_order(mask, block, lanes, nearest ? *nearest : found, is_found);
    }
    bool any = false;
    for (Index i = 0; i < kBlock<T>; i++) {
      const Index query = block.first + std::min(i, block.rows - 1);
      const Query of = query_of(mask, query);
      set(lanes, i, of);
      const KeyRange seen = visible_keys(mask, query);
      if (!keys_ || seen.begin >= seen.end) continue;
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
    PositionEdge<T> edge;
    const PositionLanes<T>& lanes = *queries.lanes;
    const Vec<double> before = broadcast(base2_[0]), after = broadcast(-base2_[1]);
    const auto from = [](Vec<double> at, const LanePositions<T>& x, Index lane) {
      return sub(sub(at, load(x.base + lane)), load(x.rest + lane));
    };
    if (lanes.widened)
      each_pair(tile, edge.bias, [&](Vec<double> at, Index lane) {
        return select_le(at, load(lanes.at + lane), mul(before, from(at, lanes.left, lane)),
                         mul(after, from(at, lanes.right, lane)));
      });
    else
      each_pair(tile, edge.bias, [&](Vec<double> at, Index lane) {
        const Vec<double> distance = sub(at, load(lanes.at + lane));
        return min(mul(before, distance), mul(after, distance));
      });
    for (Vec<T>& x : edge.offset) x = broadcast<T>(T(0));
    return edge;
  }
  /// c_j - c'_i for the keys of a tile and the lanes of a block.
  void distances(const PositionLanes<T>& lanes, Index tile, T (&to)[kTile][kBlock<T>]) const {
    each_pair(tile, to, [&](Vec<double> at, Index lane) { return sub(at, load(lanes.at + lane)); });
  }

 private:
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();

  /// A query: c'_i; c_i - c'_i; λ_i and ρ_i, each as a sum; what all its logits have in common; and the number of keys
  /// on its left.
  struct Query {
    double at, beyond = 0, left = at, right = at, left_rest = 0, right_rest = 0, common = 0;
    Index keys_before = 0;
  };

  double slope_or_zero(int side) const { return std::isinf(slope_[side]) ? 0 : slope_[side]; }
  static KeyRange visible_keys(const ResolvedMask& mask, Index query) {
    const KeyRange seen = mask.visible(query);
    return {std::max<Index>(seen.begin, 0), std::min(seen.end, mask.keys)};
  }
  /// A query all of whose keys are on its left, or all on its right.
  Query one_sided(double at, double beyond, Index keys_before) const {
    return {.at = at,
            .beyond = beyond,
            .common = beyond == 0 ? 0 : slope_[beyond > 0 ? 0 : 1] * std::abs(beyond),
            .keys_before = keys_before};
  }

  /// A query. Not for positions in any order.
  Query query_of(const ResolvedMask& mask, Index query) const {
    const Index p = mask.position(query);
    if (!keys_) {
      const Index nearest = mask.nearest_key(query);
      return one_sided(double(nearest), double(p - nearest), p + 1);
    }
    const KeyRange seen = visible_keys(mask, query);
    const double at = queries_[query];
    const Index before = seen.begin < seen.end ? keys_before(at, p, seen) : seen.begin;
    return between(at, before > seen.begin ? key(before - 1) : -kInfinity, before < seen.end ? key(before) : kInfinity,
                   before, seen);
  }
  /// A query at `at` with the nearest keys `left` and `right` that it sees, infinite if there is none.
  Query between(double at, double left, double right, Index keys_before, const KeyRange& seen) const {
    if (left > -kInfinity && right < kInfinity) return widened(at, left, right, keys_before);
    if (left > -kInfinity) return one_sided(left, at - left, seen.end);
    if (right < kInfinity) return one_sided(right, at - right, seen.begin);
    return {.at = at, .keys_before = keys_before};
  }
  /// Finds λ, ρ and B of a query between two keys. The biases of the two differ by what their exact slopes say.
  Query widened(double at, double left, double right, Index keys_before) const {
    constexpr double kFar = 1e300;
    Query of{.at = at, .keys_before = keys_before};
    const double of_left = slope_[0] * (at - left), of_right = slope_[1] * (right - at);
    if (!(of_left > 0 && of_right > 0 && base2_[0] > 0 && base2_[1] > 0)) return of;
    if (std::isinf(of_left) && std::isinf(of_right)) return of;
    const double difference = std::clamp(of_right - of_left, -kFar, kFar) * std::numbers::log2e;
    of.left = left, of.right = right;
    if (difference >= 0)
      of.right_rest = std::max(-difference / base2_[1], -kFar);
    else
      of.left_rest = std::min(-difference / base2_[0], kFar);
    of.common = std::min(of_left, of_right);
    return of;
  }

  static void set(PositionLanes<T>& lanes, Index lane, const Query& of) {
    lanes.at[lane] = of.at;
    lanes.left.base[lane] = of.left, lanes.left.rest[lane] = of.left_rest;
    lanes.right.base[lane] = of.right, lanes.right.rest[lane] = of.right_rest;
    lanes.beyond[lane] = of.beyond;
    lanes.widened = lanes.widened || of.left != of.at || of.right != of.at;
    lanes.common[lane] = of.common;
    lanes.keys_before[lane] = of.keys_before;
  }

  /// Whether a query has the position of its own key, the one with its index.
  bool is_at_own_key(const ResolvedMask& mask, Index query, const KeyRange& seen) const {
    const Index p = mask.position(query);
    return seen.begin <= p && p < seen.end && keys_[p] == queries_[query];
  }

  /// place() for positions in any order. Unless each query has the position of its own key, as in self-attention, the
  /// nearest keys are found among all that a query sees.
  void place_in_any_order(const ResolvedMask& mask, const Block<T>& block, PositionLanes<T>& lanes,
                          NearestKeys<T>& nearest, bool is_found) const {
    double at[kBlock<T>];
    KeyRange seen[kBlock<T>];
    bool own = true;
    for (Index i = 0; i < kBlock<T>; i++) {
      const Index query = block.first + std::min(i, block.rows - 1);
      seen[i] = visible_keys(mask, query);
      at[i] = queries_[query];
      own = own && (seen[i].begin >= seen[i].end || is_at_own_key(mask, query, seen[i]));
    }
    if (own)
      for (double* const side : {nearest.left, nearest.right}) std::copy_n(at, kBlock<T>, side);
    else if (!is_found)
      find_nearest(seen, at, nearest);
    for (Index i = 0; i < kBlock<T>; i++) {
      const Index p = mask.position(block.first + std::min(i, block.rows - 1));
      set(lanes, i, between(at[i], nearest.left[i], nearest.right[i], p + 1, seen[i]));
    }
  }
  void find_nearest(const KeyRange (&seen)[kBlock<T>], const double (&at)[kBlock<T>], NearestKeys<T>& nearest) const {
    double *const left = nearest.left, *const right = nearest.right;
    std::fill_n(left, kBlock<T>, -kInfinity);
    std::fill_n(right, kBlock<T>, kInfinity);
    KeyRange all{0, count_};  // the keys that every lane with keys sees
    for (const KeyRange& of : seen)
      if (of.begin < of.end) all = {std::max(all.begin, of.begin), std::min(all.end, of.end)};
    if (all.begin >= all.end) all = {0, 0};
    for (Index j = all.begin; j < all.end; j++) {
      const Vec<double> position = broadcast(keys_[j]);
      for (Index i = 0; i < kBlock<T>; i += kLanes<double>) {
        const Vec<double> query = load(at + i);
        store<double>(left + i, max(load(left + i), select_le(position, query, position, broadcast(-kInfinity))));
        store<double>(right + i, min(load(right + i), select_le(query, position, position, broadcast(kInfinity))));
      }
    }
    for (Index i = 0; i < kBlock<T>; i++) {
      if (seen[i].begin >= seen[i].end) {
        left[i] = -kInfinity, right[i] = kInfinity;
        continue;
      }
      const auto find = [&](Index begin, Index end) {
        for (Index j = begin; j < end; j++) {
          const double position = keys_[j];
          if (position <= at[i]) left[i] = std::max(left[i], position);
          if (position >= at[i]) right[i] = std::min(right[i], position);
        }
      };
      find(seen[i].begin, std::min(seen[i].end, all.begin));
      find(std::max(seen[i].begin, all.end), seen[i].end);
    }
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

  /// to[j][lane] = f(position of key j, lane) for the keys of a tile and vectors of lanes. Keys beyond the last one
  /// repeat it.
  template <class Difference>
  void each_pair(Index tile, T (&to)[kTile][kBlock<T>], const Difference& f) const {
    constexpr double kLargest = std::numeric_limits<T>::max() / 4;
    for (Index j = 0; j < kTile; j++) {
      const Vec<double> at = broadcast(key(std::min(tile + j, count_ - 1)));
      for (Index lane = 0; lane < kBlock<T>; lane += kLanes<double>)
        store_rounded<T>(to[j] + lane, max(broadcast(-kLargest), min(broadcast(kLargest), f(at, lane))));
    }
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
  Index count_;  // of keys
};

}  // namespace alibi::inline ALIBI_ISA::kernel
