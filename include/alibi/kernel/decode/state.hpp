// The state of one query after a part of the keys, in decoding. Internal.
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

/// The state of a row after the keys of a split. Its output [padded value_dim] is stored separately.
template <class T>
struct RowState {
  T reference = std::numeric_limits<T>::lowest() / 2, sum = 0;
  Index computed = 0;                 // the number of tiles
  Index pruned_until = -1;            // the tiles up to this one are pruned, some outlier tiles excepted
  double pruned_mass = kNothing;      // log2 of a bound on the mass of the keys up to there, in all splits
  double pruned_outliers = kNothing;  // log2 of a bound on the mass of the pruned outlier tiles

  SoftmaxState<T> softmax() const { return {broadcast<T>(reference), broadcast<T>(sum)}; }
  double log_mass() const { return sum > 0 ? double(reference) + std::log2(double(sum)) : kNothing; }
};

}  // namespace alibi::inline ALIBI_ISA::kernel
