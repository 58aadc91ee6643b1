// The pre-tokenizer Split: cuts a text where a pattern matches.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string_view>
#include <vector>

#include "pattern.hpp"

namespace pretrained {

/// What becomes of a match; the names are those of the files.
enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

struct Split {
  Pattern pattern;
  Behavior behavior = Behavior::isolated;
  bool inverted = false;  // a match is what is between matches, and the other way round

  /// Calls visit(word) for the words of a text, in order; none is empty.
  template <class Visit>
  void operator()(std::string_view text, Visit&& visit) const {
    const auto visit_range = [&](std::size_t begin, std::size_t end) {
      if (begin < end) visit(text.substr(begin, end - begin));
    };
    if (behavior == Behavior::isolated) {
      std::size_t done = 0;
      pattern.for_each_match(text, [&](std::size_t begin, std::size_t end) {
        visit_range(done, begin);
        visit_range(begin, end);
        done = end;
      });
      return visit_range(done, text.size());
    }
    for (const Range& range : joined(ranges(text))) visit_range(range.begin, range.end);
  }

 private:
  struct Range {
    std::size_t begin, end;
    bool is_match;
  };

  /// The whole text: matches, and what is between them.
  std::vector<Range> ranges(std::string_view text) const {
    std::vector<Range> ranges;
    std::size_t done = 0;
    pattern.for_each_match(text, [&](std::size_t begin, std::size_t end) {
      if (done < begin) ranges.push_back({done, begin, inverted});
      ranges.push_back({begin, end, !inverted});
      done = end;
    });
    if (done < text.size()) ranges.push_back({done, text.size(), inverted});
    return ranges;
  }

  std::vector<Range> joined(std::vector<Range> ranges) const {
    std::vector<Range> words;
    // Only the first of adjacent matches joins its neighbour.
    bool after_match = false;
    const auto next = [&](const Range& range, bool joins) {
      if (joins && !words.empty()) {
        words.back() = {std::min(words.back().begin, range.begin), std::max(words.back().end, range.end), false};
      } else {
        words.push_back(range);
      }
      after_match = range.is_match;
    };
    switch (behavior) {
      case Behavior::isolated:
        return ranges;
      case Behavior::removed:
        std::erase_if(ranges, [](const Range& range) { return range.is_match; });
        return ranges;
      case Behavior::contiguous:
        for (const Range& range : ranges) next(range, range.is_match == after_match);
        return words;
      case Behavior::merged_with_previous:
        for (const Range& range : ranges) next(range, range.is_match && !after_match);
        return words;
      case Behavior::merged_with_next:
        std::reverse(ranges.begin(), ranges.end());
        for (const Range& range : ranges) next(range, range.is_match && !after_match);
        std::reverse(words.begin(), words.end());
        return words;
    }
    return words;
  }
};

}  // namespace pretrained
