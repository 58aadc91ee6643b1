// Regular expressions of tokenizer.json, rewritten for PCRE2.
//
// They are written for Oniguruma's Ruby dialect. What PCRE2 reads differently is rewritten (white space and words as
// Unicode has them, classes inside classes, which BLOOM's pattern has) or refused. Letters and digits are those of the
// Unicode version that PCRE2 was built with: 14 in Debian 12, where `tokenizers` 0.23 has 16.
#pragma once

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>

namespace pretrained {

/// Rewrites a pattern from Oniguruma's dialect to PCRE2's. Throws std::invalid_argument for what it cannot.
class Dialect {
 public:
  explicit Dialect(std::string_view pattern) : in_(pattern) {}

  std::string rewrite() {
    while (!at_end()) {
      if (class_depth_ > 0)
        inside_class();
      else
        outside_class();
    }
    if (class_depth_ > 0) fail("has a [ without its ]");
    return out_;
  }

 private:
  // The contents of classes.
  static constexpr std::string_view kSpace =
      R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
  static constexpr std::string_view kNoSpace =
      R"(\x{0}-\x{8}\x{e}-\x{1f}\x{21}-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027})"
      R"(\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";
  // Letters, marks, digits, connectors, circled letters, and by a quirk of Oniguruma's six numbers of Latin-1.
  static constexpr std::string_view kWord =
      R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{b2}\x{b3}\x{b9}\x{bc}-\x{be}\x{24b6}-\x{24e9}\x{1f130}-\x{1f149})"
      R"(\x{1f150}-\x{1f169}\x{1f170}-\x{1f189})";
  static constexpr std::string_view kHex = "0-9a-fA-F";

  [[noreturn]] static void fail(const std::string& what) { throw std::invalid_argument(what); }
  bool at_end() const { return at_ == in_.size(); }
  bool next_is(std::string_view text) const { return in_.substr(at_).starts_with(text); }
  bool take(std::string_view text) {
    const bool found = next_is(text);
    if (found) at_ += text.size();
    return found;
  }
  void copy(std::size_t count) {
    out_ += in_.substr(at_, count);
    at_ += std::min(count, in_.size() - at_);
  }
  void write_class(std::string_view contents, bool negated = false) {
    out_.append(negated ? "[^" : "[").append(contents).append("]");
  }

  void outside_class() {
    if (next_is("\\")) return escape();
    if (next_is("[")) return open_class();
    if (next_is("(")) return group();
    if (next_is("{")) return interval();
    copy(1);
  }

  void group() {
    if (next_is("(*")) fail("has (*, which is not supported");
    copy(1);
    if (!next_is("?")) return;
    copy(1);
    // Flags: i alone means the same to both.
    for (std::size_t i = at_; i < in_.size() && in_[i] != ')' && in_[i] != ':'; i++) {
      const char flag = in_[i];
      if (flag != 'i' && flag != '-' && (flag < 'a' || flag > 'z')) return;  // no flags: (?=, (?<name> and so on
      if (flag != 'i' && flag != '-') fail(std::string("has the option ") + flag + ", which is not supported");
    }
  }

  /// {n,m} as it is; a lone brace is a brace.
  void interval() {
    std::size_t i = at_ + 1;
    bool has_comma = false;
    const auto is_digit = [&] { return i < in_.size() && in_[i] >= '0' && in_[i] <= '9'; };
    const std::size_t first = i;
    while (is_digit()) i++;
    const bool has_first = i > first;
    if (i < in_.size() && in_[i] == ',') {
      has_comma = true;
      i++;
      while (is_digit()) i++;
    }
    if (i >= in_.size() || in_[i] != '}' || (!has_first && i == first + has_comma)) {
      out_ += "\\{";
      at_++;
      return;
    }
    if (!has_first) fail("has an interval {,n}, which is not supported");
    const char behind = i + 1 < in_.size() ? in_[i + 1] : '\0';
    if (behind == '+' || (behind == '?' && !has_comma))
      fail(std::string("has }") + behind + " behind an interval, which is not supported");
    copy(i + 1 - at_);
  }

  void escape() {
    if (take("\\s")) return write_class(kSpace);
    if (take("\\S")) return write_class(kSpace, true);
    if (take("\\w")) return write_class(kWord);
    if (take("\\W")) return write_class(kWord, true);
    if (take("\\h")) return write_class(kHex);
    if (take("\\H")) return write_class(kHex, true);
    if (next_is("\\b") || next_is("\\B")) {
      const std::string word = "[" + std::string(kWord) + "]";
      const bool boundary = take("\\b");
      if (!boundary) at_ += 2;
      const std::string_view after_word = boundary ? "(?!" : "(?=", after_other = boundary ? "(?=" : "(?!";
      out_ += "(?:(?<=" + word + ")";
      out_.append(after_word).append(word + ")|(?<!" + word + ")").append(after_other).append(word + "))");
      return;
    }
    common_escape();
  }

  /// What reads the same inside and outside classes.
  void common_escape() {
    if (at_ + 1 == in_.size()) fail("ends with a backslash");
    if (next_is("\\p") || next_is("\\P")) return property();
    if (take("\\u")) {
      const std::string_view digits = in_.substr(at_, 4);
      if (digits.size() < 4 || digits.find_first_not_of("0123456789abcdefABCDEF") != digits.npos)
        fail("has \\u without four hexadecimal digits");
      out_.append("\\x{").append(digits).append("}");
      at_ += 4;
      return;
    }
    constexpr std::string_view kSameLetters = "adeftnrvxzADGXZ0123456789";
    const char letter = in_[at_ + 1];
    const bool is_word =
        (letter >= '0' && letter <= '9') || (letter >= 'a' && letter <= 'z') || (letter >= 'A' && letter <= 'Z');
    if (is_word && kSameLetters.find(letter) == kSameLetters.npos)
      fail(std::string("has \\") + letter + ", which is not supported");
    // A vertical tab in Ruby's dialect, any vertical space in Perl's.
    if (letter == 'v') {
      out_ += "\\x{b}";
      at_ += 2;
      return;
    }
    copy(2);
    if ((letter == 'x') && next_is("{")) copy(in_.substr(at_).find('}') + 1);
  }

  /// General categories only: the names of scripts mean more in PCRE2.
  void property() {
    const std::size_t end = in_.find('}', at_);
    std::string_view name =
        end == in_.npos || in_.substr(at_ + 2, 1) != "{" ? std::string_view() : in_.substr(at_ + 3, end - at_ - 3);
    const std::string_view whole = name;
    if (name.starts_with("^")) name.remove_prefix(1);
    const bool is_category = !name.empty() && name.size() <= 2 &&
                             std::string_view("CLMNPSZ").find(name[0]) != name.npos &&
                             (name.size() == 1 || (name[1] >= 'a' && name[1] <= 'z'));
    if (!is_category)
      fail("has the property " + std::string(in_.substr(at_, 2)) + "{" + std::string(whole) +
           "}; only general categories, as \\p{L}, are supported");
    copy(end + 1 - at_);
  }

  void open_class() {
    copy(1);
    class_depth_ = 1;
    if (next_is("^")) copy(1);
    if (take("]")) out_ += "\\]";
    literal_minus();
  }

  /// Inner brackets go: the class is the union. A minus beside one stays a minus.
  void inside_class() {
    if (next_is("&&")) fail("has an intersection of classes, which is not supported");
    if (next_is("[:")) fail("has a POSIX class, which is not supported");
    if (next_is("[^")) fail("has a negated class inside a class, which is not supported");
    if (take("[")) {
      class_depth_++;
      if (take("]")) out_ += "\\]";
      if (next_is("^")) out_ += "\\";
      return literal_minus();
    }
    if (take("]")) {
      if (--class_depth_ == 0) {
        out_ += "]";
        return;
      }
      return literal_minus();
    }
    if (next_is("-[") || next_is("-]")) return literal_minus();
    if (next_is("\\")) return class_escape();
    copy(1);
  }
  void literal_minus() {
    if (take("-")) out_ += "\\-";
  }
  void class_escape() {
    if (take("\\s")) {
      out_ += kSpace;
    } else if (take("\\S")) {
      out_ += kNoSpace;
    } else if (take("\\w")) {
      out_ += kWord;
    } else if (take("\\h")) {
      out_ += kHex;
    } else if (next_is("\\W") || next_is("\\H") || next_is("\\X")) {
      fail("has " + std::string(in_.substr(at_, 2)) + " inside a class, which is not supported");
    } else if (next_is("\\b")) {
      copy(2);
    } else {
      common_escape();
    }
  }

  std::string_view in_;
  std::size_t at_ = 0;
  int class_depth_ = 0;
  std::string out_;
};

}  // namespace pretrained
