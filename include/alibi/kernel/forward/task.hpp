// The fused forward: one pass over the keys. No score ever leaves the first-level cache.
//
// A task is a run of consecutive queries of one head, in blocks of kBlock queries. All blocks use a tile of keys and
// values once it is loaded. Tiles are read from the diagonal outward, so that large scores are found first and
// rescaling is rare. Each pair of tile and block takes the three lines of the paper:
//
//   S = τ Q K' + bias          kernel/tile/scores.hpp, bias.hpp
//   P = 2^(S - μ)              kernel/tile/softmax.hpp; μ is the reference
//   O = α O + P V              kernel/tile/values.hpp
//
// This ends when the remaining keys cannot matter (pruning.hpp). A block prunes the rest of a side at once, and then
// judges the outlier tiles one by one. The sinks before a window take a second visit of the first tiles, with a mask of
// their own (ResolvedMask::only_sinks), and are judged like outlier tiles.
//
// The scratch depends on the head dims alone, never on the number of tokens. Nothing is allocated or validated here.
//
// A tile may hold keys that only some queries of a block see. A hidden key has weight exactly 0. But 0 times an
// infinity or NaN is NaN, so that a non-finite value reaches every query of a block if one of them sees its key or,
// with pairs, the other key of its pair. Internal.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>
#include <numeric>
#include <span>
#include <type_traits>
#include <utility>

#include "alibi/kernel/forward/params.hpp"
#include "alibi/kernel/forward/schedule.hpp"
#include "alibi/kernel/pruning/bound.hpp"
#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/bias.hpp"
#include "alibi/kernel/tile/block.hpp"
#include "alibi/kernel/tile/load.hpp"
#include "alibi/kernel/tile/microkernel.hpp"
#include "alibi/kernel/tile/position_bias.hpp"
#include "alibi/kernel/tile/rows.hpp"
#include "alibi/kernel/tile/scores.hpp"
#include "alibi/kernel/tile/softmax.hpp"
#include "alibi/kernel/tile/values.hpp"
#include "alibi/mask.hpp"
#include "alibi/pruning.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

inline constexpr Index kNone = std::numeric_limits<Index>::max();

/// A block and its state after the tiles so far. Units are U, sums T.
template <class U, class T>
struct BlockState : Block<T> {
  bool started = false;  // whether o is initialised
  SoftmaxState<T> state[kVectors];
  U* q = nullptr;  // [units of head_dim][kBlock]
  T* o = nullptr;  // [value_dim][kBlock]

  // The pruned tiles are those up to `left` and from `right` on. pruned_mass bounds their mass, relative to the
  // reference.
  Index left = -1, right = kNone;
  Vec<T> pruned_mass[kVectors];
  QueryBounds<T> query_bounds;

  bool is_pruned(Index number) const { return number <= left || number >= right; }
};
template <class F>
using ForwardBlock = BlockState<typename F::Unit, typename F::T>;

/// What the blocks of a task have in common.
template <class U, class T>
struct TaskTile {
  const Tile<U>& tile;
  Index head_units, value_dim;  // head_units: of head_dim
  T scale;                      // τ log2 e
  T* probabilities;             // [kScoreRows][kBlock]: scores, then probabilities
  Prefetch& ahead;
};

/// One tile and one block: the three lines of the paper. It depends on how numbers are multiplied, not on how they are
/// stored, so that it is compiled once for several kinds of arrays.
template <Index kDimStep, class U, class T, class Bias, class Visible>
void attend(BlockState<U, T>& block, const TaskTile<U, T>& task, const TileKeys& keys, const Bias& bias,
            const Visible& visible) {
  constexpr bool kMasked = !std::is_same_v<Visible, NoMask>;
  const Tile<U>& tile = task.tile;
  T* const s = task.probabilities;
  const U* p = reinterpret_cast<const U*>(s);
  Vec<T> largest[kVectors], factor[kVectors];
  for (auto& x : largest) x = broadcast<T>(-std::numeric_limits<T>::infinity());
  score<kDimStep>(tile.k, tile.key_stride, task.head_units, block.q, task.scale, keys, bias,
                  task.ahead,  // S = τ Q K' + bias
                  StoreScores<T, Visible>{visible, keys.end - 1, s, largest});

  bool outgrown = false;
  for (int r = 0; r < keys.vectors; r++) outgrown |= block.state[r].outgrown(add(largest[r], bias.offset[r]));
  if (outgrown)
    for (int r = 0; r < keys.vectors; r++) {
      factor[r] = block.state[r].raise(add(largest[r], bias.offset[r]));
      block.pruned_mass[r] = mul(block.pruned_mass[r], factor[r]);
    }
  const Accumulate mode = !block.started ? Accumulate::overwrite : outgrown ? Accumulate::rescale : Accumulate::add;

  with_vectors(keys.vectors, [&](auto n) {
    exponentiate<U, n, kMasked>(s, keys.begin, keys.ends, bias.offset, largest, block.state);  // P = 2^(S - μ)
    accumulate<n>(tile.v, tile.value_stride, task.value_dim, p, keys, mode, factor, block.o);  // O = α O + P V
  });
  block.started = true;
}

template <class F>
class ForwardTask {
 public:
  using T = typename F::T;
  using U = typename F::Unit;

  ForwardTask(const Params<F>& params, const ForwardItem& item, std::byte* scratch);

  void run() {
    for (auto& block : blocks()) load_queries(block);
    Sweep sweep = tiles();
    for (Index number = middle_ = sweep.next(), next; number >= 0; number = next) {
      next = sweep.next();
      begin_tile(number, next);
      for (auto& block : blocks()) {
        const TileKeys keys = block.keys_of(mask_, number * kTile);
        if (keys.begin < keys.end && !prune_or_skip(block, keys, number)) compute_tile(block, keys);
      }
      if (newly_pruned_) stop(sweep);
    }
    if (any_pruned_) compute_outliers();
    if (mask_.sinks > 0) compute_sinks();
    for (const auto& block : blocks()) finalize(block);
    if (stats_) record_stats();
  }

 private:
  std::span<ForwardBlock<F>> blocks() { return {blocks_, std::size_t(count_)}; }
  void load_queries(ForwardBlock<F>& block);
  Sweep tiles() const;
  void begin_tile(Index number, Index next);
  bool prune_or_skip(ForwardBlock<F>& block, const TileKeys& keys, Index number);
  void stop(Sweep& sweep);
  void compute_outliers();
  void compute_sinks();
  bool prune_alone(ForwardBlock<F>& block, Index number, Index end, bool left);
  void compute_tile(ForwardBlock<F>& block, const TileKeys& keys);
  void finalize(const ForwardBlock<F>& block) const;
  T lse_of(const ForwardBlock<F>& block, Index row) const;
  void record_stats();

  ResolvedMask mask_;  // in compute_sinks(), that of the sinks
  Index head_dim_, value_dim_;
  Rows<const typename F::Query> q_;
  Source<F> source_;
  Rows<typename F::Query> output_;
  T* lse_;  // of the head, or null
  bool shifted_lse_;
  double slope_;        // m, per position
  double slope_log2e_;  // m log2 e
  T scale_;             // τ log2 e
  typename F::Bias bias_;
  T* probabilities_;  // [kScoreRows][kBlock]: scores, then probabilities
  int count_ = 0;

  Index middle_ = -1;  // the tile that the sweep starts from

  // The tile in use, and the prefetch of the next one.
  Index number_ = -1;
  bool loaded_ = false;
  U* buffer_;  // of load_tile()
  Tile<U> tile_{};
  Prefetch ahead_{};

  // Pruning; key_bounds_ is null if the head does not prune.
  const KeyTileBounds<T>* key_bounds_;
  PruningBudget budget_;
  U* center_;                      // [units of head_dim]
  const T* tail_bounds_;           // of compute_tail_bounds(), [1 or 2][tiles]; or null
  RemainingKeys<T> remaining_[2];  // from tile remaining_of_ outward: to the right, to the left
  Index remaining_of_[2] = {-1, -1};
  bool any_pruned_ = false, newly_pruned_ = false;  // newly: since the last stop()

  PruningStats* stats_;               // of the head, or null
  Index computed_ = 0, visible_ = 0;  // pairs of a block and a tile; visible_: those of the windows, once sinks follow
  ForwardBlock<F> blocks_[kMaxBlocks];
  PositionLanes<T> lanes_[kHasPositions<F> ? kMaxBlocks : 1];  // of the blocks, for a bias of positions
};

/// Loads the tile, if it is not loaded yet, and computes it for a block. The start of its sums depends on its side.
template <class F>
void ForwardTask<F>::compute_tile(ForwardBlock<F>& block, const TileKeys& keys) {
  if (!loaded_) {
    const Index first = number_ * kTile;
    // Copying takes as long as a tenth of a block's work on the tile.
    const bool copies = count_ > 1;
    tile_ = load_tile<F>(source_, number_, std::min<Index>(kTile, mask_.keys - first), head_dim_, value_dim_, buffer_,
                         copies);
    loaded_ = true;
  }
  computed_++;
  const TileKeys all = whole(keys, kDepth<U>);
  Side side = block.side_of(keys);
  if (all.begin != keys.begin || !std::equal(keys.ends, keys.ends + keys.vectors, all.ends)) side = Side::edge;
  with_start(bias_, block, mask_, keys, side, [&](const auto& bias, const auto& visible) {
    attend<F::kDimStep, U, T>(block, {tile_, units<U>(head_dim_), value_dim_, scale_, probabilities_, ahead_}, all,
                              bias, visible);
  });
}

/// Whether a block has pruned the tile, or prunes it now, together with all more distant tiles on its side.
template <class F>
bool ForwardTask<F>::prune_or_skip(ForwardBlock<F>& block, const TileKeys& keys, Index number) {
  if (!key_bounds_ || block.far) return false;
  if (block.is_pruned(number)) return true;
  const Side side = block.place_of(keys);
  if (side == Side::edge || (side == Side::right && !key_bounds_->suffix_max))
    return false;  // without suffix_max no query sees keys after it

  const bool left = side == Side::left;
  if (left ? number > middle_ : number < middle_) return false;  // more distant tiles have already been computed
  RemainingKeys<T>& remaining = remaining_[left];
  if (std::exchange(remaining_of_[left], number) != number)
    remaining = left ? remaining_until<T>(*key_bounds_, tail_bounds_, slope_per_key(bias_, slope_log2e_, left), number,
                                          {blocks_[0].any_visible.begin, mask_.keys})
                     : remaining_from<T>(*key_bounds_, tail_bounds_, slope_per_key(bias_, slope_log2e_, left), number,
                                         blocks_[count_ - 1].any_visible.end);
  // Half is reserved for the other side while that may still prune.
  const bool both = mask_.sees_ahead(block.first) && !(left ? block.right < kNone : block.left >= 0);
  const T share = budget_.side<T>(both);
  if (!try_prune(penalty_of(bias_, block.positions, slope_log2e_, remaining.key, left), block.query_bounds, block.state,
                 remaining, share, block.pruned_mass))
    return false;
  (left ? block.left : block.right) = number;
  any_pruned_ = newly_pruned_ = true;
  return true;
}

/// Ends a side of the sweep once every block has pruned it.
template <class F>
void ForwardTask<F>::stop(Sweep& sweep) {
  newly_pruned_ = false;
  const auto all = [this](auto is_done) { return std::all_of(blocks_, blocks_ + count_, is_done); };
  if (all([](const auto& block) { return block.left >= 0; })) sweep.stop(Side::left);
  if (all([](const auto& block) { return block.right < kNone; })) sweep.stop(Side::right);
}

/// Computes the pruned outlier tiles that may matter by themselves.
template <class F>
void ForwardTask<F>::compute_outliers() {
  for (Index i = key_bounds_->outlier_count; i-- > 0;) {
    const Index number = key_bounds_->outliers[i], first = number * kTile;
    begin_tile(number, -1);
    for (auto& block : blocks()) {
      const TileKeys keys = block.keys_of(mask_, first);
      if (keys.begin >= keys.end || !block.is_pruned(number)) continue;
      if (!prune_alone(block, number, mask_.keys, block.place_of(keys) == Side::left)) compute_tile(block, keys);
    }
  }
}

/// Prunes the keys of one tile before key `end`, if all pruned keys of a block stay within the tolerance.
template <class F>
bool ForwardTask<F>::prune_alone(ForwardBlock<F>& block, Index number, Index end, bool left) {
  const RemainingKeys<T> remaining =
      remaining_tile<T>(*key_bounds_, slope_per_key(bias_, slope_log2e_, left), number, end, left);
  return try_prune(penalty_of(bias_, block.positions, slope_log2e_, remaining.key, left), block.query_bounds,
                   block.state, remaining, T(budget_.tolerance), block.pruned_mass);
}

/// Computes the sinks before the windows of the blocks, tile by tile, unless they are pruned.
template <class F>
void ForwardTask<F>::compute_sinks() {
  if constexpr (F::kCached) source_.turn_to_sinks();
  mask_.only_sinks = true;
  Index end = 0;
  for (auto& block : blocks()) {
    visible_ += block.tiles();
    block.see(mask_);
    end = std::max(end, block.any_visible.end);
  }
  const Index tiles = ceil_div(end, kTile);
  for (Index number = 0; number < tiles; number++) {
    begin_tile(number, number + 1 < tiles ? number + 1 : -1);
    for (auto& block : blocks()) {
      const TileKeys keys = block.keys_of(mask_, number * kTile);
      if (keys.begin >= keys.end) continue;
      if (key_bounds_ && !block.far && prune_alone(block, number, keys.tile + keys.end, true))
        any_pruned_ = true;
      else
        compute_tile(block, keys);
    }
  }
  mask_.only_sinks = false;
}

template <class F>
ForwardTask<F>::ForwardTask(const Params<F>& params, const ForwardItem& item, std::byte* scratch)
    : mask_(params.sequences[std::size_t(item.sequence)].mask_of_query_head(item.head)),
      head_dim_(params.head_dim),
      value_dim_(params.value_dim),
      bias_(params.sequences[std::size_t(item.sequence)].bias(item.head)) {
  const SequenceParams<F>& sequence = params.sequences[std::size_t(item.sequence)];
  const Index h = item.head, kv = h / params.group();
  q_ = rows_of(sequence.q, h);
  output_ = rows_of(sequence.output, h);
  if constexpr (F::kCached)
    source_ = sequence.cached[kv];
  else
    source_ = {rows_of(sequence.k, kv), rows_of(sequence.v, kv)};
  lse_ = sequence.lse ? sequence.lse + h * sequence.lse_stride : nullptr;
  shifted_lse_ = sequence.shifted_lse;
  slope_ = sequence.slope(h);
  slope_log2e_ = slope_ * std::numbers::log2e;
  scale_ = T(params.scale * std::numbers::log2e);
  stats_ = params.pruning_stats ? params.pruning_stats + item.sequence * params.heads + h : nullptr;
  budget_ = sequence.budget(h);
  key_bounds_ = pruning_key_bounds(sequence, h, budget_);
  tail_bounds_ = pruning_tail_bounds(sequence, h, key_bounds_);

  const auto take = [&scratch]<class X>(X*& to, Index size) {
    to = reinterpret_cast<X*>(std::exchange(scratch, scratch + std::size_t(size) * sizeof(X)));
  };
  take(probabilities_, kScoreRows * kBlock<T>);
  take(buffer_, tile_units<F>(head_dim_, value_dim_, true));
  for (Index i = item.chunk * item.blocks * kBlock<T>; count_ < item.blocks && i < sequence.q.tokens; i += kBlock<T>) {
    ForwardBlock<F>& block = blocks_[count_++];
    static_cast<Block<T>&>(block) = Block<T>(mask_, i, std::min<Index>(kBlock<T>, sequence.q.tokens - i), slope_);
    if constexpr (kHasPositions<F>) bias_.place(mask_, block, lanes_[count_ - 1]);
    take(block.q, units<U>(head_dim_) * kBlock<T>);
    take(block.o, value_dim_ * kBlock<T>);
  }
  take(center_, units<U>(head_dim_));
  if (key_bounds_) {
    if constexpr (F::kPairs) {
      std::fill_n(center_, units<U>(head_dim_), U{});
      for (Index d = 0; d < head_dim_; d++)
        (d % 2 ? center_[d / 2].high : center_[d / 2].low) = Bfloat16(key_bounds_->center[d]);
    } else {
      std::copy_n(key_bounds_->center, head_dim_, center_);
    }
  }
}

template <class F>
Sweep ForwardTask<F>::tiles() const {
  const Block<T>&first = blocks_[0], &last = blocks_[count_ - 1];
  const Index begin = first.any_visible.begin, end = last.any_visible.end;
  if (begin >= end) return {0, -1, -1};
  const Index center =
      mask_.sees_ahead(first.first) ? std::clamp(std::midpoint(first.lowest, last.highest), begin, end - 1) : end - 1;
  return {begin / kTile, center / kTile, (end - 1) / kTile};
}

/// Begins a tile. While it is used, the next tile is prefetched, or after the last tile the rows of the output.
template <class F>
void ForwardTask<F>::begin_tile(Index number, Index next) {
  number_ = number;
  loaded_ = false;
  const Index calls = count_ * kTile / kRows;
  if (next >= 0) {
    ahead_ = prefetch_tile<F>(source_, next, mask_.keys, head_dim_, value_dim_, calls);
  } else {
    const Block<T>& last = blocks_[count_ - 1];
    const Index start = blocks_[0].first, count = last.first + last.rows - start;
    ahead_ = Prefetch(output_[start], output_.stride, value_dim_, output_[start], 0, 0, count, calls);
  }
}

/// Loads the queries of a block and resets its state.
template <class F>
void ForwardTask<F>::load_queries(ForwardBlock<F>& block) {
  for (int r = 0; r < kVectors; r++) {
    block.state[r] = SoftmaxState<T>::empty();
    block.pruned_mass[r] = broadcast<T>(T(0));
    const Index row = r * kLanes<T>;
    if (r < block.vectors || key_bounds_)  // measure_queries() reads all vectors, the tiles those with a query
      pack_transposed(q_, block.first + row, block.rows - row, head_dim_, scale_, block.q + row);
  }
  if (key_bounds_)
    measure_queries(block.q, head_dim_, scale_, block.rows, center_, *key_bounds_, mask_.keys, block.query_bounds);
}

/// Normalises and writes the output of a block, and writes its lse.
template <class F>
void ForwardTask<F>::finalize(const ForwardBlock<F>& block) const {
  if (!block.started) {
    for (Index i = 0; i < block.rows; i++) std::fill_n(output_[block.first + i], value_dim_, typename F::Query{});
  } else {
    for (int r = 0; r < block.vectors; r++) {
      const Index row = r * kLanes<T>;
      unpack_transposed(block.o + row, block.state[r].normalizer(), value_dim_, output_, block.first + row,
                        block.rows - row);
    }
  }
  if (lse_)
    for (Index i = 0; i < block.rows; i++) lse_[block.first + i] = lse_of(block, i);
}

/// The lse of a row, computed in double. Unless the shifted lse is wanted, the largest bias of the row, which the
/// scores are relative to, is added again.
template <class F>
typename F::T ForwardTask<F>::lse_of(const ForwardBlock<F>& block, Index row) const {
  T reference[kLanes<T>], sum[kLanes<T>];
  const SoftmaxState<T>& state = block.state[row / kLanes<T>];
  store<T>(reference, state.reference);
  store<T>(sum, state.sum);
  const Index lane = row % kLanes<T>;
  if (sum[lane] == 0) return -std::numeric_limits<T>::infinity();
  double shift = 0;
  if constexpr (kHasPositions<F>)
    shift = shifted_lse_ ? 0 : block.positions.lanes->common[row];
  else
    shift = shifted_lse_ ? 0 : slope_ * double(mask_.common_distance(block.first + row, slope_));
  return T(double(reference[lane]) * std::numbers::ln2 + std::log(double(sum[lane])) - shift);
}

/// Adds the counts of this task to the pruning statistics of the head.
template <class F>
void ForwardTask<F>::record_stats() {
  Index visible = visible_;
  double bound = 0;
  for (const auto& block : blocks()) {
    visible += block.tiles();
    if (!any_pruned_) continue;
    for (int r = 0; r < block.vectors; r++) {
      T pruned_mass[kLanes<T>], sum[kLanes<T>];
      store<T>(pruned_mass, block.pruned_mass[r]);
      store<T>(sum, block.state[r].sum);
      for (Index i = 0; i < std::min<Index>(kLanes<T>, block.rows - r * kLanes<T>); i++)
        if (pruned_mass[i] > 0) bound = std::max(bound, double(pruned_mass[i]) / double(sum[i]));
    }
  }
  merge_stats(*stats_, budget_, computed_, visible, bound);
}

}  // namespace alibi::inline ALIBI_ISA::kernel
