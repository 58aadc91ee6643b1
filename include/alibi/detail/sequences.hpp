// The sequences of a call over arrays, in the form that kernels take. Internal.
#pragma once

#include <algorithm>
#include <type_traits>

#include "alibi/detail/call.hpp"
#include "alibi/kernel/forward/params.hpp"
#include "alibi/kernel/tile/bias.hpp"
#include "alibi/kernel/tile/position_bias.hpp"
#include "alibi/mask.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// The bias policy of a kind of bias.
template <BiasKind kind, class T>
using BiasPolicyFor = std::conditional_t<
    kind == BiasKind::table, kernel::TableBiasPolicy<T>,
    std::conditional_t<kind == BiasKind::positions, kernel::PositionBiasPolicy<T>, kernel::LinearBiasPolicy<T>>>;

/// Tokens `tokens` of batch entry b, as a view with a batch of 1.
template <class X>
View<X> part_of(View<X> x, Index b, const KeyRange& tokens) {
  if (x.data) x.data += b * x.batch_stride + tokens.begin * x.token_stride;  // null stays null
  x.batch = 1;
  x.tokens = tokens.end - tokens.begin;
  return x;
}

/// The slopes of sequence s, [heads].
inline SlopeView slopes_of(SlopeView slopes, Index s) {
  if (slopes.data)
    slopes.data = static_cast<const char*>(slopes.data) + s * slopes.batch_stride * size_of(slopes.scalar);
  slopes.batch = 1;
  slopes.batch_stride = 0;
  return slopes;
}

/// The positions of tokens `tokens` of batch entry b, as a view with a batch of 1.
inline PositionView part_of(PositionView x, Index b, const KeyRange& tokens) {
  if (x.data) {
    const Index at = b * x.batch_stride + tokens.begin * x.token_stride;
    x.data = static_cast<const char*>(x.data) + at * Index(x.is_double ? sizeof(double) : sizeof(float));
  }
  x.batch = 1;
  x.batch_stride = 0;
  x.tokens = tokens.end - tokens.begin;
  return x;
}

/// The mask of one sequence; `mask` is that of SequenceList::mask_of().
inline ResolvedMask mask_of(const Mask& mask, const SequenceSlice& slice) {
  constexpr Index kFar = Index(1) << 61;  // offsets beyond it see the same keys, but resolve() refuses them
  Mask in_slice = mask;
  in_slice.query_offset =
      std::clamp(mask.query_offset.value_or(slice.default_offset) - slice.offset_shift, -kFar, kFar);
  in_slice.prefix = std::max<Index>(mask.prefix - slice.offset_shift, 0);
  in_slice.sinks = std::max<Index>(mask.sinks.value_or(0) - slice.offset_shift, 0);
  return resolve(in_slice, slice.queries.end - slice.queries.begin, slice.keys.end - slice.keys.begin);
}

/// Whether a sequence has one query and one key (kernel/forward/one_token.hpp). This depends on the sequence alone, so
/// that its bits do not depend on the other sequences.
inline bool is_one_token(const SequenceSlice& slice) {
  return slice.queries.end - slice.queries.begin == 1 && slice.keys.end - slice.keys.begin == 1;
}

/// The sequences of a checked call, one at a time.
template <class F>
struct ArraySequences {
  using E = typename F::Query;
  using T = typename F::T;
  View<const E> q, k, v;
  View<E> output;
  T* lse;
  BiasView<T> bias;
  const SequenceList& sequences;
  const Mask& mask;
  double tolerance;
  bool without_one_token = false;  // sequences of one token appear without queries

  Index count() const { return sequences.count; }
  kernel::SequenceParams<F> operator[](Index s) const {
    SequenceSlice slice = sequences[s];
    if (without_one_token && is_one_token(slice)) slice.queries.end = slice.queries.begin;
    return {.q = part_of(q, slice.batch, slice.queries),
            .output = part_of(output, slice.batch, slice.queries),
            .k = part_of(k, slice.batch, slice.keys),
            .v = part_of(v, slice.batch, slice.keys),
            .lse = lse ? lse + slice.batch * q.heads * q.tokens + slice.queries.begin : nullptr,
            .lse_stride = q.tokens,
            .slopes = slopes_of(bias.slopes, s),
            .positions = positions_of(slice, s),
            .mask = mask_of(sequences.mask_of(mask, s), slice),
            .tolerance = tolerance,
            .kv_heads = k.heads};
  }
  PositionBias positions_of(const SequenceSlice& slice, Index s) const {
    PositionBias of = bias.positions;
    of.before = slopes_of(of.before, s);
    of.after = slopes_of(of.after, s);
    of.keys = part_of(of.keys, slice.batch, slice.keys);
    of.queries = part_of(of.queries, slice.batch, slice.queries);
    return of;
  }
};

}  // namespace alibi::inline ALIBI_ABI::detail
