// Normalization form C (Unicode Standard Annex 15): composed characters, such as U+00E9 instead of e and U+0301. The
// tokenizer of GPT-NeoX, which MPT uses, asks for it.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "nfc_table.hpp"
#include "utf8.hpp"

namespace pretrained {

namespace detail {

inline std::vector<std::uint32_t> numbers_of(std::string_view text) {
  std::vector<std::uint32_t> numbers;
  for (const char* at = text.data(); at != text.data() + text.size();) {
    if (*at == ' ') at++;
    at = std::from_chars(at, text.data() + text.size(), numbers.emplace_back(), 16).ptr;
  }
  return numbers;
}

class Composition {
 public:
  static const Composition& get() {
    static const Composition kComposition;
    return kComposition;
  }

  void operator()(std::u32string& text) const {
    std::u32string decomposed;
    for (const char32_t code : text) decompose(code, decomposed);
    order(decomposed);
    text.assign(compose(decomposed));
  }

 private:
  // Hangul (Unicode 15, section 3.12): syllable = (leading * 21 + vowel) * 28 + trailing, each counted from the first.
  static constexpr char32_t kLeading = 0x1100, kVowel = 0x1161, kTrailing = 0x11A7, kSyllable = 0xAC00;
  static constexpr char32_t kLeadings = 19, kVowels = 21, kTrailings = 28,
                            kSyllables = kLeadings * kVowels * kTrailings;

  Composition() {
    std::unordered_set<std::uint32_t> excluded;
    std::uint32_t code = 0;
    for (const std::uint32_t distance : numbers_of(kExcluded)) excluded.insert(code += distance);
    const std::vector<std::uint32_t> decompositions = numbers_of(kDecompositions);
    code = 0;
    for (std::size_t i = 0; i + 2 < decompositions.size(); i += 3) {
      code += decompositions[i];
      const char32_t first = decompositions[i + 1], second = decompositions[i + 2];
      parts_[code] = {first, second};
      if (second != 0 && !excluded.contains(code)) pairs_[key(first, second)] = code;
    }
    const std::vector<std::uint32_t> classes = numbers_of(kCombiningClasses);
    code = 0;
    for (std::size_t i = 0; i + 2 < classes.size(); i += 3) {
      code += classes[i];
      for (const std::uint32_t end = code + classes[i + 1]; code < end; code++)
        classes_[code] = std::uint8_t(classes[i + 2]);
    }
  }

  static std::uint64_t key(char32_t first, char32_t second) { return std::uint64_t(first) << 32 | second; }
  std::uint8_t class_of(char32_t code) const {
    const auto found = code < 0x300 ? classes_.end() : classes_.find(code);
    return found == classes_.end() ? std::uint8_t(0) : found->second;
  }

  void decompose(char32_t code, std::u32string& out) const {
    if (code - kSyllable < kSyllables) {
      const char32_t index = code - kSyllable, trailing = index % kTrailings;
      out.push_back(kLeading + index / (kVowels * kTrailings));
      out.push_back(kVowel + index / kTrailings % kVowels);
      if (trailing > 0) out.push_back(kTrailing + trailing);
      return;
    }
    const auto found = code < 0xC0 ? parts_.end() : parts_.find(code);
    if (found == parts_.end()) {
      out += code;
      return;
    }
    decompose(found->second.first, out);
    if (found->second.second != 0) decompose(found->second.second, out);
  }

  /// Sorts every run of combining characters by their class, stably.
  void order(std::u32string& text) const {
    for (std::size_t begin = 0; begin < text.size();) {
      std::size_t end = begin;
      while (end < text.size() && class_of(text[end]) != 0) end++;
      std::stable_sort(text.begin() + std::ptrdiff_t(begin), text.begin() + std::ptrdiff_t(end),
                       [&](char32_t a, char32_t b) { return class_of(a) < class_of(b); });
      begin = end + 1;
    }
  }

  /// The composition of a pair, 0 if there is none.
  char32_t pair(char32_t first, char32_t second) const {
    if (first - kLeading < kLeadings && second - kVowel < kVowels)
      return kSyllable + ((first - kLeading) * kVowels + second - kVowel) * kTrailings;
    if (first - kSyllable < kSyllables && (first - kSyllable) % kTrailings == 0 && second > kTrailing &&
        second - kTrailing < kTrailings)
      return first + second - kTrailing;
    const auto found = pairs_.find(key(first, second));
    return found == pairs_.end() ? 0 : found->second;
  }

  std::u32string compose(const std::u32string& text) const {
    std::u32string out;
    std::size_t starter = std::u32string::npos;
    int last_class = -1;  // of the character before, -1: that is the starter
    for (const char32_t code : text) {
      const int combining = class_of(code);
      if (starter != std::u32string::npos && last_class < combining) {
        if (const char32_t composite = pair(out[starter], code); composite != 0) {
          out[starter] = composite;
          continue;
        }
      }
      if (combining == 0) {
        starter = out.size();
        last_class = -1;
      } else {
        last_class = combining;
      }
      out += code;
    }
    return out;
  }

  std::unordered_map<char32_t, std::pair<char32_t, char32_t>> parts_;
  std::unordered_map<std::uint64_t, char32_t> pairs_;
  std::unordered_map<char32_t, std::uint8_t> classes_;
};

}  // namespace detail

/// A text in form C. Bytes that are no UTF-8 stay, and nothing composes across them.
inline std::string composed(std::string_view text) {
  // Below U+0300, where the first byte of UTF-8 is below 0xCC, every text is in form C.
  if (std::ranges::all_of(text, [](char c) { return std::uint8_t(c) < 0xCC; })) return std::string(text);
  std::string out;
  std::size_t done = 0;
  utf8::for_each_valid_part(text, [&](std::size_t begin, std::size_t end) {
    out += text.substr(done, begin - done);
    std::u32string codes;
    for (std::size_t at = begin; at < end;) {
      const utf8::Sequence sequence = utf8::first(text.substr(at));
      codes += sequence.code;
      at += sequence.length;
    }
    detail::Composition::get()(codes);
    for (const char32_t code : codes) utf8::append(out, code);
    done = end;
  });
  out += text.substr(done);
  return out;
}

}  // namespace pretrained
