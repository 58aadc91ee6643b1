// The memory of a cache: allocates, recycles and frees tiles. Internal.
#pragma once

#include <algorithm>
#include <cstddef>
#include <new>
#include <utility>
#include <vector>

#include "alibi/kernel/simd/isa.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// Reserves room for `size` entries. If the list grows, its capacity at least doubles.
template <class X>
void grow(std::vector<X>& list, Index size) {
  if (std::size_t(size) > list.capacity()) list.reserve(std::max(std::size_t(size), 2 * list.capacity()));
}

/// Owns tiles. Their addresses lie side by side in a table, as kernels read them.
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

  /// Room for `size` tiles in the table, so that add() allocates nothing, and add_new() the tile only.
  void reserve(Index size) { grow(tiles_, size); }
  void add(S* tile) { tiles_.push_back(tile); }
  void add_new(Index elements) { tiles_.push_back(new (kLine) S[std::size_t(elements)]); }
  /// Adds the tiles of `other` in their order, into room that reserve() has made. Tiles are mostly allocated at rising
  /// addresses and taken from the end: so later tiles of a head lie before earlier ones, and decoding, which reads the
  /// newest first, reads memory in its order.
  void append(CacheTiles&& other) {
    tiles_.insert(tiles_.end(), other.tiles_.begin(), other.tiles_.end());
    other.tiles_.clear();
  }
  S* take_last() {
    S* tile = last();
    tiles_.pop_back();
    return tile;
  }

  /// Removes the first or the last tiles. They go to `spare` while that holds fewer than `max_spare`; the others are
  /// freed.
  void drop_first(Index count, CacheTiles& spare, Index max_spare) {
    for (Index i = 0; i < count; i++) spare.recycle((*this)[i], max_spare);
    tiles_.erase(tiles_.begin(), tiles_.begin() + count);
  }
  void drop_last(Index count, CacheTiles& spare, Index max_spare) {
    for (Index i = 0; i < count; i++) spare.recycle(take_last(), max_spare);
  }

 private:
  static constexpr std::align_val_t kLine{64};
  static void release(S* tile) { ::operator delete[](tile, kLine); }
  void recycle(S* tile, Index max_spare) { size() < max_spare ? add(tile) : release(tile); }

  std::vector<void*> tiles_;
};

}  // namespace alibi::inline ALIBI_ABI::detail
