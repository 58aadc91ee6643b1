// The fused backward pass: scores are computed again from q, k and the log-sum-exp of the forward; no matrix of queries
// by keys is ever stored.
//
// Per tile of keys and block of queries, transposed like the forward, a lane is a query:
//
//   forward                        backward
//   S = τ Q K' + bias              S = τ Q K' + bias
//   P = softmax(S)                 P = 2^(S - lse)
//   O = P V                        dV += P' dO,   dP = dO V'
//   P = softmax(S)                 dS = P ∘ (dP - D),   D_i = Σ_d dO_id o_id
//   S = τ Q K' + bias              dQ += τ dS K,   dK += τ dS' Q,   dbias += dS
//
// dP starts from -D as scores start from the bias. Five products of 2 head_dim operations a pair, where the forward has
// two, and one exponential.
//
// A pair of block and tile is left out if the keys that the forward may leave out, by the same bound against the whole
// sum, have at most `tolerance` of each row's softmax mass (horizon.hpp).
//
// What is not finite in a row of grad_output or output reaches, beside what it concerns, the keys of its own block of
// queries and tile that it does not see, since 0 times it is NaN.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>
#include <type_traits>
#include <utility>

#include "alibi/kernel/backward_plan.hpp"
#include "alibi/kernel/bias.hpp"
#include "alibi/kernel/bias_gradient.hpp"
#include "alibi/kernel/block.hpp"
#include "alibi/kernel/horizon.hpp"
#include "alibi/kernel/key_sums.hpp"
#include "alibi/kernel/plan.hpp"
#include "alibi/kernel/product.hpp"
#include "alibi/kernel/rows.hpp"
#include "alibi/kernel/score.hpp"
#include "alibi/kernel/simd.hpp"
#include "alibi/kernel/softmax.hpp"
#include "alibi/kernel/tile.hpp"
#include "alibi/kernel/value.hpp"
#include "alibi/mask.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// P = 2^(S - lse) of the forward's scores; 0 in rows in excess, and for queries before the first that needs a row.
template <class T, class Mask>
struct Probabilities {
  const Mask& mask;
  Index end;  // of the keys in use
  const Pack<T>* shift;
  T* p;  // [kScoreRows][kBlock]

  template <int N>
  EIGEN_ALWAYS_INLINE void operator()(std::integral_constant<int, N>, Index key, int r0,
                                      Pack<T> (&acc)[kRows][kVectors]) const {
    constexpr bool kMasked = !std::is_same_v<Mask, NoMask>;
    hide<N, T>(mask, end - 1, key, r0, acc);
#pragma GCC unroll 8
    for (int a = 0; a < kRows; a++) {
      T* const row = p + (key + a) * kBlock<T>;
      for (int r = 0; r < r0; r++) store<T>(row + r * kLanes<T>, splat<T>(T(0)));
#pragma GCC unroll 4
      for (int r = 0; r < N; r++) {
        Pack<T> weight = probability<kMasked, T>(sub(acc[a][r], shift[r0 + r]));
        if (key + a >= end) weight = splat<T>(T(0));
        store<T>(row + (r0 + r) * kLanes<T>, weight);
      }
    }
  }
};

/// dS = P ∘ (dP - D) in place of P, and what the bias gets of it.
template <class T, class BiasTile>
struct ScoreGradients {
  const BiasTile& bias;
  T* p;

  template <int N>
  EIGEN_ALWAYS_INLINE void operator()(std::integral_constant<int, N>, Index key, int r0,
                                      Pack<T> (&acc)[kRows][kVectors]) const {
#pragma GCC unroll 4
    for (int r = 0; r < N; r++) {
      Pack<T> ds[kRows];
#pragma GCC unroll 8
      for (int a = 0; a < kRows; a++) {
        T* const at = p + (key + a) * kBlock<T> + (r0 + r) * kLanes<T>;
        ds[a] = mul(load<T>(at), acc[a][r]);
        store<T>(at, ds[a]);
      }
      bias.add(key, r0 + r, ds);
    }
  }
};

/// Sums that start from a number a lane.
template <class T>
struct LaneStart {
  const T* lanes;
  EIGEN_ALWAYS_INLINE Pack<T> start(Index, int r) const { return load<T>(lanes + r * kLanes<T>); }
};

/// Whether keys may be dropped by rows whose whole softmax sum is known; `lost` grows if so.
template <class T>
bool negligible(const Positions<T>& positions, const BlockNumbers<T>& block, double slope, const Unread<T>& keys,
                bool left, T share, Pack<T>* lost) {
  SoftmaxState<T> whole[kVectors];
  for (int r = 0; r < kVectors; r++) whole[r] = {load<T>(block.lse + r * kLanes<T>), splat<T>(T(1))};
  return affordable(positions, block.content, whole, T(slope), keys, left, share, lost);
}

/// What the tiles that stand apart may lose together is a sixteenth of the tolerance, in equal shares.
template <class T>
T apart_share(const Radii<T>& radii, T tolerance) {
  return tolerance / T(16) / T(std::max<Index>(radii.apart_count, 1));
}

/// Fills in the numbers of a chunk of queries of a head, before any task of it.
template <class F, class G>
class BackwardRows {
 public:
  using T = typename F::T;

  BackwardRows(const Backward<F, G>& call, Index sequence, Index head, Index chunk, std::byte* scratch)
      : call_(call.forward),
        sequence_(call.forward.sequences[std::size_t(sequence)]),
        mine_(call.sequences[std::size_t(sequence)]),
        mask_(sequence_.mask),
        head_(head),
        chunk_(chunk),
        packed_(reinterpret_cast<T*>(scratch)),
        center_(packed_ + call_.head_dim * kBlock<T>),
        report_(call_.report ? call_.report + sequence * call_.heads + head : nullptr) {
    slope_ = sequence_.slope(head) * std::numbers::log2e;
    const Index kv = head / call_.group();
    const bool prunes = worth_pruning(sequence_.slope(head), sequence_.tolerance, mask_, sequence_.q.tokens);
    radii_ = prunes ? sequence_.radii_of(kv) : nullptr;
    tails_ = radii_ && sequence_.tails ? sequence_.tails + head * tails_size(*radii_) : nullptr;
  }
  static std::size_t bytes(Index head_dim) { return std::size_t(head_dim * (kBlock<T> + 1)) * sizeof(T); }

  void run() {
    const BackwardPlan& plan = mine_.plan;
    const Index all = pieces(sequence_.q.tokens, kBlock<T>);
    TileRange& reach = mine_.reach[head_ * plan.query_chunks + chunk_];
    reach = {std::numeric_limits<std::int32_t>::max(), -1};
    double bound = 0;
    Index visible = 0;
    for (Index b = chunk_ * plan.blocks; b < std::min((chunk_ + 1) * plan.blocks, all); b++) {
      BlockNumbers<T>& numbers = mine_.blocks[head_ * all + b];
      const Index first = b * kBlock<T>;
      const Block<T> block(mask_, first, std::min<Index>(kBlock<T>, sequence_.q.tokens - first),
                           sequence_.slope(head_));
      fill(block, numbers);
      bound = std::max(bound, find_tiles(block, numbers));
      reach.first = std::min(reach.first, numbers.tiles.first);
      reach.last = std::max(reach.last, numbers.tiles.last);
      if (block.some.begin < block.some.end) visible += (block.some.end - 1) / kTile - block.some.begin / kTile + 1;
    }
    if (!report_) return;
    std::atomic_ref(report_->tiles_visible).fetch_add(visible, std::memory_order_relaxed);
    std::atomic_ref most(report_->bound);
    for (double before = most.load(); before < bound && !most.compare_exchange_weak(before, bound);) {
    }
  }

 private:
  /// -D and the lse, and the gradient of q, to be added to.
  void fill(const Block<T>& block, BlockNumbers<T>& numbers) {
    const auto output = rows_of(mine_.output, head_);
    const auto grad_output = rows_of(mine_.grad_output, head_);
    const auto grad_q = rows_of(mine_.grad_q, head_);
    for (Index i = 0; i < kBlock<T>; i++) {
      const Index query = block.first + i;
      numbers.lse[i] = i < block.rows ? lse_of(query) : std::numeric_limits<T>::infinity();
      numbers.minus[i] = T(0);
      if (i >= block.rows) continue;
      std::fill_n(grad_q[query], call_.head_dim, T(0));
      if (numbers.lse[i] != std::numeric_limits<T>::infinity())
        numbers.minus[i] = -dot(output[query], grad_output[query], mine_.output.head_dim);
    }
  }

  T lse_of(Index query) const {
    const double given = double(mine_.lse[head_ * mine_.lse_stride + query]);
    if (given == -std::numeric_limits<double>::infinity()) return std::numeric_limits<T>::infinity();
    if (mine_.framed) return T(double(mine_.framed[head_ * sequence_.q.tokens + query]) * std::numbers::log2e);
    const double slope = sequence_.slope(head_);
    return T((given + slope * double(mask_.common_distance(query, slope))) * std::numbers::log2e);
  }

  /// The tiles that a block is to visit; returns a bound on what it loses with the others, of any row.
  double find_tiles(const Block<T>& block, BlockNumbers<T>& numbers) {
    TileRange& tiles = numbers.tiles;
    tiles = {};
    if (block.some.begin >= block.some.end) return 0;
    tiles = {std::int32_t(block.some.begin / kTile), std::int32_t((block.some.end - 1) / kTile)};
    if (!radii_) return 0;
    measure(block, numbers);
    Pack<T> lost[kVectors];
    for (Pack<T>& x : lost) x = splat<T>(T(0));
    const T share = T(sequence_.tolerance) * T(mask_.right > 0 ? 0x1.ep-2 : 0x1.ep-1);

    // Whether the tiles up to `number`, or from it on, may go; each step of the searches is proved by itself.
    const auto drop = [&](Index number, bool left, Pack<T>* sum) {
      const Unread<T> unread = left ? unread_until<T>(*radii_, tails_, slope_, number, {block.some.begin, mask_.keys})
                                    : unread_from<T>(*radii_, tails_, slope_, number, block.some.end);
      return negligible(block.positions, numbers, slope_, unread, left, left ? share : 2 * share, sum);
    };
    const auto may_drop = [&](Index number, bool left) {
      Pack<T> sum[kVectors];
      std::copy_n(lost, kVectors, sum);
      return drop(number, left, sum);
    };
    Index first = tiles.first, end = std::min<Index>((block.lowest + 1) / kTile, tiles.last);  // wholly to the left
    while (first < end) {
      const Index middle = (first + end) / 2;
      may_drop(middle, true) ? first = middle + 1 : end = middle;
    }
    if (first > tiles.first) drop(first - 1, true, lost);
    tiles.first = std::int32_t(first);

    if (mask_.right > 0) {
      Index last = std::max<Index>(pieces(block.highest, kTile), tiles.first), gone = tiles.last + 1;
      while (last < gone) {
        const Index middle = (last + gone) / 2;
        may_drop(middle, false) ? gone = middle : last = middle + 1;
      }
      if (gone <= tiles.last) drop(gone, false, lost);
      tiles.last = std::int32_t(gone - 1);
    }
    T most_lost = 0;
    for (const Pack<T>& x : lost) most_lost = std::max(most_lost, reduce_max(x));
    return double(most_lost) + (most_lost > 0 ? sequence_.tolerance / 16 : 0);
  }

  /// Packs the queries, for what horizon.hpp needs of them.
  void measure(const Block<T>& block, BlockNumbers<T>& numbers) {
    const T scale = T(call_.scale * std::numbers::log2e);
    const auto q = rows_of(sequence_.q, head_);
    for (int r = 0; r < kVectors; r++)
      pack_transposed(q, block.first + r * kLanes<T>, block.rows - r * kLanes<T>, call_.head_dim, scale,
                      packed_ + r * kLanes<T>);
    std::copy_n(radii_->center, call_.head_dim, center_);
    measure_queries(packed_, call_.head_dim, scale, block.rows, center_, *radii_, mask_.keys, numbers.content);
  }

  /// Σ x y over n, in T.
  template <class X, class Y>
  static T dot(const X* x, const Y* y, Index n) {
    Pack<T> sum = splat<T>(T(0));
    Index d = 0;
    for (; d + kLanes<T> <= n; d += kLanes<T>) sum = fma(widen<T>(x + d), widen<T>(y + d), sum);
    T all = reduce_add(sum);
    for (; d < n; d++) all += T(x[d]) * T(y[d]);
    return all;
  }

  const Forward<F>& call_;
  const Sequence<F>& sequence_;
  const BackwardSequence<F, G>& mine_;
  const ResolvedMask mask_;
  Index head_, chunk_;
  T *packed_, *center_;
  Pruning* report_;
  double slope_;  // m log2 e
  const Radii<T>* radii_;
  const T* tails_;
};

template <class F, class G>
class BackwardTask {
 public:
  using T = typename F::T;
  static_assert(std::is_same_v<typename F::Unit, T>, "gradients are not made of pairs");

  BackwardTask(const Backward<F, G>& call, const BackwardItem& item, std::byte* scratch);

  void run() {
    std::fill_n(grad_k_, rows_ * (dims_ + values_), T(0));
    for (head_ = kv_head_ * group_; head_ < (kv_head_ + 1) * group_; head_++) {
      begin_head();
      const Index all = pieces(sequence_.q.tokens, kBlock<T>), first = item_.queries * mine_.plan.blocks;
      for (Index b = first; b < std::min(first + mine_.plan.blocks, all); b++) {
        numbers_ = mine_.blocks + head_ * all + b;
        block_ = Block<T>(mask_, b * kBlock<T>, std::min<Index>(kBlock<T>, sequence_.q.tokens - b * kBlock<T>), slope_);
        visit_tiles();
      }
      end_head();
    }
    write_keys(mine_.grad_k, grad_k_, dims_);
    write_keys(mine_.grad_v, grad_v_, values_);
  }

 private:
  void begin_head();
  void visit_tiles();
  bool matters(Index tile) const;
  void open();
  void silence(Index row);
  void visit(Index tile);
  template <class Bias, class Visible>
  void attend(const Tile<T>& tile, const TileKeys& keys, Side side, const Bias& bias, const Visible& visible);
  void close();
  void end_head();
  void write_keys(const View<T>& to, const T* from, Index stride) const;

  const BackwardItem& item_;
  const Forward<F>& call_;
  const Sequence<F>& sequence_;
  const BackwardSequence<F, G>& mine_;
  const ResolvedMask mask_;
  Index group_, kv_head_, head_ = 0;
  Index head_dim_, value_dim_, dims_, values_;  // the last two padded to whole vectors
  TileRange tiles_;                             // of the chunk of keys
  Source<F> source_;
  const Radii<T>* radii_ = nullptr;
  double slope_ = 0;
  T scale_;  // τ log2 e

  Index rows_;  // keys of a chunk

  // Scratch.
  T* p_;                           // [kScoreRows][kBlock]: P, then dS
  T *q_, *grad_output_;            // [head_dim][kBlock], [value_dim][kBlock]
  T* grad_q_;                      // [head_dim][kBlock]
  T *q_rows_, *grad_output_rows_;  // [kBlock][dims_], times τ; [kBlock][values_]
  T *grad_k_, *grad_v_;            // [rows_][dims_], [rows_][values_]
  T* near_;                        // tiles that are not read in place
  BiasGradient<typename F::Bias> bias_gradient_;

  Tile<T> tile_[BackwardPlan::kMostTiles];
  bool brought_[BackwardPlan::kMostTiles] = {};

  Index visited_ = 0;

  // The block in use.
  Block<T> block_;
  const BlockNumbers<T>* numbers_ = nullptr;
  bool open_ = false, started_ = false;  // whether its rows have been packed; whether grad_q_ holds anything
  Prefetch none_{};
};

/// A tile against a block: the lines at the top of this file.
template <class F, class G>
template <class Bias, class Visible>
void BackwardTask<F, G>::attend(const Tile<T>& tile, const TileKeys& keys, Side side, const Bias& bias,
                                const Visible& visible) {
  const Index at = keys.tile - tiles_.first * Index(kTile);
  Pack<T> shift[kVectors];
  for (int r = 0; r < kVectors; r++) shift[r] = sub(load<T>(numbers_->lse + r * kLanes<T>), bias.offset[r]);

  // P = 2^(S - lse)                                      S = τ Q K' + bias, P = softmax(S)
  score<F>(tile.k, tile.key_stride, head_dim_, q_, scale_, keys, bias, none_,
           Probabilities<T, Visible>{visible, keys.end, shift, p_});
  // dV += P' dO                                          O = P V
  add_to_keys(p_, keys, grad_output_rows_, values_, grad_v_ + at * values_);
  // dP = dO V', dS = P ∘ (dP - D), dbias += dS           O = P V, P = softmax(S)
  const auto bias_tile = bias_gradient_.tile(block_.positions, keys.tile, side);
  score<F>(tile.v, tile.value_stride, value_dim_, grad_output_, T(1), keys, LaneStart<T>{numbers_->minus}, none_,
           ScoreGradients<T, std::remove_const_t<decltype(bias_tile)>>{bias_tile, p_});
  // dK += τ dS' Q                                        S = τ Q K' + bias
  add_to_keys(p_, keys, q_rows_, dims_, grad_k_ + at * dims_);
  // dQ += dS K, times τ in the end                       S = τ Q K' + bias
  const Before before = started_ ? Before::keep : Before::none;
  with_vectors(keys.vectors,
               [&](auto n) { accumulate<n>(tile.k, tile.key_stride, head_dim_, p_, keys, before, shift, grad_q_); });
  started_ = true;
}

template <class F, class G>
void BackwardTask<F, G>::visit(Index number) {
  const TileKeys keys = block_.keys_of(mask_, number * kTile);
  if (keys.begin >= keys.end) return;
  if (!open_) open();
  visited_++;
  const Index at = number - tiles_.first;
  if (!std::exchange(brought_[at], true)) {
    const Index count = std::min<Index>(kTile, mask_.keys - number * kTile);
    tile_[at] =
        bring<F>(source_, number, count, head_dim_, value_dim_, near_ + at * tile_units<F>(head_dim_, value_dim_));
  }
  const typename F::Bias bias = sequence_.bias(head_);
  const Side side = block_.side_of(keys);
  switch (side) {
    case Side::left:
      return attend(tile_[at], keys, side, bias.left(block_.positions, keys.tile, keys.begin, keys.end), NoMask());
    case Side::right:
      return attend(tile_[at], keys, side, bias.right(block_.positions, keys.tile, keys.begin, keys.end), NoMask());
    case Side::edge:
      return attend(tile_[at], keys, side, bias.edge(block_.positions, keys.tile), block_.mask_of(mask_, keys.tile));
  }
}

/// The tiles of the chunk that matter to the block, in rising order.
template <class F, class G>
void BackwardTask<F, G>::visit_tiles() {
  open_ = false;
  const TileRange& reach = numbers_->tiles;
  const std::int32_t *apart = nullptr, *end = nullptr;
  if (radii_) {
    end = radii_->apart + radii_->apart_count;
    apart = std::lower_bound(radii_->apart, end, tiles_.first);
  }
  for (std::int32_t tile = tiles_.first; tile <= tiles_.last; tile++) {
    const bool is_apart = apart != end && *apart == tile;
    apart += is_apart;
    if ((reach.first <= tile && tile <= reach.last) || (is_apart && matters(tile))) visit(tile);
  }
  if (open_) close();
}

/// Whether a tile that stands apart, and is out of reach of the others, matters by itself.
template <class F, class G>
bool BackwardTask<F, G>::matters(Index tile) const {
  const TileKeys keys = block_.keys_of(mask_, tile * kTile);
  if (keys.begin >= keys.end) return false;
  const bool left = block_.place_of(keys) == Side::left;
  const double slope = slope_ * std::numbers::log2e;
  Pack<T> lost[kVectors];
  for (Pack<T>& x : lost) x = splat<T>(T(0));
  return !negligible(block_.positions, *numbers_, slope, unread_tile<T>(*radii_, slope, tile, mask_.keys, left), left,
                     apart_share(*radii_, T(sequence_.tolerance)), lost);
}

template <class F, class G>
BackwardTask<F, G>::BackwardTask(const Backward<F, G>& call, const BackwardItem& item, std::byte* scratch)
    : item_(item),
      call_(call.forward),
      sequence_(call.forward.sequences[std::size_t(item.sequence)]),
      mine_(call.sequences[std::size_t(item.sequence)]),
      mask_(sequence_.mask),
      group_(call_.group()),
      kv_head_(item.kv_head),
      head_dim_(call_.head_dim),
      value_dim_(call_.value_dim),
      dims_(padded<T>(head_dim_)),
      values_(padded<T>(value_dim_)),
      tiles_(tiles_of(mine_.plan, item.keys, mask_.keys)),
      source_{rows_of(sequence_.k, kv_head_), rows_of(sequence_.v, kv_head_)},
      scale_(T(call_.scale * std::numbers::log2e)),
      rows_(mine_.plan.tiles * kTile),
      p_(reinterpret_cast<T*>(scratch)),
      q_(p_ + kScoreRows * kBlock<T>),
      grad_output_(q_ + head_dim_ * kBlock<T>),
      grad_q_(grad_output_ + value_dim_ * kBlock<T>),
      q_rows_(grad_q_ + head_dim_ * kBlock<T>),
      grad_output_rows_(q_rows_ + kBlock<T> * dims_),
      grad_k_(grad_output_rows_ + kBlock<T> * values_),
      grad_v_(grad_k_ + rows_ * dims_),
      near_(grad_v_ + rows_ * values_),
      bias_gradient_(near_ + mine_.plan.tiles * tile_units<F>(head_dim_, value_dim_),
                     mask_.position(item.queries * mine_.plan.template rows<T>()), mine_.plan.template rows<T>(),
                     tiles_.first * Index(kTile), rows_) {}

template <class F, class G>
void BackwardTask<F, G>::begin_head() {
  slope_ = sequence_.slope(head_);
  const bool prunes = worth_pruning(slope_, sequence_.tolerance, mask_, sequence_.q.tokens);
  radii_ = prunes ? sequence_.radii_of(kv_head_) : nullptr;
  bias_gradient_.clear();
}

/// Packs a block's rows, and lays them side by side.
template <class F, class G>
void BackwardTask<F, G>::open() {
  const auto q = rows_of(sequence_.q, head_);
  const auto grad_output = rows_of(mine_.grad_output, head_);
  for (int r = 0; r < kVectors; r++) {
    const Index row = r * kLanes<T>;
    pack_transposed(q, block_.first + row, block_.rows - row, head_dim_, scale_, q_ + row);
    pack_transposed(grad_output, block_.first + row, block_.rows - row, value_dim_, T(1), grad_output_ + row);
  }
  const T scale = T(call_.scale);
  for (Index i = 0; i < kBlock<T>; i++) {
    T *const q_row = q_rows_ + i * dims_, *const grad_row = grad_output_rows_ + i * values_;
    if (i >= block_.rows) {
      std::fill_n(q_row, dims_, T(0));
      std::fill_n(grad_row, values_, T(0));
      continue;
    }
    widen_row(q[block_.first + i], head_dim_, q_row);
    std::fill(q_row + head_dim_, q_row + dims_, T(0));
    for (Index d = 0; d < dims_; d += kLanes<T>) store<T>(q_row + d, mul(load<T>(q_row + d), splat<T>(scale)));
    widen_row(grad_output[block_.first + i], value_dim_, grad_row);
    std::fill(grad_row + value_dim_, grad_row + values_, T(0));
  }
  for (Index i = 0; i < block_.rows; i++)
    if (numbers_->lse[i] == std::numeric_limits<T>::infinity()) silence(i);
  open_ = true;
  started_ = false;
}

/// A row that sees no key has no part in anything, whatever its grad_output holds.
template <class F, class G>
void BackwardTask<F, G>::silence(Index row) {
  for (Index d = 0; d < value_dim_; d++) grad_output_[d * kBlock<T> + row] = T(0);
  std::fill_n(grad_output_rows_ + row * values_, values_, T(0));
}

/// Adds the block's dQ to the caller's rows.
template <class F, class G>
void BackwardTask<F, G>::close() {
  const Rows<T> to = rows_of(mine_.grad_q, head_);
  for (int r = 0; r < block_.vectors; r++) {
    const Index row = r * kLanes<T>;
    unpack_transposed<true>(grad_q_ + row, splat<T>(T(call_.scale)), head_dim_, to, block_.first + row,
                            block_.rows - row);
  }
}

template <class F, class G>
void BackwardTask<F, G>::end_head() {
  using Gradient = BiasGradient<typename F::Bias>;
  const Index slot = Gradient::slot_size(mine_.plan.template rows<T>(), rows_);
  bias_gradient_.add_to(mine_.slots + (head_ * mine_.plan.query_chunks + item_.queries) * slot);
  if (call_.report)
    std::atomic_ref(call_.report[item_.sequence * call_.heads + head_].tiles_visited)
        .fetch_add(std::exchange(visited_, 0), std::memory_order_relaxed);
}

/// Adds the chunk's dK or dV to the caller's rows.
template <class F, class G>
void BackwardTask<F, G>::write_keys(const View<T>& to, const T* from, Index stride) const {
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
