// From a checked call to its tasks: lays out the scratch memory, measures the keys where something may be left out, and
// runs the forward. Shared by every form of attention; not a header for users.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "alibi/executor.hpp"
#include "alibi/kernel/forward.hpp"
#include "alibi/kernel/measure.hpp"
#include "alibi/kernel/plan.hpp"
#include "alibi/workspace.hpp"

namespace alibi::inline ALIBI_ISA::detail {

/// Hands out pieces of a workspace, each on cache lines of its own. Without memory it only counts.
class Arena {
 public:
  explicit Arena(std::byte* memory = nullptr) : memory_(memory) {}
  template <class X>
  std::span<X> take(Index size) {
    const std::size_t at = std::exchange(used_, used_ + (std::size_t(size) * sizeof(X) + 63) / 64 * 64);
    return memory_ ? std::span(reinterpret_cast<X*>(memory_ + at), std::size_t(size)) : std::span<X>();
  }
  std::size_t used() const { return used_; }

 private:
  std::byte* memory_;
  std::size_t used_ = 0;
};

/// Some tiles of a kv head whose radii one task measures.
struct MeasureItem {
  static constexpr Index kTiles = 128;
  Index sequence, kv_head, first_tile;
};

/// The keys of a sequence that pruning looks at, in tiles; 0 where no head can prune, or a cache has measured them.
template <class F>
Index measured_tiles(const kernel::Sequence<F>& sequence) {
  if (F::kCached) return 0;
  for (Index head = 0; head < sequence.q.heads; head++)
    if (kernel::worth_pruning(sequence.slope(head), sequence.tolerance, sequence.mask, sequence.q.tokens))
      return kernel::pieces(sequence.mask.keys, kernel::kTile);
  return 0;
}

/// Everything a call of the forward needs besides its arrays.
template <class F>
struct CallMemory {
  using T = typename F::T;
  std::span<std::byte> scratch;
  std::span<kernel::Sequence<F>> sequences;
  std::span<kernel::Cached<typename F::Stored, T>> cached;  // of all sequences, if their keys are in a cache
  std::span<kernel::ForwardItem> items;
  std::span<MeasureItem> measures;
  std::span<kernel::Radii<T>> radii;  // of the kv heads of sequences that are measured, one after another
  std::span<T> numbers;               // what those point at: center [head_dim], radius, before, behind [tiles]
  std::span<std::int32_t> apart;

  struct Sizes {
    Index scratch = 0, sequences = 0, cached = 0, items = 0, measures = 0, radii = 0, numbers = 0, apart = 0;
  };
  CallMemory(Arena& arena, const Sizes& sizes)
      : scratch(arena.take<std::byte>(sizes.scratch)),
        sequences(arena.take<kernel::Sequence<F>>(sizes.sequences)),
        cached(arena.take<kernel::Cached<typename F::Stored, T>>(sizes.cached)),
        items(arena.take<kernel::ForwardItem>(sizes.items)),
        measures(arena.take<MeasureItem>(sizes.measures)),
        radii(arena.take<kernel::Radii<T>>(sizes.radii)),
        numbers(arena.take<T>(sizes.numbers)),
        apart(arena.take<std::int32_t>(sizes.apart)) {}
};

template <class F>
kernel::Rows<const typename F::Stored> keys_of(const kernel::Sequence<F>& sequence, Index kv_head) {
  return {sequence.k.data + kv_head * sequence.k.head_stride, sequence.k.token_stride};
}

/// Measures the keys of every sequence with something to prune, and hands the sequences the result.
template <class F>
void measure_keys(CallMemory<F>& memory, Index kv_heads, Index head_dim, const Executor& executor) {
  using T = typename F::T;
  Index count = 0, heads = 0;
  T* numbers = memory.numbers.data();
  for (std::size_t s = 0; s < memory.sequences.size(); s++) {
    auto& sequence = memory.sequences[s];
    const Index tiles = measured_tiles(sequence);
    if (tiles == 0) continue;
    sequence.radii = &memory.radii[std::size_t(heads)];
    for (Index kv = 0; kv < kv_heads; kv++) {
      T* center = std::exchange(numbers, numbers + head_dim + 3 * tiles);
      kernel::find_center(keys_of(sequence, kv), sequence.mask.keys, head_dim, center);
      memory.radii[std::size_t(heads++)] = {.center = center, .tiles = tiles, .radius = center + head_dim};
      for (Index t = 0; t < tiles; t += MeasureItem::kTiles) memory.measures[std::size_t(count++)] = {Index(s), kv, t};
    }
  }
  executor.for_each(count, [&](Index i, int) {
    const MeasureItem& item = memory.measures[std::size_t(i)];
    const auto& sequence = memory.sequences[std::size_t(item.sequence)];
    const kernel::Radii<T>& of = sequence.radii[item.kv_head];
    const auto k = keys_of(sequence, item.kv_head);
    for (Index t = item.first_tile; t < std::min(item.first_tile + MeasureItem::kTiles, of.tiles); t++) {
      const Index first = t * kernel::kTile, end = std::min(first + kernel::kTile, sequence.mask.keys);
      const_cast<T*>(of.radius)[t] = kernel::radius_of(k, first, end, head_dim, of.center);
    }
  });
  std::int32_t* apart = memory.apart.data();
  for (Index i = 0; i < heads; i++) {
    kernel::Radii<T>& of = memory.radii[std::size_t(i)];
    T* const before = const_cast<T*>(of.radius) + of.tiles;
    of = kernel::summarize(of.center, head_dim, of.radius, of.tiles, before, before + of.tiles,
                           std::exchange(apart, apart + of.tiles));
  }
}

/// Fills in the sequences make(0), …, make(count - 1), and where each kv head of theirs is in a cache.
template <class F, class Make, class Cached>
void make_sequences(std::span<kernel::Sequence<F>> sequences, std::span<Cached> cached, Index kv_heads,
                    const Make& make) {
  for (std::size_t s = 0; s < sequences.size(); s++) {
    std::construct_at(&sequences[s], make(Index(s)));
    if constexpr (F::kCached) {
      for (Index kv = 0; kv < kv_heads; kv++)
        std::construct_at(&cached[s * std::size_t(kv_heads) + std::size_t(kv)], make.head(Index(s), kv));
      sequences[s].cached = cached.data() + s * std::size_t(kv_heads);
    }
  }
}

/// Runs a checked call whose sequences are make(0), …, make(count - 1); for those in a cache, make.head(s, kv_head) is
/// where a kv head lies.
template <class F, class Make>
void run(kernel::Forward<F> call, Index count, const Make& make, const Executor& executor, Workspace& workspace) {
  const kernel::ForwardScratch<F> scratch(call.head_dim, call.value_dim);
  typename CallMemory<F>::Sizes sizes;
  sizes.sequences = count;
  sizes.cached = F::kCached ? count * call.kv_heads : 0;
  for (Index s = 0; s < count; s++) {
    const kernel::Sequence<F> sequence = make(s);
    const Index tiles = measured_tiles(sequence), heads = tiles > 0 ? call.kv_heads : 0;
    sizes.items += call.heads * kernel::ForwardPlan::of(sequence, scratch).chunks;
    sizes.measures += heads * kernel::pieces(tiles, MeasureItem::kTiles);
    sizes.radii += heads;
    sizes.numbers += heads * (call.head_dim + 3 * tiles);
    sizes.apart += heads * tiles;
  }
  sizes.scratch = Index(scratch.bytes) * std::min<Index>(executor.slots(), sizes.items);
  Arena counted;
  CallMemory<F>(counted, sizes);
  Arena arena(workspace.reserve(counted.used()));
  CallMemory<F> memory(arena, sizes);

  make_sequences<F>(memory.sequences, memory.cached, call.kv_heads, make);
  call.sequences = memory.sequences;
  if (call.report) std::fill_n(call.report, count * call.heads, Pruning());
  measure_keys(memory, call.kv_heads, call.head_dim, executor);
  kernel::list_items(call, scratch, memory.items);
  executor.for_each(sizes.items, [&](Index i, int slot) {
    std::byte* mine = memory.scratch.data() + std::size_t(slot) * scratch.bytes;
    kernel::ForwardTask<F>(call, memory.items[std::size_t(i)], mine).run();
  });
}

}  // namespace alibi::inline ALIBI_ISA::detail
