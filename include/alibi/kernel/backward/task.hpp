// The fused backward pass. Probabilities are computed again from q, k and the lse of the forward. No matrix of queries
// by keys is ever stored.
//
// For each tile of keys and block of queries, transposed like the forward, with a query in each lane:
//
//   forward                        backward
//   S = τ Q K' + bias              S = τ Q K' + bias
//   P = softmax(S)                 P = 2^(S - lse)
//   O = P V                        dV += P' dO,   dP = dO V'
//   P = softmax(S)                 dS = P ∘ (dP - D),   D_i = Σ_d dO_id o_id
//   lse = ln Σ exp(S)              D_i -= dlse_i, if the loss depends on the lse
//   S = τ Q K' + bias              dQ += τ dS K,   dK += τ dS' Q,   dbias += dS
//
// dP starts from -D, as scores start from the bias. Each pair of query and key takes one exponential and five products
// of 2 head_dim operations. The forward has two products.
//
// If a row of q, grad_output or output sees a key and has a non-finite value, the value also reaches keys that the row
// does not see: those of the tiles that its block computes, since 0 · inf = NaN. Internal.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>
#include <span>
#include <type_traits>
#include <utility>

#include "alibi/kernel/backward/dkdv.hpp"
#include "alibi/kernel/backward/rows.hpp"
#include "alibi/kernel/backward/schedule.hpp"
#include "alibi/kernel/backward/scores.hpp"
#include "alibi/kernel/forward/params.hpp"
#include "alibi/kernel/pruning/bound.hpp"
#include "alibi/kernel/simd/bf16.hpp"
#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/bias.hpp"
#include "alibi/kernel/tile/bias_gradient.hpp"
#include "alibi/kernel/tile/block.hpp"
#include "alibi/kernel/tile/load.hpp"
#include "alibi/kernel/tile/microkernel.hpp"
#include "alibi/kernel/tile/position_bias.hpp"
#include "alibi/kernel/tile/rows.hpp"
#include "alibi/kernel/tile/scores.hpp"
#include "alibi/kernel/tile/softmax.hpp"
#include "alibi/kernel/tile/values.hpp"
#include "alibi/mask.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// A block in use, its rows once they are loaded, and its keys of the tile in use.
template <class T>
struct QueryBlock : Block<T> {
  const BlockStats<T>* stats = nullptr;
  bool loaded = false, started = false;  // whether its rows are loaded; whether grad_q is initialised
  TileKeys keys{};
  Side side = Side::edge;

  T* p = nullptr;                          // [kScoreRows][kBlock]: P, then dS
  T *q = nullptr, *grad_output = nullptr;  // [head_dim][kBlock], [value_dim][kBlock]
  T* grad_q = nullptr;                     // [head_dim][kBlock]
  T *q_rows = nullptr,
    *grad_output_rows = nullptr;  // [kBlock][padded head_dim], times τ; [kBlock][padded value_dim]
};

/// P = 2^(S - lse) for a block and a tile. Like compute_ds(), it is compiled once for several kinds of arrays.
template <class T, class Start, class Visible>
void compute_p(const QueryBlock<T>& block, const Tile<T>& tile, Index head_dim, T scale, Prefetch& ahead,
               const Start& start, const Visible& visible) {
  Vec<T> shift[kVectors];
  for (int r = 0; r < kVectors; r++) shift[r] = sub(load<T>(block.stats->lse + r * kLanes<T>), start.offset[r]);
  score<1>(tile.k, tile.key_stride, head_dim, static_cast<const T*>(block.q), scale, block.keys, start, ahead,
           Probabilities<T, Visible>{visible, block.keys.end, shift, block.p});
}

/// dS = P ∘ (dO V' - D), dbias += dS
template <class T, class BiasTile>
void compute_ds(const QueryBlock<T>& block, const Tile<T>& tile, Index value_dim, Prefetch& ahead,
                const BiasTile& bias) {
  score<1>(tile.v, tile.value_stride, value_dim, static_cast<const T*>(block.grad_output), T(1), block.keys,
           LaneStart<T>{block.stats->minus_d}, ahead, ScoreGradients<T, BiasTile>{bias, block.p});
}

template <class F>
class BackwardTask {
 public:
  using T = typename F::T;
  static_assert(std::is_same_v<typename F::Unit, T> && !F::kCached, "gradients are not made of pairs, or of a cache");

  BackwardTask(const BackwardParams<F>& params, const BackwardItem& item, std::byte* scratch);

  void run() {
    std::fill_n(grad_k_, rows_ * (padded_head_dim_ + padded_value_dim_), T(0));
    for (head_ = kv_head_ * group_; head_ < (kv_head_ + 1) * group_; head_++) {
      begin_head();
      const Index all = ceil_div(sequence_.q.tokens, kBlock<T>), first = item_.queries * backward_.plan.blocks;
      const Index end = std::min(first + backward_.plan.blocks, all);
      for (Index b = first; b < end; b += kQueryBlocks<T>) {
        begin_blocks(b, std::min<Index>(kQueryBlocks<T>, end - b));
        for (std::int32_t tile = tiles_.first; tile <= tiles_.last; tile++) compute_tile(tile);
        if (mask_.sinks > 0) compute_sinks();
        for (QueryBlock<T>& block : blocks())
          if (block.loaded) finalize(block);
      }
      end_head();
    }
    write_keys(backward_.grad_k, grad_k_, padded_head_dim_);
    write_keys(backward_.grad_v, grad_v_, padded_value_dim_);
  }

 private:
  std::span<QueryBlock<T>> blocks() { return {blocks_, std::size_t(count_)}; }

  void begin_head();
  void begin_blocks(Index first, Index count);
  void compute_tile(Index number);
  void compute_sinks();
  bool needs(const QueryBlock<T>& block, Index tile) const;
  bool is_outlier_tile(Index tile) const;
  const Tile<T>& loaded_tile(Index number);
  void load_queries(QueryBlock<T>& block);
  void zero_row(QueryBlock<T>& block, Index row);
  void accumulate_dq(QueryBlock<T>& block, const Tile<T>& tile);
  void finalize(const QueryBlock<T>& block);
  void end_head();
  void write_keys(const View<T>& to, const T* from, Index stride) const;

  const BackwardItem& item_;
  const Params<F>& params_;
  const SequenceParams<F>& sequence_;
  const BackwardSequenceParams<F>& backward_;
  ResolvedMask mask_;  // of the head; in compute_sinks(), that of the sinks
  Index group_, kv_head_, head_;
  Index head_dim_, value_dim_;
  Index padded_head_dim_, padded_value_dim_;  // rounded up to whole vectors
  TileRange tiles_;                           // of the chunk of keys
  Index rows_;                                // the number of keys of a chunk
  Source<F> source_;
  PruningBudget budget_{};  // of the head
  const KeyTileBounds<T>* key_bounds_ = nullptr;
  double slope_ = 0;
  T scale_;  // τ log2 e
  typename F::Bias bias_;

  T *grad_k_, *grad_v_;  // [rows_][padded_head_dim_], [rows_][padded_value_dim_]
  T* tile_buffer_;       // tiles that are not read in place
  BiasGradient<typename F::Bias> bias_gradient_;
  Tile<T> tile_[BackwardPlan::kMaxTiles];
  bool loaded_[BackwardPlan::kMaxTiles] = {};
  QueryBlock<T> blocks_[kQueryBlocks<T>];
  PositionLanes<T> lanes_[kHasPositions<F> ? kQueryBlocks<T> : 1];  // of the blocks, for a bias of positions
  Index count_ = 0;                                                 // of blocks_ in use
  Index computed_ = 0;                                              // the number of pairs of block and tile
  Prefetch ahead_{};
};

/// Computes a tile for the blocks that need it: the lines at the top of this file.
template <class F>
void BackwardTask<F>::compute_tile(Index number) {
  QueryBlock<T>* use[kQueryBlocks<T>];
  KeyShare<T> dv_shares[kQueryBlocks<T>], dk_shares[kQueryBlocks<T>];
  std::size_t count = 0;
  for (QueryBlock<T>& block : blocks()) {
    block.keys = block.keys_of(mask_, number * kTile);
    if (block.keys.begin >= block.keys.end || !needs(block, number)) continue;
    if (!block.loaded) load_queries(block);
    block.side = block.side_of(block.keys);
    dv_shares[count] = {block.p, block.grad_output_rows, &block.keys};
    dk_shares[count] = {block.p, block.q_rows, &block.keys};
    use[count++] = &block;
  }
  if (count == 0) return;
  computed_ += Index(count);
  const Tile<T>& tile = loaded_tile(number);
  const Index at = (number - tiles_.first) * kTile;

  for (std::size_t i = 0; i < count; i++)  // P = 2^(S - lse)
    with_start(bias_, *use[i], mask_, use[i]->keys, use[i]->side, [&](const auto& start, const auto& visible) {
      compute_p(*use[i], tile, head_dim_, scale_, ahead_, start, visible);
    });
  accumulate_dkdv<T>({dv_shares, count}, padded_value_dim_, grad_v_ + at * padded_value_dim_);  // dV += P' dO
  for (std::size_t i = 0; i < count; i++) {  // dS = P ∘ (dO V' - D), dbias += dS
    const QueryBlock<T>& block = *use[i];
    const auto bias = bias_gradient_.tile(bias_, block.positions, block.stats->common_distance, block.keys, block.side);
    compute_ds(block, tile, value_dim_, ahead_, bias);
  }
  accumulate_dkdv<T>({dk_shares, count}, padded_head_dim_, grad_k_ + at * padded_head_dim_);  // dK += τ dS' Q
  for (std::size_t i = 0; i < count; i++) accumulate_dq(*use[i], tile);  // dQ += dS K; finalize() multiplies by τ
}

/// The second visit of tiles with sinks, for those before the windows of the blocks.
template <class F>
void BackwardTask<F>::compute_sinks() {
  mask_.only_sinks = true;
  for (QueryBlock<T>& block : blocks()) block.see(mask_);
  for (Index tile = tiles_.first; tile <= tiles_.last && tile * kTile < mask_.sinks; tile++) compute_tile(tile);
  mask_.only_sinks = false;
}

template <class F>
void BackwardTask<F>::accumulate_dq(QueryBlock<T>& block, const Tile<T>& tile) {
  const Accumulate mode = std::exchange(block.started, true) ? Accumulate::add : Accumulate::overwrite;
  with_vectors(block.keys.vectors, [&](auto n) {
    accumulate<n>(tile.k, tile.key_stride, head_dim_, block.p, block.keys, mode, static_cast<Vec<T>*>(nullptr),
                  block.grad_q);
  });
}

/// Whether a block must compute a tile: it is in the range of the block, or it is an outlier tile or one of sinks that
/// is not pruned.
template <class F>
bool BackwardTask<F>::needs(const QueryBlock<T>& block, Index tile) const {
  const bool sinks = mask_.only_sinks;
  const TileRange& reach = block.stats->tiles;
  if (!sinks && reach.first <= tile && tile <= reach.last) return true;
  if (sinks ? !key_bounds_ || block.far : !is_outlier_tile(tile)) return sinks;
  const bool left = sinks || block.place_of(block.keys) == Side::left;
  const Index end = sinks ? block.keys.tile + block.keys.end : mask_.keys;
  const double slope = slope_ * std::numbers::log2e;
  Vec<T> pruned_mass[kVectors];
  for (Vec<T>& x : pruned_mass) x = broadcast<T>(T(0));
  const RemainingKeys<T> remaining =
      remaining_tile<T>(*key_bounds_, slope_per_key(bias_, slope, left), tile, end, left);
  return !try_prune(penalty_of(bias_, block.positions, slope, remaining.key, left), *block.stats, remaining,
                    budget_.outlier<T>(key_bounds_->outlier_count + ceil_div(mask_.sinks, kTile)), pruned_mass);
}

template <class F>
bool BackwardTask<F>::is_outlier_tile(Index tile) const {
  return key_bounds_ && std::binary_search(key_bounds_->outliers, key_bounds_->outliers + key_bounds_->outlier_count,
                                           std::int32_t(tile));
}

/// The tile as the products read it. Loads it on first use; the next tile is then prefetched while this one is in use.
template <class F>
const Tile<typename F::T>& BackwardTask<F>::loaded_tile(Index number) {
  const Index at = number - tiles_.first;
  if (!std::exchange(loaded_[at], true)) {
    const Index count = std::min<Index>(kTile, mask_.keys - number * kTile);
    tile_[at] = load_tile<F>(source_, number, count, head_dim_, value_dim_,
                             tile_buffer_ + at * tile_units<F>(head_dim_, value_dim_));
    if (number < tiles_.last)
      ahead_ = prefetch_tile<F>(source_, number + 1, mask_.keys, head_dim_, value_dim_, kTile / kRows);
  }
  return tile_[at];
}

template <class F>
BackwardTask<F>::BackwardTask(const BackwardParams<F>& params, const BackwardItem& item, std::byte* scratch)
    : item_(item),
      params_(params.forward),
      sequence_(params.forward.sequences[std::size_t(item.sequence)]),
      backward_(params.sequences[std::size_t(item.sequence)]),
      mask_(sequence_.mask),
      group_(params_.group()),
      kv_head_(item.kv_head),
      head_(kv_head_ * group_),
      head_dim_(params_.head_dim),
      value_dim_(params_.value_dim),
      padded_head_dim_(round_up<T>(head_dim_)),
      padded_value_dim_(round_up<T>(value_dim_)),
      tiles_(tiles_of(backward_.plan, item.keys, mask_.keys)),
      rows_(backward_.plan.tiles * kTile),
      source_{rows_of(sequence_.k, kv_head_), rows_of(sequence_.v, kv_head_)},
      scale_(T(params_.scale * std::numbers::log2e)),
      bias_(sequence_.bias(head_)),
      grad_k_(reinterpret_cast<T*>(scratch)),
      grad_v_(grad_k_ + rows_ * padded_head_dim_),
      tile_buffer_(grad_v_ + rows_ * padded_value_dim_),
      bias_gradient_(tile_buffer_ + backward_.plan.tiles * tile_units<F>(head_dim_, value_dim_),
                     mask_.position(item.queries * backward_.plan.template rows<T>()),
                     backward_.plan.template rows<T>(), tiles_.first * Index(kTile), rows_) {
  using Gradient = BiasGradient<typename F::Bias>;
  T* next = tile_buffer_ + backward_.plan.tiles * tile_units<F>(head_dim_, value_dim_) +
            Gradient::scratch_size(backward_.plan.template rows<T>(), rows_);
  const auto take = [&next](Index rows) { return std::exchange(next, next + rows * kBlock<T>); };
  for (QueryBlock<T>& block : blocks_) {
    block.p = take(kScoreRows);
    block.q = take(head_dim_);
    block.grad_output = take(value_dim_);
    block.grad_q = take(head_dim_);
    block.q_rows = take(padded_head_dim_);
    block.grad_output_rows = take(padded_value_dim_);
  }
}

template <class F>
void BackwardTask<F>::begin_head() {
  slope_ = sequence_.slope(head_);
  bias_ = sequence_.bias(head_);
  if constexpr (kHasPositions<F>) mask_ = bias_.mask_of(sequence_.mask);
  budget_ = sequence_.budget(head_);
  key_bounds_ = pruning_key_bounds(sequence_, head_, budget_);
  bias_gradient_.clear();
}

/// Begins blocks first, …, first + count - 1 of the head.
template <class F>
void BackwardTask<F>::begin_blocks(Index first, Index count) {
  const Index all = ceil_div(sequence_.q.tokens, kBlock<T>);
  count_ = count;
  for (QueryBlock<T>& block : blocks()) {
    const Index query = first * kBlock<T>;
    const Index number = head_ * all + first++;
    block.stats = backward_.blocks + number;
    static_cast<Block<T>&>(block) =
        Block<T>(mask_, query, std::min<Index>(kBlock<T>, sequence_.q.tokens - query), slope_);
    if constexpr (kHasPositions<F>)
      bias_.place(mask_, block, lanes_[&block - blocks_], backward_.nearest ? backward_.nearest + number : nullptr,
                  true);
    block.loaded = block.started = false;
  }
}

/// Loads the rows of q and grad_output of a block in two forms: transposed, and as padded rows.
template <class F>
void BackwardTask<F>::load_queries(QueryBlock<T>& block) {
  const auto pack = [&block](const auto& rows, Index dims, T scale, T* to) {
    for (int r = 0; r < kVectors; r++) {
      const Index row = r * kLanes<T>;
      pack_transposed(rows, block.first + row, block.rows - row, dims, scale, to + row);
    }
  };
  const auto lay_out = [&block](const auto& rows, Index dims, Index stride, T* to) {
    widen_rows(rows, block.first, block.rows, dims, to, stride);
    for (Index i = 0; i < block.rows; i++) std::fill(to + i * stride + dims, to + (i + 1) * stride, T(0));
    std::fill(to + block.rows * stride, to + kBlock<T> * stride, T(0));
  };
  const auto q = rows_of(sequence_.q, head_);
  pack(q, head_dim_, scale_, block.q);
  lay_out(q, head_dim_, padded_head_dim_, block.q_rows);
  const Vec<T> scale = broadcast<T>(T(params_.scale));
  for (Index i = 0; i < block.rows * padded_head_dim_; i += kLanes<T>)
    store<T>(block.q_rows + i, mul(load<T>(block.q_rows + i), scale));
  with_rows(backward_.grad_output, head_, [&](const auto& grad_output) {
    pack(grad_output, value_dim_, T(1), block.grad_output);
    lay_out(grad_output, value_dim_, padded_value_dim_, block.grad_output_rows);
  });
  for (Index i = 0; i < block.rows; i++)
    if (block.stats->lse[i] == std::numeric_limits<T>::infinity()) zero_row(block, i);
  block.loaded = true;
}

/// Sets the rows of a query that sees no key to zero, so that it has no effect even if its values are not finite.
template <class F>
void BackwardTask<F>::zero_row(QueryBlock<T>& block, Index row) {
  for (Index d = 0; d < head_dim_; d++) block.q[d * kBlock<T> + row] = T(0);
  for (Index d = 0; d < value_dim_; d++) block.grad_output[d * kBlock<T> + row] = T(0);
  std::fill_n(block.q_rows + row * padded_head_dim_, padded_head_dim_, T(0));
  std::fill_n(block.grad_output_rows + row * padded_value_dim_, padded_value_dim_, T(0));
}

/// Adds dQ of the block, multiplied by τ, to the rows of the caller.
template <class F>
void BackwardTask<F>::finalize(const QueryBlock<T>& block) {
  const Rows<T> to = rows_of(backward_.grad_q, head_);
  for (int r = 0; r < block.vectors; r++) {
    const Index row = r * kLanes<T>;
    unpack_transposed<true>(block.grad_q + row, broadcast<T>(T(params_.scale)), head_dim_, to, block.first + row,
                            block.rows - row);
  }
  if constexpr (kHasPositions<F>)
    if (double* const sums = backward_.grad_query_positions)
      for (Index i = 0; i < block.rows; i++)
        sums[head_ * sequence_.q.tokens + block.first + i] -= double(block.positions.lanes->gradient[i]);
}

template <class F>
void BackwardTask<F>::end_head() {
  using Gradient = BiasGradient<typename F::Bias>;
  const Index slot = Gradient::slot_size(backward_.plan.template rows<T>(), rows_);
  bias_gradient_.add_to(backward_.slots + (head_ * backward_.plan.query_chunks + item_.queries) * slot);
  if constexpr (kHasPositions<F>)
    if (double* const sums = backward_.grad_key_positions) {
      const Index first = tiles_.first * Index(kTile);
      bias_gradient_.add_to_keys(sums + head_ * mask_.keys + first, std::min(rows_, mask_.keys - first));
    }
  if (params_.pruning_stats)
    merge_stats(params_.pruning_stats[item_.sequence * params_.heads + head_], budget_, std::exchange(computed_, 0), 0,
                0);
}

/// Adds dK or dV of the chunk to the rows of the caller.
template <class F>
void BackwardTask<F>::write_keys(const View<T>& to, const T* from, Index stride) const {
  const Rows<T> rows = rows_of(to, kv_head_);
  const Index first = tiles_.first * Index(kTile), end = std::min<Index>((tiles_.last + 1) * Index(kTile), mask_.keys);
  for (Index j = first; j < end; j++, from += stride) {
    for (Index d = 0; d < to.head_dim; d += kLanes<T>) {
      const Index n = std::min<Index>(kLanes<T>, to.head_dim - d);
      T* const at = rows[j] + d;
      narrow_first(at, add(load_units<T>(at, n), load<T>(from + d)), n);
    }
  }
}

}  // namespace alibi::inline ALIBI_ISA::kernel
