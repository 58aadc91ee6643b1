// Byte-pair encoding of one word: of all adjacent pairs that have a merge, the one of lowest rank, leftmost first,
// becomes one token; again, until none is left. (Sennrich et al., "Neural Machine Translation of Rare Words with
// Subword Units".)
//
// A heap of candidates over a linked list takes O(n log n) for n bytes; the plain loop takes O(n^2), which a text
// without spaces makes felt.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace pretrained {

struct Merge {
  std::uint32_t rank = 0;
  int id = -1;  // of the merged token; -1: the pair has none
};

/// The merges by pair: a hash table with open addresses, since this look-up is what encoding does most.
class MergeTable {
 public:
  explicit MergeTable(std::size_t merges = 0) : slots_(std::bit_ceil(2 * merges + 2)) {}

  /// At most as many as the constructor was told of; of two merges of a pair the later one holds.
  void set(int left, int right, Merge merge) { slots_[find(key(left, right))] = {key(left, right), merge}; }
  Merge operator()(int left, int right) const { return slots_[find(key(left, right))].merge; }

 private:
  static constexpr std::uint64_t kFree = ~std::uint64_t(0);  // ids are not negative
  struct Slot {
    std::uint64_t pair = kFree;
    Merge merge;
  };

  static std::uint64_t key(int left, int right) {
    return std::uint64_t(std::uint32_t(left)) << 32 | std::uint32_t(right);
  }
  std::size_t find(std::uint64_t pair) const {
    const std::size_t mask = slots_.size() - 1;
    std::size_t slot = std::size_t((pair * 0x9E3779B97F4A7C15U) >> 32) & mask;
    while (slots_[slot].pair != kFree && slots_[slot].pair != pair) slot = (slot + 1) & mask;
    return slot;
  }

  std::vector<Slot> slots_;
};

/// Merges one word after another in the same memory.
class WordMerger {
 public:
  /// The word: begin() and then add() for each of its bytes, at most 2^31.
  void begin() { symbols_.clear(), heap_.clear(); }
  void add(int id) {
    const int at = int(symbols_.size());
    symbols_.push_back({id, at - 1, at + 1});
  }

  void merge(const MergeTable& merges) {
    if (symbols_.empty()) return;
    symbols_.back().next = -1;
    for (int at = 0; at + 1 < int(symbols_.size()); at++) {
      const Merge merge = merges(symbol(at).id, symbol(at + 1).id);
      if (merge.id >= 0) heap_.push_back(candidate(merge, at));
    }
    std::make_heap(heap_.begin(), heap_.end(), std::greater<>());
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
      const std::uint64_t top = heap_.back();
      heap_.pop_back();
      const int at = int(std::uint32_t(top));
      if (symbol(at).id < 0 || symbol(at).next < 0) continue;
      const Merge merge = merges(symbol(at).id, symbol(symbol(at).next).id);
      // A candidate of what is there no more has another rank: a pair at a place only ever grows.
      if (merge.id >= 0 && candidate(merge, at) == top) merge_at(at, merge.id, merges);
    }
  }

  void append_to(std::vector<int>& ids) const {
    for (int at = symbols_.empty() ? -1 : 0; at >= 0; at = symbols_[std::size_t(at)].next)
      ids.push_back(symbols_[std::size_t(at)].id);
  }

 private:
  struct Symbol {
    int id, previous, next;  // id -1: merged into the one on its left; places -1: none
  };

  static std::uint64_t candidate(Merge merge, int at) { return std::uint64_t(merge.rank) << 32 | std::uint32_t(at); }
  Symbol& symbol(int at) { return symbols_[std::size_t(at)]; }

  void merge_at(int at, int id, const MergeTable& merges) {
    Symbol& right = symbol(symbol(at).next);
    symbol(at).id = id;
    symbol(at).next = right.next;
    right.id = -1;
    if (symbol(at).next >= 0) symbol(symbol(at).next).previous = at;
    consider(symbol(at).previous, merges);
    consider(at, merges);
  }

  /// The pair that begins there, if it is one.
  void consider(int at, const MergeTable& merges) {
    if (at < 0 || symbol(at).next < 0) return;
    const Merge merge = merges(symbol(at).id, symbol(symbol(at).next).id);
    if (merge.id < 0) return;
    heap_.push_back(candidate(merge, at));
    std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
  }

  std::vector<Symbol> symbols_;
  std::vector<std::uint64_t> heap_;
};

}  // namespace pretrained
