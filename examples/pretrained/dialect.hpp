// Regular expressions of tokenizer.json, rewritten for PCRE2.
//
// They are written for Oniguruma's Ruby dialect. What both read alike is kept. White space is rewritten, and classes
// inside classes, which BLOOM's pattern has. Anything else is refused, so that no pattern is read in another way than
// `tokenizers` reads it. Letters and digits are those of the Unicode version that PCRE2 was built with: 14 in Debian
// 12, where `tokenizers` 0.23 has 16.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>

namespace pretrained {

class Dialect {
 public:
  explicit Dialect(std::string_view pattern) : in_(pattern) {}

  /// The pattern for PCRE2. Throws std::invalid_argument for what is not supported.
  std::string rewrite() {
    while (at_ < in_.size()) {
      if (next_is("\\"))
        escape();
      else if (class_depth_ > 0)
        inside_class();
      else
        outside_class();
    }
    if (class_depth_ > 0) throw std::invalid_argument("has a [ without its ]");
    return out_;
  }

 private:
  // The contents of classes.
  static constexpr std::string_view kSpace =
      R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
  static constexpr std::string_view kNoSpace =
      R"(\x{0}-\x{8}\x{e}-\x{1f}\x{21}-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027})"
      R"(\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";

  static constexpr std::string_view kSets = "sSdDpP";  // the letters of escapes that stand for more than one character

  bool next_is(std::string_view text) const { return in_.substr(at_).starts_with(text); }
  void copy(std::size_t count) {
    out_ += in_.substr(at_, count);
    at_ = std::min(at_ + count, in_.size());
  }
  /// Refuses the next bytes, up to the end of a character.
  [[noreturn]] void refuse(std::size_t count) const {
    while (at_ + count < in_.size() && (in_[at_ + count] & 0xC0) == 0x80) count++;
    throw std::invalid_argument("has " + std::string(in_.substr(at_, count)) + ", which is not supported");
  }
  /// The count of characters from a place on that are in a set.
  std::size_t count_of(std::string_view set, std::size_t from) const {
    return std::min(in_.find_first_not_of(set, from), in_.size()) - from;
  }

  void outside_class() {
    if (next_is("[")) return open_class();
    if (next_is("{")) return interval();
    if (next_is("(?")) {
      constexpr std::array<std::string_view, 7> kGroups = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"};
      const auto* const group = std::ranges::find_if(kGroups, [&](std::string_view g) { return next_is(g); });
      if (group == kGroups.end()) refuse(3);
      return copy(group->size());
    }
    if (next_is("(*")) refuse(2);
    copy(1);
  }

  /// {n}, {n,} or {n,m}. The dialects read {,m} differently, and + and ? behind an interval.
  void interval() {
    constexpr std::string_view kDigits = "0123456789";
    std::size_t end = at_ + 1 + count_of(kDigits, at_ + 1);
    const bool has_first = end > at_ + 1;
    if (in_.substr(end, 1) == ",") end += 1 + count_of(kDigits, end + 1);
    if (!has_first || in_.substr(end, 1) != "}")
      throw std::invalid_argument("has a { that begins no interval {n}, {n,} or {n,m}; a brace itself is \\{");
    const std::string_view behind = in_.substr(end + 1, 1);
    if (behind == "+" || behind == "?") refuse(end + 2 - at_);
    copy(end + 1 - at_);
  }

  void escape() {
    if (at_ + 1 == in_.size()) throw std::invalid_argument("ends with a backslash");
    const char letter = in_[at_ + 1];
    if (letter == 's' || letter == 'S') {
      at_ += 2;
      if (class_depth_ > 0)
        out_ += letter == 's' ? kSpace : kNoSpace;
      else
        out_.append(letter == 's' ? "[" : "[^").append(kSpace).append("]");
      return refuse_range();
    }
    if (letter == 'p' || letter == 'P') return property();
    if (letter == 'u' || letter == 'x') return code_point();
    const bool is_word =
        (letter >= '0' && letter <= '9') || (letter >= 'a' && letter <= 'z') || (letter >= 'A' && letter <= 'Z');
    if (is_word && std::string_view("dDnrtf").find(letter) == std::string_view::npos) refuse(2);
    copy(2);
    if (letter == 'd' || letter == 'D') refuse_range();
  }

  /// \x{h...}, \uhhhh, or \xhh below 80, where it is a code point to Oniguruma too.
  void code_point() {
    constexpr std::string_view kHex = "0123456789abcdefABCDEF";
    const bool has_braces = next_is("\\x{");
    const std::size_t begin = at_ + (has_braces ? 3 : 2), expected = next_is("\\x") ? 2 : 4;
    std::size_t count = count_of(kHex, begin);
    if (!has_braces) count = std::min(count, expected);
    if (has_braces ? count == 0 || in_.substr(begin + count, 1) != "}"
                   : count < expected || (expected == 2 && in_[begin] > '7'))
      refuse(begin + count + 1 - at_);
    out_.append("\\x{").append(in_.substr(begin, count)).append("}");
    at_ = begin + count + (has_braces ? 1 : 0);
  }

  /// General categories only: the names of scripts mean more in PCRE2.
  void property() {
    const std::size_t end = std::min(in_.find('}', at_), in_.size());
    std::string_view name = in_.substr(at_ + 2, end - at_ - 2);
    if (name.starts_with("{")) name.remove_prefix(1);
    if (name.starts_with("^")) name.remove_prefix(1);
    const bool is_category = next_is(std::string(in_.substr(at_, 2)) + "{") && end < in_.size() && !name.empty() &&
                             name.size() <= 2 && std::string_view("CLMNPSZ").find(name[0]) != name.npos &&
                             (name.size() == 1 || (name[1] >= 'a' && name[1] <= 'z'));
    if (!is_category)
      throw std::invalid_argument("has the property " + std::string(in_.substr(at_, end + 1 - at_)) +
                                  "; supported are general categories, as \\p{L}");
    copy(end + 1 - at_);
    refuse_range();
  }

  void open_class() {
    copy(next_is("[^") ? 2 : 1);
    class_depth_ = 1;
    if (next_is("]")) refuse(1);
    literal_minus();
  }

  /// The brackets of inner classes are left out: the class is the union.
  void inside_class() {
    // Oniguruma leaves out what is before -[, such as both characters in [a-[b]].
    if (next_is("-[") || next_is("&&") || next_is("[:") || next_is("[^") || next_is("[]")) refuse(2);
    if (next_is("[")) {
      at_++;
      class_depth_++;
      if (next_is("^")) out_ += "\\";
      return literal_minus();
    }
    if (next_is("]")) {
      class_depth_--;
      if (class_depth_ == 0) return copy(1);
      at_++;
      return literal_minus();
    }
    if (next_is("-]")) return literal_minus();
    if (next_is("-\\") && kSets.find(in_.substr(at_ + 2, 1)) != kSets.npos) refuse(3);
    copy(1);
  }

  /// A minus beside a bracket is no range.
  void literal_minus() {
    if (!next_is("-")) return;
    out_ += "\\-";
    at_++;
  }
  /// Oniguruma refuses a range that begins or ends with a set such as \s.
  void refuse_range() const {
    if (class_depth_ > 0 && next_is("-") && !next_is("-]")) refuse(2);
  }

  std::string_view in_;
  std::size_t at_ = 0;
  int class_depth_ = 0;
  std::string out_;
};

}  // namespace pretrained
