// One head of a cache (kv_cache.hpp): its tiles of keys and values, and the distances of its keys from their centre.
// Internal.
//
// Kernels read the memory that is written here: kernel/tile/cached.hpp describes the layout of a tile,
// kernel/tile/key_bounds.hpp what is known of keys without reading them. Appending a token costs O(head_dim +
// value_dim), whatever the number of tiles.
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

/// The keys and values of one kv head of one sequence, from the first key that is held on. The tiles of its sinks stay
/// at the front of the table when they leave the key tile bounds with others.
template <class S>
class CacheHead {
 public:
  using T = std::conditional_t<std::is_same_v<S, double>, double, float>;

  /// `sink_tiles` are the tiles that hold sinks.
  CacheHead(Index head_dim, Index value_dim, Index sink_tiles)
      : head_dim_(head_dim),
        value_dim_(value_dim),
        sink_tiles_(sink_tiles),
        tiles_(tile_size(head_dim, value_dim)),
        key_bounds_(head_dim) {}

  /// A head of another cache with the same contents. `copies` are of the tiles that several heads share.
  template <class Map>
  CacheHead clone(Map& copies) const {
    CacheHead copy(head_dim_, value_dim_, sink_tiles_);
    copy.key_bounds_ = key_bounds_;
    copy.tiles_.copy(tiles_, copies);
    return copy;
  }
  /// A head of the same cache with the same contents, in the same tiles.
  CacheHead fork() const {
    CacheHead copy(head_dim_, value_dim_, sink_tiles_);
    copy.key_bounds_ = key_bounds_;
    copy.tiles_.reserve(tiles_.size());
    copy.tiles_.share(tiles_);
    return copy;
  }

  Index tiles() const { return tiles_.size(); }
  /// Elements of a tile, including 64 bytes at the end, because kernels may read one vector after the last value.
  static Index tile_size(Index head_dim, Index value_dim) {
    return (head_dim + value_dim) * kTile + Index(64 / sizeof(S));
  }
  const CacheKeyBounds<T>& key_bounds() const { return key_bounds_; }
  std::size_t bytes() const {
    return std::size_t(tiles()) * tiles_.tile_bytes() + tiles_.table_bytes() + key_bounds_.bytes();
  }
  /// How many of the tiles that drop_first(count) removes have no other owner.
  Index unshared(Index count) const {
    Index number = 0;
    for (Index t = sink_tiles_; t < sink_tiles_ + removed(count); t++) number += !tiles_.is_shared(t);
    return number;
  }
  /// Whether extend() or truncate() at `length` writes a tile that other heads share, and needs a spare one for it.
  bool writes_shared(Index length) const { return length % kTile != 0 && tiles_.is_shared(place(length / kTile)); }
  kernel::Cached<S, T> view(Index length) const {
    const Index first = key_bounds_.first();
    return {tiles_.data() + place(first), first,        first * kTile, length, value_offset(),
            key_bounds_.view(),           tiles_.data()};
  }

  /// An upper bound of the distance of a key that is held from the centre.
  T distance(Index key) const { return radius_of(tiles_[place(key / kTile)], key % kTile, key % kTile + 1); }

  /// Room for `tiles` tiles, so that the functions below allocate nothing.
  void reserve(Index tiles) {
    tiles_.reserve(tiles);
    key_bounds_.reserve(tiles);
  }

  /// Appends keys and values after the first `length`. New tiles are taken from `spare`.
  template <class X, class Y>
  void extend(Index length, kernel::Rows<const X> k, kernel::Rows<const Y> v, Index tokens, SpareTiles<S>& spare) {
    if (length % kTile != 0 && tokens > 0) own_last(spare);
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

  /// The number of tiles that drop_first(count) removes: not those of sinks.
  Index removed(Index count) const {
    const Index first = key_bounds_.first();
    return std::max(first + count, sink_tiles_) - std::max(first, sink_tiles_);
  }
  /// Removes the first tiles, sinks excepted.
  void drop_first(Index count, SpareTiles<S>& spare, Index max_spare) {
    tiles_.drop(sink_tiles_, removed(count), spare, max_spare);
    key_bounds_.drop_first(count);
  }

  /// Removes the keys from `length` on. `length` is 0, or keys before it are held. A last tile that is shared is
  /// replaced by one of `spare`.
  void truncate(Index length, SpareTiles<S>& spare, Index max_spare) {
    if (length == 0) return clear(spare, max_spare);
    const Index leave = tiles() - place(kernel::ceil_div(length, kTile));
    tiles_.drop_last(leave, spare, max_spare);
    key_bounds_.drop_last(leave);
    key_bounds_.set_last(0);
    const Index end = (length - 1) % kTile + 1;
    if (end < kTile) {
      own_last(spare);
      clear_from(end);
    }
    measure(0, end);
  }

  /// Removes all keys. Then the head is as a new one.
  void clear(SpareTiles<S>& spare, Index max_spare) {
    tiles_.drop_last(tiles(), spare, max_spare);
    key_bounds_.clear();
  }

  /// Writes the tiles, the newest first, and what is known of their keys.
  template <class File>
  void write(File& file) const {
    for (Index t = tiles(); t-- > 0;) file.array(tiles_[t], value_offset() + kTile * value_dim_);
    CacheKeyBounds<T>::transfer(key_bounds_, key_bounds_.tiles(), file);
  }
  /// Reads what write() wrote of sinks and of `count` tiles from `first` on into a new head. Allocates a tile when its
  /// turn has come, so that a file of wrong sizes ends before memory does; the newest first, at addresses in the order
  /// of CacheTiles::append().
  template <class File>
  void read(File& file, Index first, Index count) {
    const Index size = value_offset() + kTile * value_dim_;
    for (Index t = 0; t < std::min(first, sink_tiles_) + count; t++) {
      tiles_.reserve(t + 1);
      tiles_.add_new();
      file.array(tiles_.last(), size);
      std::fill(tiles_.last() + size, tiles_.last() + tiles_.elements(), S(0));
    }
    tiles_.reverse();
    CacheKeyBounds<T>::transfer(key_bounds_, count, file);
    file.check(key_bounds_.first() == first);
  }

 private:
  static constexpr Index kTile = kernel::kTile;

  /// The place of a tile from the first of the bounds on in the table, behind those of sinks that have left the bounds.
  Index place(Index tile) const { return tile - key_bounds_.first() + std::min(key_bounds_.first(), sink_tiles_); }

  Index value_offset() const { return head_dim_ * kTile; }  // a multiple of a cache line, as kTile numbers are

  /// Makes this head the only owner of its last tile, which is to be written.
  void own_last(SpareTiles<S>& spare) {
    if (spare.shared() > 0) tiles_.add(spare.own(tiles_.take_last()));
  }

  /// Sets the last tile to 0 from a slot on, because kernels multiply the numbers there by 0.
  void clear_from(Index slot) {
    S* tile = tiles_.last();
    for (Index d = 0; d < head_dim_; d++) std::fill(tile + d * kTile + slot, tile + (d + 1) * kTile, S(0));
    std::fill(tile + value_offset() + slot * value_dim_, tile + tiles_.elements(), S(0));
  }

  /// Updates the key tile bounds after slots [begin, end) of the last tile have been written. The centre is the mean of
  /// the first 1, 2, 4, …, 64 keys: the largest of these numbers that is available. It therefore does not depend on how
  /// the keys were appended.
  void measure(Index begin, Index end) {
    const Index keys = Index(std::bit_floor(std::uint64_t(end)));
    if (key_bounds_.first() + key_bounds_.tiles() == 1 && keys != key_bounds_.centered()) {
      key_bounds_.set_center(tiles_.last(), keys);
      key_bounds_.set_last(radius_of(tiles_.last(), 0, end));
    } else {
      key_bounds_.raise_last(radius_of(tiles_.last(), begin, end));
    }
  }

  /// An upper bound of the distances of slots [begin, end) of a tile from the centre.
  T radius_of(const S* tile, Index begin, Index end) const {
    // Several sums, because with a single token one sum would wait for each of its additions.
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

  Index head_dim_, value_dim_, sink_tiles_;
  CacheTiles<S> tiles_;
  CacheKeyBounds<T> key_bounds_;
};

}  // namespace alibi::inline ALIBI_ABI::detail
