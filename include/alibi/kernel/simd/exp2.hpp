// 2^x, the exponential of the softmax. Logits are kept in base 2, so that no multiplication is needed before it.
//
//   x = n + f, n integer, |f| <= 1/2;   2^x = 2^n p(f)
//
// p is the minimax polynomial of 2^f for the error in units in the last place: degree 5 for float, 11 for double.
// p(0) = 1 exactly, so that a single key has weight 1 exactly.
//
// In the range [-126, 127] (float) or [-1022, 1023] (double) the error is at most 2 ulp, with or without a fused
// multiply-add (float: 1.97 ulp found by a sweep in tests/unit/exp2.cpp). Below `smallest` the result is 2^smallest, by
// default the smallest normal number, never a subnormal number. NaN gives NaN. Internal.
#pragma once

#include <array>
#include <cstddef>

#include "alibi/kernel/simd/vec.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

template <class T>
inline constexpr T kSmallestExponent = sizeof(T) == 4 ? T(-126) : T(-1022);

// Highest degree first.
template <class T>
inline constexpr auto kExp2Polynomial = [] {
  if constexpr (sizeof(T) == 4)
    return std::array<T, 6>{0x1.5acbbp-10f, 0x1.3cf74cp-7f, 0x1.c6babep-5f, 0x1.ebf996p-3f, 0x1.62e424p-1f, 1.f};
  else
    return std::array<T, 12>{4.4549605981865183938e-10, 7.0725859492692236999e-9, 1.0178062445845773521e-7,
                             1.3215442587921689653e-6,  1.5252733829836118394e-5, 1.5403530441736050155e-4,
                             1.333355814641693531e-3,   9.6181291076068885273e-3, 5.5504108664821594339e-2,
                             0.2402265069591009822,     0.69314718055994530942,   1.};
}();

template <class T, class P>
EIGEN_ALWAYS_INLINE P exp2(P x, T smallest = kSmallestExponent<T>) {
  // The low bits of x + kRound are n + bias.
  constexpr T kRound = sizeof(T) == 4 ? T(0x1.8p23 + 127) : T(0x1.8p52 + 1023);
  x = max(x, broadcast<T>(smallest));
  const P shifted = add(x, broadcast<T>(kRound));
  const P f = sub(x, sub(shifted, broadcast<T>(kRound)));
  P p = broadcast<T>(kExp2Polynomial<T>[0]);
#pragma GCC unroll 16
  for (std::size_t i = 1; i < kExp2Polynomial<T>.size(); i++) p = fma(p, f, broadcast<T>(kExp2Polynomial<T>[i]));
  return mul(p, power_of_two<T>(shifted));  // a multiplication keeps NaN; an addition of exponents would not
}

}  // namespace alibi::inline ALIBI_ISA::kernel
