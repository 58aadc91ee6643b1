// The parameters of a call of the backward pass, and its tasks.
//
// A task is one chunk of queries and one chunk of keys, of a kv head and all query heads that read it. It adds to the
// gradients of both chunks. Tasks run in waves. Wave w has the chunks (i, j) with i + j = w modulo the number of
// chunks. If the heads see only a narrow band, it has those with i - j = w. No two tasks of a wave share a chunk, so
// that each gradient is summed in the order of the waves, on any number of threads. With i + j every wave has the same
// share of a causal triangle, half of its chunks. With i - j the first few waves have the whole band. Internal.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <tuple>
#include <type_traits>

#include "alibi/kernel/backward/dkdv.hpp"
#include "alibi/kernel/forward/params.hpp"
#include "alibi/kernel/forward/schedule.hpp"
#include "alibi/kernel/pruning/bound.hpp"
#include "alibi/kernel/tile/bias_gradient.hpp"
#include "alibi/kernel/tile/position_gradient.hpp"
#include "alibi/kernel/tile/scores.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// Tiles of keys first, …, last; none if last < first.
struct TileRange {
  std::int32_t first = 0, last = -1;
};

/// What all tasks of a block of queries need to know of it; one lane for each query.
template <class T>
struct BlockStats {
  T lse[kBlock<T>];      // the shifted lse, base 2; inf if the query sees no key or does not exist
  T minus_d[kBlock<T>];  // -Σ_d dO o, plus the gradient of the lse
  // The common distance of the keys of a row (ResolvedMask::common_distance()), for the gradient of a slope. 0 if the
  // keys of the call are all keys of the row, because then Σ_j dS_ij = dlse_i is known.
  T common_distance[kBlock<T>];
  QueryBounds<T> query_bounds;
  TileRange tiles;  // that may matter, outlier tiles excepted
};

/// The division of the queries and keys of a sequence into chunks.
struct BackwardPlan {
  // As many keys as 8 blocks of 48 queries, so that chunks of queries and of keys have the same boundaries on the
  // diagonal.
  static constexpr Index kMaxTiles = 6;

  Index tiles = kMaxTiles;  // of keys in a chunk
  Index blocks = 0;         // of queries in a chunk: at least as many queries as keys
  Index query_chunks = 0, key_chunks = 0;

  Index waves() const { return std::max(query_chunks, key_chunks); }
  /// The number of queries in a chunk.
  template <class T>
  Index rows() const {
    return blocks * kBlock<T>;
  }

  template <class F>
  static BackwardPlan of(const SequenceParams<F>& sequence, Index head_dim, Index value_dim);
};

/// What the backward pass needs of a sequence besides its SequenceParams. The views have a batch of 1.
template <class F>
struct BackwardSequenceParams {
  using T = typename F::T;
  alibi::detail::EitherView<typename F::Query> grad_output;
  View<const typename F::Query> output;
  const T* lse;       // row i of head h is at lse[h lse_stride + i]
  const T* grad_lse;  // in the same order; null: 0
  Index lse_stride;
  View<T> grad_q, grad_k, grad_v;
  BackwardPlan plan{};
  T* shifted_lse = nullptr;           // [heads][queries], computed from the keys of this call; or null
  BlockStats<T>* blocks = nullptr;    // [heads][blocks of queries]
  NearestKeys<T>* nearest = nullptr;  // [heads][blocks of queries], for positions in any order; else null
  TileRange* reach = nullptr;         // [heads][query_chunks], the tiles of all blocks of a chunk
  double* slots = nullptr;            // [heads][query_chunks][slot_size()], the gradient of the bias
  double *grad_key_positions = nullptr, *grad_query_positions = nullptr;  // [heads][keys], [heads][queries]; or null
};

/// A validated call of the backward pass.
template <class F>
struct BackwardParams {
  Params<F> forward;
  std::span<const BackwardSequenceParams<F>> sequences;
};

/// Calls f with the rows of a head of an array of either scalar.
template <class E, class Body>
void with_rows(const alibi::detail::EitherView<E>& x, Index head, const Body& f) {
  if constexpr (!std::is_same_v<E, Sum<E>>) {
    if (x.is_sum) return f(rows_of(x.of_sum, head));
  }
  f(rows_of(x.of_scalar, head));
}

/// The number of blocks that a task computes together, about 96 queries. Sums over queries are longer then, and are
/// added less often.
template <class T>
inline constexpr int kQueryBlocks = sizeof(T) == 4 ? 2 : 4;

/// One task of a wave.
struct BackwardItem {
  float cost;  // the estimated number of pairs of query and key
  std::int32_t sequence, kv_head, queries, keys;
};

/// The scratch of a task.
template <class F>
struct BackwardScratch {
  using T = typename F::T;
  std::size_t bytes;

  BackwardScratch(Index head_dim, Index value_dim, const BackwardPlan& plan) {
    const Index dims = round_up<T>(head_dim), values = round_up<T>(value_dim);
    const Index blocks = kQueryBlocks<T> * (2 * head_dim + value_dim + dims + values + kScoreRows) * kBlock<T>;
    const Index keys = plan.tiles * kTile * (dims + values);
    const Index tiles_in_buffer = plan.tiles * tile_units<F>(head_dim, value_dim);
    const Index bias = BiasGradient<typename F::Bias>::scratch_size(plan.blocks * kBlock<T>, plan.tiles * kTile);
    bytes = std::size_t(ceil_div((blocks + keys + tiles_in_buffer + bias) * Index(sizeof(T)), 64)) * 64;
  }
};

template <class F>
BackwardPlan BackwardPlan::of(const SequenceParams<F>& sequence, Index head_dim, Index value_dim) {
  using T = typename F::T;
  BackwardPlan plan;
  for (;; plan.tiles /= 2) {
    plan.blocks = ceil_div(plan.tiles * kTile, kBlock<T>);
    plan.query_chunks = ceil_div(sequence.q.tokens, plan.rows<T>());
    plan.key_chunks = ceil_div(sequence.mask.keys, plan.tiles * kTile);
    // A wave should have work for a few threads. A chunk should have more work than the addition of its gradients.
    const bool few = plan.tiles > 3 && sequence.kv_heads * plan.waves() < 8;
    const bool large = plan.tiles > 1 && BackwardScratch<F>(head_dim, value_dim, plan).bytes > kScratchBytes;
    if (!few && !large) return plan;
  }
}

/// The tiles of a chunk of keys.
inline TileRange tiles_of(const BackwardPlan& plan, Index chunk, Index keys) {
  const Index first = chunk * plan.tiles, end = std::min(first + plan.tiles, ceil_div(keys, kTile));
  return {std::int32_t(first), std::int32_t(end - 1)};
}

/// Whether some of the tiles are outliers.
template <class T>
bool any_outlier(const KeyTileBounds<T>* key_bounds, const TileRange& tiles) {
  if (!key_bounds) return false;
  const auto* const end = key_bounds->outliers + key_bounds->outlier_count;
  const auto* const at = std::lower_bound(key_bounds->outliers, end, tiles.first);
  return at != end && *at <= tiles.last;
}

/// Whether the heads that read a kv head see only keys close to their own chunk, outlier tiles excepted.
template <class F>
bool is_band(const Params<F>& params, const BackwardSequenceParams<F>& sequence, Index kv_head) {
  const BackwardPlan& plan = sequence.plan;
  for (Index h = kv_head * params.group(); h < (kv_head + 1) * params.group(); h++)
    for (Index chunk = 0; chunk < plan.query_chunks; chunk++) {
      const TileRange& reach = sequence.reach[h * plan.query_chunks + chunk];
      if (reach.last < reach.first) continue;
      const Index farthest = std::max(chunk - reach.first / plan.tiles, reach.last / plan.tiles - chunk);
      if (farthest > plan.waves() / 4) return false;
    }
  return true;
}

/// The estimated cost of a task; 0 if there is nothing to do.
template <class F>
float estimated_cost(const BackwardParams<F>& params, const BackwardItem& item) {
  const SequenceParams<F>& sequence = params.forward.sequences[std::size_t(item.sequence)];
  const BackwardSequenceParams<F>& bwd = params.sequences[std::size_t(item.sequence)];
  const BackwardPlan& plan = bwd.plan;
  const Index rows = plan.rows<typename F::T>(), begin = item.queries * rows;
  const Index end = std::min(begin + rows, sequence.q.tokens);
  const TileRange tiles = tiles_of(plan, item.keys, sequence.mask.keys);
  const Index seen_from = std::max(sequence.mask.visible(begin).begin, tiles.first * Index(kTile)),
              seen_to = std::min(sequence.mask.visible(end - 1).end, (tiles.last + 1) * Index(kTile));
  const bool sinks = tiles.first * Index(kTile) < sequence.mask.visible_sinks(end - 1).end;
  if (seen_from >= seen_to && !sinks) return 0;
  const bool diagonal = !sequence.mask.sees_ahead(begin) && sequence.mask.position(begin) < seen_to;
  const bool outliers = any_outlier(sequence.key_bounds_of(item.kv_head), tiles);
  float cost = 0;
  for (Index h = item.kv_head * params.forward.group(); h < (item.kv_head + 1) * params.forward.group(); h++) {
    const TileRange& reach = bwd.reach[h * plan.query_chunks + item.queries];
    const Index from = std::max(reach.first, tiles.first), to = std::min(reach.last, tiles.last);
    if (from <= to) cost += float(end - begin) * float(to - from + 1) * (diagonal ? 0.5F : 1.F);
    if (outliers || sinks) cost += 1;
  }
  return cost;
}

/// Lists the tasks of wave `wave`, the most expensive first. Returns their number.
template <class F>
Index list_wave(const BackwardParams<F>& params, Index wave, std::span<BackwardItem> items) {
  std::size_t count = 0;
  for (std::size_t s = 0; s < params.sequences.size(); s++) {
    const BackwardPlan& plan = params.sequences[s].plan;
    if (wave >= plan.waves()) continue;
    for (Index kv = 0; kv < params.forward.kv_heads; kv++) {
      const bool band = is_band(params.forward, params.sequences[s], kv);
      for (Index chunk = 0; chunk < plan.query_chunks; chunk++) {
        const Index keys = ((band ? chunk - wave : wave - chunk) + plan.waves()) % plan.waves();
        if (keys >= plan.key_chunks) continue;
        BackwardItem item{0, std::int32_t(s), std::int32_t(kv), std::int32_t(chunk), std::int32_t(keys)};
        item.cost = estimated_cost(params, item);
        if (item.cost > 0) items[count++] = item;
      }
    }
  }
  std::sort(items.begin(), items.begin() + std::ptrdiff_t(count), [](const BackwardItem& a, const BackwardItem& b) {
    return std::tuple(a.cost, a.sequence, a.kv_head, a.queries) > std::tuple(b.cost, b.sequence, b.kv_head, b.queries);
  });
  return Index(count);
}

}  // namespace alibi::inline ALIBI_ISA::kernel
