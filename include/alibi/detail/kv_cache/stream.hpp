// The streams that a sequence of a cache is saved to and loaded from (kv_cache_file.hpp), with a checksum. Internal.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <istream>
#include <ostream>
#include <stdexcept>
#include <vector>

#include "alibi/error.hpp"
#include "alibi/kernel/simd/isa.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// A checksum of bytes, taken in words of 8; the last word of a piece is filled up with zeros. Every step is a
/// bijection of the sum, and of the word: a change within one word always changes the sum.
class Checksum {
 public:
  void add(const void* bytes, std::size_t count) {
    const char* at = static_cast<const char*>(bytes);
    for (; count >= sizeof(std::uint64_t); at += sizeof(std::uint64_t), count -= sizeof(std::uint64_t))
      add_word(at, sizeof(std::uint64_t));
    if (count > 0) add_word(at, count);
  }
  std::uint64_t value() const { return sum_; }

 private:
  void add_word(const char* at, std::size_t count) {
    std::uint64_t word = 0;
    std::memcpy(&word, at, count);
    sum_ = (sum_ ^ word) * 0x9e3779b97f4a7c15;  // 2^64 over the golden ratio, odd
    sum_ ^= sum_ >> 29;
  }

  std::uint64_t sum_ = 0x6a09e667f3bcc909;  // the fraction of sqrt(2): not 0, the sum of words of 0
};

/// Writes numbers as they lie in memory.
class CacheWriter {
 public:
  explicit CacheWriter(std::ostream& to) : to_(to) {}

  template <class X>
  void array(const X* x, Index count) {
    if (count == 0) return;
    const std::size_t bytes = std::size_t(count) * sizeof(X);
    checksum_.add(x, bytes);
    to_.write(reinterpret_cast<const char*>(x), std::streamsize(bytes));
    if (!to_) fail<std::runtime_error>({"the stream that a sequence is saved to refused ", bytes, " bytes"});
  }
  template <class X>
  void number(const X& x) {
    array(&x, 1);
  }
  template <class X>
  void list(const std::vector<X>& x, Index count) {
    array(x.data(), count);
  }
  void check(bool) const {}
  /// Hands what the stream still buffers on, so that a full disk is noticed here.
  void flush() {
    if (!to_.flush()) fail<std::runtime_error>({"the stream that a sequence is saved to refused its last bytes"});
  }
  /// Writes the checksum of what was written since the last.
  void end() {
    const std::uint64_t sum = checksum_.value();
    number(sum);
    checksum_ = {};
  }

 private:
  std::ostream& to_;
  Checksum checksum_;
};

/// Reads what CacheWriter wrote. Throws std::runtime_error where that is impossible.
class CacheReader {
 public:
  explicit CacheReader(std::istream& from) : from_(from) {}

  template <class X>
  void array(X* x, Index count) {
    if (count == 0) return;
    const std::size_t bytes = std::size_t(count) * sizeof(X);
    from_.read(reinterpret_cast<char*>(x), std::streamsize(bytes));
    const auto is = std::size_t(from_.gcount());
    read_ += is;
    if (is < bytes)
      fail<std::runtime_error>(
          {"the saved sequence ends after ", read_, " bytes; expected at least ", bytes - is, " more"});
    checksum_.add(x, bytes);
  }
  template <class X>
  void number(X& x) {
    array(&x, 1);
  }
  template <class X>
  void list(std::vector<X>& x, Index count) {
    x.resize(std::size_t(count));
    array(x.data(), count);
  }
  void check(bool right) const {
    if (!right) corrupt();
  }
  /// Reads the checksum of what was read since the last.
  void end() {
    const std::uint64_t sum = checksum_.value();
    std::uint64_t expected = 0;
    number(expected);
    check(sum == expected);
    checksum_ = {};
  }

 private:
  [[noreturn]] void corrupt() const {
    fail<std::runtime_error>(
        {"the saved sequence is corrupt: its checksum or its sizes are wrong in the first ", read_, " bytes"});
  }

  std::istream& from_;
  Checksum checksum_;
  std::size_t read_ = 0;
};

}  // namespace alibi::inline ALIBI_ABI::detail
