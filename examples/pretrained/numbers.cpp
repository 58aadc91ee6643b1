#include "numbers.hpp"

#include <algorithm>
#include <bit>
#include <cstdint>

namespace pretrained {

namespace {

using std::bit_cast;
using Bits = std::uint32_t;

constexpr Bits kInfinity = 0x7F80'0000, kMagnitude = 0x7FFF'FFFF;

bfloat16 rounded_bfloat16(float x) {
  const Bits bits = bit_cast<Bits>(x), rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  const Bits nan = bits >> 16 | 0x40;
  return bit_cast<bfloat16>(std::uint16_t((bits & kMagnitude) > kInfinity ? nan : rounded));
}

half rounded_half(float x) {
  const Bits bits = bit_cast<Bits>(x), magnitude = bits & kMagnitude, sign = bits >> 16 & 0x8000;
  const Bits normal = (magnitude + 0xFFF + (magnitude >> 13 & 1) - (Bits(112) << 23)) >> 13;
  // Subnormal: adding 1/2 makes the processor round at the last place of a half, 2^-24.
  const Bits subnormal = bit_cast<Bits>(bit_cast<float>(magnitude) + 0.5f) - bit_cast<Bits>(0.5f);
  Bits result = magnitude < bit_cast<Bits>(0x1p-14f) ? subnormal : normal;
  result = magnitude >= bit_cast<Bits>(65536.0f) ? 0x7C00 : result;
  result = magnitude > kInfinity ? 0x7E00 : result;
  return bit_cast<half>(std::uint16_t(result | sign));
}

}  // namespace

void convert(const float* from, Index size, float* to) { std::copy_n(from, size, to); }

void convert(const bfloat16* from, Index size, float* to) {
  for (Index i = 0; i < size; i++) to[i] = widened(from + i);
}

void convert(const half* from, Index size, float* to) {
  for (Index i = 0; i < size; i++) to[i] = widened(from + i);
}

void convert(const float* from, Index size, bfloat16* to) {
  for (Index i = 0; i < size; i++) to[i] = rounded_bfloat16(from[i]);
}

void convert(const float* from, Index size, half* to) {
  for (Index i = 0; i < size; i++) to[i] = rounded_half(from[i]);
}

}  // namespace pretrained
