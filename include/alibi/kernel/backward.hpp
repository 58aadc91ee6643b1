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
// What is not finite in a row of q, grad_output or output that sees a key reaches, beside what it concerns, the keys of
// its block of queries and tile that it does not see, since 0 times it is NaN.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>
#include <span>
#include <type_traits>
#include <utility>

#include "alibi/kernel/backward_plan.hpp"
#include "alibi/kernel/backward_rows.hpp"
#include "alibi/kernel/backward_score.hpp"
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

template <class F>
class BackwardTask {
 public:
  using T = typename F::T;
  static_assert(std::is_same_v<typename F::Unit, T>, "gradients are not made of pairs");

  BackwardTask(const Backward<F>& call, const BackwardItem& item, std::byte* scratch);

  void run() {
    std::fill_n(grad_k_, rows_ * (dims_ + values_), T(0));
    for (head_ = kv_head_ * group_; head_ < (kv_head_ + 1) * group_; head_++) {
      begin_head();
      const Index all = pieces(sequence_.q.tokens, kBlock<T>), first = item_.queries * mine_.plan.blocks;
      const Index end = std::min(first + mine_.plan.blocks, all);
      for (Index b = first; b < end; b += kStrips<T>) {
        begin_strips(b, std::min<Index>(kStrips<T>, end - b));
        for (std::int32_t tile = tiles_.first; tile <= tiles_.last; tile++) visit(tile);
        for (Strip& strip : strips())
          if (strip.open) close(strip);
      }
      end_head();
    }
    write_keys(mine_.grad_k, grad_k_, dims_);
    write_keys(mine_.grad_v, grad_v_, values_);
  }

 private:
  /// A block in use, its rows once it is open, and how it lies to the tile in use.
  struct Strip {
    Block<T> block;
    const BlockNumbers<T>* numbers = nullptr;
    bool open = false, started = false;  // whether its rows have been packed; whether grad_q holds anything
    TileKeys keys{};
    Side side = Side::edge;

    T* p = nullptr;                                    // [kScoreRows][kBlock]: P, then dS
    T *q = nullptr, *grad_output = nullptr;            // [head_dim][kBlock], [value_dim][kBlock]
    T* grad_q = nullptr;                               // [head_dim][kBlock]
    T *q_rows = nullptr, *grad_output_rows = nullptr;  // [kBlock][dims_], times τ; [kBlock][values_]
  };
  std::span<Strip> strips() { return {strips_, std::size_t(count_)}; }

  void begin_head();
  void begin_strips(Index first, Index count);
  void visit(Index number);
  bool needs(const Strip& strip, Index tile) const;
  bool stands_apart(Index tile) const;
  const Tile<T>& near(Index number);
  void open(Strip& strip);
  void silence(Strip& strip, Index row);
  void weigh(const Strip& strip, const Tile<T>& tile);
  void differentiate(const Strip& strip, const Tile<T>& tile);
  void add_queries(Strip& strip, const Tile<T>& tile);
  void close(const Strip& strip);
  void end_head();
  void write_keys(const View<T>& to, const T* from, Index stride) const;

  const BackwardItem& item_;
  const Forward<F>& call_;
  const Sequence<F>& sequence_;
  const BackwardSequence<F>& mine_;
  const ResolvedMask mask_;
  Index group_, kv_head_, head_;
  Index head_dim_, value_dim_, dims_, values_;  // the last two padded to whole vectors
  TileRange tiles_;                             // of the chunk of keys
  Index rows_;                                  // keys of a chunk
  Source<F> source_;
  const Radii<T>* radii_ = nullptr;
  double slope_ = 0;
  T scale_;  // τ log2 e
  typename F::Bias bias_;

  T *grad_k_, *grad_v_;  // [rows_][dims_], [rows_][values_]
  T* near_;              // tiles that are not read in place
  BiasGradient<typename F::Bias> bias_gradient_;
  Tile<T> tile_[BackwardPlan::kMostTiles];
  bool brought_[BackwardPlan::kMostTiles] = {};
  Strip strips_[kStrips<T>];
  Index count_ = 0;    // of them in use
  Index visited_ = 0;  // pairs of block and tile
  Prefetch ahead_{};
};

/// A tile against the blocks that need it: the lines at the top of this file.
template <class F>
void BackwardTask<F>::visit(Index number) {
  Strip* use[kStrips<T>];
  KeyShare<T> of_values[kStrips<T>], of_keys[kStrips<T>];
  std::size_t count = 0;
  for (Strip& strip : strips()) {
    strip.keys = strip.block.keys_of(mask_, number * kTile);
    if (strip.keys.begin >= strip.keys.end || !needs(strip, number)) continue;
    if (!strip.open) open(strip);
    strip.side = strip.block.side_of(strip.keys);
    of_values[count] = {strip.p, strip.grad_output_rows, &strip.keys};
    of_keys[count] = {strip.p, strip.q_rows, &strip.keys};
    use[count++] = &strip;
  }
  if (count == 0) return;
  visited_ += Index(count);
  const Tile<T>& tile = near(number);
  const Index at = (number - tiles_.first) * kTile;

  for (std::size_t i = 0; i < count; i++) weigh(*use[i], tile);          // P = 2^(S - lse)
  add_to_keys<T>({of_values, count}, values_, grad_v_ + at * values_);   // dV += P' dO
  for (std::size_t i = 0; i < count; i++) differentiate(*use[i], tile);  // dS = P ∘ (dO V' - D), dbias += dS
  add_to_keys<T>({of_keys, count}, dims_, grad_k_ + at * dims_);         // dK += τ dS' Q
  for (std::size_t i = 0; i < count; i++) add_queries(*use[i], tile);    // dQ += dS K, times τ in the end
}

template <class F>
void BackwardTask<F>::weigh(const Strip& strip, const Tile<T>& tile) {
  const auto weigh_from = [&]<class Start, class Visible>(const Start& start, const Visible& visible) {
    Pack<T> shift[kVectors];
    for (int r = 0; r < kVectors; r++) shift[r] = sub(load<T>(strip.numbers->lse + r * kLanes<T>), start.offset[r]);
    score<F>(tile.k, tile.key_stride, head_dim_, strip.q, scale_, strip.keys, start, ahead_,
             Probabilities<T, Visible>{visible, strip.keys.end, shift, strip.p});
  };
  with_start(bias_, strip.block, mask_, strip.keys, strip.side, weigh_from);
}

template <class F>
void BackwardTask<F>::differentiate(const Strip& strip, const Tile<T>& tile) {
  const auto bias = bias_gradient_.tile(strip.block.positions, strip.numbers->common, strip.keys.tile, strip.side);
  score<F>(tile.v, tile.value_stride, value_dim_, strip.grad_output, T(1), strip.keys,
           LaneStart<T>{strip.numbers->minus}, ahead_,
           ScoreGradients<T, std::remove_const_t<decltype(bias)>>{bias, strip.p});
}

template <class F>
void BackwardTask<F>::add_queries(Strip& strip, const Tile<T>& tile) {
  const Before before = std::exchange(strip.started, true) ? Before::keep : Before::none;
  with_vectors(strip.keys.vectors, [&](auto n) {
    accumulate<n>(tile.k, tile.key_stride, head_dim_, strip.p, strip.keys, before, static_cast<Pack<T>*>(nullptr),
                  strip.grad_q);
  });
}

/// Whether a block is to visit a tile: it is in reach, or stands apart and matters by itself.
template <class F>
bool BackwardTask<F>::needs(const Strip& strip, Index tile) const {
  const TileRange& reach = strip.numbers->tiles;
  if (reach.first <= tile && tile <= reach.last) return true;
  if (!stands_apart(tile)) return false;
  const bool left = strip.block.place_of(strip.keys) == Side::left;
  const double slope = slope_ * std::numbers::log2e;
  Pack<T> lost[kVectors];
  for (Pack<T>& x : lost) x = splat<T>(T(0));
  return !negligible(strip.block.positions, *strip.numbers, slope,
                     unread_tile<T>(*radii_, slope, tile, mask_.keys, left), left,
                     apart_share(*radii_, T(sequence_.tolerance)), lost);
}

template <class F>
bool BackwardTask<F>::stands_apart(Index tile) const {
  return radii_ && std::binary_search(radii_->apart, radii_->apart + radii_->apart_count, std::int32_t(tile));
}

/// The tile where the products read it. While it comes for the first time, the next one is asked for.
template <class F>
const Tile<typename F::T>& BackwardTask<F>::near(Index number) {
  const Index at = number - tiles_.first;
  if (!std::exchange(brought_[at], true)) {
    const Index count = std::min<Index>(kTile, mask_.keys - number * kTile);
    tile_[at] =
        bring<F>(source_, number, count, head_dim_, value_dim_, near_ + at * tile_units<F>(head_dim_, value_dim_));
    if (number < tiles_.last)
      ahead_ = prefetch_tile<F>(source_, number + 1, mask_.keys, head_dim_, value_dim_, kTile / kRows);
  }
  return tile_[at];
}

template <class F>
BackwardTask<F>::BackwardTask(const Backward<F>& call, const BackwardItem& item, std::byte* scratch)
    : item_(item),
      call_(call.forward),
      sequence_(call.forward.sequences[std::size_t(item.sequence)]),
      mine_(call.sequences[std::size_t(item.sequence)]),
      mask_(sequence_.mask),
      group_(call_.group()),
      kv_head_(item.kv_head),
      head_(kv_head_ * group_),
      head_dim_(call_.head_dim),
      value_dim_(call_.value_dim),
      dims_(padded<T>(head_dim_)),
      values_(padded<T>(value_dim_)),
      tiles_(tiles_of(mine_.plan, item.keys, mask_.keys)),
      rows_(mine_.plan.tiles * kTile),
      source_{rows_of(sequence_.k, kv_head_), rows_of(sequence_.v, kv_head_)},
      scale_(T(call_.scale * std::numbers::log2e)),
      bias_(sequence_.bias(head_)),
      grad_k_(reinterpret_cast<T*>(scratch)),
      grad_v_(grad_k_ + rows_ * dims_),
      near_(grad_v_ + rows_ * values_),
      bias_gradient_(near_ + mine_.plan.tiles * tile_units<F>(head_dim_, value_dim_),
                     mask_.position(item.queries * mine_.plan.template rows<T>()), mine_.plan.template rows<T>(),
                     tiles_.first * Index(kTile), rows_) {
  using Gradient = BiasGradient<typename F::Bias>;
  T* next = near_ + mine_.plan.tiles * tile_units<F>(head_dim_, value_dim_) +
            Gradient::scratch_size(mine_.plan.template rows<T>(), rows_);
  const auto take = [&next](Index rows) { return std::exchange(next, next + rows * kBlock<T>); };
  for (Strip& strip : strips_) {
    strip.p = take(kScoreRows);
    strip.q = take(head_dim_);
    strip.grad_output = take(value_dim_);
    strip.grad_q = take(head_dim_);
    strip.q_rows = take(dims_);
    strip.grad_output_rows = take(values_);
  }
}

template <class F>
void BackwardTask<F>::begin_head() {
  slope_ = sequence_.slope(head_);
  bias_ = sequence_.bias(head_);
  radii_ = pruning_radii(sequence_, head_);
  bias_gradient_.clear();
}

/// Blocks first, …, first + count - 1 of the head.
template <class F>
void BackwardTask<F>::begin_strips(Index first, Index count) {
  const Index all = pieces(sequence_.q.tokens, kBlock<T>);
  count_ = count;
  for (Strip& strip : strips()) {
    const Index query = first * kBlock<T>;
    strip.numbers = mine_.blocks + head_ * all + first++;
    strip.block = Block<T>(mask_, query, std::min<Index>(kBlock<T>, sequence_.q.tokens - query), slope_);
    strip.open = strip.started = false;
  }
}

/// Packs a block's rows, and lays them side by side.
template <class F>
void BackwardTask<F>::open(Strip& strip) {
  const Block<T>& block = strip.block;
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
  pack(q, head_dim_, scale_, strip.q);
  lay_out(q, head_dim_, dims_, strip.q_rows);
  const Pack<T> scale = splat<T>(T(call_.scale));
  for (Index i = 0; i < block.rows * dims_; i += kLanes<T>)
    store<T>(strip.q_rows + i, mul(load<T>(strip.q_rows + i), scale));
  with_rows(mine_.grad_output, head_, [&](const auto& grad_output) {
    pack(grad_output, value_dim_, T(1), strip.grad_output);
    lay_out(grad_output, value_dim_, values_, strip.grad_output_rows);
  });
  for (Index i = 0; i < block.rows; i++)
    if (strip.numbers->lse[i] == std::numeric_limits<T>::infinity()) silence(strip, i);
  strip.open = true;
}

/// A row that sees no key has no part in anything, whatever its query and grad_output hold.
template <class F>
void BackwardTask<F>::silence(Strip& strip, Index row) {
  for (Index d = 0; d < head_dim_; d++) strip.q[d * kBlock<T> + row] = T(0);
  for (Index d = 0; d < value_dim_; d++) strip.grad_output[d * kBlock<T> + row] = T(0);
  std::fill_n(strip.q_rows + row * dims_, dims_, T(0));
  std::fill_n(strip.grad_output_rows + row * values_, values_, T(0));
}

/// Adds the block's dQ to the caller's rows.
template <class F>
void BackwardTask<F>::close(const Strip& strip) {
  const Rows<T> to = rows_of(mine_.grad_q, head_);
  for (int r = 0; r < strip.block.vectors; r++) {
    const Index row = r * kLanes<T>;
    unpack_transposed<true>(strip.grad_q + row, splat<T>(T(call_.scale)), head_dim_, to, strip.block.first + row,
                            strip.block.rows - row);
  }
}

template <class F>
void BackwardTask<F>::end_head() {
  using Gradient = BiasGradient<typename F::Bias>;
  const Index slot = Gradient::slot_size(mine_.plan.template rows<T>(), rows_);
  bias_gradient_.add_to(mine_.slots + (head_ * mine_.plan.query_chunks + item_.queries) * slot);
  if (call_.report) add_to(call_.report[item_.sequence * call_.heads + head_], std::exchange(visited_, 0), 0, 0);
}

/// Adds the chunk's dK or dV to the caller's rows.
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
