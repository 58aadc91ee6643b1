// What the backward pass knows of each row before its tiles: the lse, D_i = Σ_d dO_id o_id, and which tiles of keys
// matter to its block.
//
// A tile is left out if the keys that the forward may leave out, by the same bound (horizon.hpp) against the whole sum,
// which is known here, have at most `tolerance` of each row's softmax mass. A sixteenth of that is kept for the tiles
// that stand apart, each of which is judged by itself.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>

#include "alibi/horizon.hpp"
#include "alibi/kernel/backward_plan.hpp"
#include "alibi/kernel/block.hpp"
#include "alibi/kernel/horizon.hpp"
#include "alibi/kernel/plan.hpp"
#include "alibi/kernel/rows.hpp"
#include "alibi/kernel/simd.hpp"
#include "alibi/kernel/softmax.hpp"
#include "alibi/mask.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

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
template <class F>
class BackwardRows {
 public:
  using T = typename F::T;

  BackwardRows(const Backward<F>& call, Index sequence, Index head, Index chunk, std::byte* scratch)
      : call_(call.forward),
        sequence_(call.forward.sequences[std::size_t(sequence)]),
        mine_(call.sequences[std::size_t(sequence)]),
        mask_(sequence_.mask),
        head_(head),
        chunk_(chunk),
        packed_(reinterpret_cast<T*>(scratch)),
        center_(packed_ + call_.head_dim * kBlock<T>),
        report_(call_.report ? call_.report + sequence * call_.heads + head : nullptr),
        slope_(sequence_.slope(head) * std::numbers::log2e),
        radii_(pruning_radii(sequence_, head)),
        tails_(pruning_tails(sequence_, head, radii_)) {}
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
      visible += block.tiles();
    }
    if (report_) add_to(*report_, 0, visible, bound);
  }

 private:
  /// -D and the lse, and the gradient of q, to be added to.
  void fill(const Block<T>& block, BlockNumbers<T>& numbers) {
    const auto grad_q = rows_of(mine_.grad_q, head_);
    for (Index i = 0; i < kBlock<T>; i++) {
      const Index query = block.first + i;
      numbers.lse[i] = std::numeric_limits<T>::infinity();
      numbers.minus[i] = numbers.common[i] = T(0);
      if (i >= block.rows) continue;
      find_lse(query, numbers.lse[i], numbers.common[i]);
      std::fill_n(grad_q[query], call_.head_dim, T(0));
    }
    with_scalar(rows_of(mine_.output, head_), [&](const auto& output) {
      with_rows(mine_.grad_output, head_, [&](const auto& rows) {
        with_scalar(rows, [&](const auto& grad_output) {
          for (Index i = 0; i < block.rows; i++)
            if (numbers.lse[i] != std::numeric_limits<T>::infinity())
              numbers.minus[i] = -dot(output[block.first + i], grad_output[block.first + i], mine_.output.head_dim);
        });
      });
    });
  }

  /// The lse that is given, in base 2 and in the bias's frame, and the distance which that leaves to be counted. Where
  /// the lse of the keys at hand is the same but for the rounding of the given one, these are all keys of the row, or
  /// all that matter: it has the digits that the given one has lost, and the row of dS sums up to 0.
  void find_lse(Index query, T& lse, T& common) const {
    const double given = double(mine_.lse[head_ * mine_.lse_stride + query]);
    if (given == -std::numeric_limits<double>::infinity()) return;
    const double slope = sequence_.slope(head_), distance = double(mask_.common_distance(query, slope));
    const double framed = given + slope * distance;
    if (mine_.framed) {
      const double own = double(mine_.framed[head_ * sequence_.q.tokens + query]);
      const double rounding = double(std::numeric_limits<T>::epsilon()) * (std::abs(given) + std::abs(own) + 8);
      if (std::isfinite(own) && std::abs(own - framed) <= rounding) {
        lse = T(own * std::numbers::log2e);
        return;
      }
      common = T(distance);
    }
    lse = T(framed * std::numbers::log2e);
  }

  /// The tiles that a block is to visit; returns a bound on what it loses with the others, of any row.
  double find_tiles(const Block<T>& block, BlockNumbers<T>& numbers) {
    TileRange& tiles = numbers.tiles;
    tiles = {};
    if (block.tiles() == 0) return 0;
    tiles = {std::int32_t(block.some.begin / kTile), std::int32_t((block.some.end - 1) / kTile)};
    if (!radii_) return 0;
    const TileRange all = tiles;
    measure(block, numbers);
    Pack<T> lost[kVectors];
    for (Pack<T>& x : lost) x = splat<T>(T(0));

    // Whether the tiles up to `number`, or from it on, may go; each step of the searches is proved by itself.
    const auto drop = [&](Index number, bool left, Pack<T>* sum) {
      const Unread<T> unread = left ? unread_until<T>(*radii_, tails_, slope_, number, {block.some.begin, mask_.keys})
                                    : unread_from<T>(*radii_, tails_, slope_, number, block.some.end);
      const T share = side_share(T(sequence_.tolerance), left && mask_.right > 0);
      return negligible(block.positions, numbers, slope_, unread, left, share, sum);
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
    const bool drops = tiles.first > all.first || tiles.last < all.last;
    return double(most_lost) + (drops ? sequence_.tolerance / 16 : 0);
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
  const BackwardSequence<F>& mine_;
  const ResolvedMask mask_;
  Index head_, chunk_;
  T *packed_, *center_;
  Pruning* report_;
  double slope_;  // m log2 e
  const Radii<T>* radii_;
  const T* tails_;
};

}  // namespace alibi::inline ALIBI_ISA::kernel
