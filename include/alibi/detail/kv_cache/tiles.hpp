// The memory of a cache: allocates, shares, recycles and frees tiles. Internal.
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

template <class S>
class SpareTiles;

/// Owns tiles of one size. Their addresses lie side by side in a table, as kernels read them. The tables of one cache
/// may share a tile: the number of its owners lies behind its elements, and the last owner frees it. A tile with
/// several owners is never written.
template <class S>
class CacheTiles {
 public:
  explicit CacheTiles(Index elements) : elements_(elements) {}
  CacheTiles(CacheTiles&& other) noexcept : elements_(other.elements_), tiles_(std::exchange(other.tiles_, {})) {}
  CacheTiles& operator=(CacheTiles&& other) noexcept {
    std::swap(elements_, other.elements_);
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
  Index elements() const { return elements_; }
  std::size_t tile_bytes() const { return std::size_t(elements_) * sizeof(S) + sizeof(Index); }
  std::size_t table_bytes() const { return tiles_.capacity() * sizeof(S*); }
  bool is_shared(Index i) const { return owners((*this)[i]) > 1; }

  /// Room for `size` tiles in the table, so that add() allocates nothing, and add_new() the tile only.
  void reserve(Index size) { grow(tiles_, size); }
  void add(S* tile) { tiles_.push_back(tile); }
  void add_new() {
    tiles_.push_back(::operator new(tile_bytes(), kLine));
    new (last() + elements_) Index(1);
  }
  /// Adds the tiles of `other` in their order, into room that reserve() has made. Tiles are mostly allocated at rising
  /// addresses and taken from the end: so later tiles of a head lie before earlier ones, and decoding, which reads the
  /// newest first, reads memory in its order.
  void append(CacheTiles&& other) {
    tiles_.insert(tiles_.end(), other.tiles_.begin(), other.tiles_.end());
    other.tiles_.clear();
  }
  /// Shares the tiles of `other`, a table of the same cache, in room that reserve() has made.
  void share(const CacheTiles& other) {
    for (Index i = 0; i < other.size(); i++) {
      owners(other[i])++;
      add(other[i]);
    }
  }
  /// Adds copies of the tiles of a table of another cache, at addresses in the order of append(). `copies` maps the
  /// tiles that are shared there to their copies, which are shared here.
  template <class Map>
  void copy(const CacheTiles& other, Map& copies) {
    reserve(other.size());
    for (Index i = other.size(); i-- > 0;) {
      const bool shared = other.is_shared(i);
      const auto known = shared ? copies.find(other[i]) : copies.end();
      if (known != copies.end()) {
        owners(known->second)++;
        add(known->second);
        continue;
      }
      add_new();
      std::copy_n(other[i], elements_, last());
      if (shared) copies.emplace(other[i], last());
    }
    reverse();
  }
  void reverse() { std::reverse(tiles_.begin(), tiles_.end()); }
  S* take_last() {
    S* tile = last();
    tiles_.pop_back();
    return tile;
  }

  /// Removes tiles from `begin` on, or the last ones. They go to `spare` while that holds fewer than `max_spare`; the
  /// others are freed.
  void drop(Index begin, Index count, SpareTiles<S>& spare, Index max_spare) {
    for (Index i = begin; i < begin + count; i++) spare.recycle((*this)[i], max_spare);
    tiles_.erase(tiles_.begin() + begin, tiles_.begin() + begin + count);
  }
  void drop_last(Index count, SpareTiles<S>& spare, Index max_spare) {
    for (Index i = 0; i < count; i++) spare.recycle(take_last(), max_spare);
  }

 protected:
  Index& owners(S* tile) const { return *std::launder(reinterpret_cast<Index*>(tile + elements_)); }
  void release(S* tile) {
    if (--owners(tile) == 0) ::operator delete(tile, kLine);
  }

 private:
  static constexpr std::align_val_t kLine{64};

  Index elements_;
  std::vector<void*> tiles_;
};

/// The spare tiles of a cache, from which its heads take tiles and to which they return them.
template <class S>
class SpareTiles : public CacheTiles<S> {
 public:
  using CacheTiles<S>::CacheTiles;

  /// How many more tiles the heads of the cache hold than there are, because they share some.
  Index shared() const { return shared_; }
  /// Notes that a head of the cache holds `tiles` tiles that others hold too.
  void add_shared(Index tiles) { shared_ += tiles; }

  /// Takes the tile of an owner that gives it up, and keeps it if there is no other owner and fewer than `max_spare`
  /// are spare.
  void recycle(S* tile, Index max_spare) {
    if (shared_ > 0 && this->owners(tile) > 1) {
      this->owners(tile)--;
      shared_--;
    } else if (this->size() < max_spare) {
      this->add(tile);
    } else {
      this->release(tile);
    }
  }
  /// The tile of an owner that wants to write: the same, or if it has other owners, a spare tile with its contents.
  S* own(S* tile) {
    if (shared_ == 0 || this->owners(tile) == 1) return tile;
    S* const copy = this->take_last();
    std::copy_n(tile, this->elements(), copy);
    this->owners(tile)--;
    shared_--;
    return copy;
  }
  /// Frees the tiles beyond the first `max_spare`.
  void trim(Index max_spare) {
    while (this->size() > max_spare) this->release(this->take_last());
  }

 private:
  Index shared_ = 0;
};

}  // namespace alibi::inline ALIBI_ABI::detail
