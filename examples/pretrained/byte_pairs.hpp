// Byte-pair encoding of one word (Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units"): of
// all adjacent pairs that have a merge, the pair of lowest rank, and of these the leftmost, becomes one token; again,
// until no pair has a merge.
//
// A heap of candidates over a linked list takes O(n log n) for n bytes. The plain loop takes O(n^2), too long for a
// text without spaces.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <unordered_map>
#include <vector>

namespace pretrained {

struct Merge {
  std::uint32_t rank = 0;
  int id = -1;  // of the merged token; -1: the pair has none
};

/// The merges by pair.
class MergeTable {
 public:
  /// Of two merges of a pair the later one holds.
  void set(int left, int right, Merge merge) { merges_[key(left, right)] = merge; }
  Merge operator()(int left, int right) const {
    const auto found = merges_.find(key(left, right));
    return found == merges_.end() ? Merge{} : found->second;
  }

 private:
  static std::uint64_t key(int left, int right) {
    return std::uint64_t(std::uint32_t(left)) << 32 | std::uint32_t(right);
  }

  std::unordered_map<std::uint64_t, Merge> merges_;
};

/// Merges one word after another in the same memory.
class WordMerger {
 public:
  /// A word: begin(), and add() for each of its bytes, fewer than 2^31.
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
      // A pair that has changed since it became a candidate has another rank, because every merge makes it longer.
      if (merge.id >= 0 && candidate(merge, at) == top) merge_at(at, merge.id, merges);
    }
  }

  void append_to(std::vector<int>& ids) const {
    for (int at = symbols_.empty() ? -1 : 0; at >= 0; at = symbols_[std::size_t(at)].next)
      ids.push_back(symbols_[std::size_t(at)].id);
  }

 private:
  struct Symbol {
    int id, previous, next;  // id -1: merged into its left neighbour; previous and next -1: no neighbour
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

  /// Makes the pair that begins at a place a candidate, if it has a merge.
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
