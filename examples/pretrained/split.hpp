// The pre-tokenizer Split: cuts a text where a pattern matches.
#pragma once

#include <cstddef>
#include <string_view>

#include "pattern.hpp"

namespace pretrained {

/// What becomes of a match; the names are those of the files.
enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

struct Split {
  Pattern pattern;
  Behavior behavior = Behavior::isolated;
  bool inverted = false;  // matches and the parts between them change places

  /// Calls visit(word) for the words of a text, in order; none is empty.
  template <class Visit>
  void operator()(std::string_view text, Visit&& visit) const {
    std::size_t word = 0, done = 0;  // where the last word and the next part begin
    bool is_match = false;           // of the last part
    const auto end_word = [&] {
      if (word < done && !(is_match && behavior == Behavior::removed)) visit(text.substr(word, done - word));
      word = done;
    };
    const auto add_part = [&](std::size_t end, bool matches) {
      if (!joins(is_match, matches)) end_word();
      is_match = matches;
      done = end;
    };
    pattern.for_each_match(text, [&](std::size_t begin, std::size_t end) {
      if (done < begin) add_part(begin, inverted);
      add_part(end, !inverted);
    });
    if (done < text.size()) add_part(text.size(), inverted);
    end_word();
  }

 private:
  /// Whether a part belongs to the word of the part before it. Of adjacent matches only one joins its neighbour.
  bool joins(bool match_before, bool match) const {
    switch (behavior) {
      case Behavior::merged_with_previous:
        return !match_before && match;
      case Behavior::merged_with_next:
        return match_before && !match;
      case Behavior::contiguous:
        return match_before == match;
      default:
        return false;
    }
  }
};

}  // namespace pretrained
