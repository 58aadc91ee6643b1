// UTF-8, one sequence at a time: what is valid, what is broken, and what may yet become valid with more bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace pretrained::utf8 {

enum class Status { complete, broken, cut };

/// What a text begins with: a code point, or the longest beginning of one that is broken, or cut by the end of the text
/// (Unicode 15, table 3-7). The empty text is cut, and its length is 0.
struct Sequence {
  Status status = Status::cut;
  std::size_t length = 0;
  char32_t code = 0;  // if it is complete
};

inline Sequence first(std::string_view text) {
  if (text.empty()) return {};
  const auto byte = [&](std::size_t i) { return std::uint8_t(text[i]); };
  const std::uint8_t lead = byte(0);
  if (lead < 0x80) return {Status::complete, 1, lead};
  if (lead < 0xC2 || lead > 0xF4) return {Status::broken, 1};
  const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The bounds of the second byte exclude overlong forms, surrogates, and what is above U+10FFFF.
  std::uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  std::uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  char32_t code = lead & (0x7F >> length);
  for (std::size_t i = 1; i < length; i++) {
    if (i == text.size()) return {Status::cut, i};
    if (byte(i) < low || byte(i) > high) return {Status::broken, i};
    code = code << 6 | (byte(i) & 0x3F);
    low = 0x80, high = 0xBF;
  }
  return {Status::complete, length, code};
}

/// What a text ends with: a code point, or one broken byte.
inline Sequence last(std::string_view text) {
  for (std::size_t length = 1; length <= 4 && length <= text.size(); length++) {
    const Sequence sequence = first(text.substr(text.size() - length));
    if (sequence.status == Status::complete && sequence.length == length) return sequence;
  }
  return {Status::broken, text.empty() ? 0U : 1U};
}

/// The length of the longest valid beginning.
inline std::size_t valid_prefix(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    if (std::uint8_t(text[at]) < 0x80) {
      at++;
      continue;
    }
    const Sequence sequence = first(text.substr(at));
    if (sequence.status != Status::complete) break;
    at += sequence.length;
  }
  return at;
}

/// Calls visit(begin, end) for every longest valid part of the text, in order.
template <class Visit>
void for_each_valid_part(std::string_view text, Visit&& visit) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = valid_prefix(text.substr(at));
    if (length > 0) visit(at, at + length);
    at += length;
    if (at < text.size()) at += first(text.substr(at)).length;
  }
}

inline void append(std::string& text, char32_t code) {
  const auto put = [&](char32_t byte) { text.push_back(char(std::uint8_t(byte))); };
  if (code < 0x80) return put(code);
  if (code < 0x800) {
    put(0xC0 | code >> 6);
  } else {
    if (code < 0x10000) {
      put(0xE0 | code >> 12);
    } else {
      put(0xF0 | code >> 18);
      put(0x80 | (code >> 12 & 0x3F));
    }
    put(0x80 | (code >> 6 & 0x3F));
  }
  put(0x80 | (code & 0x3F));
}

/// Unicode's White_Space.
inline bool is_space(char32_t code) {
  return (code >= 0x9 && code <= 0xD) || code == 0x20 || code == 0x85 || code == 0xA0 || code == 0x1680 ||
         (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F ||
         code == 0x3000;
}

}  // namespace pretrained::utf8
