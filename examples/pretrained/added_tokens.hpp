// Added tokens: texts that are tokens as they are. They are found before the rest of the text is split into words.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "pattern.hpp"
#include "utf8.hpp"

namespace pretrained {

struct AddedToken {
  int id = 0;
  bool single_word = false;                        // matches only if no letter, digit or the like is beside it
  bool strips_left = false, strips_right = false;  // takes the white space beside it too
};

/// A set of added tokens as a trie.
class AddedTokens {
 public:
  /// The longest text: finding tokens takes time in proportion to it for each byte.
  static constexpr std::size_t kMostBytes = 1024;

  void add(std::string_view text, const AddedToken& token) {
    begins_[std::uint8_t(text[0])] = true;
    int node = 0;
    for (const char c : text) {
      const auto [edge, is_new] = edges_.try_emplace(edge_key(node, c), int(ends_.size()));
      if (is_new) ends_.push_back(-1);
      node = edge->second;
    }
    ends_[std::size_t(node)] = int(tokens_.size());
    tokens_.push_back(token);
  }

  /// Calls visit_text(part) and visit_token(id) over a text from left to right. Of tokens that overlap, the leftmost
  /// counts, and of these the longest.
  template <class VisitText, class VisitToken>
  void split(std::string_view text, VisitText&& visit_text, VisitToken&& visit_token) const {
    std::size_t done = 0, spaces_end = 0;  // spaces_end: of the last white space behind a token
    for (std::size_t at = 0; at < text.size();) {
      const Match match = begins_[std::uint8_t(text[at])] ? longest(text.substr(at)) : Match{};
      if (match.token == nullptr) {
        at++;
        continue;
      }
      std::size_t begin = at, end = at + match.length;
      at = end;
      if (match.token->single_word &&
          (is_word(utf8::last(text.substr(0, begin))) || is_word(utf8::first(text.substr(end)))))
        continue;
      if (match.token->strips_left) begin = std::max(done, skip_spaces_left(text, begin, done));
      // Tokens may be white space themselves: what is known is not searched again.
      if (match.token->strips_right) end = spaces_end = end < spaces_end ? spaces_end : skip_spaces_right(text, end);
      if (begin >= end) continue;  // all of it belongs to the token before
      if (done < begin) visit_text(text.substr(done, begin - done));
      visit_token(match.token->id);
      done = end;
    }
    if (done < text.size()) visit_text(text.substr(done));
  }

 private:
  struct Match {
    const AddedToken* token = nullptr;
    std::size_t length = 0;
  };

  static std::uint64_t edge_key(int node, char c) { return std::uint64_t(node) << 8 | std::uint8_t(c); }

  Match longest(std::string_view text) const {
    Match match;
    int node = 0;
    for (std::size_t i = 0; i < text.size(); i++) {
      const auto edge = edges_.find(edge_key(node, text[i]));
      if (edge == edges_.end()) break;
      node = edge->second;
      if (const int token = ends_[std::size_t(node)]; token >= 0) match = {&tokens_[std::size_t(token)], i + 1};
    }
    return match;
  }

  static bool is_word(const utf8::Sequence& sequence) {
    // Alphabetic, marks, digits, connecting punctuation and what joins (Unicode Technical Standard 18, annex C).
    static const Pattern kWord(
        R"([\p{L}\p{Nl}\p{M}\p{Nd}\p{Pc}\x{200c}\x{200d}\x{24b6}-\x{24e9}\x{1f130}-\x{1f149}\x{1f150}-\x{1f169})"
        R"(\x{1f170}-\x{1f189}])");
    if (sequence.status != utf8::Status::complete) return false;
    std::string character;
    utf8::append(character, sequence.code);
    bool matches = false;
    kWord.for_each_match(character, [&](std::size_t, std::size_t) { matches = true; });
    return matches;
  }

  static std::size_t skip_spaces_left(std::string_view text, std::size_t at, std::size_t limit) {
    while (at > limit) {
      const utf8::Sequence before = utf8::last(text.substr(0, at));
      if (before.status != utf8::Status::complete || !utf8::is_space(before.code)) break;
      at -= before.length;
    }
    return at;
  }
  static std::size_t skip_spaces_right(std::string_view text, std::size_t at) {
    while (true) {
      const utf8::Sequence behind = utf8::first(text.substr(at));
      if (behind.status != utf8::Status::complete || !utf8::is_space(behind.code)) return at;
      at += behind.length;
    }
  }

  std::vector<AddedToken> tokens_;
  std::unordered_map<std::uint64_t, int> edges_;  // from a node, by a byte, to a node
  std::vector<int> ends_ = {-1};                  // by node: the token that ends there
  std::array<bool, 256> begins_ = {};
};

}  // namespace pretrained
