// One head of a cache (kv_cache.hpp): its tiles of keys and values, and how far its keys are from their centre. Not a
// header for users.
//
// What is written here is what kernels read: kernel/cached.hpp says how a tile looks, kernel/radii.hpp what is known of
// keys without reading them. A token costs O(head_dim + value_dim), however many tiles there are.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "alibi/kernel/cached.hpp"
#include "alibi/kernel/radii.hpp"
#include "alibi/kernel/rows.hpp"
#include "alibi/kernel/simd.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// Room for `size` entries, and for more than that where it would soon be asked for.
template <class X>
void grow(std::vector<X>& list, Index size) {
  if (std::size_t(size) > list.capacity()) list.reserve(std::max(std::size_t(size), 2 * list.capacity()));
}

/// Tiles that are owned here, their addresses side by side as kernels read them.
template <class S>
class CacheTiles {
 public:
  CacheTiles() = default;
  CacheTiles(CacheTiles&& other) noexcept : tiles_(std::exchange(other.tiles_, {})) {}
  CacheTiles& operator=(CacheTiles&& other) noexcept {
    tiles_.swap(other.tiles_);
    return *this;
  }
  CacheTiles(const CacheTiles&) = delete;
  CacheTiles& operator=(const CacheTiles&) = delete;
  ~CacheTiles() {
    while (size() > 0) release(take_last());
  }

  Index size() const { return Index(tiles_.size()); }
  S* operator[](Index i) const { return static_cast<S*>(tiles_[std::size_t(i)]); }
  S* last() const { return static_cast<S*>(tiles_.back()); }
  const void* const* data() const { return tiles_.data(); }
  std::size_t table_bytes() const { return tiles_.capacity() * sizeof(S*); }

  /// Room for so many: neither form of add() needs memory for its table then.
  void reserve(Index size) { grow(tiles_, size); }
  void add(S* tile) { tiles_.push_back(tile); }
  void add_new(Index elements) { tiles_.push_back(new (kLine) S[std::size_t(elements)]); }
  S* take_last() {
    S* tile = last();
    tiles_.pop_back();
    return tile;
  }

  /// The first or the last ones go to `spare`, as long as that holds less than `most`.
  void drop_first(Index count, CacheTiles& spare, Index most) {
    for (Index i = 0; i < count; i++) spare.recycle((*this)[i], most);
    tiles_.erase(tiles_.begin(), tiles_.begin() + count);
  }
  void drop_last(Index count, CacheTiles& spare, Index most) {
    for (Index i = 0; i < count; i++) spare.recycle(take_last(), most);
  }

 private:
  static constexpr std::align_val_t kLine{64};
  static void release(S* tile) { ::operator delete[](tile, kLine); }
  void recycle(S* tile, Index most) { size() < most ? add(tile) : release(tile); }

  std::vector<void*> tiles_;
};

/// What kernel::Radii tells of the tiles that a head holds, kept up to date as the last tile grows and the first ones
/// leave. Whether a tile stands apart is settled when the next one is opened.
template <class T>
class CacheRadii {
 public:
  explicit CacheRadii(Index head_dim) : center_(std::size_t(head_dim)) {}

  Index first() const { return first_; }
  Index tiles() const { return Index(radius_.size()); }
  T radius(Index tile) const { return radius_[std::size_t(tile - first_)]; }
  /// The largest radius of the tiles that have left.
  T left() const { return left_; }
  const std::vector<T>& center() const { return center_; }
  /// How many keys the centre is the mean of.
  Index centered() const { return centered_; }

  /// For kernels; `largest` is over all keys that ever were.
  kernel::Radii<T> view() const {
    kernel::Radii<T> radii;
    radii.center = center_.data();
    radii.center_norm = center_norm_;
    radii.largest = radius_.empty() ? earlier_ : std::max(earlier_, radius_.back());
    radii.first = first_;
    radii.tiles = tiles();
    radii.radius = radius_.data();
    radii.before = before_.data();
    radii.apart = apart_.data();
    radii.apart_count = Index(apart_.size());
    return radii;
  }

  std::size_t bytes() const {
    return (center_.capacity() + radius_.capacity() + before_.capacity()) * sizeof(T) +
           apart_.capacity() * sizeof(apart_[0]);
  }

  /// Room for so many tiles: open() allocates nothing then.
  void reserve(Index tiles) {
    grow(radius_, tiles);
    grow(before_, tiles);
    grow(apart_, tiles);
  }

  /// The centre: the mean of the first `count` keys of a tile, rounded to S, as kernels multiply it with queries; 0
  /// where that is not finite.
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

  /// A tile without keys, behind the others.
  void open() {
    if (!radius_.empty()) settle(radius_.size() - 1);
    radius_.push_back(0);
    before_.push_back(0);
    set_last(0);
  }
  void set_last(T radius) {
    const std::size_t last = radius_.size() - 1;
    const Index tile = first_ + Index(last);
    const bool apart = ordinary_.apart(tile, radius);
    if (!apart_.empty() && apart_.back() == tile) apart_.pop_back();
    if (apart) apart_.push_back(std::int32_t(tile));
    radius_[last] = radius;
    before_[last] = std::max(last == 0 ? T(0) : before_[last - 1], apart ? T(0) : radius);
  }
  void raise_last(T radius) { set_last(std::max(radius_.back(), radius)); }

  /// The first tiles leave. What they did to the prefix maxima ends where a tile that stays is larger.
  void drop_first(Index count) {
    for (Index i = 0; i < count; i++) left_ = std::max(left_, radius_[std::size_t(i)]);
    radius_.erase(radius_.begin(), radius_.begin() + count);
    before_.erase(before_.begin(), before_.begin() + count);
    first_ += count;
    apart_.erase(apart_.begin(), std::lower_bound(apart_.begin(), apart_.end(), first_));
    T largest = 0;
    auto apart = apart_.begin();
    for (std::size_t i = 0; i < radius_.size(); i++) {
      if (apart != apart_.end() && *apart == first_ + Index(i))
        apart++;
      else
        largest = std::max(largest, radius_[i]);
      if (std::exchange(before_[i], largest) == largest) break;
    }
  }

  /// The last tiles leave, but not all of them. What is the last now may change again.
  void drop_last(Index count) {
    if (count == 0) return;
    radius_.resize(radius_.size() - std::size_t(count));
    before_.resize(radius_.size());
    apart_.erase(std::lower_bound(apart_.begin(), apart_.end(), first_ + tiles()), apart_.end());
    ordinary_ = {};
    earlier_ = left_;
    for (std::size_t i = 0; i + 1 < radius_.size(); i++) settle(i);
  }

  /// Nothing is held, and nothing ever was.
  void clear() {
    radius_.clear();
    before_.clear();
    apart_.clear();
    std::fill(center_.begin(), center_.end(), T(0));
    center_norm_ = left_ = earlier_ = 0;
    first_ = centered_ = 0;
    ordinary_ = {};
  }

 private:
  void settle(std::size_t i) {
    ordinary_.add(first_ + Index(i), radius_[i]);
    earlier_ = std::max(earlier_, radius_[i]);
  }

  std::vector<T> center_, radius_, before_;
  std::vector<std::int32_t> apart_;
  T center_norm_ = 0;
  T left_ = 0, earlier_ = 0;  // the largest radius of the tiles that left, and of all tiles before the last
  Index first_ = 0, centered_ = 0;
  kernel::Ordinary<T> ordinary_;  // of the tiles before the last
};

/// A head: the keys of one kv head of one sequence, from the first that is held on.
template <class S>
class CacheHead {
 public:
  using T = std::conditional_t<std::is_same_v<S, double>, double, float>;

  CacheHead(Index head_dim, Index value_dim) : head_dim_(head_dim), value_dim_(value_dim), radii_(head_dim) {}

  /// A head with the same contents.
  CacheHead clone() const {
    CacheHead copy(head_dim_, value_dim_);
    copy.radii_ = radii_;
    copy.tiles_.reserve(tiles_.size());
    for (Index t = 0; t < tiles_.size(); t++) {
      copy.tiles_.add_new(tile_size());
      std::copy_n(tiles_[t], tile_size(), copy.tiles_[t]);
    }
    return copy;
  }

  Index tiles() const { return tiles_.size(); }
  /// Elements of a tile: kernels may read a vector more than there are values.
  Index tile_size() const { return (head_dim_ + value_dim_) * kTile + Index(64 / sizeof(S)); }
  const CacheRadii<T>& radii() const { return radii_; }
  std::size_t bytes() const {
    return std::size_t(tiles() * tile_size()) * sizeof(S) + tiles_.table_bytes() + radii_.bytes();
  }
  kernel::Cached<S, T> view(Index length) const {
    const Index first = radii_.first();
    return {tiles_.data(), first, first * kTile, length, value_offset(), radii_.view()};
  }

  /// At least the distance of a key that is held from the centre.
  T distance(Index key) const { return radius_of(tiles_[key / kTile - radii_.first()], key % kTile, key % kTile + 1); }

  /// Room for so many tiles; nothing below allocates then.
  void reserve(Index tiles) {
    tiles_.reserve(tiles);
    radii_.reserve(tiles);
  }

  /// Writes keys and values behind the first `length` ones, into tiles that it takes from `spare`.
  template <class X, class Y>
  void extend(Index length, kernel::Rows<const X> k, kernel::Rows<const Y> v, Index tokens, CacheTiles<S>& spare) {
    for (Index token = 0; token < tokens;) {
      const Index slot = (length + token) % kTile, n = std::min(kTile - slot, tokens - token);
      if (slot == 0) {
        tiles_.add(spare.take_last());
        radii_.open();
      }
      S *const keys = tiles_.last(), *const values = keys + value_offset();
      for (Index d = 0; d < head_dim_; d++)
        for (Index i = 0; i < n; i++) keys[d * kTile + slot + i] = S(k[token + i][d]);
      for (Index i = 0; i < n; i++)
        for (Index d = 0; d < value_dim_; d++) values[(slot + i) * value_dim_ + d] = S(v[token + i][d]);
      if (slot == 0) clear_from(n);
      measure(slot, slot + n);
      token += n;
    }
  }

  /// The first tiles leave.
  void drop_first(Index count, CacheTiles<S>& spare, Index most_spare) {
    tiles_.drop_first(count, spare, most_spare);
    radii_.drop_first(count);
  }

  /// Keys from `length` on leave; some of those before it are held, or it is 0.
  void truncate(Index length, CacheTiles<S>& spare, Index most_spare) {
    const Index stay = length == 0 ? 0 : kernel::pieces(length, kTile) - radii_.first(), leave = tiles() - stay;
    tiles_.drop_last(leave, spare, most_spare);
    if (stay == 0) return radii_.clear();
    radii_.drop_last(leave);
    radii_.set_last(0);
    const Index end = (length - 1) % kTile + 1;
    clear_from(end);
    measure(0, end);
  }

 private:
  static constexpr Index kTile = kernel::kTile;

  Index value_offset() const { return head_dim_ * kTile; }  // a cache line's multiple, since kTile numbers are

  /// Zeros in the last tile from a slot on: kernels multiply by 0 what is there.
  void clear_from(Index slot) {
    S* tile = tiles_.last();
    for (Index d = 0; d < head_dim_; d++) std::fill(tile + d * kTile + slot, tile + (d + 1) * kTile, S(0));
    std::fill(tile + value_offset() + slot * value_dim_, tile + tile_size(), S(0));
  }

  /// Brings the radii up to date after slots [begin, end) of the last tile have been written. The centre is the mean of
  /// the first 1, 2, 4, …, 64 keys, as many as there are, so that it does not depend on how they were appended.
  void measure(Index begin, Index end) {
    const Index keys = Index(std::bit_floor(std::uint64_t(end)));
    if (radii_.first() + radii_.tiles() == 1 && keys != radii_.centered()) {
      radii_.set_center(tiles_.last(), keys);
      radii_.set_last(radius_of(tiles_.last(), 0, end));
    } else {
      radii_.raise_last(radius_of(tiles_.last(), begin, end));
    }
  }

  /// At least the largest distance of slots [begin, end) of a tile from the centre.
  T radius_of(const S* tile, Index begin, Index end) const {
    // Several sums at a time, for a single token's sake: one would wait for each of its additions.
    constexpr Index kSums = 4;
    const std::vector<T>& center = radii_.center();
    T square[kSums][kTile] = {}, radius = 0;
    for (Index d = 0; d < head_dim_; d++) {
      const T c = center[std::size_t(d)];
      const S* keys = tile + d * kTile;
      T* sum = square[d % kSums];
      for (Index j = begin; j < end; j++) sum[j] += (T(keys[j]) - c) * (T(keys[j]) - c);
    }
    for (Index j = begin; j < end; j++) {
      const T all = (square[0][j] + square[1][j]) + (square[2][j] + square[3][j]);
      radius = std::max(radius, kernel::norm_above(all, head_dim_));
    }
    return radius;
  }

  Index head_dim_, value_dim_;
  CacheTiles<S> tiles_;
  CacheRadii<T> radii_;
};

}  // namespace alibi::inline ALIBI_ABI::detail
