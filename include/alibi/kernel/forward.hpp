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
#include <utility>

#include "alibi/kernel/bias.hpp"
#include "alibi/kernel/pack.hpp"
#include "alibi/kernel/product.hpp"
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

inline constexpr int kMostBlocks = 10;                  // that share a pass over the keys
inline constexpr std::size_t kCacheShare = 768 * 1024;  // bytes of packed queries and outputs that are to stay near

/// How the queries of a head are cut into tasks; by the shapes alone.
template <class T>
struct ForwardPlan {
  int blocks;                 // of kBlock queries, in a task
  Index chunks;               // tasks of a head
  Index tasks;                // of the call
  std::size_t scratch_bytes;  // of a task

  ForwardPlan(Index heads, Index queries, Index head_dim, Index value_dim) {
    const std::size_t block = std::size_t(head_dim + value_dim) * kBlock<T> * sizeof(T);
    const Index all = pieces(queries, kBlock<T>);
    blocks = int(std::clamp<std::size_t>(kCacheShare / block, 1, kMostBlocks));
    while (blocks > 2 && heads * pieces(all, blocks) < 8) blocks /= 2;  // enough tasks for a few threads
    chunks = pieces(all, blocks);
    tasks = heads * chunks;
    scratch_bytes = std::size_t(blocks) * block + kTile * kBlock<T> * sizeof(T);
  }
};

/// Some consecutive queries of a head, one a lane, and their state.
template <class T>
struct Block {
  Index first = 0, rows = 0;
  int vectors = 0;                // that hold a query
  bool started = false;           // whether o holds anything
  KeyRange some{}, all{};         // the keys that some of its queries see, and those that all see
  Index lowest = 0, highest = 0;  // positions of its first and last query, clamped to the keys
  Positions<T> positions;
  SoftmaxState<T> state[kVectors];
  T *q = nullptr, *o = nullptr;  // [head_dim][kBlock], [value_dim][kBlock]
};

/// The order of a task's tiles: from `center` outward, the two sides in turn.
class Sweep {
 public:
  Sweep(Index first, Index center, Index last) : first_(first), last_(last), left_(center), right_(center + 1) {}
  /// The next tile's number, or -1 when all have been taken.
  Index next() {
    const bool left = left_ >= first_, right = right_ <= last_;
    if (left && (!right || !turn_)) {
      turn_ = true;
      return left_--;
    }
    turn_ = false;
    return right ? right_++ : -1;
  }

 private:
  Index first_, last_, left_, right_;
  bool turn_ = false;
};

template <class T>
class ForwardTask {
 public:
  ForwardTask(const Forward<T>& call, const ForwardPlan<T>& plan, Index task, T* scratch);

  void run() {
    for (Block<T>& block : blocks()) open(block);
    Sweep sweep = tiles();
    for (Index number = sweep.next(), next; number >= 0; number = next) {
      next = sweep.next();
      ahead_ = prefetch_tile(next);
      for (Block<T>& block : blocks()) {
        const TileKeys keys = keys_of(block, number * kTile);
        if (keys.begin < keys.end) visit(block, keys);
      }
    }
    for (Block<T>& block : blocks()) close(block);
  }

 private:
  static constexpr int W = kLanes<T>;

  std::span<Block<T>> blocks() { return {blocks_, std::size_t(count_)}; }
  Sweep tiles() const;
  Prefetch<T> prefetch_tile(Index number) const;
  TileKeys keys_of(const Block<T>& block, Index tile) const;
  LaneMask<T> mask_of(const Block<T>& block, Index tile) const;

  void open(Block<T>& block);
  void visit(Block<T>& block, const TileKeys& keys);
  template <class Bias, class Mask>
  void attend(Block<T>& block, const TileKeys& keys, const Bias& bias, const Mask& mask);
  void close(Block<T>& block);

  const ResolvedMask mask_;
  Index head_dim_, value_dim_;
  Rows<const T> q_, k_, v_;
  Rows<T> output_;
  T* lse_;        // of the head, or null
  double slope_;  // m, per position
  T scale_;       // τ log2 e
  LinearBias<T> bias_;
  T* probabilities_;  // [kTile][kBlock]: scores first
  Prefetch<T> ahead_{};
  int count_ = 0;
  Block<T> blocks_[kMostBlocks];
};

/// A tile against a block: the paper's three lines.
template <class T>
template <class Bias, class Mask>
void ForwardTask<T>::attend(Block<T>& block, const TileKeys& keys, const Bias& bias, const Mask& mask) {
  constexpr bool kMasked = !std::is_same_v<Mask, NoMask>;
  Pack<T> largest[kVectors], factor[kVectors];
  for (auto& x : largest) x = splat<T>(-std::numeric_limits<T>::infinity());
  score(k_, head_dim_, block.q, keys, bias, mask, probabilities_, largest, ahead_);  // S = τ Q K' + bias

  bool outgrown = false;
  for (int r = 0; r < keys.vectors; r++)
    outgrown |= block.state[r].outgrown(largest[r] = add(largest[r], bias.offset[r]));
  if (outgrown)
    for (int r = 0; r < keys.vectors; r++) factor[r] = block.state[r].raise(largest[r]);
  const Before before = !block.started ? Before::none : outgrown ? Before::rescale : Before::keep;

  with_vectors(keys.vectors, [&](auto n) {
    exponentiate<n, kMasked>(probabilities_, keys.begin, keys.ends, bias.offset, block.state);     // P = 2^(S - μ)
    accumulate<n>(v_.from(keys.tile), value_dim_, probabilities_, keys, before, factor, block.o);  // O = α O + P V
  });
  block.started = true;
}

/// Chooses how the sums of a tile start: to one side of all queries, or across a boundary.
template <class T>
void ForwardTask<T>::visit(Block<T>& block, const TileKeys& keys) {
  const Index first = keys.tile + keys.begin, last = keys.tile + keys.end - 1;
  const bool all = block.all.begin <= first && last < block.all.end;
  if (all && last <= block.lowest)
    attend(block, keys, bias_.left(block.positions, keys.tile), NoMask());
  else if (all && first >= block.highest)
    attend(block, keys, bias_.right(block.positions, keys.tile), NoMask());
  else
    attend(block, keys, bias_.edge(block.positions, keys.tile), mask_of(block, keys.tile));
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
  probabilities_ = take(kTile * kBlock<T>);
  for (Index i = chunk * plan.blocks * kBlock<T>; count_ < plan.blocks && i < call.q.tokens; i += kBlock<T>) {
    Block<T>& block = blocks_[count_++];
    block.first = i;
    block.rows = std::min<Index>(kBlock<T>, call.q.tokens - i);
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

template <class T>
Prefetch<T> ForwardTask<T>::prefetch_tile(Index number) const {
  const Index tile = number * kTile, end = number < 0 ? tile : std::min(tile + kTile, mask_.keys);
  return {k_, v_, head_dim_, value_dim_, tile, end, pieces(kRows, count_)};
}

template <class T>
TileKeys ForwardTask<T>::keys_of(const Block<T>& block, Index tile) const {
  TileKeys keys{tile,
                block.vectors,
                std::max<Index>(block.some.begin - tile, 0),
                std::min<Index>(block.some.end - tile, kTile),
                {}};
  for (int r = 0; r < kVectors; r++) {
    const Index last = block.first + std::min<Index>((r + 1) * W, block.rows) - 1;
    keys.ends[r] = std::clamp(mask_.visible(last).end - tile, keys.begin, std::max(keys.begin, keys.end));
  }
  return keys;
}

template <class T>
LaneMask<T> ForwardTask<T>::mask_of(const Block<T>& block, Index tile) const {
  LaneMask<T> mask;
  for (int i = 0; i < kBlock<T>; i++) {
    const KeyRange keys = mask_.visible(block.first + i);
    mask.low[i] = T(std::clamp<Index>(keys.begin - tile, 0, kTile));
    mask.high[i] = T(std::clamp<Index>(keys.end - 1 - tile, -1, kTile));
  }
  return mask;
}

/// Packs the block's queries and works out where they stand and what they see.
template <class T>
void ForwardTask<T>::open(Block<T>& block) {
  const KeyRange first = mask_.visible(block.first), last = mask_.visible(block.first + block.rows - 1);
  block.vectors = int((block.rows + W - 1) / W);
  block.started = false;
  block.some = {first.begin, last.end};
  block.all = {last.begin, first.end};
  block.lowest = block.positions.base = mask_.nearest_key(block.first);
  block.highest = mask_.nearest_key(block.first + block.rows - 1);
  for (Index i = 0; i < kBlock<T>; i++) {
    const Index c = mask_.nearest_key(block.first + i);
    const KeyRange keys = mask_.visible(block.first + i);
    block.positions.from_base[i] = T(c - block.positions.base);
    block.positions.nearest[i] = slope_ >= 0 ? T(0) : T(std::max<Index>({0, c - keys.begin, keys.end - 1 - c}));
  }
  for (auto& state : block.state) state = SoftmaxState<T>::empty();

  for (int r = 0; r < kVectors; r++)
    pack_transposed(q_, block.first + r * W, block.first, block.first + block.rows, head_dim_, scale_, block.q + r * W,
                    kBlock<T>);
}

/// Normalises, transposes back and writes the block's output and lse.
template <class T>
void ForwardTask<T>::close(Block<T>& block) {
  for (int r = 0; r < block.vectors; r++) {
    const Pack<T> normalizer = block.state[r].normalizer();
    for (Index d = 0; d < value_dim_; d += W) {
      const Index dims = std::min<Index>(W, value_dim_ - d);
      Pack<T> square[W];
      for (int i = 0; i < W; i++)
        square[i] = block.started && i < dims ? mul(load<T>(block.o + (d + i) * kBlock<T> + r * W), normalizer)
                                              : splat<T>(T(0));
      transpose<T>(square);
      for (Index i = 0; i < W && r * W + i < block.rows; i++)
        dims == W ? store<T>(output_[block.first + r * W + i] + d, square[i])
                  : store_first<T>(output_[block.first + r * W + i] + d, square[i], dims);
    }
    if (!lse_) continue;
    // In double, from the reference's frame back to full logits: the bias was measured from the nearest key.
    T reference[W], sum[W];
    store<T>(reference, block.state[r].reference);
    store<T>(sum, block.state[r].sum);
    for (Index i = 0; i < W && r * W + i < block.rows; i++) {
      const Index query = block.first + r * W + i, p = mask_.position(query);
      const Index beyond = std::abs(p - mask_.nearest_key(query));
      const double shift = slope_ * (double(beyond) + double(block.positions.nearest[r * W + i]));
      lse_[query] = sum[i] == 0 ? -std::numeric_limits<T>::infinity()
                                : T(double(reference[i]) * std::numbers::ln2 + std::log(double(sum[i])) - shift);
    }
  }
}

}  // namespace alibi::inline ALIBI_ISA::kernel
