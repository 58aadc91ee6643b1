// Merges the splits of a row and writes its output, lse and pruning statistics. Internal.
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>

#include "alibi/kernel/decode/state.hpp"
#include "alibi/kernel/forward/params.hpp"
#include "alibi/kernel/pruning/budget.hpp"
#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/rows.hpp"
#include "alibi/kernel/tile/softmax.hpp"
#include "alibi/mask.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// Merges the states of the splits of a row, newest first, and returns the merged state. The output [padded dims] of
/// split n is at outputs + n stride. The merged output replaces that of split 0.
template <class T>
RowState<T> merge_splits(RowState<T>* states, Index state_stride, T* outputs, Index stride, Index splits, Index dims) {
  RowState<T> all = states[0];
  SoftmaxState<T> state = all.softmax();
  for (Index n = 1; n < splits; n++) {
    const RowState<T>& next = states[n * state_stride];
    all.computed += next.computed;
    all.pruned_outliers = log_add(all.pruned_outliers, next.pruned_outliers);
    if (all.pruned_until < 0) all.pruned_until = next.pruned_until, all.pruned_mass = next.pruned_mass;
    const auto factors = state.merge(next.softmax());
    for (Index d = 0; d < dims; d += kLanes<T>) {
      const Vec<T> others = mul(load<T>(outputs + n * stride + d), factors.other);
      store<T>(outputs + d, fma(load<T>(outputs + d), factors.self, others));
    }
  }
  all.reference = reduce_max(state.reference);
  all.sum = reduce_max(state.sum);
  return all;
}

/// Writes the rows of a kv head. The states and outputs of its splits lie one after another.
template <class F>
void finish_decode(const Params<F>& params, Index sequence_number, Index kv_head, Index splits,
                   RowState<typename F::T>* states, typename F::T* outputs) {
  using T = typename F::T;
  using E = typename F::Query;
  const SequenceParams<F>& sequence = params.sequences[std::size_t(sequence_number)];
  const ResolvedMask mask = sequence.mask_of(kv_head);
  const Index queries = sequence.q.tokens, rows = params.group() * queries, dims = round_up<T>(params.value_dim);
  for (Index r = 0; r < rows; r++) {
    const Index head = kv_head * params.group() + r / queries, query = r % queries;
    T* const o = outputs + r * dims;
    const RowState<T> all = merge_splits(states + r, rows, o, rows * dims, splits, params.value_dim);
    E* const to = sequence.output.data + head * sequence.output.head_stride + query * sequence.output.token_stride;
    const T normalizer = all.sum == 0 ? T(0) : T(1) / all.sum;
    for (Index d = 0; d < params.value_dim; d++) to[d] = E(all.sum == 0 ? T(0) : o[d] * normalizer);

    const KeyRange seen = mask.visible(query);
    if (sequence.lse) {
      const double slope = sequence.slope(head);
      const double log_sum = double(all.reference) * std::numbers::ln2 + std::log(double(all.sum));
      sequence.lse[head * sequence.lse_stride + query] =
          all.sum == 0 ? -std::numeric_limits<T>::infinity()
                       : T(log_sum - slope * double(mask.common_distance(query, slope)));
    }
    if (params.pruning_stats) {
      const double pruned = log_add(all.pruned_mass, all.pruned_outliers);
      merge_stats(params.pruning_stats[sequence_number * params.heads + head], sequence.budget(head), all.computed,
                  (seen.begin < seen.end ? (seen.end - 1) / kTile - seen.begin / kTile + 1 : 0) +
                      ceil_div(mask.visible_sinks(query).end, kTile),
                  pruned > kNothing ? std::exp2(pruned - all.log_mass()) : 0);
    }
  }
}

}  // namespace alibi::inline ALIBI_ISA::kernel
