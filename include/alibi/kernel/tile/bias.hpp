// The bias -m |p_i - j| as a kernel adds it: it starts the sums of a score tile instead of zero, and costs nothing.
//
// Softmax does not see what is added to a whole row, so the bias is measured from the key of the row where it is
// largest: -m (|c_i - j| - d_i), with c_i the position of query i clamped to the keys, and d_i = 0 for m >= 0, the
// distance of the farthest visible key for m < 0. Integers do the clamping: a query 2^26 positions behind the last key
// loses no digit.
//
// In a tile that lies wholly to one side of a block's queries the bias splits into a part per lane and a part per key:
//
//   left:   -m (c_i - d_i - j_r)  +  m (j - j_r)        j_r: of the keys in use the one with the largest bias
//   right:  -m (j_r - c_i - d_i)  -  m (j - j_r)
//
// The second part, the ramp, is at most 0, and the same for every tile but for where it starts: one broadcast starts a
// sum. The first, the offset, joins once per tile, where the softmax subtracts its reference anyway.
//
// A bias that is any function of p_i - j comes from a table: against one key consecutive queries have consecutive
// entries, so that a sum starts with one load. Both kinds have left(), right() and edge(), which give what a tile
// starts from: start(key, r) for a key of the tile and vector r of the queries, and by lane an offset.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "alibi/kernel/simd/vec.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// x log2 e: a slope or a bias for logits in base 2, within the range of T.
template <class T>
T base2(double x) {
  constexpr double kLargest = std::numeric_limits<T>::max();
  return T(std::clamp(x * std::numbers::log2e, -kLargest, kLargest));
}

/// Where the queries of a block stand, for the bias; one lane a query.
template <class T>
struct Positions {
  Index first;             // p_i of the first
  Index base;              // an integer near all c_i
  T from_base[kBlock<T>];  // c_i - base
  T nearest[kBlock<T>];    // d_i
};

/// Starts the sums of a tile wholly to one side of the queries.
template <class T>
struct SideBias {
  const T* ramp;
  Index shift;              // key j of the tile has ramp[j + shift]
  Vec<T> offset[kVectors];  // by lane; what is to be added to the sums of the whole tile

  EIGEN_ALWAYS_INLINE Vec<T> start(Index key, int) const { return broadcast<T>(ramp[key + shift]); }
};

/// How far the keys of a tile are from the queries, measured as the linear bias is: |c_i - j| - d_i.
template <class T>
struct Distances {
  Vec<T> position[kVectors];  // c_i - first key of the tile
  Vec<T> nearest[kVectors];   // d_i

  Distances(const Positions<T>& queries, Index tile) {
    for (int r = 0; r < kVectors; r++) {
      position[r] = add(broadcast<T>(T(queries.base - tile)), load<T>(queries.from_base + r * kLanes<T>));
      nearest[r] = load<T>(queries.nearest + r * kLanes<T>);
    }
  }
  EIGEN_ALWAYS_INLINE Vec<T> of(Index key, int r) const {
    return sub(abs(sub(position[r], broadcast<T>(T(key)))), nearest[r]);
  }
};

/// Starts the sums of a tile that holds the position of one of its queries, or an end of what it sees.
template <class T>
struct EdgeBias {
  T slope;
  Distances<T> distances;
  Vec<T> offset[kVectors];  // 0

  EIGEN_ALWAYS_INLINE Vec<T> start(Index key, int r) const { return mul(broadcast<T>(-slope), distances.of(key, r)); }
};

/// The bias of one head; `slope` is m log2 e, for logits in base 2.
template <class T>
class LinearBiasPolicy {
 public:
  explicit LinearBiasPolicy(T slope) : slope_(slope) {
    for (int j = 0; j < kTile; j++) {
      falling_[j] = -std::abs(slope) * T(j);
      rising_[kTile - 1 - j] = falling_[j];
    }
  }

  /// Keys [begin, end) of the tile, all of them at or before every query.
  SideBias<T> left(const Positions<T>& queries, Index tile, Index begin, Index end) const {
    SideBias<T> bias = ramp(slope_ >= 0, begin, end);
    const Vec<T> distance = broadcast<T>(T(queries.base - (tile + largest(slope_ >= 0, begin, end))));
    for (int r = 0; r < kVectors; r++)
      bias.offset[r] = mul(broadcast<T>(-slope_), add(distance, sub(position(queries, r), nearest(queries, r))));
    return bias;
  }

  /// Keys [begin, end) of the tile, all of them at or behind every query.
  SideBias<T> right(const Positions<T>& queries, Index tile, Index begin, Index end) const {
    SideBias<T> bias = ramp(slope_ < 0, begin, end);
    const Vec<T> distance = broadcast<T>(T(tile + largest(slope_ < 0, begin, end) - queries.base));
    for (int r = 0; r < kVectors; r++)
      bias.offset[r] = mul(broadcast<T>(-slope_), sub(distance, add(position(queries, r), nearest(queries, r))));
    return bias;
  }

  /// Any keys of the tile.
  EdgeBias<T> edge(const Positions<T>& queries, Index tile) const {
    EdgeBias<T> bias{slope_, {queries, tile}, {}};
    for (Vec<T>& x : bias.offset) x = broadcast<T>(T(0));
    return bias;
  }

 private:
  // Of keys [begin, end), the one with the largest bias, and the ramp that is 0 there.
  static Index largest(bool rising, Index begin, Index end) { return rising ? end - 1 : begin; }
  SideBias<T> ramp(bool rising, Index begin, Index end) const {
    return {rising ? rising_ : falling_, rising ? kTile - end : -begin, {}};
  }
  static Vec<T> position(const Positions<T>& queries, int r) { return load<T>(queries.from_base + r * kLanes<T>); }
  static Vec<T> nearest(const Positions<T>& queries, int r) { return load<T>(queries.nearest + r * kLanes<T>); }

  T slope_;
  T falling_[kTile], rising_[kTile];  // -|m| j, and the same from the other end
};

/// Starts the sums of any tile from a table.
template <class T>
struct TableStart {
  const T* entry;           // of the first query and the tile's first key
  Vec<T> offset[kVectors];  // 0

  EIGEN_ALWAYS_INLINE Vec<T> start(Index key, int r) const { return load<T>(entry - key + r * kLanes<T>); }
};

/// The bias of one head as a table of distances p_i - j, in base 2.
template <class T>
class TableBiasPolicy {
 public:
  /// Copies of the entry at either end that stand beyond it: no load has to look where it is.
  static constexpr Index kPadding = kTile + kBlock<T>;

  /// `padded` begins with the padding before the entry of distance `first`.
  TableBiasPolicy(const T* padded, Index first, Index entries)
      : at_first_(padded + kPadding), first_(first), last_(first + entries - 1) {}

  TableStart<T> left(const Positions<T>& queries, Index tile, Index, Index) const { return edge(queries, tile); }
  TableStart<T> right(const Positions<T>& queries, Index tile, Index, Index) const { return edge(queries, tile); }
  TableStart<T> edge(const Positions<T>& queries, Index tile) const {
    const Index distance = std::clamp(queries.first - tile, first_ - kBlock<T>, last_ + kTile);
    TableStart<T> bias{at_first_ + (distance - first_), {}};
    for (Vec<T>& x : bias.offset) x = broadcast<T>(T(0));
    return bias;
  }

 private:
  const T* at_first_;
  Index first_, last_;
};

/// A table of `entries` biases in base 2 with its padding, into `padded`.
template <class T>
void pad_table(const T* table, Index entries, T* padded) {
  for (Index i = 0; i < entries + 2 * TableBiasPolicy<T>::kPadding; i++)
    padded[i] = base2<T>(double(table[std::clamp<Index>(i - TableBiasPolicy<T>::kPadding, 0, entries - 1)]));
}

}  // namespace alibi::inline ALIBI_ISA::kernel
