// The pruning budget of a head: the share of softmax mass that pruning may remove from its rows, and its division.
//
//   tolerance = Options::tolerance - the share evicted from the cache
//   15/16 of it   ordinary tiles; with a bidirectional mask half of that while the other side may still prune
//    1/16 of it   outlier tiles and the sinks of a window, which are judged one by one
//
// Only make_budget() makes budgets, and only merge_stats() merges statistics. Internal.
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
  double tolerance = 0;  // the share of each row's softmax mass that pruning may remove
  double evicted = 0;    // the share that keys evicted from the cache have at most
  bool enabled = false;  // whether the head has keys that are distant enough to prune

  /// The share of the ordinary tiles on one side of a row. `both`: whether the other side may still prune.
  template <class T>
  T side(bool both) const {
    return T(tolerance) * T(both ? 0x1.ep-2 : 0x1.ep-1);
  }
  /// The share of all outlier tiles and tiles of sinks together.
  double outliers() const { return tolerance / 16; }
  /// The share of one of `count` such tiles.
  template <class T>
  T outlier(Index count) const {
    return T(tolerance) / T(16) / T(std::max<Index>(count, 1));
  }

  // The same for one side, as base-2 logarithms.
  double log2_side() const { return std::log2(tolerance) + std::log2(15. / 16); }
  double log2_outlier(Index count) const { return std::log2(tolerance) - std::log2(16. * double(count)); }
};

/// The budget of a head. `penalty` is what the bias of the farthest key takes from its logit; `tolerance` is that of
/// the call; `evicted` is the share that keys evicted from its cache have at most. Pruning is enabled if the bias of
/// the farthest key is more than 4 bits below the tolerance. Otherwise pruning costs more than it saves.
inline PruningBudget make_budget(double penalty, double tolerance, double evicted) {
  PruningBudget budget{std::max(tolerance - evicted, 0.), evicted};
  if (!(penalty > 0 && budget.tolerance > 0)) return budget;
  const double farthest = penalty * std::numbers::log2e;
  budget.enabled = farthest > 4 && farthest > 4 - std::log2(budget.tolerance);  // the first test spares the logarithm
  return budget;
}
/// The budget of a head of slope `slope`.
inline PruningBudget make_budget(double slope, double tolerance, double evicted, const ResolvedMask& mask,
                                 Index queries) {
  if (!(slope > 0) || queries == 0) return make_budget(0, tolerance, evicted);
  const Index last = mask.nearest_key(queries - 1),
              back = mask.sinks > 0 ? last : std::min(mask.left, last - mask.first);
  const Index ahead = std::min(mask.sees_ahead(0) ? mask.left : 0, mask.prefix - 1 - mask.nearest_key(0));
  return make_budget(slope * double(std::max(back, ahead)), tolerance, evicted);
}

/// Adds the counts of a task to the pruning statistics of a head. Other tasks may write them at the same time. `pruned`
/// is the largest pruned mass of a row, as a share of its softmax mass.
inline void merge_stats(PruningStats& stats, const PruningBudget& budget, Index computed, Index total, double pruned) {
  std::atomic_ref(stats.tiles_computed).fetch_add(computed, std::memory_order_relaxed);
  std::atomic_ref(stats.tiles_total).fetch_add(total, std::memory_order_relaxed);
  std::atomic_ref largest(stats.mass_bound);
  const double mass = pruned + budget.evicted;
  for (double known = largest.load(); known < mass && !largest.compare_exchange_weak(known, mass);) {
  }
}

}  // namespace alibi::inline ALIBI_ISA::kernel
