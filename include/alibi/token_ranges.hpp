// Which tokens of the sequences of a batch are real, where the others are padding.
#pragma once

#include <concepts>
#include <span>

#include "alibi/mask.hpp"

namespace alibi {

inline namespace ALIBI_ABI {

/// The real tokens of each sequence, one entry a sequence: the first counts[b], or those of ranges[b]. Empty: all
/// tokens of all sequences. A light view of contiguous memory, as a std::vector's or an array's.
class TokenRanges {
 public:
  TokenRanges() = default;
  TokenRanges(std::span<const Index> counts) : counts_(counts.data()), size_(Index(counts.size())) {}
  TokenRanges(std::span<const KeyRange> ranges) : ranges_(ranges.data()), size_(Index(ranges.size())) {}
  template <class Array>
    requires std::convertible_to<const Array&, std::span<const Index>>
  TokenRanges(const Array& counts) : TokenRanges(std::span<const Index>(counts)) {}
  template <class Array>
    requires std::convertible_to<const Array&, std::span<const KeyRange>>
  TokenRanges(const Array& ranges) : TokenRanges(std::span<const KeyRange>(ranges)) {}

  Index size() const { return size_; }
  bool empty() const { return size_ == 0; }
  /// Whether they were given as counts.
  bool counted() const { return counts_ || !ranges_; }
  KeyRange operator[](Index b) const { return counts_ ? KeyRange{0, counts_[b]} : ranges_[b]; }

 private:
  const Index* counts_ = nullptr;
  const KeyRange* ranges_ = nullptr;
  Index size_ = 0;
};

}  // namespace ALIBI_ABI
}  // namespace alibi
