// Interprets the fuzzer's bytes as decisions and as numbers. A zero byte selects the most common case, and zeros follow
// the last byte. Short inputs are therefore plain calls, and each further byte makes them less common.
#pragma once

#include <algorithm>
#include <alibi/attention.hpp>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

namespace fuzz {

using alibi::Index;

/// A description of the call under test, for the message of fail().
inline std::string& context() {
  static std::string text;
  return text;
}

/// Reports a finding: libFuzzer keeps the input of a process that aborts.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::cerr << "\nFINDING: ";
  (std::cerr << ... << parts) << "\nin " << context() << std::endl;
  std::abort();
}
template <class... Parts>
void check(bool kept, const Parts&... parts) {
  if (!kept) [[unlikely]]
    fail(parts...);
}

/// Runs `call`. Returns false if it throws the library's error. Any other exception passes through and is a finding.
template <class Call>
bool accepted(const Call& call, std::string& message) {
  try {
    call();
    return true;
  } catch (const std::invalid_argument& error) {
    message = error.what();
    check(message.starts_with("alibi: "), "an error's text is \"", message, '"');
    return false;
  }
}

template <class E>
bool is_nan(E x) {
  return std::isnan(double(x));
}

class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : at_(data), end_(data + size) {}

  std::size_t left() const { return std::size_t(end_ - at_); }
  std::uint8_t byte() { return at_ == end_ ? std::uint8_t(0) : *at_++; }
  /// In [-128, 127].
  int small() { return std::int8_t(byte()); }
  bool flag() { return byte() & 1; }
  /// True for one byte value in n, and false for 0.
  bool one_in(int n) { return byte() % n == n - 1; }
  /// In [low, high]; low for a byte of 0.
  Index integer(Index low, Index high) {
    std::uint64_t x = byte();
    if (high - low > 255) x = x << 8 | byte();
    return low + Index(x % std::uint64_t(high - low + 1));
  }
  template <class X>
  X bits() {
    std::array<std::uint8_t, sizeof(X)> raw{};
    const std::size_t count = std::min(left(), sizeof(X));
    if (count > 0) std::memcpy(raw.data(), at_, count);
    at_ += count;
    return std::bit_cast<X>(raw);
  }
  template <class X, std::size_t n>
  X one_of(const std::array<X, n>& choices) {
    return choices[byte() % n];
  }

 private:
  const std::uint8_t *at_, *end_;
};

/// Pseudo-random numbers from a seed, because inputs are too short to hold a whole array.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t bits() {  // splitmix64
    std::uint64_t x = state_ += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }
  /// Approximately normal: the sum of four uniform numbers.
  double normal() {
    const std::uint64_t x = bits();
    const auto sum = double((x & 0xffff) + (x >> 16 & 0xffff) + (x >> 32 & 0xffff) + (x >> 48));
    return (sum - 2 * 65535.0) / (65536 / std::sqrt(3.0));
  }

 private:
  std::uint64_t state_;
};

/// x, rounded to E.
template <class E>
E number(double x) {
  if constexpr (sizeof(E) == 2)
    return E(float(x));
  else
    return E(x);
}

/// Numbers that are difficult for a kernel, or any bits.
template <class E>
E special(Input& in) {
  using Limits = std::numeric_limits<E>;
  switch (in.byte() % 16) {
    case 0:
      return number<E>(0);
    case 1:
      return number<E>(-0.);
    case 2:
      return Limits::quiet_NaN();
    case 3:
      return Limits::infinity();
    case 4:
      return -Limits::infinity();
    case 5:
      return (Limits::max)();
    case 6:
      return Limits::lowest();
    case 7:
      return (Limits::min)();
    case 8:
      return Limits::denorm_min();
    case 9:
      return number<E>(1);
    case 10:
      return number<E>(-100);
    case 11:
      return number<E>(std::sqrt(double((Limits::max)())));
    case 12:
      return number<E>(std::exp2(in.small()));
    case 13:
      return number<E>(-std::exp2(in.small()));
    default:
      return in.bits<E>();
  }
}

}  // namespace fuzz
