// The state of one query over a part of the keys, in decoding.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/softmax.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

inline constexpr double kNothing = -std::numeric_limits<double>::infinity();  // log2 of no mass

/// log2(2^a + 2^b)
inline double log_add(double a, double b) {
  const double larger = std::max(a, b);
  return larger == kNothing ? kNothing : larger + std::log2(1 + std::exp2(std::min(a, b) - larger));
}

/// A row over the keys of a split, as it leaves its task; beside it goes its output [padded value_dim].
template <class T>
struct RowState {
  T reference = std::numeric_limits<T>::lowest() / 2, sum = 0;
  Index computed = 0;                 // tiles
  Index pruned_until = -1;            // the tiles up to this one were left out, but for some that stand apart
  double pruned_mass = kNothing;      // log2 of what keys up to there have at most, in whatever split
  double pruned_outliers = kNothing;  // log2 of what tiles that stand apart and were left out have at most

  SoftmaxState<T> softmax() const { return {broadcast<T>(reference), broadcast<T>(sum)}; }
  double log_mass() const { return sum > 0 ? double(reference) + std::log2(double(sum)) : kNothing; }
};

}  // namespace alibi::inline ALIBI_ISA::kernel
