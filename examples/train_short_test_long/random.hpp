// Random numbers as a function of (seed, stream, index), without a state. The number of a step determines its random
// numbers, so a run can continue from any step. The bits are the same with every standard library.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace experiment {

/// The purpose of a random number. Numbers of different streams are independent.
enum class Stream : std::uint64_t { parameters, batches };

/// 64 random bits: two rounds of the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
inline std::uint64_t random_bits(std::uint64_t seed, Stream stream, std::uint64_t index) {
  const auto mix = [](std::uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  };
  return mix(mix(mix(seed) + std::uint64_t(stream)) + index);
}

/// Uniform in (0, 1).
inline double random_uniform(std::uint64_t seed, Stream stream, std::uint64_t index) {
  return (double(random_bits(seed, stream, index) >> 11) + 0.5) * 0x1p-53;
}

/// Normal, of mean 0 and variance 1 (Box-Muller).
inline double random_normal(std::uint64_t seed, Stream stream, std::uint64_t index) {
  const double radius = std::sqrt(-2 * std::log(random_uniform(seed, stream, 2 * index)));
  return radius * std::cos(2 * std::numbers::pi * random_uniform(seed, stream, 2 * index + 1));
}

}  // namespace experiment
