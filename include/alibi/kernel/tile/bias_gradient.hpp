// Gradients of the bias: dS summed up over one head's pairs of a chunk of queries and a chunk of keys.
//
//   slope    dm = -Σ_ij dS_ij (|c_i - j| - d_i)      over all keys of a row: what its distances have in common counts
//                                                    for nothing, as the row of dS sums up to 0
//            dm = -Σ_ij dS_ij |p_i - j|              over a part of them
//   table    dtable[t] = Σ_{p_i - j = t} dS_ij
//
// A sum goes to a slot of slot_size() doubles, which the calls of a head add up in a fixed order.
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

  /// For chunks of so many queries and keys, the first of them at position `query` and `key`; to be cleared first.
  BiasGradient(T*, Index, Index, Index, Index) {}

  void clear() {
    for (Vec<T>& x : sum_) x = broadcast<T>(T(0));
  }
  /// A tile's turn: add() gets dS of keys [key, key + kRows) and a vector of queries.
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
      // To one side distances are one apart: two operations an entry, not four.
#pragma GCC unroll 8
      for (int a = 1; a < kRows; a++) {
        all = kernel::add(all, ds[a]);
        ramp = fma(ds[a], broadcast<T>(T(side == Side::left ? -a : a)), ramp);
      }
      sum[r] = kernel::add(sum[r], fma(all, distances.of(key, r), ramp));
    }
  };
  /// `common`, by lane: what is to be added to the distances of a row.
  Tile tile(const Positions<T>& queries, const T* common, Index first_key, Side side) {
    Tile tile{{queries, first_key}, side, sum_};
    for (int r = 0; r < kVectors; r++)
      tile.distances.nearest[r] = sub(tile.distances.nearest[r], load<T>(common + r * kLanes<T>));
    return tile;
  }

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

/// Consecutive keys add to entries that overlap but for one, and a load that waits for two stores to meet is slow. So
/// there are kLanes tables, each for the distances whose sums begin at a whole vector of it.
template <class T>
class BiasGradient<TableBiasPolicy<T>> {
 public:
  /// Distances, from `query` - (`key` + keys - 1) - kRows on: rows in excess add zeros.
  static Index slot_size(Index queries, Index keys) { return queries + keys + kRows; }
  static Index scratch_size(Index queries, Index keys) {
    return kLanes<T> * (ceil_div(slot_size(queries, keys), kLanes<T>) + 1) * kLanes<T>;
  }
  /// The distance of a slot's first entry.
  static Index first_distance(Index query, Index key, Index keys) { return query - (key + keys - 1) - kRows; }

  BiasGradient(T* scratch, Index query, Index queries, Index key, Index keys)
      : sums_(scratch),
        first_(first_distance(query, key, keys)),
        size_(slot_size(queries, keys)),
        table_(scratch_size(queries, keys) / kLanes<T>) {}

  void clear() { std::fill_n(sums_, kLanes<T> * table_, T(0)); }

  struct Tile {
    T* sums;
    Index table, at;  // `at`: the entry of the first query and the tile's first key

    EIGEN_ALWAYS_INLINE void add(Index key, int r, const Vec<T> (&ds)[kRows]) const {
#pragma GCC unroll 8
      for (int a = 0; a < kRows; a++) {
        const Index entry = at - (key + a) + r * kLanes<T>, rest = entry % kLanes<T>;
        T* const to = sums + rest * table + (entry - rest);
        store<T>(to, kernel::add(load<T>(to), ds[a]));
      }
    }
  };
  Tile tile(const Positions<T>& queries, const T*, Index first_key, Side) const {
    return {sums_, table_, queries.first - first_key - first_};
  }

  void add_to(double* slot) const {
    for (Index rest = 0; rest < kLanes<T>; rest++)
      for (Index i = 0; i + rest < size_; i++) slot[i + rest] += double(sums_[rest * table_ + i]);
  }

 private:
  T* sums_;  // [kLanes][table_]
  Index first_, size_, table_;
};

}  // namespace alibi::inline ALIBI_ISA::kernel
