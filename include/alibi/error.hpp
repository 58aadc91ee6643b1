// Invalid input is reported by std::invalid_argument. The message names the argument, its value and what was expected.
//
// Without exceptions (-fno-exceptions) the message goes to stderr and the program aborts. A program may define
// ALIBI_HANDLE_ERROR(message) to handle the message, a const char*, in another way. The definition must precede the
// first include of alibi, be the same in every file, and not return.
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

/// Throws Error, an exception, with the message "alibi: " and the parts. Without exceptions, hands the message to
/// ALIBI_HANDLE_ERROR.
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

/// Throws std::invalid_argument("alibi: " + parts) unless `ok`. The message is built only if it is needed.
template <class... Parts>
EIGEN_ALWAYS_INLINE void require(bool ok, const Parts&... parts) {
  if (!ok) [[unlikely]]
    fail<std::invalid_argument>({MessagePart(parts)...});
}

/// Calls body(), and caught() if it throws. Without exceptions, calls body() only.
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

/// The product of sizes of at least 0. Throws std::invalid_argument if it is above 2^60: times 8 bytes, that is beyond
/// the memory that an Index can address. `name` says what has the sizes.
inline Index checked_product(std::initializer_list<Index> sizes, const char* name) {
  constexpr Index kMaxEntries = Index(1) << 60;
  Index product = 1;
  for (const Index size : sizes)
    if (size == 0) return 0;
  for (const Index size : sizes) {
    require(product <= kMaxEntries / size, name, " has more than 2^60 entries; expected a product of sizes up to that");
    product *= size;
  }
  return product;
}

}  // namespace alibi::inline ALIBI_ABI::detail
