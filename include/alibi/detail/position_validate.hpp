// The checks of two-sided slopes, of positions, and of the arrays for their gradients. Internal.
#pragma once

#include <cmath>

#include "alibi/detail/call.hpp"
#include "alibi/detail/overlap.hpp"
#include "alibi/error.hpp"
#include "alibi/token_positions.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// Checks the slopes of a side. `side` is " before", " after" or "".
inline void check_side(const SlopeView& slopes, const char* side, bool may_hide, Index heads,
                       const SequenceList& sequences) {
  require(slopes.heads == heads, "slopes", side, " has heads ", slopes.heads, "; expected ", heads, ", the heads of q");
  require(slopes.batch == sequences.count || slopes.batch_stride == 0, "slopes", side, " has batch ", slopes.batch,
          "; expected ", sequences.count, ", ", sequences.name(), ", or a vector of heads");
  require(slopes.data || slopes.batch * slopes.heads == 0, "slopes", side, " is null; expected ", slopes.heads,
          " slopes");
  for (Index b = 0; b < slopes.batch; b++)
    for (Index h = 0; h < slopes.heads; h++) {
      const double m = slope_at(slopes, b, h);
      require(m >= 0 && (may_hide || std::isfinite(m)), "the slope", side, " of head ", h, " in batch ", b, " is ", m,
              may_hide ? "; expected 0 or more" : "; expected a finite number, 0 or more");
    }
}

/// Checks the sizes of an array of positions.
inline void check_position_sizes(const PositionView& x, const char* name, const char* of, Index heads, Index tokens,
                                 const SequenceList& sequences) {
  const bool varlen = sequences.kind == SequenceList::Kind::varlen;
  const Index batch = varlen ? 1 : sequences.count;
  require(x.tokens == tokens, name, " has tokens ", x.tokens, "; expected ", tokens, ", the tokens of ", of);
  require(x.heads == heads || x.heads == 1, name, " has heads ", x.heads, "; expected ", heads,
          ", the heads of q, or 1");
  require(x.batch == batch || x.batch == 1, name, " has batch ", x.batch, "; expected ", batch,
          varlen ? ", all sequences side by side" : ", the batch of q, or 1");
  require(x.data || x.tokens * x.heads * x.batch == 0, name, " is null; expected ", x.tokens, " positions");
}

/// Checks the positions of the queries, or of the keys, of every sequence.
inline void check_positions(const PositionView& x, bool of_queries, bool any_order, const SequenceList& sequences) {
  const char* const name = of_queries ? "query position " : "key position ";
  for (Index s = 0; s < sequences.count; s++) {
    const SequenceSlice slice = sequences[s];
    const KeyRange& tokens = of_queries ? slice.queries : slice.keys;
    for (Index h = 0; h < x.heads; h++)
      for (Index i = tokens.begin; i < tokens.end; i++) {
        const double c = x(slice.batch, h, i);
        require(std::abs(c) <= 1e300, name, i, " of head ", h, " in batch ", slice.batch, " is ", c,
                "; expected a finite number within ±1e300");
        if (i == tokens.begin || any_order) continue;
        const double previous = x(slice.batch, h, i - 1);
        require(previous <= c, name, i, " of head ", h, " in batch ", slice.batch, " is ", c, " after ", previous,
                "; expected no position below the one before it, or positions_in_any_order()");
      }
  }
}

/// Checks a bias of positions.
inline void check_position_bias(const PositionBias& bias, Index heads, const SequenceList& sequences) {
  const bool may_hide = !bias.has_positions;
  check_side(bias.before, bias.one_slope ? "" : " before", may_hide, heads, sequences);
  if (!bias.one_slope) check_side(bias.after, " after", may_hide, heads, sequences);
  if (may_hide) return;
  check_position_sizes(bias.keys, bias.shared ? "positions" : "key positions", "k", heads, sequences.keys, sequences);
  check_position_sizes(bias.queries, bias.shared ? "positions" : "query positions", "q", heads, sequences.queries,
                       sequences);
  check_positions(bias.keys, false, bias.any_order, sequences);
  check_positions(bias.queries, true, bias.any_order, sequences);
}

/// The memory of an array of positions.
inline Memory memory_of(const PositionView& x, const char* name) {
  return memory_in_bytes(x.data,
                         {nullptr, x.batch, x.heads, x.tokens, 1, x.batch_stride, x.head_stride, x.token_stride},
                         Index(x.is_double ? sizeof(double) : sizeof(float)), name);
}
/// Checks that an array that is written shares no memory with a bias of positions.
inline void require_disjoint(const Memory& written, const PositionBias& bias) {
  require_disjoint(written, {memory_of(bias.before), memory_of(bias.after), memory_of(bias.keys, "key positions"),
                             memory_of(bias.queries, "query positions")});
}

}  // namespace alibi::inline ALIBI_ABI::detail
