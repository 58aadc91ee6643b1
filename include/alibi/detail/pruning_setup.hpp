// The memory of a call of the forward, and the statistics of its keys that pruning needs. Internal.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <span>
#include <utility>

#include "alibi/detail/arena.hpp"
#include "alibi/executor.hpp"
#include "alibi/kernel/forward/params.hpp"
#include "alibi/kernel/forward/schedule.hpp"
#include "alibi/kernel/pruning/key_stats.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// One task of measure_keys(): up to kTiles tiles of a kv head. The kv head is entry `measured` of
/// CallMemory::measured.
struct MeasureItem {
  static constexpr Index kTiles = 128;
  Index sequence, kv_head, first_tile, measured;
};
/// A kv head whose keys are measured.
template <class T>
struct Measured {
  kernel::KeyStatsMemory<T> keys;
  T chord_norm;
};

/// The number of tiles of keys of a sequence that must be measured for pruning. 0 if no head can prune, or if a cache
/// has measured them.
template <class F>
Index measured_tiles(const kernel::SequenceParams<F>& sequence) {
  if (F::kCached) return 0;
  for (Index head = 0; head < sequence.q.heads; head++)
    if (sequence.budget(head).enabled) return kernel::ceil_div(sequence.mask.keys, kernel::kTile);
  return 0;
}

/// The number of sides of a query on which keys may be pruned.
template <class F>
Index sides_of(const kernel::SequenceParams<F>& sequence) {
  return sequence.mask.sees_ahead(0) ? 2 : 1;
}

/// Everything a call of the forward needs besides its arrays.
template <class F>
struct CallMemory {
  using T = typename F::T;
  std::span<std::byte> scratch;
  std::span<kernel::SequenceParams<F>> sequences;
  std::span<kernel::Cached<typename F::Stored, T>> cached;  // [sequences][kv_heads], if the keys are in a cache
  std::span<kernel::ForwardItem> items;
  std::span<MeasureItem> measures;
  std::span<kernel::KeyTileBounds<T>> key_bounds;  // of the kv heads of all measured sequences
  std::span<Measured<T>> measured;                 // of the same kv heads
  std::span<T> numbers;  // the KeyStatsMemory of these kv heads, then the tail bounds of the heads
  std::span<std::int32_t> outliers;
  std::span<T> table;  // of a table bias: [heads][kernel::Tables::size()], padded

  struct Sizes {
    Index scratch = 0, sequences = 0, cached = 0, items = 0, measures = 0, key_bounds = 0, numbers = 0, outliers = 0,
          table = 0;
  };
  CallMemory(Arena& arena, const Sizes& sizes)
      : scratch(arena.take<std::byte>(sizes.scratch)),
        sequences(arena.take<kernel::SequenceParams<F>>(sizes.sequences)),
        cached(arena.take<kernel::Cached<typename F::Stored, T>>(sizes.cached)),
        items(arena.take<kernel::ForwardItem>(sizes.items)),
        measures(arena.take<MeasureItem>(sizes.measures)),
        key_bounds(arena.take<kernel::KeyTileBounds<T>>(sizes.key_bounds)),
        measured(arena.take<Measured<T>>(sizes.key_bounds)),
        numbers(arena.take<T>(sizes.numbers)),
        outliers(arena.take<std::int32_t>(sizes.outliers)),
        table(arena.take<T>(sizes.table)) {}
};

/// Measures the keys of every sequence that has a head that may prune, and gives the sequences the results: key tile
/// bounds and tail bounds.
template <class F>
void measure_keys(CallMemory<F>& memory, const kernel::Params<F>& call, const Executor& executor) {
  using T = typename F::T;
  Index measured = 0, count = 0;
  T* numbers = memory.numbers.data();
  std::int32_t* outliers = memory.outliers.data();
  for (std::size_t s = 0; s < memory.sequences.size(); s++) {
    auto& sequence = memory.sequences[s];
    const Index tiles = measured_tiles(sequence);
    if (tiles == 0) continue;
    sequence.key_bounds = &memory.key_bounds[std::size_t(measured)];
    for (Index kv = 0; kv < call.kv_heads; kv++, measured++) {
      const kernel::KeyStatsMemory<T> keys(numbers, outliers, call.head_dim, tiles, sides_of(sequence));
      kernel::with_scalar(kernel::rows_of(sequence.k, kv), [&]<class E>(const kernel::Rows<const E>& k) {
        kernel::find_center<E>(k, sequence.mask.keys, call.head_dim, keys.center);
      });
      double norm = 0;
      for (Index h = kv * call.group(); h < (kv + 1) * call.group(); h++)
        kernel::with_scalar(kernel::rows_of(sequence.q, h), [&]<class E>(const kernel::Rows<const E>& q) {
          norm = std::max(norm, kernel::typical_norm<E>(q, sequence.q.tokens, call.head_dim));
        });
      const T chord_norm = T(std::min(norm * std::abs(call.scale) * std::numbers::log2e, 0x1p40));
      for (Index t = 0; t < tiles; t += MeasureItem::kTiles)
        memory.measures[std::size_t(count++)] = {Index(s), kv, t, measured};
      memory.measured[std::size_t(measured)] = {keys, chord_norm};
    }
  }
  executor.for_each(count, [&](Index i, int) {
    const MeasureItem& item = memory.measures[std::size_t(i)];
    const auto& sequence = memory.sequences[std::size_t(item.sequence)];
    const kernel::KeyStatsMemory<T>& keys = memory.measured[std::size_t(item.measured)].keys;
    const T chord_norm = memory.measured[std::size_t(item.measured)].chord_norm;
    kernel::with_scalar(kernel::rows_of(sequence.k, item.kv_head), [&](const auto& k) {
      for (Index t = item.first_tile; t < std::min(item.first_tile + MeasureItem::kTiles, keys.tiles); t++) {
        const Index first = t * kernel::kTile, end = std::min(first + kernel::kTile, sequence.mask.keys);
        const auto measure = kernel::measure_tile(k, first, end, call.head_dim, keys.center, chord_norm);
        keys.radius[t] = measure.radius;
        keys.log_mass[t] = measure.log_mass;
      }
    });
  });
  for (Index i = 0; i < measured; i++)
    memory.key_bounds[std::size_t(i)] = kernel::summarize(memory.measured[std::size_t(i)].keys, call.head_dim,
                                                          memory.measured[std::size_t(i)].chord_norm);
  for (auto& sequence : memory.sequences) {
    if (!sequence.key_bounds) continue;
    sequence.tail_bounds = numbers;
    for (Index h = 0; h < call.heads; h++) {
      const kernel::KeyTileBounds<T>& key_bounds = sequence.key_bounds[h / call.group()];
      T* const tail_bounds = std::exchange(numbers, numbers + kernel::tail_bounds_size(key_bounds));
      if (!sequence.budget(h).enabled) continue;
      T* const suffix = key_bounds.suffix_max ? tail_bounds + key_bounds.tiles : nullptr;
      if constexpr (kernel::kHasPositions<F>) {
        const auto bias = sequence.bias(h);
        kernel::compute_tail_bounds(key_bounds, kernel::PositionTiles<T>{bias, sequence.mask.keys}, tail_bounds,
                                    suffix);
      } else {
        kernel::compute_tail_bounds(key_bounds, sequence.slope(h) * std::numbers::log2e, tail_bounds, suffix);
      }
    }
  }
}

}  // namespace alibi::inline ALIBI_ABI::detail
