// One head of a cache (kv_cache.hpp): its tiles of keys and values, and how far its keys are from their centre. Not a
// header for users.
//
// What is written here is what kernels read: kernel/cached.hpp says how a tile looks, kernel/radii.hpp what is known of
// keys without reading them. A token costs O(head_dim + value_dim), however many tiles there are.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>
#include <vector>

#include "alibi/detail/kv_cache/bounds.hpp"
#include "alibi/detail/kv_cache/tiles.hpp"
#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/cached.hpp"
#include "alibi/kernel/tile/key_bounds.hpp"
#include "alibi/kernel/tile/rows.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// A head: the keys of one kv head of one sequence, from the first that is held on.
template <class S>
class CacheHead {
 public:
  using T = std::conditional_t<std::is_same_v<S, double>, double, float>;

  CacheHead(Index head_dim, Index value_dim) : head_dim_(head_dim), value_dim_(value_dim), key_bounds_(head_dim) {}

  /// A head with the same contents.
  CacheHead clone() const {
    CacheHead copy(head_dim_, value_dim_);
    copy.key_bounds_ = key_bounds_;
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
  const CacheKeyBounds<T>& key_bounds() const { return key_bounds_; }
  std::size_t bytes() const {
    return std::size_t(tiles() * tile_size()) * sizeof(S) + tiles_.table_bytes() + key_bounds_.bytes();
  }
  kernel::Cached<S, T> view(Index length) const {
    const Index first = key_bounds_.first();
    return {tiles_.data(), first, first * kTile, length, value_offset(), key_bounds_.view()};
  }

  /// At least the distance of a key that is held from the centre.
  T distance(Index key) const {
    return radius_of(tiles_[key / kTile - key_bounds_.first()], key % kTile, key % kTile + 1);
  }

  /// Room for so many tiles; nothing below allocates then.
  void reserve(Index tiles) {
    tiles_.reserve(tiles);
    key_bounds_.reserve(tiles);
  }

  /// Writes keys and values behind the first `length` ones, into tiles that it takes from `spare`.
  template <class X, class Y>
  void extend(Index length, kernel::Rows<const X> k, kernel::Rows<const Y> v, Index tokens, CacheTiles<S>& spare) {
    for (Index token = 0; token < tokens;) {
      const Index slot = (length + token) % kTile, n = std::min(kTile - slot, tokens - token);
      if (slot == 0) {
        tiles_.add(spare.take_last());
        key_bounds_.append_tile();
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
    key_bounds_.drop_first(count);
  }

  /// Keys from `length` on leave; some of those before it are held, or it is 0.
  void truncate(Index length, CacheTiles<S>& spare, Index most_spare) {
    const Index stay = length == 0 ? 0 : kernel::ceil_div(length, kTile) - key_bounds_.first(), leave = tiles() - stay;
    tiles_.drop_last(leave, spare, most_spare);
    if (stay == 0) return key_bounds_.clear();
    key_bounds_.drop_last(leave);
    key_bounds_.set_last(0);
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
    if (key_bounds_.first() + key_bounds_.tiles() == 1 && keys != key_bounds_.centered()) {
      key_bounds_.set_center(tiles_.last(), keys);
      key_bounds_.set_last(radius_of(tiles_.last(), 0, end));
    } else {
      key_bounds_.raise_last(radius_of(tiles_.last(), begin, end));
    }
  }

  /// At least the largest distance of slots [begin, end) of a tile from the centre.
  T radius_of(const S* tile, Index begin, Index end) const {
    // Several sums at a time, for a single token's sake: one would wait for each of its additions.
    constexpr Index kSums = 4;
    const std::vector<T>& center = key_bounds_.center();
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
  CacheKeyBounds<T> key_bounds_;
};

}  // namespace alibi::inline ALIBI_ABI::detail
