// The fused forward: one pass over the keys, no score ever leaves the first-level cache.
//
// A task is a run of consecutive queries of one head, as many blocks of kBlock queries as share each tile of keys and
// values once it is near. Tiles come from the diagonal outward, so that the large scores are found first and rescaling
// is rare. Per tile and block the paper's three lines:
//
//   S = τ Q K' + bias          score.hpp, bias.hpp
//   P = 2^(S - reference)      softmax.hpp
//   O = α O + P V              value.hpp
//
// Scratch depends on the head dims alone, never on the number of tokens. Nothing is allocated and nothing checked here.
//
// A tile holds keys that only some queries of a block see. Hidden ones have weight 0, exactly; but 0 times a value that
// is infinite or NaN is NaN, so such a value reaches every query of a block of which one sees its key.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>
#include <span>
#include <type_traits>
#include <utility>

#include "alibi/kernel/bias.hpp"
#include "alibi/kernel/block.hpp"
#include "alibi/kernel/product.hpp"
#include "alibi/kernel/rows.hpp"
#include "alibi/kernel/score.hpp"
#include "alibi/kernel/simd.hpp"
#include "alibi/kernel/softmax.hpp"
#include "alibi/kernel/value.hpp"
#include "alibi/mask.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// A checked call of the forward. lse is contiguous [batch, heads, queries], or null where it is not wanted.
template <class T>
struct Forward {
  View<const T> q, k, v;
  View<T> output;
  T* lse;
  SlopeView<T> slopes;
  ResolvedMask mask;
  double scale;
};

inline constexpr int kMostBlocks = 16;                     // that share a pass over the keys
inline constexpr std::size_t kScratchBytes = 1024 * 1024;  // of a task, at most, as long as one block fits

/// How the queries of a head are cut into tasks; by the shapes alone.
template <class T>
struct ForwardPlan {
  int blocks;                 // of kBlock queries, in a task
  Index chunks;               // tasks of a head
  Index tasks;                // of the call
  std::size_t scratch_bytes;  // of a task; by the head dims alone

  ForwardPlan(Index heads, Index queries, Index head_dim, Index value_dim) {
    const auto bytes = [](Index elements) { return std::size_t(elements) * sizeof(T); };
    const std::size_t block = bytes((head_dim + value_dim) * kBlock<T>);
    const std::size_t shared = bytes(kScoreRows * kBlock<T>);
    const Index all = pieces(queries, kBlock<T>);
    blocks = int(std::clamp<std::size_t>((kScratchBytes - shared) / block, 1, kMostBlocks));
    scratch_bytes = (std::size_t(blocks) * block + shared + 63) / 64 * 64;  // slots share no cache line
    while (blocks > 8 && heads * pieces(all, blocks) < 16) blocks /= 2;     // enough tasks for many threads
    chunks = pieces(all, blocks);
    tasks = heads * chunks;
  }
};

/// A block and its state: what it has seen so far.
template <class T>
struct ForwardBlock : Block<T> {
  bool started = false;  // whether o holds anything
  SoftmaxState<T> state[kVectors];
  T *q = nullptr, *o = nullptr;  // [head_dim][kBlock], [value_dim][kBlock]
};

template <class T>
class ForwardTask {
 public:
  ForwardTask(const Forward<T>& call, const ForwardPlan<T>& plan, Index task, T* scratch);

  void run() {
    for (auto& block : blocks()) open(block);
    Sweep sweep = tiles();
    for (Index number = sweep.next(), next; number >= 0; number = next) {
      next = sweep.next();
      ahead_ = after(next);
      for (auto& block : blocks()) {
        const TileKeys keys = block.keys_of(mask_, number * kTile);
        if (keys.begin < keys.end) visit(block, keys);
      }
    }
    for (const auto& block : blocks()) close(block);
  }

 private:
  std::span<ForwardBlock<T>> blocks() { return {blocks_, std::size_t(count_)}; }
  void open(ForwardBlock<T>& block);
  Sweep tiles() const;
  Prefetch<T> after(Index next) const;
  void visit(ForwardBlock<T>& block, const TileKeys& keys);
  template <class Bias, class Visible>
  void attend(ForwardBlock<T>& block, const TileKeys& keys, const Bias& bias, const Visible& visible);
  void close(const ForwardBlock<T>& block) const;
  T lse_of(const ForwardBlock<T>& block, Index row) const;

  const ResolvedMask mask_;
  Index head_dim_, value_dim_;
  Rows<const T> q_, k_, v_;
  Rows<T> output_;
  T* lse_;        // of the head, or null
  double slope_;  // m, per position
  T scale_;       // τ log2 e
  LinearBias<T> bias_;
  T* probabilities_;  // [kScoreRows][kBlock]: scores first
  Prefetch<T> ahead_{};
  int count_ = 0;
  ForwardBlock<T> blocks_[kMostBlocks];
};

/// A tile against a block: the paper's three lines.
template <class T>
template <class Bias, class Visible>
void ForwardTask<T>::attend(ForwardBlock<T>& block, const TileKeys& keys, const Bias& bias, const Visible& visible) {
  constexpr bool kMasked = !std::is_same_v<Visible, NoMask>;
  T* p = probabilities_;
  Pack<T> largest[kVectors], factor[kVectors];
  for (auto& x : largest) x = splat<T>(-std::numeric_limits<T>::infinity());
  score(k_, head_dim_, block.q, keys, bias, visible, p, largest, ahead_);  // S = τ Q K' + bias

  bool outgrown = false;
  for (int r = 0; r < keys.vectors; r++)
    outgrown |= block.state[r].outgrown(largest[r] = add(largest[r], bias.offset[r]));
  if (outgrown)
    for (int r = 0; r < keys.vectors; r++) factor[r] = block.state[r].raise(largest[r]);
  const Before before = !block.started ? Before::none : outgrown ? Before::rescale : Before::keep;

  with_vectors(keys.vectors, [&](auto n) {
    exponentiate<n, kMasked>(p, keys.begin, keys.ends, bias.offset, block.state);  // P = 2^(S - μ)
    accumulate<n>(v_, value_dim_, p, keys, before, factor, block.o);               // O = α O + P V
  });
  block.started = true;
}

/// Chooses how the sums of a tile start: to one side of all queries, or across a boundary.
template <class T>
void ForwardTask<T>::visit(ForwardBlock<T>& block, const TileKeys& keys) {
  switch (block.side_of(keys)) {
    case Side::left:
      return attend(block, keys, bias_.left(block.positions, keys.tile, keys.begin, keys.end), NoMask());
    case Side::right:
      return attend(block, keys, bias_.right(block.positions, keys.tile, keys.begin, keys.end), NoMask());
    case Side::edge:
      return attend(block, keys, bias_.edge(block.positions, keys.tile), block.mask_of(mask_, keys.tile));
  }
}

template <class T>
ForwardTask<T>::ForwardTask(const Forward<T>& call, const ForwardPlan<T>& plan, Index task, T* scratch)
    : mask_(call.mask), head_dim_(call.q.head_dim), value_dim_(call.v.head_dim), bias_(T(0)) {
  // The last queries of a causal head see the most keys: largest tasks first.
  const Index heads = call.q.heads, head_of_all = task % (call.q.batch * heads);
  const Index chunk = plan.chunks - 1 - task / (call.q.batch * heads);
  const Index b = head_of_all / heads, h = head_of_all % heads, kv = h / (heads / call.k.heads);
  const auto rows = [b]<class X>(const View<X>& x, Index head) {
    return Rows<X>{x.data + b * x.batch_stride + head * x.head_stride, x.token_stride};
  };
  q_ = rows(call.q, h);
  k_ = rows(call.k, kv);
  v_ = rows(call.v, kv);
  output_ = rows(call.output, h);
  lse_ = call.lse ? call.lse + head_of_all * call.q.tokens : nullptr;
  slope_ = double(call.slopes.data[b * call.slopes.batch_stride + h * call.slopes.head_stride]);
  scale_ = T(call.scale * std::numbers::log2e);
  constexpr double kLargest = std::numeric_limits<T>::max();
  bias_ = LinearBias<T>(T(std::clamp(slope_ * std::numbers::log2e, -kLargest, kLargest)));

  const auto take = [&scratch](Index size) { return std::exchange(scratch, scratch + size); };
  probabilities_ = take(kScoreRows * kBlock<T>);
  for (Index i = chunk * plan.blocks * kBlock<T>; count_ < plan.blocks && i < call.q.tokens; i += kBlock<T>) {
    ForwardBlock<T>& block = blocks_[count_++];
    static_cast<Block<T>&>(block) = Block<T>(mask_, i, std::min<Index>(kBlock<T>, call.q.tokens - i), slope_);
    block.q = take(head_dim_ * kBlock<T>);
    block.o = take(value_dim_ * kBlock<T>);
  }
}

template <class T>
Sweep ForwardTask<T>::tiles() const {
  const Block<T>&first = blocks_[0], &last = blocks_[count_ - 1];
  const Index begin = first.some.begin, end = last.some.end;
  if (begin >= end) return {0, -1, -1};
  const Index center = mask_.right == 0 ? end - 1 : std::clamp((first.lowest + last.highest) / 2, begin, end - 1);
  return {begin / kTile, center / kTile, (end - 1) / kTile};
}

/// What is to be brought near while a tile is used: the next one, or behind the last tile the rows of the output.
template <class T>
Prefetch<T> ForwardTask<T>::after(Index next) const {
  const Index calls = count_ * kTile / kRows;
  if (next >= 0) {
    const Index start = next * kTile, stop = std::min(start + kTile, mask_.keys);
    return {k_, v_, head_dim_, value_dim_, start, stop, pieces(kTile, calls)};
  }
  const Block<T>& last = blocks_[count_ - 1];
  const Index start = blocks_[0].first, stop = last.first + last.rows;
  return {output_, output_, value_dim_, 0, start, stop, pieces(stop - start, calls)};
}

/// Packs a block's queries.
template <class T>
void ForwardTask<T>::open(ForwardBlock<T>& block) {
  for (int r = 0; r < kVectors; r++) {
    block.state[r] = SoftmaxState<T>::empty();
    const Index row = r * kLanes<T>;
    pack_transposed(q_, block.first + row, block.rows - row, head_dim_, scale_, block.q + row);
  }
}

/// Normalises and writes a block's output and lse.
template <class T>
void ForwardTask<T>::close(const ForwardBlock<T>& block) const {
  if (!block.started) {
    for (Index i = 0; i < block.rows; i++) std::fill_n(output_[block.first + i], value_dim_, T(0));
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

/// In double, and from the reference's frame back to full logits: the bias was measured from the key where it is
/// largest.
template <class T>
T ForwardTask<T>::lse_of(const ForwardBlock<T>& block, Index row) const {
  T reference[kLanes<T>], sum[kLanes<T>];
  const SoftmaxState<T>& state = block.state[row / kLanes<T>];
  store<T>(reference, state.reference);
  store<T>(sum, state.sum);
  const Index lane = row % kLanes<T>, query = block.first + row;
  if (sum[lane] == 0) return -std::numeric_limits<T>::infinity();
  const Index beyond = std::abs(mask_.position(query) - mask_.nearest_key(query));
  const double shift = slope_ * (double(beyond) + double(block.positions.nearest[row]));
  return T(double(reference[lane]) * std::numbers::ln2 + std::log(double(sum[lane])) - shift);
}

}  // namespace alibi::inline ALIBI_ISA::kernel
