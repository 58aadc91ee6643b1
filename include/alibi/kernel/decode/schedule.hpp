// The tasks of decoding. The keys of each kv head are cut into splits, by the number of keys and of kv heads alone.
// Internal.
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

inline constexpr Index kMaxQueries = 8;  // of a head; with more, the blocks of the forward use the lanes better

/// The division of the keys of a head into splits. Few heads get more splits, so that many threads have work.
struct DecodePlan {
  Index splits,  // of a head; 0 without queries
      tiles;     // of a split

  template <class F>
  static DecodePlan of(const SequenceParams<F>& sequence) {
    if (sequence.q.tokens == 0) return {0, 1};
    const Index all = ceil_div(sequence.mask.keys, kTile), most = std::max<Index>(16 / sequence.kv_heads, 1);
    const Index tiles = std::max<Index>(ceil_div(all, std::clamp<Index>(all / 16, 1, most)), 1);
    return {std::max<Index>(ceil_div(all, tiles), 1), tiles};
  }
};

/// One task: a split of the keys of a kv head. Split 0 has the newest keys.
struct DecodeItem {
  float cost;
  std::int32_t sequence, kv_head, split;
  Index first_row;  // of the task, among the rows of the call
};

/// The tasks of a call, the most expensive first. Each task has all rows of its kv head.
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
        reach = std::max(reach, estimated_receptive_field(sequence, kv * params.group() + g));
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
