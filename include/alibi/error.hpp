// How bad input is reported: std::invalid_argument that names the argument, what it was and what was expected.
//
// Without exceptions (-fno-exceptions) the message goes to stderr and the program aborts. A program may define
// ALIBI_HANDLE_ERROR(message) before its first include of alibi, in every file alike, to do something else with the
// message, a const char*; what it does may not return.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <type_traits>

#include "alibi/kernel/simd/isa.hpp"

#if !defined(__cpp_exceptions) && !defined(ALIBI_HANDLE_ERROR)
#define ALIBI_HANDLE_ERROR(message) (std::fprintf(stderr, "%s\n", message), std::abort())
#endif

namespace alibi::inline ALIBI_ABI::detail {

/// A piece of an error message: a text, a character or a number.
class MessagePart {
 public:
  MessagePart(const char* text) : kind_(Kind::text), text_(text) {}
  MessagePart(char c) : kind_(Kind::character), character_(c) {}
  MessagePart(double x) : kind_(Kind::real), real_(x) {}
  template <class X>
    requires std::is_integral_v<X>
  MessagePart(X x) : kind_(Kind::integer), integer_(static_cast<long long>(x)) {}

  void print(std::ostream& to) const {
    switch (kind_) {
      case Kind::text:
        to << text_;
        break;
      case Kind::character:
        to << character_;
        break;
      case Kind::real:
        to << real_;
        break;
      case Kind::integer:
        to << integer_;
        break;
    }
  }

 private:
  enum class Kind { text, character, real, integer } kind_;
  union {
    const char* text_;
    char character_;
    double real_;
    long long integer_;
  };
};

/// Reports "alibi: " and the parts as Error, an exception.
template <class Error>
[[noreturn]] EIGEN_DONT_INLINE inline void fail(std::initializer_list<MessagePart> parts) {
  std::ostringstream message;
  message << "alibi: ";
  for (const MessagePart& part : parts) part.print(message);
#if defined(ALIBI_HANDLE_ERROR)
  ALIBI_HANDLE_ERROR(message.str().c_str());
  std::abort();
#else
  throw Error(message.str());
#endif
}

/// Throws std::invalid_argument("alibi: " + parts) unless `ok`. The parts are put together only when they are needed.
template <class... Parts>
EIGEN_ALWAYS_INLINE void require(bool ok, const Parts&... parts) {
  if (!ok) [[unlikely]]
    fail<std::invalid_argument>({MessagePart(parts)...});
}

/// Calls body(), and what to do where it throws.
template <class Body, class Caught>
void try_or(const Body& body, const Caught& caught) {
#if defined(__cpp_exceptions)
  try {
    body();
  } catch (...) {
    caught();
  }
#else
  static_cast<void>(caught);
  body();
#endif
}

/// The product of sizes of at least 0. Throws std::invalid_argument where it, times 8 bytes, is beyond the memory that
/// an Index can address; `name` says what has the sizes.
inline Index checked_product(std::initializer_list<Index> sizes, const char* name) {
  constexpr Index kMost = Index(1) << 60;
  Index product = 1;
  for (const Index size : sizes)
    if (size == 0) return 0;
  for (const Index size : sizes) {
    require(product <= kMost / size, name, " has more than 2^60 entries; expected a product of sizes up to that");
    product *= size;
  }
  return product;
}

}  // namespace alibi::inline ALIBI_ABI::detail
