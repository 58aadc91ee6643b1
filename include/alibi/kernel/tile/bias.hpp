// The bias -m |p_i - j| as kernels add it. The sums of a score tile start from the bias instead of zero, so that it
// costs nothing.
//
// Softmax ignores a constant added to a whole row. Kernels therefore use the bias relative to the largest bias of the
// row: -m (|c_i - j| - d_i). Here c_i is the position of query i, clamped to the keys. For m >= 0 the nearest key has
// the largest bias, and d_i = 0. For m < 0 the farthest visible key has it, and d_i is its distance from c_i. An lse
// relative to this bias is called a shifted lse. Positions are clamped as integers, so that a query 2^26 positions
// after the last key loses no digits.
//
// In a tile that lies wholly on one side of a block's queries the bias is the sum of a part per lane and a part per
// key:
//
//   left:   -m (c_i - d_i - j_r)  +  m (j - j_r)        j_r: the key with the largest bias among the keys in use
//   right:  -m (j_r - c_i - d_i)  -  m (j - j_r)
//
// The second part, the ramp, is at most 0. It is the same for every tile, except for where it starts, so that a sum
// starts from one broadcast value. The first part, the offset, is added once per tile, where the softmax subtracts its
// reference anyway.
//
// A bias that is any function of p_i - j is read from a table. For one key, consecutive queries have consecutive
// entries, so that a sum starts with one load.
//
// A bias policy has left(), right() and edge(). They return the start of a tile's sums: start(key, r), for a key of the
// tile and vector r of the queries, and an offset for each lane. Internal.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "alibi/kernel/simd/vec.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// x log2 e, clamped to the range of T: a slope or a bias for logits in base 2.
template <class T>
T base2(double x) {
  constexpr double kLargest = std::numeric_limits<T>::max();
  return T(std::clamp(x * std::numbers::log2e, -kLargest, kLargest));
}

template <class T>
struct PositionLanes;

/// The positions of the queries of a block, for the bias; one lane for each query.
template <class T>
struct Positions {
  Index first;                        // p_i of the first query
  Index base;                         // an integer close to all c_i
  T from_base[kBlock<T>];             // c_i - base
  T nearest[kBlock<T>];               // d_i
  PositionLanes<T>* lanes = nullptr;  // for the bias of kernel/tile/position_bias.hpp
};

/// The start of the sums of a tile that lies wholly on one side of the queries.
template <class T>
struct SideBias {
  const T* ramp;
  Index shift;              // key j of the tile has ramp[j + shift]
  Vec<T> offset[kVectors];  // for each lane; must be added to all sums of the tile

  EIGEN_ALWAYS_INLINE Vec<T> start(Index key, int) const { return broadcast<T>(ramp[key + shift]); }
};

/// The distances of the keys of a tile from the queries, as the linear bias counts them: |c_i - j| - d_i.
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

/// The start of the sums of a tile that contains the position of a query, or an end of the keys that a query sees.
template <class T>
struct EdgeBias {
  T slope;
  Distances<T> distances;
  Vec<T> offset[kVectors];  // 0

  EIGEN_ALWAYS_INLINE Vec<T> start(Index key, int r) const { return mul(broadcast<T>(-slope), distances.of(key, r)); }
};

/// The linear bias of one head. `slope` is m log2 e, for logits in base 2.
template <class T>
class LinearBiasPolicy {
 public:
  explicit LinearBiasPolicy(T slope) : slope_(slope) {
    for (int j = 0; j < kTile; j++) {
      falling_[j] = -std::abs(slope) * T(j);
      rising_[kTile - 1 - j] = falling_[j];
    }
  }

  /// For keys [begin, end) of the tile, all at or before every query.
  SideBias<T> left(const Positions<T>& queries, Index tile, Index begin, Index end) const {
    SideBias<T> bias = ramp(slope_ >= 0, begin, end);
    const Vec<T> distance = broadcast<T>(T(queries.base - (tile + largest(slope_ >= 0, begin, end))));
    for (int r = 0; r < kVectors; r++)
      bias.offset[r] = mul(broadcast<T>(-slope_), add(distance, sub(position(queries, r), nearest(queries, r))));
    return bias;
  }

  /// For keys [begin, end) of the tile, all at or after every query.
  SideBias<T> right(const Positions<T>& queries, Index tile, Index begin, Index end) const {
    SideBias<T> bias = ramp(slope_ < 0, begin, end);
    const Vec<T> distance = broadcast<T>(T(tile + largest(slope_ < 0, begin, end) - queries.base));
    for (int r = 0; r < kVectors; r++)
      bias.offset[r] = mul(broadcast<T>(-slope_), sub(distance, add(position(queries, r), nearest(queries, r))));
    return bias;
  }

  /// For any keys of the tile.
  EdgeBias<T> edge(const Positions<T>& queries, Index tile) const {
    EdgeBias<T> bias{slope_, {queries, tile}, {}};
    for (Vec<T>& x : bias.offset) x = broadcast<T>(T(0));
    return bias;
  }

 private:
  // The key with the largest bias among keys [begin, end), and the ramp that is 0 at this key. `rising`: the bias grows
  // with the key.
  static Index largest(bool rising, Index begin, Index end) { return rising ? end - 1 : begin; }
  SideBias<T> ramp(bool rising, Index begin, Index end) const {
    return {rising ? rising_ : falling_, rising ? kTile - end : -begin, {}};
  }
  static Vec<T> position(const Positions<T>& queries, int r) { return load<T>(queries.from_base + r * kLanes<T>); }
  static Vec<T> nearest(const Positions<T>& queries, int r) { return load<T>(queries.nearest + r * kLanes<T>); }

  T slope_;
  T falling_[kTile], rising_[kTile];  // -|m| j, and -|m| (kTile - 1 - j)
};

/// The start of the sums of any tile, from a table.
template <class T>
struct TableBiasStart {
  const T* entry;           // of the first query and the first key of the tile
  Vec<T> offset[kVectors];  // 0

  EIGEN_ALWAYS_INLINE Vec<T> start(Index key, int r) const { return load<T>(entry - key + r * kLanes<T>); }
};

/// The relative bias of one head: a table over the distances p_i - j, in base 2.
template <class T>
class TableBiasPolicy {
 public:
  /// The number of copies of the first and of the last entry before and after the table. They let loads run past its
  /// ends without a check.
  static constexpr Index kPadding = kTile + kBlock<T>;

  /// `padded` starts with kPadding copies; the entry of distance `first` follows.
  TableBiasPolicy(const T* padded, Index first, Index entries)
      : at_first_(padded + kPadding), first_(first), last_(first + entries - 1) {}

  TableBiasStart<T> left(const Positions<T>& queries, Index tile, Index, Index) const { return edge(queries, tile); }
  TableBiasStart<T> right(const Positions<T>& queries, Index tile, Index, Index) const { return edge(queries, tile); }
  TableBiasStart<T> edge(const Positions<T>& queries, Index tile) const {
    const Index distance = std::clamp(queries.first - tile, first_ - kBlock<T>, last_ + kTile);
    TableBiasStart<T> bias{at_first_ + (distance - first_), {}};
    for (Vec<T>& x : bias.offset) x = broadcast<T>(T(0));
    return bias;
  }

 private:
  const T* at_first_;
  Index first_, last_;
};

/// Writes a table of `entries` biases, converted to base 2, with its padding to `padded`. If `reversed`, in the order
/// of falling distances.
template <class T>
void pad_table(const T* table, Index entries, T* padded, bool reversed = false) {
  for (Index i = 0; i < entries + 2 * TableBiasPolicy<T>::kPadding; i++) {
    const Index entry = std::clamp<Index>(i - TableBiasPolicy<T>::kPadding, 0, entries - 1);
    padded[i] = base2<T>(double(table[reversed ? entries - 1 - entry : entry]));
  }
}

}  // namespace alibi::inline ALIBI_ISA::kernel
