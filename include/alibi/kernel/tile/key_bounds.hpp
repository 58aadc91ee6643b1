// How far the keys of a head are from a centre, tile by tile: all that pruning knows of keys it has not read.
//
// Softmax does not see a common shift of the keys, and real keys have a large mean: what counts is |k_j - c|, not
// |k_j|. A few tiles hold keys far out, the first tokens of real models above all. Such tiles stand apart: each is
// judged by itself, and they are left out of the prefix maxima, which judge all the other, ordinary ones at once. The
// first tile always stands apart.
//
// Every number here is rounded up, and infinite where a key is not finite, so that no such key is ever pruned.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "alibi/kernel/simd/vec.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// Tiles of kTile keys. Arrays begin at tile `first`: entry t - first is that of tile t.
template <class T>
struct KeyTileBounds {
  const T* center = nullptr;               // c [head_dim]
  T center_norm = 0;                       // at least |c|
  T largest = 0;                           // the largest of all radii
  Index first = 0, tiles = 0;              // the tiles known are first, …, first + tiles - 1
  const T* radius = nullptr;               // at least |k_j - c| for every key j of the tile
  const T* prefix_max = nullptr;           // the largest radius of the ordinary tiles up to this one
  const T* suffix_max = nullptr;           // … from this one on; null where no query looks ahead
  T chord_norm = 0;                        // a norm that few queries exceed, base 2; with it go, or null:
  const T* weight = nullptr;               // at least log2 Σ 2^(chord_norm |k_j - c|) over the keys of the tile
  const std::int32_t* outliers = nullptr;  // numbers of the tiles that stand apart, rising
  Index outlier_count = 0;
};

/// What compute_tail_bounds() of measure.hpp has to say of a head: a number a tile, and another one where queries look
/// ahead.
template <class T>
Index tail_bounds_size(const KeyTileBounds<T>& key_bounds) {
  return key_bounds.tiles * (key_bounds.suffix_max ? 2 : 1);
}

/// Tells ordinary tiles from those that stand apart; tiles come in rising order.
template <class T>
class OutlierFilter {
 public:
  /// Whether the next tile stands apart: it is the first, not finite, or reaches half as far again as ordinary ones on
  /// average. Of these no more than one in 16, and a few at first: where they are many, that is what keys are like now.
  bool is_outlier(Index tile, T radius) const {
    return tile == 0 || !(radius <= std::numeric_limits<T>::max()) ||
           (16 * outliers_ <= tile + 64 && double(radius) * double(count_) > 1.5 * sum_);
  }
  /// The largest ordinary radius with the next tile.
  T largest(Index tile, T radius) const { return is_outlier(tile, radius) ? largest_ : std::max(largest_, radius); }

  void add(Index tile, T radius) {
    if (is_outlier(tile, radius)) {
      outliers_++;
      return;
    }
    largest_ = std::max(largest_, radius);
    sum_ += double(radius);
    count_++;
  }

 private:
  T largest_ = 0;
  double sum_ = 0;
  Index count_ = 0, outliers_ = 0;
};

/// At least √square, where `square` is a sum of `terms` squares in T: the sum is off by its rounding errors at most
/// (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1), and infinite for NaN.
template <class T>
T norm_above(T square, Index terms) {
  constexpr T kUnit = std::numeric_limits<T>::epsilon();
  // Squares below the smallest normal number may have been lost.
  const T norm = std::sqrt(square + T(terms) * std::numeric_limits<T>::min()) * (T(1) + T(terms + 4) * kUnit);
  return norm <= std::numeric_limits<T>::max() ? norm : std::numeric_limits<T>::infinity();
}

/// At least |c|.
template <class T>
T norm_of(const T* center, Index head_dim) {
  T square = 0;
  for (Index d = 0; d < head_dim; d++) square += center[d] * center[d];
  return norm_above(square, head_dim);
}

}  // namespace alibi::inline ALIBI_ISA::kernel
