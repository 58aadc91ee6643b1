// Gradients of the bias: sums of dS over the pairs of a chunk of queries and a chunk of keys of one head.
//
//   slope    dm = -Σ_ij dS_ij (|c_i - j| - d_i)      if the row has all its keys: its row of dS sums to the gradient of
//               - Σ_i dlse_i (|p_i - c_i| + d_i)     the lse, by which the common part of its distances is multiplied
//            dm = -Σ_ij dS_ij |p_i - j|              if the row has only a part of its keys
//   table    dtable[t] = Σ_{p_i - j = t} dS_ij
//
// A sum is added to a slot of slot_size() doubles. The tasks of a head add to it in a fixed order. Internal.
#pragma once

#include <algorithm>

#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/bias.hpp"
#include "alibi/kernel/tile/block.hpp"
#include "alibi/kernel/tile/rows.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

template <class Bias>
class BiasGradient;

template <class T>
class BiasGradient<LinearBiasPolicy<T>> {
 public:
  static Index slot_size(Index, Index) { return 1; }
  static Index scratch_size(Index, Index) { return 0; }

  /// For a chunk of queries and a chunk of keys. Call clear() first.
  BiasGradient(T*, Index, Index, Index, Index) {}

  void clear() {
    for (Vec<T>& x : sum_) x = broadcast<T>(T(0));
  }
  /// One tile. add() takes dS of keys [key, key + kRows) and of vector r of the queries.
  struct Tile {
    Distances<T> distances;
    Side side;
    Vec<T>* sum;

    EIGEN_ALWAYS_INLINE void add(Index key, int r, const Vec<T> (&ds)[kRows]) const {
      Vec<T> all = ds[0], ramp = broadcast<T>(T(0));
      if (side == Side::edge) {
        all = sum[r];
#pragma GCC unroll 8
        for (int a = 0; a < kRows; a++) all = fma(ds[a], distances.of(key + a, r), all);
        sum[r] = all;
        return;
      }
      // On one side of the queries the distances of neighbouring keys differ by one: two operations per entry, not
      // four.
#pragma GCC unroll 8
      for (int a = 1; a < kRows; a++) {
        all = kernel::add(all, ds[a]);
        ramp = fma(ds[a], broadcast<T>(T(side == Side::left ? -a : a)), ramp);
      }
      sum[r] = kernel::add(sum[r], fma(all, distances.of(key, r), ramp));
    }
  };
  /// `common`: for each lane, the distance that is added to the distances of its row.
  Tile tile(const LinearBiasPolicy<T>&, const Positions<T>& queries, const T* common, const TileKeys& keys, Side side) {
    Tile tile{{queries, keys.tile}, side, sum_};
    for (int r = 0; r < kVectors; r++)
      tile.distances.nearest[r] = sub(tile.distances.nearest[r], load<T>(common + r * kLanes<T>));
    return tile;
  }

  /// For a row with all its keys: the part of the distance that they have in common.
  static void add_common(double grad_lse, Index distance, double* slot) { *slot -= grad_lse * double(distance); }

  void add_to(double* slot) const {
    for (const Vec<T>& x : sum_) {
      T all[kLanes<T>];
      store<T>(all, x);
      for (const T lane : all) *slot -= double(lane);
    }
  }

 private:
  Vec<T> sum_[kVectors];
};

/// The vectors of entries that consecutive keys add to overlap in all entries except one. A load that must wait for two
/// earlier stores is slow. There are therefore kLanes tables, one for each remainder of the first entry of a vector
/// modulo kLanes. Two vectors of one table are equal or disjoint.
template <class T>
class BiasGradient<TableBiasPolicy<T>> {
 public:
  /// One entry for each distance from first_distance() on. The kRows extra entries receive the zeros of excess rows.
  static Index slot_size(Index queries, Index keys) { return queries + keys + kRows; }
  static Index scratch_size(Index queries, Index keys) {
    return kLanes<T> * (ceil_div(slot_size(queries, keys), kLanes<T>) + 1) * kLanes<T>;
  }
  /// The distance of the first entry of a slot.
  static Index first_distance(Index query, Index key, Index keys) { return query - (key + keys - 1) - kRows; }

  BiasGradient(T* scratch, Index query, Index queries, Index key, Index keys)
      : sums_(scratch),
        first_(first_distance(query, key, keys)),
        size_(slot_size(queries, keys)),
        table_(scratch_size(queries, keys) / kLanes<T>) {}

  void clear() { std::fill_n(sums_, kLanes<T> * table_, T(0)); }

  struct Tile {
    T* sums;
    Index table, at;  // at: the entry of the first query and the first key of the tile

    EIGEN_ALWAYS_INLINE void add(Index key, int r, const Vec<T> (&ds)[kRows]) const {
#pragma GCC unroll 8
      for (int a = 0; a < kRows; a++) {
        const Index entry = at - (key + a) + r * kLanes<T>, rest = entry % kLanes<T>;
        T* const to = sums + rest * table + (entry - rest);
        store<T>(to, kernel::add(load<T>(to), ds[a]));
      }
    }
  };
  Tile tile(const TableBiasPolicy<T>&, const Positions<T>& queries, const T*, const TileKeys& keys, Side) const {
    return {sums_, table_, queries.first - keys.tile - first_};
  }

  static void add_common(double, Index, double*) {}

  void add_to(double* slot) const {
    for (Index rest = 0; rest < kLanes<T>; rest++)
      for (Index i = 0; i + rest < size_; i++) slot[i + rest] += double(sums_[rest * table_ + i]);
  }

 private:
  T* sums_;  // [kLanes][table_]
  Index first_, size_, table_;
};

}  // namespace alibi::inline ALIBI_ISA::kernel
