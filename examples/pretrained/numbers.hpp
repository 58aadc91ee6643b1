// The number formats of weights and activations: float32, bfloat16 and IEEE half. Arithmetic is in float; a result is
// rounded once, when it is stored.
#pragma once

#include <Eigen/Core>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace pretrained {

using Eigen::bfloat16;
using Eigen::half;
using Eigen::Index;

enum class Dtype { float32, bfloat16, half };
inline constexpr std::array<std::string_view, 3> kDtypeNames = {"float", "bfloat16", "half"};

inline std::string_view name_of(Dtype dtype) { return kDtypeNames[std::size_t(dtype)]; }
inline Index size_of(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

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

// Eigen 3.4 converts numbers one by one. The conversions here have no branch, so that compilers vectorise their loops.

/// The bits of a 16-bit number. (g++ 12 does not vectorise a loop that copies the number as an object.)
inline std::uint32_t bits_of(const void* number) {
  std::uint16_t bits;
  std::memcpy(&bits, number, sizeof bits);
  return bits;
}

inline float widened(const float* x) { return *x; }
/// A bfloat16 is the upper half of a float.
inline float widened(const bfloat16* x) { return std::bit_cast<float>(bits_of(x) << 16); }
/// A half has 5 bits of exponent and 10 of mantissa, a float 8 and 23. Shifted by 13, the bits of a half have their
/// places in a float; the exponent is then too small by 112, and by 224 for infinity and NaN. A subnormal half has no
/// leading 1: it is read as if it had one, 2^-14, which is subtracted. (Multiplying by 2^112 would do all this, but
/// many processors are slow with subnormal factors.)
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
