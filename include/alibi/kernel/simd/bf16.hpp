// bfloat16 and half: conversion to and from float, and the dot product of bfloat16 pairs (AVX-512 BF16). Internal.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "alibi/kernel/simd/vec.hpp"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wignored-attributes"
#endif

namespace alibi::inline ALIBI_ISA::kernel {

namespace detail {

// Compiler vectors of integers with as many lanes as a vector of floats.
typedef std::uint16_t Words __attribute__((vector_size(2 * kLanes<float>)));
typedef std::uint32_t Doublewords __attribute__((vector_size(4 * kLanes<float>)));

template <class S>
Doublewords load_words(const S* p) {
  Words words;
  std::memcpy(&words, p, sizeof words);
  return __builtin_convertvector(words, Doublewords);
}

// Whether Eigen converts a vector of S into a vector of as many floats.
template <class S>
inline constexpr bool kConverts = [] {
  if constexpr (Eigen::internal::packet_traits<S>::Vectorizable &&
                Eigen::internal::type_casting_traits<S, float>::VectorizedCast &&
                Eigen::internal::type_casting_traits<float, S>::VectorizedCast)
    return int(Eigen::internal::packet_traits<S>::size) == kLanes<float>;
  else
    return false;
}();

#if defined(__F16C__) && defined(EIGEN_VECTORIZE_AVX512)
inline constexpr bool kConvertsHalf = true;
EIGEN_ALWAYS_INLINE Vec<float> widen_half(const void* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
// Without optimisation the intrinsic is a macro, whose conversions g++ warns of.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"
EIGEN_ALWAYS_INLINE void narrow_half(void* p, Vec<float> x) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
#pragma GCC diagnostic pop
#elif defined(__F16C__) && defined(EIGEN_VECTORIZE_AVX)
inline constexpr bool kConvertsHalf = true;
EIGEN_ALWAYS_INLINE Vec<float> widen_half(const void* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}
EIGEN_ALWAYS_INLINE void narrow_half(void* p, Vec<float> x) {
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
#else
inline constexpr bool kConvertsHalf = false;
Vec<float> widen_half(const void* p);
void narrow_half(void* p, Vec<float> x);
#endif

}  // namespace detail

/// Loads kLanes<T> values at p and converts them to T, exactly. S is T; if T is float, S may also be bfloat16 or half.
template <class T, class S>
EIGEN_ALWAYS_INLINE Vec<T> widen(const S* p) {
  if constexpr (std::is_same_v<S, T>) {
    return load<T>(p);
  } else if constexpr (std::is_same_v<S, Bfloat16>) {
    if constexpr (detail::kConverts<Bfloat16>)
      return Eigen::internal::pcast<Vec<Bfloat16>, Vec<float>>(Eigen::internal::ploadu<Vec<Bfloat16>>(p));
    else if constexpr (kLanes<float> == 1)
      return Vec<T>(float(*p));
    else
      return std::bit_cast<Vec<float>>(detail::load_words(p) << 16);
  } else {
    static_assert(std::is_same_v<S, Half>);
    if constexpr (detail::kConvertsHalf) {
      return detail::widen_half(p);
    } else {
      // The exponent biases of half and float differ by 112. Infinities and NaN get the largest exponent.
      float all[kLanes<float>];
      for (int i = 0; i < kLanes<float>; i++) {
        const std::uint32_t bits = std::bit_cast<std::uint16_t>(p[i]), body = (bits & 0x7fff) << 13;
        const std::uint32_t top = body >= 0x0f800000 ? 0x7f800000 : 0;
        all[i] = std::bit_cast<float>(std::bit_cast<std::uint32_t>(std::bit_cast<float>(body) * 0x1p112f) | top |
                                      (bits & 0x8000) << 16);
      }
      return load<float>(all);
    }
  }
}

/// Rounds to nearest in S and stores at p.
template <class S, class P>
EIGEN_ALWAYS_INLINE void narrow(S* p, P x) {
  using T = typename Eigen::internal::unpacket_traits<P>::type;
  if constexpr (std::is_same_v<S, T>) {
    store<T>(p, x);
  } else if constexpr (std::is_same_v<S, Half> && detail::kConvertsHalf) {
    detail::narrow_half(p, x);
  } else if constexpr (std::is_same_v<S, Bfloat16> && detail::kConverts<S>) {
    Eigen::internal::pstoreu(p, Eigen::internal::pcast<P, Vec<S>>(x));
  } else {
    T all[kLanes<T>];
    store<T>(all, x);
    for (int i = 0; i < kLanes<T>; i++) p[i] = S(all[i]);
  }
}

/// Rounds the first n <= kLanes values to S and stores them. Writes nothing after them.
template <class S, class P>
EIGEN_ALWAYS_INLINE void narrow_first(S* p, P x, Index n) {
  constexpr int W = Eigen::internal::unpacket_traits<P>::size;
  if (n == W) return narrow(p, x);
  S all[std::size_t(W)];
  narrow(all, x);
  std::copy_n(all, n, p);
}

/// Converts n values at `from` to T and stores them at `to`.
template <class T, class S>
void widen_row(const S* from, Index n, T* to) {
  Index i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store<T>(to + i, widen<T>(from + i));
  for (; i < n; i++) to[i] = T(from[i]);
}

/// Writes the n pairs {low[i], high[i]}.
inline void interleave(const Bfloat16* low, const Bfloat16* high, Index n, BfloatPair* to) {
  Index i = 0;
  for (; i + kLanes<float> <= n && kLanes<float> > 1; i += kLanes<float>) {
    const detail::Doublewords pairs = detail::load_words(low + i) | detail::load_words(high + i) << 16;
    std::memcpy(static_cast<void*>(to + i), &pairs, sizeof pairs);
  }
  std::transform(low + i, low + n, high + i, to + i, [](Bfloat16 a, Bfloat16 b) { return BfloatPair{a, b}; });
}

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(EIGEN_VECTORIZE_AVX512)
template <>
EIGEN_ALWAYS_INLINE Vec<BfloatPair> load<BfloatPair>(const BfloatPair* p) {
  return std::bit_cast<Vec<BfloatPair>>(_mm512_loadu_si512(p));
}
template <>
EIGEN_ALWAYS_INLINE Vec<BfloatPair> broadcast<BfloatPair>(BfloatPair x) {
  return std::bit_cast<Vec<BfloatPair>>(_mm512_set1_epi32(std::bit_cast<int>(x)));
}
/// a.low b.low + a.high b.high + c
EIGEN_ALWAYS_INLINE Vec<float> fma(Vec<BfloatPair> a, Vec<BfloatPair> b, Vec<float> c) {
  return _mm512_dpbf16_ps(c, a, b);
}
/// Rounds `low` and `high` to nearest and stores one pair for each lane.
EIGEN_ALWAYS_INLINE void store_pair(BfloatPair* p, Vec<float> low, Vec<float> high) {
  constexpr auto order = [] {
    std::array<std::uint16_t, 32> at{};
    for (std::size_t i = 0; i < 32; i++) at[i] = std::uint16_t(i / 2 + i % 2 * 16);
    return at;
  }();
  const __m512i side_by_side = std::bit_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
  _mm512_storeu_si512(p, _mm512_permutexvar_epi16(std::bit_cast<__m512i>(order), side_by_side));
}
#endif

}  // namespace alibi::inline ALIBI_ISA::kernel

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
