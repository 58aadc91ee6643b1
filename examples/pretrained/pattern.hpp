// Regular expressions by PCRE2, in the dialect of tokenizer.json (dialect.hpp).
#pragma once

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>

#include "dialect.hpp"
#include "utf8.hpp"

namespace pretrained {

/// A match takes more steps or memory than allowed.
struct MatchError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A compiled pattern. Copies share it, and threads may match with one at the same time.
class Pattern {
 public:
  /// Throws std::invalid_argument, whose message continues the name of the field that holds the pattern.
  explicit Pattern(std::string_view pattern)
      // In Ruby's dialect ^ and $ are those of lines.
      : Pattern(Dialect(pattern).rewrite(), PCRE2_UCP | PCRE2_MULTILINE) {}

  /// Matches the text itself.
  static Pattern literal(std::string_view text) { return {std::string(text), PCRE2_LITERAL}; }

  /// Calls visit(begin, end) for every match, from left to right. An empty match does not follow a match directly. What
  /// is no UTF-8 matches nothing: it ends a text and begins another. Throws MatchError.
  template <class Visit>
  void for_each_match(std::string_view text, Visit&& visit) const {
    const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(pcre2_match_data_create(1, nullptr),
                                                                                   &pcre2_match_data_free);
    if (!data) throw std::bad_alloc();
    utf8::for_each_valid_part(text, [&](std::size_t begin, std::size_t end) {
      const std::string_view part = text.substr(begin, end - begin);
      std::size_t from = 0, last_end = std::string_view::npos;
      while (from <= part.size() && match(part, from, data.get())) {
        const std::size_t* const offsets = pcre2_get_ovector_pointer(data.get());
        const std::size_t match_begin = offsets[0], match_end = offsets[1];
        if (match_begin == match_end && match_end == last_end) {
          from += from < part.size() ? utf8::first(part.substr(from)).length : 1;
          continue;
        }
        from = last_end = match_end;
        visit(begin + match_begin, begin + match_end);
      }
    });
  }

 private:
  Pattern(const std::string& text, std::uint32_t options) {
    const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
        pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
    if (!context) throw std::bad_alloc();
    pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    int error = 0;
    std::size_t offset = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), PCRE2_UTF | options, &error,
                              &offset, context.get()),
                &pcre2_code_free);
    if (!code_) throw std::invalid_argument("is no pattern that PCRE2 reads: " + message(error));
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // the interpreter matches if there is no compiler
    limits_.reset(pcre2_match_context_create(nullptr), &pcre2_match_context_free);
    if (!limits_) throw std::bad_alloc();
    pcre2_set_heap_limit(limits_.get(), 1 << 18);  // KiB; PCRE2 itself allows 20 GB
  }

  static std::string message(int error) {
    char text[256] = {};
    pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(text), sizeof text);
    return text;
  }

  bool match(std::string_view text, std::size_t from, pcre2_match_data* data) const {
    const auto call = [&](std::uint32_t options) {
      return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                         PCRE2_NO_UTF_CHECK | options, data, limits_.get());
    };
    int result = call(0);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = call(PCRE2_NO_JIT);  // the interpreter works on the heap
    if (result == PCRE2_ERROR_NOMATCH) return false;
    if (result < 0) throw MatchError("a pattern of the pre-tokenizer cannot be matched: " + message(result));
    return true;
  }

  std::shared_ptr<pcre2_code> code_;
  std::shared_ptr<pcre2_match_context> limits_;
};

}  // namespace pretrained
