// Which tokens of the sequences of a batch are real. The others are padding.
#pragma once

#include <concepts>
#include <span>

#include "alibi/mask.hpp"

namespace alibi {

inline namespace ALIBI_ABI {

/// The real tokens of each sequence, one entry for each sequence: the first counts[b] tokens, or those of ranges[b].
/// Empty: all tokens of all sequences. A light view of contiguous memory, such as that of a std::vector or an array,
/// which must outlive it.
class TokenRanges {
 public:
  /// All tokens of all sequences.
  TokenRanges() = default;
  /// The first counts[b] tokens of sequence b.
  TokenRanges(std::span<const Index> counts) : counts_(counts.data()), size_(Index(counts.size())) {}
  /// Tokens ranges[b].begin, …, ranges[b].end - 1 of sequence b.
  TokenRanges(std::span<const KeyRange> ranges) : ranges_(ranges.data()), size_(Index(ranges.size())) {}
  /// The first counts[b] tokens of sequence b, from any contiguous array.
  template <class Array>
    requires std::convertible_to<const Array&, std::span<const Index>>
  TokenRanges(const Array& counts) : TokenRanges(std::span<const Index>(counts)) {}
  /// The tokens ranges[b] of sequence b, from any contiguous array.
  template <class Array>
    requires std::convertible_to<const Array&, std::span<const KeyRange>>
  TokenRanges(const Array& ranges) : TokenRanges(std::span<const KeyRange>(ranges)) {}

  /// The number of entries, one for each sequence.
  Index size() const { return size_; }
  /// Whether there are no entries: all tokens are real.
  bool empty() const { return size_ == 0; }
  /// Whether the entries are counts.
  bool counted() const { return counts_ || !ranges_; }
  /// The real tokens of sequence b, an entry.
  KeyRange operator[](Index b) const { return counts_ ? KeyRange{0, counts_[b]} : ranges_[b]; }

 private:
  const Index* counts_ = nullptr;
  const KeyRange* ranges_ = nullptr;
  Index size_ = 0;
};

}  // namespace ALIBI_ABI
}  // namespace alibi
