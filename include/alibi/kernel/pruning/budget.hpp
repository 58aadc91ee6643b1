// The pruning budget of a head: how much softmax mass its rows may lose, and how that is divided.
//
//   tolerance = Options::tolerance - what the cache has evicted
//   15/16 of it   ordinary tiles; with a bidirectional mask half of that for each side that is not finished
//    1/16 of it   outlier tiles, which are judged one by one
//
// Made by make_budget() alone, once for each head that asks; statistics are merged by merge_stats() alone.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numbers>

#include "alibi/kernel/simd/isa.hpp"
#include "alibi/mask.hpp"
#include "alibi/pruning.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

struct PruningBudget {
  double tolerance = 0;  // share of each row's softmax mass that pruning may remove
  double evicted = 0;    // share that keys evicted from the cache may have had
  bool enabled = false;  // whether the head has keys that are far enough away

  /// The share of ordinary tiles on one side of a row; `both`: the other side may still prune.
  template <class T>
  T side(bool both) const {
    return T(tolerance) * T(both ? 0x1.ep-2 : 0x1.ep-1);
  }
  /// The share of all outlier tiles together.
  double outliers() const { return tolerance / 16; }
  /// The share of one of `count` outlier tiles.
  template <class T>
  T outlier(Index count) const {
    return T(tolerance) / T(16) / T(std::max<Index>(count, 1));
  }

  // The same for one side, as base-2 logarithms.
  double log2_side() const { return std::log2(tolerance) + std::log2(15. / 16); }
  double log2_outlier(Index count) const { return std::log2(tolerance) - std::log2(16. * double(count)); }
};

/// The budget of a head of slope `slope`. `tolerance` is that of the call, `evicted` the share that its cache may have
/// lost. Pruning is enabled if the bias of the farthest key is 4 bits below what the tolerance asks for; otherwise it
/// would not pay for its cost.
inline PruningBudget make_budget(double slope, double tolerance, double evicted, const ResolvedMask& mask,
                                 Index queries) {
  PruningBudget budget{std::max(tolerance - evicted, 0.), evicted};
  if (!(slope > 0 && budget.tolerance > 0) || queries == 0) return budget;
  const Index back = std::min(mask.left, mask.nearest_key(queries - 1) - mask.first);
  const Index ahead = std::min(mask.right, mask.keys - 1 - mask.nearest_key(0));
  budget.enabled = slope * std::numbers::log2e * double(std::max(back, ahead)) > 4 - std::log2(budget.tolerance);
  return budget;
}

/// Adds what a task did to the statistics of a head, which other tasks may be writing too. `pruned`: the largest share
/// of a row's softmax mass that was pruned.
inline void merge_stats(PruningStats& stats, const PruningBudget& budget, Index computed, Index total, double pruned) {
  std::atomic_ref(stats.tiles_computed).fetch_add(computed, std::memory_order_relaxed);
  std::atomic_ref(stats.tiles_total).fetch_add(total, std::memory_order_relaxed);
  std::atomic_ref largest(stats.mass_bound);
  const double mass = pruned + budget.evicted;
  for (double known = largest.load(); known < mass && !largest.compare_exchange_weak(known, mass);) {
  }
}

}  // namespace alibi::inline ALIBI_ISA::kernel
