// The vector unit: the few operations the kernels need, over Eigen's packets.
//
// This is the only file that names Eigen::internal. An Eigen release that moves something is mended here. So are the
// few instructions that Eigen has no name for: the dot product of bfloat16 pairs (AVX-512 BF16), and the conversion of
// half (F16C), which Eigen 3.4 has and does not find with g++.
// Notation: a Pack<T> holds kLanes<T> values of T; every operation is lane by lane.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "alibi/kernel/isa.hpp"

// g++ 12 warns of its own AVX-512 intrinsics, whose undefined operand it calls uninitialised, and of Eigen's packets,
// whose attributes it drops as template arguments.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wignored-attributes"
#endif

namespace alibi::inline ALIBI_ISA::kernel {

using Bfloat16 = Eigen::bfloat16;
using Half = Eigen::half;

/// Two neighbours in one lane: what the dot product instruction multiplies, two products a lane and step.
struct BfloatPair {
  Bfloat16 low, high;
};

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(EIGEN_VECTORIZE_AVX512)
inline constexpr bool kDotsPairs = true;
#else
inline constexpr bool kDotsPairs = false;
#endif

namespace detail {

template <class T>
struct PackOf {
  using type = typename Eigen::internal::packet_traits<T>::type;
  static constexpr int kSize = Eigen::internal::unpacket_traits<type>::size;
};
#if defined(__AVX512BF16__)
template <>
struct PackOf<BfloatPair> {
  using type = __m512bh;
  static constexpr int kSize = 16;
};
#endif

}  // namespace detail

template <class T>
using Pack = typename detail::PackOf<T>::type;

template <class T>
inline constexpr int kLanes = detail::PackOf<T>::kSize;

// The register tile acc[kRows][kVectors] of both matrix products: as many independent sums as the register file holds
// beside the operands, and at least the eight that hide the latency of two multiply-adds a cycle.
inline constexpr bool kManyRegisters = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32;
inline constexpr int kRows = kManyRegisters ? 8 : 4;
inline constexpr int kVectors = 3;

template <class T>
inline constexpr int kBlock = kLanes<T> * kVectors;  // queries in a block, one a lane
inline constexpr int kTile = 64;                     // keys in a tile

template <class T>
EIGEN_ALWAYS_INLINE Pack<T> splat(T x) {
  return Eigen::internal::pset1<Pack<T>>(x);
}
template <class T>
EIGEN_ALWAYS_INLINE Pack<T> load(const T* p) {
  return Eigen::internal::ploadu<Pack<T>>(p);
}
template <class T, class P>
EIGEN_ALWAYS_INLINE void store(T* p, P x) {
  Eigen::internal::pstoreu(p, x);
}
template <class P>
EIGEN_ALWAYS_INLINE P add(P a, P b) {
  return Eigen::internal::padd(a, b);
}
template <class P>
EIGEN_ALWAYS_INLINE P sub(P a, P b) {
  return Eigen::internal::psub(a, b);
}
template <class P>
EIGEN_ALWAYS_INLINE P mul(P a, P b) {
  return Eigen::internal::pmul(a, b);
}
template <class P>
EIGEN_ALWAYS_INLINE P div(P a, P b) {
  return Eigen::internal::pdiv(a, b);
}
/// a b + c, in one rounding where the machine has the instruction.
template <class P>
EIGEN_ALWAYS_INLINE P fma(P a, P b, P c) {
  return Eigen::internal::pmadd(a, b, c);
}
/// The larger one; `a` where either is NaN, so that a NaN in `a` goes through and one in `b` is passed over.
template <class P>
EIGEN_ALWAYS_INLINE P max(P a, P b) {
  return Eigen::internal::pmax(a, b);
}
template <class P>
EIGEN_ALWAYS_INLINE P abs(P a) {
  return Eigen::internal::pabs(a);
}
/// a <= b ? x : y
template <class P>
EIGEN_ALWAYS_INLINE P select_le(P a, P b, P x, P y) {
  return Eigen::internal::pselect(Eigen::internal::pcmp_le(a, b), x, y);
}
/// a < b ? x : y
template <class P>
EIGEN_ALWAYS_INLINE P select_lt(P a, P b, P x, P y) {
  return Eigen::internal::pselect(Eigen::internal::pcmp_lt(a, b), x, y);
}
template <class P>
EIGEN_ALWAYS_INLINE P min(P a, P b) {
  return Eigen::internal::pmin(a, b);
}
/// Whether a < b in any lane.
template <class P>
EIGEN_ALWAYS_INLINE bool any_lt(P a, P b) {
  return Eigen::internal::predux_any(Eigen::internal::pcmp_lt(a, b));
}

/// Whether a <= b in every lane; false where either is NaN.
template <class P>
EIGEN_ALWAYS_INLINE bool all_le(P a, P b) {
  using T = typename Eigen::internal::unpacket_traits<P>::type;
  const P zero = splat<T>(T(0));
  return !any_lt(zero, select_le(a, b, zero, splat<T>(T(1))));
}
/// The largest and the sum of all lanes.
template <class P>
EIGEN_ALWAYS_INLINE auto reduce_max(P a) {
  return Eigen::internal::predux_max(a);
}
template <class P>
EIGEN_ALWAYS_INLINE auto reduce_add(P a) {
  return Eigen::internal::predux(a);
}

namespace detail {

// Exchanges the off-diagonal squares of side `step` between two rows: (a b; c d) becomes (a c; b d).
template <int step, class P, int... lane>
EIGEN_ALWAYS_INLINE void exchange(P& x, P& y, std::integer_sequence<int, lane...>) {
  constexpr int W = sizeof...(lane);
  const P low = __builtin_shufflevector(x, y, (lane & step ? W + lane - step : lane)...);
  y = __builtin_shufflevector(x, y, (lane & step ? W + lane : lane + step)...);
  x = low;
}

template <int step, class T>
EIGEN_ALWAYS_INLINE void transpose(Pack<T> (&square)[kLanes<T>]) {
  if constexpr (step < kLanes<T>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; i++)
      if (!(i & step)) exchange<step>(square[i], square[i + step], std::make_integer_sequence<int, kLanes<T>>());
    transpose<2 * step, T>(square);
  }
}

}  // namespace detail

/// Transposes the square that kLanes<T> packs form.
template <class T>
EIGEN_ALWAYS_INLINE void transpose(Pack<T> (&square)[kLanes<T>]) {
  detail::transpose<1, T>(square);
}

namespace detail {

template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

// The integers of a pack, as a compiler vector: Eigen has no 64-bit shift on every machine.
template <class T, int lanes>
struct BitsPack {
  typedef Bits<T> type __attribute__((vector_size(sizeof(T) * lanes)));
};
template <class T>
struct BitsPack<T, 1> {
  using type = Bits<T>;
};

}  // namespace detail

/// 2^(n - bias), where n >= 1 is the integer in the low bits of `shifted` and bias that of the exponent field.
template <class T, class P>
EIGEN_ALWAYS_INLINE P power_of_two(P shifted) {
  using Integers = typename detail::BitsPack<T, kLanes<T>>::type;
  constexpr int kMantissa = sizeof(T) == 4 ? 23 : 52;
  return std::bit_cast<P>(std::bit_cast<Integers>(shifted) << kMantissa);
}

namespace detail {

// Compiler vectors of integers, as wide in lanes as a pack of floats.
typedef std::uint16_t Words __attribute__((vector_size(2 * kLanes<float>)));
typedef std::uint32_t Doublewords __attribute__((vector_size(4 * kLanes<float>)));

template <class S>
Doublewords load_words(const S* p) {
  Words words;
  std::memcpy(&words, p, sizeof words);
  return __builtin_convertvector(words, Doublewords);
}

// Whether Eigen converts a pack of S into one of as many floats.
template <class S>
inline constexpr bool kConverts = [] {
  if constexpr (Eigen::internal::packet_traits<S>::Vectorizable)
    return int(Eigen::internal::packet_traits<S>::size) == kLanes<float>;
  else
    return false;
}();

#if defined(__F16C__) && defined(EIGEN_VECTORIZE_AVX512)
inline constexpr bool kConvertsHalf = true;
EIGEN_ALWAYS_INLINE Pack<float> widen_half(const void* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
EIGEN_ALWAYS_INLINE void narrow_half(void* p, Pack<float> x) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__) && defined(EIGEN_VECTORIZE_AVX)
inline constexpr bool kConvertsHalf = true;
EIGEN_ALWAYS_INLINE Pack<float> widen_half(const void* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}
EIGEN_ALWAYS_INLINE void narrow_half(void* p, Pack<float> x) {
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
#else
inline constexpr bool kConvertsHalf = false;
Pack<float> widen_half(const void* p);
void narrow_half(void* p, Pack<float> x);
#endif

}  // namespace detail

/// kLanes<T> values at p, as T: exact. S is T, or bfloat16 or half for a T of float.
template <class T, class S>
EIGEN_ALWAYS_INLINE Pack<T> widen(const S* p) {
  if constexpr (std::is_same_v<S, T>) {
    return load<T>(p);
  } else if constexpr (std::is_same_v<S, Bfloat16>) {
    if constexpr (detail::kConverts<Bfloat16>)
      return Eigen::internal::pcast<Pack<Bfloat16>, Pack<float>>(Eigen::internal::ploadu<Pack<Bfloat16>>(p));
    else if constexpr (kLanes<float> == 1)
      return Pack<T>(float(*p));
    else
      return std::bit_cast<Pack<float>>(detail::load_words(p) << 16);
  } else {
    static_assert(std::is_same_v<S, Half>);
    if constexpr (detail::kConvertsHalf) {
      return detail::widen_half(p);
    } else {
      // Exponents are 112 apart; infinities and NaN get the largest one back.
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

/// Rounds to S, to nearest.
template <class S, class P>
EIGEN_ALWAYS_INLINE void narrow(S* p, P x) {
  using T = typename Eigen::internal::unpacket_traits<P>::type;
  if constexpr (std::is_same_v<S, T>) {
    store<T>(p, x);
  } else if constexpr (std::is_same_v<S, Half> && detail::kConvertsHalf) {
    detail::narrow_half(p, x);
  } else if constexpr (std::is_same_v<S, Bfloat16> && detail::kConverts<S>) {
    Eigen::internal::pstoreu(p, Eigen::internal::pcast<P, Pack<S>>(x));
  } else {
    T all[kLanes<T>];
    store<T>(all, x);
    for (int i = 0; i < kLanes<T>; i++) p[i] = S(all[i]);
  }
}

/// Rounds the first n <= kLanes values to S; touches nothing behind them.
template <class S, class P>
EIGEN_ALWAYS_INLINE void narrow_first(S* p, P x, Index n) {
  constexpr int W = Eigen::internal::unpacket_traits<P>::size;
  if (n == W) return narrow(p, x);
  S all[std::size_t(W)];
  narrow(all, x);
  std::copy_n(all, n, p);
}

/// n values at `from`, as T, into `to`.
template <class T, class S>
void widen_row(const S* from, Index n, T* to) {
  Index i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store<T>(to + i, widen<T>(from + i));
  for (; i < n; i++) to[i] = T(from[i]);
}

/// Two rows of n values, entry by entry beside one another.
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
EIGEN_ALWAYS_INLINE Pack<BfloatPair> load<BfloatPair>(const BfloatPair* p) {
  return std::bit_cast<Pack<BfloatPair>>(_mm512_loadu_si512(p));
}
template <>
EIGEN_ALWAYS_INLINE Pack<BfloatPair> splat<BfloatPair>(BfloatPair x) {
  return std::bit_cast<Pack<BfloatPair>>(_mm512_set1_epi32(std::bit_cast<int>(x)));
}
/// a.low b.low + a.high b.high + c
EIGEN_ALWAYS_INLINE Pack<float> fma(Pack<BfloatPair> a, Pack<BfloatPair> b, Pack<float> c) {
  return _mm512_dpbf16_ps(c, a, b);
}
/// Lane by lane a pair, rounded to nearest.
EIGEN_ALWAYS_INLINE void store_pair(BfloatPair* p, Pack<float> low, Pack<float> high) {
  constexpr auto order = [] {
    std::array<std::uint16_t, 32> at{};
    for (std::size_t i = 0; i < 32; i++) at[i] = std::uint16_t(i / 2 + i % 2 * 16);
    return at;
  }();
  const __m512i side_by_side = std::bit_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
  _mm512_storeu_si512(p, _mm512_permutexvar_epi16(std::bit_cast<__m512i>(order), side_by_side));
}
#endif

/// Asks for the cache line of p, towards the second-level cache. Always inlined: g++ takes calls of a function that
/// does nothing else for dead, and leaves them out.
EIGEN_ALWAYS_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }
/// The same for what is read once, which need not stay: decode gains up to a tenth more by it.
EIGEN_ALWAYS_INLINE void prefetch_once(const void* p) { __builtin_prefetch(p, 0, 1); }

}  // namespace alibi::inline ALIBI_ISA::kernel

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
