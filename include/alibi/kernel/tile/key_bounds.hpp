// Key tile bounds: for each tile of a head, an upper bound of the distance of its keys from a common centre. Pruning
// knows nothing else of the remaining keys.
//
// Softmax ignores a common shift of the keys, and the keys of real models have a large mean. The distance |k_j - c|
// therefore counts, not |k_j|. A few tiles, most often those of the first tokens of real models, hold keys far from the
// centre. They are outlier tiles. Each is judged by itself and does not enter the prefix maxima. The prefix maxima
// judge all ordinary tiles at once. The first tile is always an outlier.
//
// All bounds are rounded up. They are infinite where a key is not finite, so that such a key is never pruned. Internal.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "alibi/kernel/simd/vec.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// The bounds of a head's tiles of kTile keys. Arrays start at tile `first`: entry t - first belongs to tile t.
template <class T>
struct KeyTileBounds {
  const T* center = nullptr;               // c [head_dim]
  T center_norm = 0;                       // at least |c|
  T largest = 0;                           // the largest of all radii
  Index first = 0, tiles = 0;              // bounds exist for tiles first, …, first + tiles - 1
  const T* radius = nullptr;               // at least |k_j - c| for every key j of the tile
  const T* prefix_max = nullptr;           // the largest radius of the ordinary tiles up to this one
  const T* suffix_max = nullptr;           // … from this one on; null if no query sees keys after it
  T chord_norm = 0;                        // a norm of q' that few queries exceed (base 2); for `log_mass`
  const T* log_mass = nullptr;             // at least log2 Σ 2^(chord_norm |k_j - c|) over the tile; or null
  const std::int32_t* outliers = nullptr;  // the numbers of the outlier tiles, rising
  Index outlier_count = 0;

  /// An upper bound of the radius of any tile, also of the sinks that a cache keeps when later tiles leave.
  T radius_of(Index tile) const { return tile < first ? largest : radius[tile - first]; }
};

/// The number of tail bounds of a head (compute_tail_bounds() of kernel/pruning/key_stats.hpp): one for each tile, or
/// two if queries see keys after them.
template <class T>
Index tail_bounds_size(const KeyTileBounds<T>& key_bounds) {
  return key_bounds.tiles * (key_bounds.suffix_max ? 2 : 1);
}

/// Separates outlier tiles from ordinary tiles. Takes the tiles in rising order.
template <class T>
class OutlierFilter {
 public:
  /// Whether the next tile is an outlier: it is the first, is not finite, or has more than 1.5 times the mean radius of
  /// the ordinary tiles. The last kind is limited to about tiles/16 + 4. If more tiles had such radii, these would be
  /// ordinary.
  bool is_outlier(Index tile, T radius) const {
    return tile == 0 || !(radius <= std::numeric_limits<T>::max()) ||
           (16 * outliers_ <= tile + 64 && double(radius) * double(count_) > 1.5 * sum_);
  }
  /// The largest ordinary radius, the next tile included.
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

  /// Hands its numbers to `file`, which writes those of a const filter, and reads those of another.
  template <class Filter, class File>
  static void transfer(Filter& filter, File& file) {
    file.number(filter.largest_);
    file.number(filter.sum_);
    file.number(filter.count_);
    file.number(filter.outliers_);
  }

 private:
  T largest_ = 0;
  double sum_ = 0;
  Index count_ = 0, outliers_ = 0;
};

/// At least the norm √Σ x², where `square` is the sum of `terms` squares, computed in T. Covers the rounding errors of
/// the sum (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1). Infinite for NaN.
template <class T>
T norm_above(T square, Index terms) {
  constexpr T kUnit = std::numeric_limits<T>::epsilon();
  // Squares below the smallest normal number may have been flushed to 0.
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
