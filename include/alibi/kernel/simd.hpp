// The vector unit: the few operations the kernels need, over Eigen's packets.
//
// This is the only file that names Eigen::internal. An Eigen release that moves something is mended here.
// Notation: a Pack<T> holds kLanes<T> values of T; every operation is lane by lane.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <bit>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "alibi/kernel/isa.hpp"

// g++ 12 calls the undefined operand of its own AVX-512 intrinsics uninitialised, and Eigen's packets attributes
// ignored.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wignored-attributes"
#endif

namespace alibi::inline ALIBI_ISA::kernel {

template <class T>
using Pack = typename Eigen::internal::packet_traits<T>::type;

template <class T>
inline constexpr int kLanes = Eigen::internal::unpacket_traits<Pack<T>>::size;

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
/// Whether a < b in any lane.
template <class P>
EIGEN_ALWAYS_INLINE bool any_lt(P a, P b) {
  return Eigen::internal::predux_any(Eigen::internal::pcmp_lt(a, b));
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

/// The first n <= kLanes values at p, zeros in the other lanes; touches nothing behind them.
template <class T>
EIGEN_ALWAYS_INLINE Pack<T> load_first(const T* p, Index n) {
  if (n == kLanes<T>) return load<T>(p);
  T all[kLanes<T>] = {};
  std::copy_n(p, n, all);
  return load<T>(all);
}
template <class T, class P>
EIGEN_ALWAYS_INLINE void store_first(T* p, P x, Index n) {
  if (n == kLanes<T>) return store<T>(p, x);
  T all[kLanes<T>];
  store<T>(all, x);
  std::copy_n(all, n, p);
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

/// Asks for the cache line of p, towards the second-level cache.
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace alibi::inline ALIBI_ISA::kernel

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
