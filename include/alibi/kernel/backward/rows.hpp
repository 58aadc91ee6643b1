// What the backward pass computes of each row before the tiles: the lse, D_i = Σ_d dO_id o_id, from which the gradient
// of the lse is subtracted, and the tiles of keys that matter to its block.
//
// Tiles are pruned by the bound of the forward (pruning.hpp). Here the whole softmax sum of a row is known and replaces
// the sum so far. The pruned keys have at most `tolerance` of the softmax mass of each row. A sixteenth of the
// tolerance is reserved for the outlier tiles and the sinks before a window, which are judged one by one. Internal.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>

#include "alibi/kernel/backward/schedule.hpp"
#include "alibi/kernel/forward/params.hpp"
#include "alibi/kernel/pruning/bound.hpp"
#include "alibi/kernel/simd/bf16.hpp"
#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/bias_gradient.hpp"
#include "alibi/kernel/tile/block.hpp"
#include "alibi/kernel/tile/position_bias.hpp"
#include "alibi/kernel/tile/rows.hpp"
#include "alibi/kernel/tile/softmax.hpp"
#include "alibi/mask.hpp"
#include "alibi/pruning.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// try_prune() of kernel/pruning/bound.hpp for rows whose whole softmax sum is known. `pruned_mass` is a share of it.
template <class T, class Penalty>
bool try_prune(const Penalty& penalty, const BlockStats<T>& block, const RemainingKeys<T>& keys, T share,
               Vec<T>* pruned_mass) {
  SoftmaxState<T> whole[kVectors];
  for (int r = 0; r < kVectors; r++) whole[r] = {load<T>(block.lse + r * kLanes<T>), broadcast<T>(T(1))};
  return try_prune(penalty, block.query_bounds, whole, keys, share, pruned_mass);
}

/// Computes the BlockStats of a chunk of queries of a head. Runs before the tasks of the chunk.
template <class F>
class BackwardRows {
 public:
  using T = typename F::T;

  BackwardRows(const BackwardParams<F>& params, Index sequence, Index head, Index chunk, std::byte* scratch)
      : params_(params.forward),
        sequence_(params.forward.sequences[std::size_t(sequence)]),
        backward_(params.sequences[std::size_t(sequence)]),
        mask_(kHasPositions<F> ? sequence_.mask_of_query_head(head) : sequence_.mask),
        head_(head),
        chunk_(chunk),
        packed_(reinterpret_cast<T*>(scratch)),
        center_(packed_ + params_.head_dim * kBlock<T>),
        stats_(params_.pruning_stats ? params_.pruning_stats + sequence * params_.heads + head : nullptr),
        slope_(sequence_.slope(head) * std::numbers::log2e),
        bias_(sequence_.bias(head)),
        budget_(sequence_.budget(head)),
        key_bounds_(pruning_key_bounds(sequence_, head, budget_)),
        tail_bounds_(pruning_tail_bounds(sequence_, head, key_bounds_)) {}
  static std::size_t bytes(Index head_dim) { return std::size_t(head_dim * (kBlock<T> + 1)) * sizeof(T); }

  void run() {
    const BackwardPlan& plan = backward_.plan;
    const Index all = ceil_div(sequence_.q.tokens, kBlock<T>);
    TileRange& reach = backward_.reach[head_ * plan.query_chunks + chunk_];
    reach = {std::numeric_limits<std::int32_t>::max(), -1};
    double bound = 0;
    Index visible = 0;
    for (Index b = chunk_ * plan.blocks; b < std::min((chunk_ + 1) * plan.blocks, all); b++) {
      BlockStats<T>& stats = backward_.blocks[head_ * all + b];
      const Index first = b * kBlock<T>;
      Block<T> block(mask_, first, std::min<Index>(kBlock<T>, sequence_.q.tokens - first), sequence_.slope(head_));
      PositionLanes<T> lanes;
      if constexpr (kHasPositions<F>)
        bias_.place(mask_, block, lanes, backward_.nearest ? backward_.nearest + head_ * all + b : nullptr);
      fill(block, stats);
      bound = std::max(bound, find_tiles(block, stats));
      reach.first = std::min(reach.first, stats.tiles.first);
      reach.last = std::max(reach.last, stats.tiles.last);
      visible += block.tiles() + ceil_div(mask_.visible_sinks(first + block.rows - 1).end, kTile);
    }
    if (stats_) merge_stats(*stats_, budget_, 0, visible, bound);
  }

 private:
  /// Fills in -D + dlse and the lse, and sets the gradient of q to 0.
  void fill(const Block<T>& block, BlockStats<T>& stats) {
    const auto grad_q = rows_of(backward_.grad_q, head_);
    for (Index i = 0; i < kBlock<T>; i++) {
      const Index query = block.first + i;
      stats.lse[i] = std::numeric_limits<T>::infinity();
      stats.minus_d[i] = stats.common_distance[i] = T(0);
      if (i >= block.rows) continue;
      find_lse(block, i, stats.lse[i], stats.common_distance[i]);
      std::fill_n(grad_q[query], params_.head_dim, T(0));
    }
    with_scalar(rows_of(backward_.output, head_), [&](const auto& output) {
      with_rows(backward_.grad_output, head_, [&](const auto& rows) {
        with_scalar(rows, [&](const auto& grad_output) {
          for (Index i = 0; i < block.rows; i++)
            if (stats.lse[i] != std::numeric_limits<T>::infinity())
              stats.minus_d[i] = -dot(output[block.first + i], grad_output[block.first + i], backward_.output.head_dim);
        });
      });
    });
    if (backward_.grad_lse) add_grad_lse(block, stats);
  }

  /// Adds the gradient of the lse to -D. The row of dS then sums to dlse_i instead of 0. In the gradient of a slope, a
  /// row with all its keys counts distances from its common distance, which dlse_i multiplies.
  void add_grad_lse(const Block<T>& block, BlockStats<T>& stats) {
    using Gradient = BiasGradient<typename F::Bias>;
    const BackwardPlan& plan = backward_.plan;
    double* const slot = backward_.slots +
                         (head_ * plan.query_chunks + chunk_) * Gradient::slot_size(plan.rows<T>(), plan.tiles * kTile);
    for (Index i = 0; i < block.rows; i++) {
      if (stats.lse[i] == std::numeric_limits<T>::infinity()) continue;
      const Index query = block.first + i;
      const T grad_lse = backward_.grad_lse[head_ * backward_.lse_stride + query];
      stats.minus_d[i] += grad_lse;
      // Without a shifted lse, the rows with keys have no common distance.
      if (!backward_.shifted_lse || stats.common_distance[i] != 0) continue;
      if constexpr (kHasPositions<F>)
        Gradient::add_common(double(grad_lse), block.positions.lanes->beyond[i], slot);
      else
        Gradient::add_common(double(grad_lse), mask_.common_distance(query, sequence_.slope(head_)), slot);
    }
  }

  /// Finds the shifted lse, in base 2, and the common distance that the gradient of a slope must add. If the lse of the
  /// keys of this call equals the given lse up to the rounding of the latter, the row has no other keys that matter.
  /// The lse of the keys of this call is then used, because it has the digits that the given one lost by rounding.
  /// `common` is 0 then, because the sum of the row of dS is known: 0, or the gradient of the lse.
  void find_lse(const Block<T>& block, Index row, T& lse, T& common) const {
    const Index query = block.first + row;
    const double given = double(backward_.lse[head_ * backward_.lse_stride + query]);
    if (given == -std::numeric_limits<double>::infinity()) return;
    double distance = 0, penalty = 0;
    if constexpr (kHasPositions<F>) {
      distance = std::abs(block.positions.lanes->beyond[row]);
      penalty = block.positions.lanes->common[row];
    } else {
      const double slope = sequence_.slope(head_);
      distance = double(mask_.common_distance(query, slope));
      penalty = slope * distance;
    }
    const double shifted_lse = given + penalty;
    if (backward_.shifted_lse) {
      const double computed_lse = double(backward_.shifted_lse[head_ * sequence_.q.tokens + query]);
      const double rounding =
          double(std::numeric_limits<T>::epsilon()) * (std::abs(given) + std::abs(computed_lse) + 8);
      if (std::isfinite(computed_lse) && std::abs(computed_lse - shifted_lse) <= rounding) {
        lse = T(computed_lse * std::numbers::log2e);
        return;
      }
      common = clamped<T>(distance);
    }
    lse = T(shifted_lse * std::numbers::log2e);
  }

  /// Finds the range of tiles that a block must compute. Returns an upper bound of the pruned mass of its rows, as a
  /// share.
  double find_tiles(const Block<T>& block, BlockStats<T>& stats) {
    TileRange& tiles = stats.tiles;
    tiles = {};
    if (block.tiles() == 0) return 0;
    tiles = {std::int32_t(block.any_visible.begin / kTile), std::int32_t((block.any_visible.end - 1) / kTile)};
    if (!key_bounds_ || block.far) return 0;
    const TileRange all = tiles;
    compute_query_bounds(block, stats);
    Vec<T> pruned_mass[kVectors];
    for (Vec<T>& x : pruned_mass) x = broadcast<T>(T(0));
    const bool ahead = mask_.sees_ahead(block.first);

    // Prunes the tiles up to `number`, or from `number` on, if the bound allows it. Every step of the searches below is
    // proved by itself.
    const auto prune = [&](Index number, bool left, Vec<T>* sum) {
      const RemainingKeys<T> remaining =
          left ? remaining_until<T>(*key_bounds_, tail_bounds_, slope_per_key(bias_, slope_, left), number,
                                    {block.any_visible.begin, mask_.keys})
               : remaining_from<T>(*key_bounds_, tail_bounds_, slope_per_key(bias_, slope_, left), number,
                                   block.any_visible.end);
      const T share = budget_.side<T>(left && ahead);
      return try_prune(penalty_of(bias_, block.positions, slope_, remaining.key, left), stats, remaining, share, sum);
    };
    const auto can_prune = [&](Index number, bool left) {
      Vec<T> sum[kVectors];
      std::copy_n(pruned_mass, kVectors, sum);
      return prune(number, left, sum);
    };
    // Tiles before `end` lie wholly to the left of the block.
    Index first = tiles.first, end = std::min<Index>((block.lowest + 1) / kTile, tiles.last);
    while (first < end) {
      const Index middle = (first + end) / 2;
      can_prune(middle, true) ? first = middle + 1 : end = middle;
    }
    if (first > tiles.first) prune(first - 1, true, pruned_mass);
    tiles.first = std::int32_t(first);

    if (ahead) {
      Index last = std::max<Index>(ceil_div(block.highest, kTile), tiles.first), pruned_from = tiles.last + 1;
      while (last < pruned_from) {
        const Index middle = (last + pruned_from) / 2;
        can_prune(middle, false) ? pruned_from = middle : last = middle + 1;
      }
      if (pruned_from <= tiles.last) prune(pruned_from, false, pruned_mass);
      tiles.last = std::int32_t(pruned_from - 1);
    }
    T max_pruned_mass = 0;
    for (const Vec<T>& x : pruned_mass) max_pruned_mass = std::max(max_pruned_mass, reduce_max(x));
    const bool prunes =
        tiles.first > all.first || tiles.last < all.last || mask_.visible_sinks(block.first + block.rows - 1).end > 0;
    return double(max_pruned_mass) + (prunes ? budget_.outliers() : 0);
  }

  /// Computes the query bounds of a block.
  void compute_query_bounds(const Block<T>& block, BlockStats<T>& stats) {
    const T scale = T(params_.scale * std::numbers::log2e);
    const auto q = rows_of(sequence_.q, head_);
    for (int r = 0; r < kVectors; r++)
      pack_transposed(q, block.first + r * kLanes<T>, block.rows - r * kLanes<T>, params_.head_dim, scale,
                      packed_ + r * kLanes<T>);
    std::copy_n(key_bounds_->center, params_.head_dim, center_);
    measure_queries(packed_, params_.head_dim, scale, block.rows, center_, *key_bounds_, mask_.keys,
                    stats.query_bounds);
  }

  /// Σ_i x_i y_i, i < n, in T.
  template <class X, class Y>
  static T dot(const X* x, const Y* y, Index n) {
    Vec<T> sum = broadcast<T>(T(0));
    Index d = 0;
    for (; d + kLanes<T> <= n; d += kLanes<T>) sum = fma(widen<T>(x + d), widen<T>(y + d), sum);
    T all = reduce_add(sum);
    for (; d < n; d++) all += T(x[d]) * T(y[d]);
    return all;
  }

  const Params<F>& params_;
  const SequenceParams<F>& sequence_;
  const BackwardSequenceParams<F>& backward_;
  const ResolvedMask mask_;
  Index head_, chunk_;
  T *packed_, *center_;
  PruningStats* stats_;
  double slope_;  // m log2 e
  typename F::Bias bias_;
  PruningBudget budget_;
  const KeyTileBounds<T>* key_bounds_;
  const T* tail_bounds_;
};

}  // namespace alibi::inline ALIBI_ISA::kernel
