// How decoding is cut into tasks: each kv head into splits of its keys, by their number alone.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <tuple>

#include "alibi/kernel/forward/params.hpp"
#include "alibi/kernel/forward/schedule.hpp"
#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/rows.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

inline constexpr Index kMaxQueries = 8;  // of a head; with more, blocks of the forward use the lanes better
/// How the keys of a head are cut into splits: by their number, and so that few heads still make work for many threads.
struct DecodePlan {
  Index splits, tiles;  // of a head; of a split

  /// Without queries there are no splits.
  template <class F>
  static DecodePlan of(const SequenceParams<F>& sequence) {
    if (sequence.q.tokens == 0) return {0, 1};
    const Index all = ceil_div(sequence.mask.keys, kTile), most = std::max<Index>(16 / sequence.kv_heads, 1);
    const Index tiles = std::max<Index>(ceil_div(all, std::clamp<Index>(all / 16, 1, most)), 1);
    return {std::max<Index>(ceil_div(all, tiles), 1), tiles};
  }
};

/// One task: a split of the keys of a kv head. Split 0 has the newest.
struct DecodeItem {
  float cost;
  std::int32_t sequence, kv_head, split;
  Index first_row;  // of its rows among those of the call
};

/// The tasks of a call, the most expensive first; each has the rows of its sequence.
template <class F>
void list_items(const Params<F>& params, std::span<DecodeItem> items) {
  std::size_t n = 0;
  Index first_row = 0;
  for (std::size_t s = 0; s < params.sequences.size(); s++) {
    const SequenceParams<F>& sequence = params.sequences[s];
    const DecodePlan plan = DecodePlan::of(sequence);
    for (Index kv = 0; kv < params.kv_heads; kv++) {
      double reach = 0;
      for (Index g = 0; g < params.group(); g++)
        reach = std::max(reach, estimated_reach(sequence, kv * params.group() + g));
      for (Index split = 0; split < plan.splits; split++, n++, first_row += params.group() * sequence.q.tokens) {
        const double before = double(split * plan.tiles * kTile), size = double(plan.tiles * kTile);
        items[n] = {float(std::clamp(reach - before, 0., size)), std::int32_t(s), std::int32_t(kv), std::int32_t(split),
                    first_row};
      }
    }
  }
  std::sort(items.begin(), items.end(), [](const DecodeItem& a, const DecodeItem& b) {
    return std::tuple(-a.cost, a.sequence, a.kv_head, a.split) < std::tuple(-b.cost, b.sequence, b.kv_head, b.split);
  });
}

}  // namespace alibi::inline ALIBI_ISA::kernel
