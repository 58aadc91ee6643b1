// The number formats of weights and activations: float32, bfloat16 and IEEE half. 16-bit numbers are stored; arithmetic
// is in float, and a result is rounded once when it is stored.
#pragma once

#include <Eigen/Core>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <type_traits>

namespace pretrained {

using Eigen::bfloat16;
using Eigen::half;
using Eigen::Index;

enum class Dtype { float32, bfloat16, half };
inline constexpr std::array<std::string_view, 3> kDtypeNames = {"float", "bfloat16", "half"};

inline std::string_view name_of(Dtype dtype) { return kDtypeNames[std::size_t(dtype)]; }
inline Index size_of(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

template <class T>
inline constexpr Dtype kDtypeOf = std::is_same_v<T, float>      ? Dtype::float32
                                  : std::is_same_v<T, bfloat16> ? Dtype::bfloat16
                                                                : Dtype::half;

/// Calls f(T()) with the scalar type that `dtype` names.
template <class F>
decltype(auto) visit(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::bfloat16:
      return f(bfloat16());
    case Dtype::half:
      return f(half());
    default:
      return f(float());
  }
}

// Conversions have no branch, so that compilers turn loops of them into vector code (Eigen 3.4 converts one by one).

/// The bits of a number of 16 bits; g++ 12 does not vectorise a loop that copies it as an object.
inline std::uint32_t bits_of(const void* number) {
  std::uint16_t bits;
  std::memcpy(&bits, number, sizeof bits);
  return bits;
}

inline float widened(const float* x) { return *x; }
/// A bfloat16 is the upper half of a float.
inline float widened(const bfloat16* x) { return std::bit_cast<float>(bits_of(x) << 16); }
/// With exponent and mantissa of a half in their places in a float, the exponent is too small by 112, for infinity and
/// NaN by twice that. What is subnormal lacks the leading 1 of 2^-14. (Multiplying by 2^112 would do it all, but many
/// processors are slow with subnormal factors.)
inline float widened(const half* x) {
  constexpr std::uint32_t kExponent = 112u << 23;
  const std::uint32_t bits = bits_of(x), magnitude = bits & 0x7FFF, sign = (bits & 0x8000) << 16;
  const std::uint32_t normal = (magnitude << 13) + kExponent;
  const float subnormal = std::bit_cast<float>(normal + (1u << 23)) - 0x1p-14f;
  std::uint32_t result = magnitude < 0x0400 ? std::bit_cast<std::uint32_t>(subnormal) : normal;
  result += magnitude >= 0x7C00 ? kExponent : 0;
  return std::bit_cast<float>(result | sign);
}

/// Copies `size` numbers into another format, rounded to nearest, ties to even. NaN stays NaN.
void convert(const float* from, Index size, float* to);
void convert(const bfloat16* from, Index size, float* to);
void convert(const half* from, Index size, float* to);
void convert(const float* from, Index size, bfloat16* to);
void convert(const float* from, Index size, half* to);

}  // namespace pretrained
