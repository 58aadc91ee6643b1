// Array types, random arrays and comparisons that several tests use.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <alibi/alibi.hpp>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace test {

using alibi::Index;

template <class T>
using Tensor2 = Eigen::Tensor<T, 2, Eigen::RowMajor>;
template <class T>
using Tensor3 = Eigen::Tensor<T, 3, Eigen::RowMajor>;
template <class T>
using Tensor4 = Eigen::Tensor<T, 4, Eigen::RowMajor>;  // [batch, heads, tokens, head_dim]
template <class T>
using Vector = Eigen::Matrix<T, Eigen::Dynamic, 1>;
template <class T>
using RowMatrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// The bound of the error of an output of order 1 and of an lse, for the kernels in every test.
template <class T>
inline constexpr double kBound = sizeof(T) == 4 ? 4e-6 : 1e-13;

/// Random numbers from a seed that is printed when the test fails.
class Random {
 public:
  explicit Random(std::uint64_t seed) : trace_(__FILE__, __LINE__, "seed " + std::to_string(seed)), engine_(seed) {}

  /// In [low, high], including both ends.
  Index integer(Index low, Index high) { return low + Index(engine_() % std::uint64_t(high - low + 1)); }
  bool chance(double probability) { return uniform(0, 1) < probability; }
  double uniform(double low, double high) { return low + (high - low) * double(engine_() >> 11) * 0x1p-53; }
  /// Box-Muller. The distributions of the standard library differ between libraries, and with them the cases.
  double normal() { return std::sqrt(-2 * std::log(uniform(1, 0))) * std::cos(2 * std::numbers::pi * uniform(0, 1)); }

  /// Fills any contiguous array with normal numbers.
  template <class Array>
  Array& fill(Array& array, double factor = 1) {
    using T = std::remove_reference_t<decltype(*array.data())>;
    for (Index i = 0; i < Index(array.size()); i++) array.data()[i] = T(factor * normal());
    return array;
  }
  template <class T>
  Tensor4<T> tensor(Index batch, Index heads, Index tokens, Index head_dim, double factor = 1) {
    Tensor4<T> x(batch, heads, tokens, head_dim);
    return fill(x, factor);
  }
  template <class T>
  RowMatrix<T> matrix(Index rows, Index cols, double factor = 1) {
    RowMatrix<T> x(rows, cols);
    return fill(x, factor);
  }

 private:
  testing::ScopedTrace trace_;
  std::mt19937_64 engine_;
};

/// NaNs of either sign and with several payloads: the processor's default, the smallest and the largest payload beside
/// it, and the pattern of memset(0xff).
template <class T>
std::vector<T> nans() {
  if constexpr (sizeof(T) == 4)
    return {std::bit_cast<float>(0x7fc00000u), std::bit_cast<float>(0x7fc00001u), std::bit_cast<float>(0x7fffffffu),
            std::bit_cast<float>(0xffffffffu)};
  else
    return {std::bit_cast<double>(std::uint64_t(0x7ff8000000000000)),
            std::bit_cast<double>(std::uint64_t(0x7ff8000000000001)),
            std::bit_cast<double>(std::uint64_t(0x7fffffffffffffff)),
            std::bit_cast<double>(std::uint64_t(0xffffffffffffffff))};
}

/// A matrix [rows, cols] from its values in row-major order.
template <class T>
RowMatrix<T> matrix_of(Index rows, Index cols, const std::vector<T>& values) {
  return Eigen::Map<const RowMatrix<T>>(values.data(), rows, cols);
}

/// The largest |a - b| over two contiguous arrays of the same size. Equal infinities differ by 0; NaN gives infinity.
template <class A, class B>
double distance(const A& a, const B& b) {
  if (Index(a.size()) != Index(b.size())) return kInfinity;
  double largest = 0;
  for (Index i = 0; i < Index(a.size()); i++) {
    const double x = double(a.data()[i]), y = double(b.data()[i]);
    if (x == y) continue;
    const double difference = std::abs(x - y);
    if (std::isnan(difference)) return kInfinity;
    largest = std::max(largest, difference);
  }
  return largest;
}

/// The message of the std::invalid_argument that a call throws.
template <class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "nothing was thrown";
}

/// Whether two contiguous arrays hold equal numbers. 0 equals -0; NaN equals nothing.
template <class A, class B>
bool same(const A& a, const B& b) {
  return distance(a, b) == 0;
}

}  // namespace test
