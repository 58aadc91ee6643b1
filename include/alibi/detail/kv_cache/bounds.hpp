// What a cache knows of the keys of a head without reading them. Internal.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "alibi/detail/kv_cache/tiles.hpp"
#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/key_bounds.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// The kernel::KeyTileBounds of the tiles that a head holds, kept up to date as the last tile grows and the first tiles
/// leave. Whether a tile is an outlier is final when the next tile begins.
template <class T>
class CacheKeyBounds {
 public:
  explicit CacheKeyBounds(Index head_dim) : center_(std::size_t(head_dim)) {}

  Index first() const { return first_; }
  Index tiles() const { return Index(radius_.size()); }
  T radius(Index tile) const { return radius_[std::size_t(tile - first_)]; }
  /// The largest radius of the tiles that have left at the front.
  T left() const { return left_; }
  const std::vector<T>& center() const { return center_; }
  /// The number of keys of which the centre is the mean.
  Index centered() const { return centered_; }

  /// The bounds as kernels read them. `largest` also covers the keys that have left.
  kernel::KeyTileBounds<T> view() const {
    kernel::KeyTileBounds<T> key_bounds;
    key_bounds.center = center_.data();
    key_bounds.center_norm = center_norm_;
    key_bounds.largest = radius_.empty() ? earlier_ : std::max(earlier_, radius_.back());
    key_bounds.first = first_;
    key_bounds.tiles = tiles();
    key_bounds.radius = radius_.data();
    key_bounds.prefix_max = prefix_max_.data();
    key_bounds.outliers = outliers_.data();
    key_bounds.outlier_count = Index(outliers_.size());
    return key_bounds;
  }

  std::size_t bytes() const {
    return (center_.capacity() + radius_.capacity() + prefix_max_.capacity()) * sizeof(T) +
           outliers_.capacity() * sizeof(outliers_[0]);
  }

  /// Room for `tiles` tiles, so that append_tile() allocates nothing.
  void reserve(Index tiles) {
    grow(radius_, tiles);
    grow(prefix_max_, tiles);
    grow(outliers_, tiles);
  }

  /// Sets the centre to the mean of the first `count` keys of a tile, rounded to S because kernels multiply it with
  /// queries in S; entries that are not finite become 0.
  template <class S>
  void set_center(const S* keys, Index count) {
    for (T& c : center_) {
      double sum = 0;
      for (Index j = 0; j < count; j++) sum += double(keys[j]);
      c = T(S(T(sum / double(count))));
      if (!std::isfinite(c)) c = 0;
      keys += kernel::kTile;
    }
    center_norm_ = kernel::norm_of(center_.data(), Index(center_.size()));
    centered_ = count;
  }

  /// Appends a tile without keys.
  void append_tile() {
    if (!radius_.empty()) settle(radius_.size() - 1);
    radius_.push_back(0);
    prefix_max_.push_back(0);
    set_last(0);
  }
  void set_last(T radius) {
    const std::size_t last = radius_.size() - 1;
    const Index tile = first_ + Index(last);
    const bool outlier = filter_.is_outlier(tile, radius);
    if (!outliers_.empty() && outliers_.back() == tile) outliers_.pop_back();
    if (outlier) outliers_.push_back(std::int32_t(tile));
    radius_[last] = radius;
    prefix_max_[last] = std::max(last == 0 ? T(0) : prefix_max_[last - 1], outlier ? T(0) : radius);
  }
  void raise_last(T radius) { set_last(std::max(radius_.back(), radius)); }

  /// Removes the first tiles. The prefix maxima are computed again up to the first that does not change; then the later
  /// ones do not change either.
  void drop_first(Index count) {
    for (Index i = 0; i < count; i++) left_ = std::max(left_, radius_[std::size_t(i)]);
    radius_.erase(radius_.begin(), radius_.begin() + count);
    prefix_max_.erase(prefix_max_.begin(), prefix_max_.begin() + count);
    first_ += count;
    outliers_.erase(outliers_.begin(), std::lower_bound(outliers_.begin(), outliers_.end(), first_));
    T largest = 0;
    auto outlier = outliers_.begin();
    for (std::size_t i = 0; i < radius_.size(); i++) {
      if (outlier != outliers_.end() && *outlier == first_ + Index(i))
        outlier++;
      else
        largest = std::max(largest, radius_[i]);
      if (std::exchange(prefix_max_[i], largest) == largest) break;
    }
  }

  /// Removes the last tiles, but not all. The new last tile may change again.
  void drop_last(Index count) {
    if (count == 0) return;
    radius_.resize(radius_.size() - std::size_t(count));
    prefix_max_.resize(radius_.size());
    outliers_.erase(std::lower_bound(outliers_.begin(), outliers_.end(), first_ + tiles()), outliers_.end());
    filter_ = {};
    earlier_ = left_;
    for (std::size_t i = 0; i + 1 < radius_.size(); i++) settle(i);
  }

  /// Resets to the state of a new head.
  void clear() {
    radius_.clear();
    prefix_max_.clear();
    outliers_.clear();
    std::fill(center_.begin(), center_.end(), T(0));
    center_norm_ = left_ = earlier_ = 0;
    first_ = centered_ = 0;
    filter_ = {};
  }

  /// Hands all that is known of `tiles` tiles to `file`, which writes const bounds, and reads others.
  template <class Bounds, class File>
  static void transfer(Bounds& bounds, Index tiles, File& file) {
    file.number(bounds.first_);
    file.number(bounds.centered_);
    file.number(bounds.center_norm_);
    file.number(bounds.left_);
    file.number(bounds.earlier_);
    kernel::OutlierFilter<T>::transfer(bounds.filter_, file);
    file.list(bounds.center_, Index(bounds.center_.size()));
    file.list(bounds.radius_, tiles);
    file.list(bounds.prefix_max_, tiles);
    Index outliers = Index(bounds.outliers_.size());
    file.number(outliers);
    file.check(0 <= outliers && outliers <= tiles);
    file.list(bounds.outliers_, outliers);
    Index next = bounds.first_;
    for (const std::int32_t outlier : bounds.outliers_) {
      file.check(next <= outlier && outlier < bounds.first_ + tiles);
      next = Index(outlier) + 1;
    }
  }

 private:
  void settle(std::size_t i) {
    filter_.add(first_ + Index(i), radius_[i]);
    earlier_ = std::max(earlier_, radius_[i]);
  }

  std::vector<T> center_, radius_, prefix_max_;
  std::vector<std::int32_t> outliers_;
  T center_norm_ = 0;
  T left_ = 0, earlier_ = 0;  // the largest radius of the tiles that have left; of all tiles before the last
  Index first_ = 0, centered_ = 0;
  kernel::OutlierFilter<T> filter_;  // of the tiles before the last
};

}  // namespace alibi::inline ALIBI_ABI::detail
