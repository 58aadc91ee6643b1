// From a checked call to its tasks: lays out the scratch memory, measures the keys where something may be left out, and
// runs the forward. Shared by every form of attention; not a header for users.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numbers>
#include <span>
#include <type_traits>
#include <utility>

#include "alibi/executor.hpp"
#include "alibi/kernel/forward.hpp"
#include "alibi/kernel/measure.hpp"
#include "alibi/kernel/plan.hpp"
#include "alibi/kernel/probe.hpp"
#include "alibi/options.hpp"
#include "alibi/table_bias.hpp"
#include "alibi/workspace.hpp"

namespace alibi::inline ALIBI_ISA::detail {

/// Calls f with the format that numbers of E, in keys and values of S, are multiplied in; Law is the bias.
template <class E, class S, bool cached, template <class> class Law = kernel::LinearBias, class Body>
void with_format(const Options& options, const Body& body) {
  if constexpr (kernel::kDotsPairs && std::is_same_v<E, Eigen::bfloat16> && std::is_same_v<S, Eigen::bfloat16>) {
    if (options.dot_product ? *options.dot_product : kernel::dots_are_faster())
      return body(kernel::Format<E, S, cached, true, Law>());
  }
  body(kernel::Format<E, S, cached, false, Law>());
}

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

/// Some tiles of a kv head whose radii one task measures; it is number `measured` of all that are.
struct MeasureItem {
  static constexpr Index kTiles = 128;
  Index sequence, kv_head, first_tile, measured;
};
/// A kv head whose keys are measured.
template <class T>
struct Measured {
  kernel::KeyNumbers<T> keys;
  T knee;
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

/// On how many sides of a query keys may be left out.
template <class F>
Index sides_of(const kernel::Sequence<F>& sequence) {
  return sequence.mask.right > 0 ? 2 : 1;
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
  std::span<Measured<T>> measured;    // the same
  std::span<T> numbers;               // of each of them, then the tails of the heads of those sequences
  std::span<std::int32_t> apart;
  std::span<T> table;  // of a bias that comes from one: [heads][kernel::Tables::size()]

  struct Sizes {
    Index scratch = 0, sequences = 0, cached = 0, items = 0, measures = 0, radii = 0, numbers = 0, apart = 0, table = 0;
  };
  CallMemory(Arena& arena, const Sizes& sizes)
      : scratch(arena.take<std::byte>(sizes.scratch)),
        sequences(arena.take<kernel::Sequence<F>>(sizes.sequences)),
        cached(arena.take<kernel::Cached<typename F::Stored, T>>(sizes.cached)),
        items(arena.take<kernel::ForwardItem>(sizes.items)),
        measures(arena.take<MeasureItem>(sizes.measures)),
        radii(arena.take<kernel::Radii<T>>(sizes.radii)),
        measured(arena.take<Measured<T>>(sizes.radii)),
        numbers(arena.take<T>(sizes.numbers)),
        apart(arena.take<std::int32_t>(sizes.apart)),
        table(arena.take<T>(sizes.table)) {}
};

/// Measures the keys of every sequence with something to prune, and hands the sequences the result.
template <class F>
void measure_keys(CallMemory<F>& memory, const kernel::Forward<F>& call, const Executor& executor) {
  using T = typename F::T;
  using Stored = typename F::Stored;
  Index measured = 0, count = 0;
  T* numbers = memory.numbers.data();
  std::int32_t* apart = memory.apart.data();
  for (std::size_t s = 0; s < memory.sequences.size(); s++) {
    auto& sequence = memory.sequences[s];
    const Index tiles = measured_tiles(sequence);
    if (tiles == 0) continue;
    sequence.radii = &memory.radii[std::size_t(measured)];
    for (Index kv = 0; kv < call.kv_heads; kv++, measured++) {
      const kernel::KeyNumbers<T> keys(numbers, apart, call.head_dim, tiles, sides_of(sequence));
      kernel::find_center<Stored>(kernel::rows_of(sequence.k, kv), sequence.mask.keys, call.head_dim, keys.center);
      double norm = 0;
      for (Index h = kv * call.group(); h < (kv + 1) * call.group(); h++)
        norm = std::max(norm, kernel::typical_norm<typename F::Query>(kernel::rows_of(sequence.q, h), sequence.q.tokens,
                                                                      call.head_dim));
      const T knee = T(std::min(norm * std::abs(call.scale) * std::numbers::log2e, 0x1p40));
      for (Index t = 0; t < tiles; t += MeasureItem::kTiles)
        memory.measures[std::size_t(count++)] = {Index(s), kv, t, measured};
      memory.measured[std::size_t(measured)] = {keys, knee};
    }
  }
  executor.for_each(count, [&](Index i, int) {
    const MeasureItem& item = memory.measures[std::size_t(i)];
    const auto& sequence = memory.sequences[std::size_t(item.sequence)];
    const auto& [keys, knee] = memory.measured[std::size_t(item.measured)];
    const kernel::Rows<const Stored> k = kernel::rows_of(sequence.k, item.kv_head);
    for (Index t = item.first_tile; t < std::min(item.first_tile + MeasureItem::kTiles, keys.tiles); t++) {
      const Index first = t * kernel::kTile, end = std::min(first + kernel::kTile, sequence.mask.keys);
      const auto measure = kernel::measure_tile(k, first, end, call.head_dim, keys.center, knee);
      keys.radius[t] = measure.radius;
      keys.weight[t] = measure.weight;
    }
  });
  for (Index i = 0; i < measured; i++)
    memory.radii[std::size_t(i)] =
        kernel::summarize(memory.measured[std::size_t(i)].keys, call.head_dim, memory.measured[std::size_t(i)].knee);
  for (auto& sequence : memory.sequences) {
    if (!sequence.radii) continue;
    sequence.tails = numbers;
    for (Index h = 0; h < call.heads; h++) {
      const kernel::Radii<T>& radii = sequence.radii[h / call.group()];
      T* const tails = std::exchange(numbers, numbers + kernel::tails_size(radii));
      if (kernel::worth_pruning(sequence.slope(h), sequence.tolerance, sequence.mask, sequence.q.tokens))
        kernel::weigh_tails(radii, sequence.slope(h) * std::numbers::log2e, tails,
                            radii.behind ? tails + radii.tiles : nullptr);
    }
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

/// Room for a call of so many sequences, make(0), …, make(count - 1), scratch aside.
template <class F, class Make>
typename CallMemory<F>::Sizes sizes_of(const kernel::Forward<F>& call, Index count, const Make& make,
                                       const TableBias<typename F::T>& table) {
  using T = typename F::T;
  const kernel::ForwardScratch<F> scratch(call.head_dim, call.value_dim);
  typename CallMemory<F>::Sizes sizes;
  sizes.sequences = count;
  sizes.cached = F::kCached ? count * call.kv_heads : 0;
  if (table.entries > 0) sizes.table = call.heads * kernel::Tables<T>{nullptr, table.entries, table.first}.size();
  for (Index s = 0; s < count; s++) {
    const kernel::Sequence<F> sequence = make(s);
    const Index tiles = measured_tiles(sequence), heads = tiles > 0 ? call.kv_heads : 0;
    sizes.items += call.heads * kernel::ForwardPlan::of(sequence, scratch).chunks;
    sizes.measures += heads * kernel::pieces(tiles, MeasureItem::kTiles);
    sizes.radii += heads;
    const Index sides = sides_of(sequence);
    sizes.numbers += heads * kernel::KeyNumbers<T>::size(call.head_dim, tiles, sides) + call.heads * sides * tiles;
    sizes.apart += heads * tiles;
  }
  return sizes;
}

/// Everything that stands before the tasks: the sequences, the tables of a bias, what pruning knows of the keys.
template <class F, class Make>
void prepare(kernel::Forward<F>& call, CallMemory<F>& memory, const Make& make, const TableBias<typename F::T>& table,
             const Executor& executor) {
  make_sequences<F>(memory.sequences, memory.cached, call.kv_heads, make);
  call.sequences = memory.sequences;
  if (call.report) std::fill_n(call.report, memory.sequences.size() * std::size_t(call.heads), Pruning());
  if (table.entries > 0) {
    const kernel::Tables<typename F::T> tables{memory.table.data(), table.entries, table.first};
    for (Index h = 0; h < call.heads; h++)
      kernel::pad_table(table.data + h * table.head_stride, table.entries,
                        &memory.table[std::size_t(h * tables.size())]);
    for (auto& sequence : memory.sequences) sequence.tables = tables;
  }
  measure_keys(memory, call, executor);
}

/// The tasks of the forward; `scratch` has ForwardScratch's bytes for every slot.
template <class F>
void run_forward(const kernel::Forward<F>& call, std::span<kernel::ForwardItem> items, std::byte* scratch,
                 const Executor& executor) {
  const kernel::ForwardScratch<F> size(call.head_dim, call.value_dim);
  kernel::list_items(call, size, items);
  executor.for_each(Index(items.size()), [&](Index i, int slot) {
    kernel::ForwardTask<F>(call, items[std::size_t(i)], scratch + std::size_t(slot) * size.bytes).run();
  });
}

/// Runs a checked call whose sequences are make(0), …, make(count - 1); for those in a cache, make.head(s, kv_head) is
/// where a kv head lies. `table`: of a bias that comes from one.
template <class F, class Make>
void run(kernel::Forward<F> call, Index count, const Make& make, const Executor& executor, Workspace& workspace,
         const TableBias<typename F::T>& table = {}) {
  typename CallMemory<F>::Sizes sizes = sizes_of(call, count, make, table);
  sizes.scratch = Index(kernel::ForwardScratch<F>(call.head_dim, call.value_dim).bytes) *
                  std::min<Index>(executor.slots(), sizes.items);
  Arena counted;
  CallMemory<F>(counted, sizes);
  Arena arena(workspace.reserve(counted.used()));
  CallMemory<F> memory(arena, sizes);
  prepare(call, memory, make, table, executor);
  run_forward(call, memory.items, memory.scratch.data(), executor);
}

}  // namespace alibi::inline ALIBI_ISA::detail
