// Sequences of one query and one key. Their softmax has one term:
//
//   o = v        lse = τ q·k + bias
//
// A batch may have hundreds of thousands of them side by side, and the set-up of a ForwardTask for each head would take
// ten times as long as the memory that is read. Here a head takes one dot product and one copy. Internal.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "alibi/kernel/forward/params.hpp"
#include "alibi/kernel/simd/bf16.hpp"
#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/bias.hpp"
#include "alibi/kernel/tile/rows.hpp"
#include "alibi/mask.hpp"
#include "alibi/pruning.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// Σ_d (scale x_d) y_d, d < n, in T. The scale comes first, as in the other kernels: without it the sum may overflow.
template <class T, class E>
T scaled_dot(T scale, const E* x, const E* y, Index n) {
  Vec<T> sum = broadcast<T>(T(0));
  Index d = 0;
  for (; d + kLanes<T> <= n; d += kLanes<T>) sum = fma(mul(broadcast<T>(scale), widen<T>(x + d)), widen<T>(y + d), sum);
  T all = reduce_add(sum);
  for (; d < n; d++) all += scale * T(x[d]) * T(y[d]);
  return all;
}
/// The same sum in the order of the other kernels, with their bits: those of the lse. Each term waits for the one
/// before.
template <class T, class E>
T ordered_dot(T scale, const E* x, const E* y, Index n) {
  Vec<T> sum = broadcast<T>(T(0));
  for (Index d = 0; d < n; d++) sum = fma(broadcast<T>(T(y[d])), broadcast<T>(T(x[d]) * scale), sum);
  return reduce_max(sum);
}

/// All heads of a sequence of one query and one key, whose bias is linear. `stats` [heads], or null.
template <class F>
void attend_one_token(const Params<F>& params, const SequenceParams<F>& sequence, PruningStats* stats) {
  using T = typename F::T;
  const ResolvedMask& mask = sequence.mask;
  const KeyRange seen = mask.visible(0);
  const bool sees = seen.begin < seen.end || mask.visible_sinks(0).end > 0;
  const T scale = T(params.scale * std::numbers::log2e);
  for (Index h = 0; h < params.heads; h++) {
    const Index kv = h / params.group();
    bool finite = false;
    T logit = -std::numeric_limits<T>::infinity();  // in base 2, without the bias
    if (sees)
      with_scalar(rows_of(sequence.q, h), [&]<class E>(const Rows<const E>& q) {
        const E* const k = reinterpret_cast<const E*>(rows_of(sequence.k, kv)[0]);
        finite = std::isfinite(scaled_dot(scale, q[0], k, params.head_dim));
        if (sequence.lse) logit = ordered_dot(scale, q[0], k, params.head_dim);
      });
    if (finite) {
      std::copy_n(rows_of(sequence.v, kv)[0], params.value_dim, rows_of(sequence.output, h)[0]);
    } else {
      // 0 without the key, and NaN for a logit that is not finite.
      const T value = sees ? std::numeric_limits<T>::quiet_NaN() : T(0);
      with_scalar(rows_of(sequence.output, h),
                  [&]<class E>(const Rows<E>& to) { std::fill_n(to[0], params.value_dim, E(value)); });
    }
    if (sequence.lse) {
      const double slope = sequence.slope(h), bias = sees ? slope * double(mask.common_distance(0, slope)) : 0;
      sequence.lse[h * sequence.lse_stride] = T(double(logit) * std::numbers::ln2 - bias);
    }
    if (stats) stats[h] = {Index(sees), Index(sees), 0};
  }
}

}  // namespace alibi::inline ALIBI_ISA::kernel
