// What a tokenizer.json says. tokenizer_file.hpp reads it, and tokenizer.cpp encodes and decodes by it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "added_tokens.hpp"
#include "byte_pairs.hpp"
#include "split.hpp"
#include "utf8.hpp"

namespace pretrained {

/// Vocabularies are written in an alphabet of 256 visible characters, one for each byte. The printable characters of
/// Latin-1 stand for themselves, those from U+0100 on for the other bytes, in order.
inline char32_t character_of(std::uint8_t byte) {
  const auto is_printable = [](int b) { return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b != 0xAD); };
  if (is_printable(byte)) return byte;
  char32_t character = 0x100;
  for (int b = 0; b < byte; b++)
    if (!is_printable(b)) character++;
  return character;
}

/// The bytes that a token of the vocabulary stands for, none if a character is not of the alphabet.
inline std::optional<std::string> bytes_of(std::string_view token) {
  static const auto bytes = [] {
    std::array<int, 0x144> table;
    table.fill(-1);
    for (int b = 0; b < 256; b++) table[character_of(std::uint8_t(b))] = b;
    return table;
  }();
  std::string text;
  for (std::size_t at = 0; at < token.size();) {
    const utf8::Sequence sequence = utf8::first(token.substr(at));
    const int byte = sequence.code < bytes.size() ? bytes[sequence.code] : -1;
    if (byte < 0) return std::nullopt;
    text.push_back(char(std::uint8_t(byte)));
    at += sequence.length;
  }
  return text;
}

struct TokenizerModel {
  struct Token {
    std::size_t begin = 0, size = 0;
    bool exists = false, special = false;
  };

  std::string file;  // for errors

  std::string bytes;          // of all tokens
  std::vector<Token> tokens;  // by id

  std::array<int, 256> byte_ids;  // by byte, -1: has no token
  MergeTable merges;
  int unknown = -1;  // the token of bytes that have none, -1: there is none
  bool fuses_unknown = false;
  std::unordered_map<std::string, int> words;  // tokens that need no merges, if the file has ignore_merges

  bool composes = false;                // to normalization form C
  AddedTokens added, added_normalized;  // searched for before and after that
  std::vector<Split> splits;
  bool adds_prefix_space = false;
  std::optional<Split> byte_level_split;

  std::vector<int> before, behind;  // ids that the template puts around a text

  std::string_view token(int id) const {
    if (id < 0 || std::size_t(id) >= tokens.size()) return {};
    return std::string_view(bytes).substr(tokens[std::size_t(id)].begin, tokens[std::size_t(id)].size);
  }
  void set_token(int id, std::string_view text, bool special) {
    if (std::size_t(id) >= tokens.size()) tokens.resize(std::size_t(id) + 1);
    tokens[std::size_t(id)] = {bytes.size(), text.size(), true, special};
    bytes += text;
  }
};

}  // namespace pretrained
