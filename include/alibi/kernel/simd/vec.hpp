// The vector unit: the few operations that kernels need, over Eigen's packets.
//
// Only the headers of kernel/simd name Eigen::internal. If a release of Eigen moves something, adapt these headers.
// They also hold the few instructions that Eigen has no name for (bf16.hpp): the dot product of bfloat16 pairs (AVX-512
// BF16), and the conversion of half (F16C), which Eigen 3.4 has but does not find with g++.
//
// Notation: a Vec<T> holds kLanes<T> values of T. Every operation is lane by lane. Internal.
#pragma once

#include <Eigen/Core>
#include <bit>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "alibi/kernel/simd/isa.hpp"

// g++ 12 warns of its own AVX-512 intrinsics, because it takes their undefined operand for uninitialised. It also warns
// of Eigen's packets, because it ignores their attributes in template arguments.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wignored-attributes"
#endif

namespace alibi::inline ALIBI_ISA::kernel {

using Bfloat16 = Eigen::bfloat16;
using Half = Eigen::half;

/// Two neighbouring values in one lane, as the dot product instruction takes them: two products for each lane and step.
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
struct VecOf {
  using type = typename Eigen::internal::packet_traits<T>::type;
  static constexpr int kSize = Eigen::internal::unpacket_traits<type>::size;
};
#if defined(__AVX512BF16__)
template <>
struct VecOf<BfloatPair> {
  using type = __m512bh;
  static constexpr int kSize = 16;
};
#endif

}  // namespace detail

template <class T>
using Vec = typename detail::VecOf<T>::type;

template <class T>
inline constexpr int kLanes = detail::VecOf<T>::kSize;

// The register tile acc[kRows][kVectors] of both matrix products. It has as many independent sums as the register file
// holds besides the operands, and at least the eight that hide the latency of two multiply-adds per cycle.
inline constexpr bool kManyRegisters = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32;
inline constexpr int kRows = kManyRegisters ? 8 : 4;
inline constexpr int kVectors = 3;

template <class T>
inline constexpr int kBlock = kLanes<T> * kVectors;  // queries in a block, one for each lane
inline constexpr int kTile = 64;                     // keys in a tile

template <class T>
EIGEN_ALWAYS_INLINE Vec<T> broadcast(T x) {
  return Eigen::internal::pset1<Vec<T>>(x);
}
template <class T>
EIGEN_ALWAYS_INLINE Vec<T> load(const T* p) {
  return Eigen::internal::ploadu<Vec<T>>(p);
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
/// a b + c, rounded once if the machine has the instruction.
template <class P>
EIGEN_ALWAYS_INLINE P fma(P a, P b, P c) {
  return Eigen::internal::pmadd(a, b, c);
}
/// The larger value; `a` if either is NaN. A NaN in `a` is therefore kept, and a NaN in `b` is ignored.
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
/// low <= a && a <= high ? x : y. A nested select_le() has g++ 12 hold a zero in a register across the loops before it.
template <class P>
EIGEN_ALWAYS_INLINE P select_within(P low, P a, P high, P x, P y) {
  namespace packet = Eigen::internal;
  return packet::pselect(packet::pand(packet::pcmp_le(low, a), packet::pcmp_le(a, high)), x, y);
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
  const P zero = broadcast<T>(T(0));
  return !any_lt(zero, select_le(a, b, zero, broadcast<T>(T(1))));
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

// Exchanges the off-diagonal squares with sides of `step` between two rows: (a b; c d) becomes (a c; b d).
template <int step, class P, int... lane>
EIGEN_ALWAYS_INLINE void exchange(P& x, P& y, std::integer_sequence<int, lane...>) {
  constexpr int W = sizeof...(lane);
  const P low = __builtin_shufflevector(x, y, (lane & step ? W + lane - step : lane)...);
  y = __builtin_shufflevector(x, y, (lane & step ? W + lane : lane + step)...);
  x = low;
}

template <int step, class T>
EIGEN_ALWAYS_INLINE void transpose(Vec<T> (&square)[kLanes<T>]) {
  if constexpr (step < kLanes<T>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; i++)
      if (!(i & step)) exchange<step>(square[i], square[i + step], std::make_integer_sequence<int, kLanes<T>>());
    transpose<2 * step, T>(square);
  }
}

}  // namespace detail

/// Transposes the square that kLanes<T> vectors form.
template <class T>
EIGEN_ALWAYS_INLINE void transpose(Vec<T> (&square)[kLanes<T>]) {
  detail::transpose<1, T>(square);
}

namespace detail {

template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

// A vector of the compiler, for what Eigen does not have: a 64-bit shift on every machine, and the cast of one packet
// of double.
template <class T, int lanes>
struct CompilerVec {
  typedef T type __attribute__((vector_size(sizeof(T) * lanes)));
};
template <class T>
struct CompilerVec<T, 1> {
  using type = T;
};
template <class To, class From>
EIGEN_ALWAYS_INLINE To converted(const From& x) {
  return __builtin_convertvector(x, To);
}

}  // namespace detail

/// Stores kLanes<double> numbers, rounded to T.
template <class T>
EIGEN_ALWAYS_INLINE void store_rounded(T* p, Vec<double> x) {
  if constexpr (std::is_same_v<T, double>) {
    store<T>(p, x);
  } else if constexpr (kLanes<double> == 1) {
    *p = T(x);
  } else {
    using Doubles = typename detail::CompilerVec<double, kLanes<double>>::type;
    using Rounded = typename detail::CompilerVec<T, kLanes<double>>::type;
    const auto rounded = detail::converted<Rounded>(std::bit_cast<Doubles>(x));
    __builtin_memcpy(p, &rounded, sizeof(rounded));
  }
}

/// 2^(n - bias), where n >= 1 is the integer in the low bits of `shifted`, and bias is that of the exponent field.
template <class T, class P>
EIGEN_ALWAYS_INLINE P power_of_two(P shifted) {
  using Integers = typename detail::CompilerVec<detail::Bits<T>, kLanes<T>>::type;
  constexpr int kMantissa = sizeof(T) == 4 ? 23 : 52;
  return std::bit_cast<P>(std::bit_cast<Integers>(shifted) << kMantissa);
}

/// Prefetches the cache line of p into the second-level cache. Always inlined, because g++ removes calls of a function
/// that does nothing else as dead code.
EIGEN_ALWAYS_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }
/// The same for memory that is read once and need not stay in the cache. Decoding gains up to a tenth more by it.
EIGEN_ALWAYS_INLINE void prefetch_once(const void* p) { __builtin_prefetch(p, 0, 1); }

}  // namespace alibi::inline ALIBI_ISA::kernel

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
