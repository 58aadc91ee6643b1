// Gradients of two-sided slopes and of positions (kernel/tile/position_bias.hpp): sums of dS over the pairs of a chunk
// of queries and a chunk of keys of one head. With L the pairs whose key is on the left of the query, R the others:
//
//   db = -Σ_L dS_ij (c_i - c_j)       dc_i = -Σ_j g_ij        g_ij = b dS_ij on L
//   da = -Σ_R dS_ij (c_j - c_i)       dc_j = Σ_i g_ij                -a dS_ij on R
//
// Distances are those from c'_i. All keys of a row with c_i != c'_i are on one side, and their common distance cancels,
// because the dS of a row sum to 0, or to the gradient of its lse, by which it is multiplied. It is added where the row
// has only a part of its keys. Internal.
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>

#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/bias.hpp"
#include "alibi/kernel/tile/bias_gradient.hpp"
#include "alibi/kernel/tile/block.hpp"
#include "alibi/kernel/tile/position_bias.hpp"
#include "alibi/kernel/tile/rows.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

template <class T>
class BiasGradient<PositionBiasPolicy<T>> {
 public:
  /// db, da
  static Index slot_size(Index, Index) { return 2; }
  /// A vector for each key, whose lanes add up to Σ_i g_ij. The kRows extra keys of a tile receive the zeros of excess
  /// rows.
  static Index scratch_size(Index, Index keys) { return ceil_div(keys, kTile) * kKeysOfTile * kLanes<T>; }

  /// For a chunk of queries and a chunk of keys. Call clear() first.
  BiasGradient(T* scratch, Index, Index, Index key, Index keys) : of_keys_(scratch), first_key_(key), keys_(keys) {}

  void clear() {
    for (auto& side : sum_)
      for (Vec<T>& x : side) x = broadcast<T>(T(0));
    std::fill_n(of_keys_, scratch_size(0, keys_), T(0));
  }

  /// One tile. add() takes dS of keys [key, key + kRows) and of vector r of the queries.
  struct Tile {
    Side side;
    bool has_positions;
    T slope[2];  // before and after, in base e
    Vec<T> (*sum)[kVectors];
    T* of_keys;                     // of the tile
    T* of_queries;                  // of the block
    T position[kBlock<T>];          // on one side: c'_i - origin, and the common distance if it counts
    T key_position[kTile + kRows];  // … c_j - origin
    T distance[kTile][kBlock<T>];   // on both sides: c_j - c'_i
    T common[kBlock<T>];            // … the common distance, if it counts
    T last_before[kBlock<T>];       // … the last key on the left, counted from the first key of the tile

    EIGEN_ALWAYS_INLINE void add(Index key, int r, const Vec<T> (&ds)[kRows]) const {
      side == Side::edge ? add_edge(key, r, ds) : add_side(key, r, ds);
    }

   private:
    static constexpr Index at(int r) { return r * kLanes<T>; }

    EIGEN_ALWAYS_INLINE void add_side(Index key, int r, const Vec<T> (&ds)[kRows]) const {
      const bool left = side == Side::left;
      const T sign = left ? T(1) : T(-1), g = sign * slope[left ? 0 : 1];
      Vec<T> all = broadcast<T>(T(0)), of_positions = all;
#pragma GCC unroll 8
      for (int a = 0; a < kRows; a++) {
        all = kernel::add(all, ds[a]);
        of_positions = fma(ds[a], broadcast<T>(key_position[key + a]), of_positions);
      }
      // Σ dS |c'_i - c_j| = ± (c'_i Σ dS - Σ dS c_j)
      const Vec<T> distances = sub(mul(all, load<T>(position + at(r))), of_positions);
      Vec<T>& to = sum[left ? 0 : 1][r];
      to = fma(broadcast<T>(sign), distances, to);
      if (!has_positions) return;
      store<T>(of_queries + at(r), fma(broadcast<T>(g), all, load<T>(of_queries + at(r))));
#pragma GCC unroll 8
      for (int a = 0; a < kRows; a++) {
        T* const of_key = of_keys + (key + a) * kLanes<T>;
        store<T>(of_key, fma(broadcast<T>(g), ds[a], load<T>(of_key)));
      }
    }

    EIGEN_ALWAYS_INLINE void add_edge(Index key, int r, const Vec<T> (&ds)[kRows]) const {
      const Vec<T> zero = broadcast<T>(T(0)), one = broadcast<T>(T(1)), last = load<T>(last_before + at(r));
#pragma GCC unroll 8
      for (int a = 0; a < kRows; a++) {
        const Index j = std::min<Index>(key + a, kTile - 1);
        const Vec<T> x = load<T>(distance[j] + at(r));
        const Vec<T> if_equal = select_le(broadcast<T>(T(j)), last, one, zero);
        const Vec<T> left = select_lt(x, zero, one, select_lt(zero, x, zero, if_equal));
        const Vec<T> on_left = mul(ds[a], left), on_right = sub(ds[a], on_left);
        const Vec<T> whole = kernel::add(abs(x), load<T>(common + at(r)));
        sum[0][r] = fma(on_left, whole, sum[0][r]);
        sum[1][r] = fma(on_right, whole, sum[1][r]);
        if (!has_positions) continue;
        const Vec<T> g = sub(mul(on_left, broadcast<T>(slope[0])), mul(on_right, broadcast<T>(slope[1])));
        store<T>(of_queries + at(r), kernel::add(load<T>(of_queries + at(r)), g));
        T* const of_key = of_keys + (key + a) * kLanes<T>;
        store<T>(of_key, kernel::add(load<T>(of_key), g));
      }
    }
  };

  /// `common`: for each lane, the distance that is added to the distances of its row.
  Tile tile(const PositionBiasPolicy<T>& bias, const Positions<T>& queries, const T* common, const TileKeys& keys,
            Side side) {
    const PositionLanes<T>& lanes = *queries.lanes;
    Tile tile;
    tile.side = side;
    tile.has_positions = bias.has_positions();
    for (const bool left : {true, false}) tile.slope[left ? 0 : 1] = T(bias.slope(left) * std::numbers::ln2);
    tile.sum = sum_;
    tile.of_keys = of_keys_ + (keys.tile - first_key_) / kTile * kKeysOfTile * kLanes<T>;
    tile.of_queries = queries.lanes->gradient;
    if (side == Side::edge) {
      bias.distances(lanes, keys.tile, tile.distance);
      for (Index i = 0; i < kBlock<T>; i++)
        tile.last_before[i] = T(std::clamp<Index>(lanes.keys_before[i] - keys.tile, 0, kTile) - 1);
      std::copy_n(common, kBlock<T>, tile.common);
      return tile;
    }
    // Rows in excess, beyond the keys, have a dS of 0.
    const bool left = side == Side::left;
    const double origin = bias.key(keys.tile + (left ? keys.end - 1 : keys.begin));
    std::fill_n(tile.key_position, kTile + kRows, T(0));
    for (Index j = keys.begin; j < keys.end; j++) tile.key_position[j] = clamped<T>(bias.key(keys.tile + j) - origin);
    for (Index i = 0; i < kBlock<T>; i++)
      tile.position[i] = clamped<T>(lanes.at[i] - origin) + (left ? common[i] : -common[i]);
    return tile;
  }

  /// For a row with all its keys: c_i - c'_i, which they have in common.
  static void add_common(double grad_lse, double beyond, double* slot) {
    slot[beyond > 0 ? 0 : 1] -= grad_lse * std::abs(beyond);
  }

  void add_to(double* slot) const {
    for (int side = 0; side < 2; side++)
      for (const Vec<T>& x : sum_[side]) slot[side] -= sum_of(x);
  }
  /// Adds dc_j of the first `count` keys of the chunk.
  void add_to_keys(double* to, Index count) const {
    for (Index j = 0; j < count; j++)
      to[j] += sum_of(load<T>(of_keys_ + (j / kTile * kKeysOfTile + j % kTile) * kLanes<T>));
  }

 private:
  static constexpr Index kKeysOfTile = kTile + kRows;

  static double sum_of(Vec<T> x) {
    T all[kLanes<T>];
    store<T>(all, x);
    double sum = 0;
    for (const T lane : all) sum += double(lane);
    return sum;
  }

  Vec<T> sum_[2][kVectors];  // Σ dS |c_i - c_j| on the left and on the right
  T* of_keys_;
  Index first_key_, keys_;
};

}  // namespace alibi::inline ALIBI_ISA::kernel
