// From a call of the forward to its tasks: checks it, lays out the scratch memory, measures the keys where something
// may be left out, and runs the tasks. Shared by every form of attention; not a header for users.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <numbers>
#include <span>
#include <type_traits>
#include <utility>

#include "alibi/detail/call.hpp"
#include "alibi/detail/validate.hpp"
#include "alibi/executor.hpp"
#include "alibi/kernel/forward.hpp"
#include "alibi/kernel/measure.hpp"
#include "alibi/kernel/plan.hpp"
#include "alibi/options.hpp"
#include "alibi/table_bias.hpp"
#include "alibi/view.hpp"
#include "alibi/workspace.hpp"

namespace alibi::inline ALIBI_ABI::detail {

template <BiasKind kind, class T>
using BiasOf = std::conditional_t<kind == BiasKind::table, kernel::TableLaw<T>, kernel::LinearBias<T>>;

template <class X>
View<X> part_of(View<X> x, Index b, const KeyRange& tokens) {
  if (x.data) x.data += b * x.batch_stride + tokens.begin * x.token_stride;  // none is added to null
  x.batch = 1;
  x.tokens = tokens.end - tokens.begin;
  return x;
}

/// The slopes of sequence s, [heads].
inline SlopeView slopes_of(SlopeView slopes, Index s) {
  if (slopes.data)
    slopes.data = static_cast<const char*>(slopes.data) + s * slopes.batch_stride * size_of(slopes.scalar);
  slopes.batch = 1;
  slopes.batch_stride = 0;
  return slopes;
}

/// The mask of one sequence.
inline ResolvedMask mask_of(const Mask& mask, const SequenceSlice& slice) {
  constexpr Index kFar = Index(1) << 61;  // beyond it all offsets are alike, and resolve() refuses them
  Mask in_slice = mask;
  in_slice.query_offset =
      std::clamp(mask.query_offset.value_or(slice.default_offset) - slice.offset_shift, -kFar, kFar);
  return resolve(in_slice, slice.queries.end - slice.queries.begin, slice.keys.end - slice.keys.begin);
}

/// The sequences of a checked call, one at a time.
template <class F>
struct ArraySequences {
  using E = typename F::Query;
  using T = typename F::T;
  View<const E> q, k, v;
  View<E> output;
  T* lse;
  BiasView<T> bias;
  const Sequences& sequences;
  const Mask& mask;
  double tolerance;

  Index count() const { return sequences.count; }
  kernel::Sequence<F> operator[](Index s) const {
    const SequenceSlice slice = sequences[s];
    return {.q = part_of(q, slice.batch, slice.queries),
            .output = part_of(output, slice.batch, slice.queries),
            .k = part_of(k, slice.batch, slice.keys),
            .v = part_of(v, slice.batch, slice.keys),
            .lse = lse ? lse + slice.batch * q.heads * q.tokens + slice.queries.begin : nullptr,
            .lse_stride = q.tokens,
            .slopes = slopes_of(bias.slopes, s),
            .mask = mask_of(mask, slice),
            .tolerance = tolerance,
            .kv_heads = k.heads};
  }
};

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
      kernel::with_scalar(kernel::rows_of(sequence.k, kv), [&]<class E>(const kernel::Rows<const E>& k) {
        kernel::find_center<E>(k, sequence.mask.keys, call.head_dim, keys.center);
      });
      double norm = 0;
      for (Index h = kv * call.group(); h < (kv + 1) * call.group(); h++)
        kernel::with_scalar(kernel::rows_of(sequence.q, h), [&]<class E>(const kernel::Rows<const E>& q) {
          norm = std::max(norm, kernel::typical_norm<E>(q, sequence.q.tokens, call.head_dim));
        });
      const T knee = T(std::min(norm * std::abs(call.scale) * std::numbers::log2e, 0x1p40));
      for (Index t = 0; t < tiles; t += MeasureItem::kTiles)
        memory.measures[std::size_t(count++)] = {Index(s), kv, t, measured};
      memory.measured[std::size_t(measured)] = {keys, knee};
    }
  }
  executor.for_each(count, [&](Index i, int) {
    const MeasureItem& item = memory.measures[std::size_t(i)];
    const auto& sequence = memory.sequences[std::size_t(item.sequence)];
    const kernel::KeyNumbers<T>& keys = memory.measured[std::size_t(item.measured)].keys;
    const T knee = memory.measured[std::size_t(item.measured)].knee;
    kernel::with_scalar(kernel::rows_of(sequence.k, item.kv_head), [&](const auto& k) {
      for (Index t = item.first_tile; t < std::min(item.first_tile + MeasureItem::kTiles, keys.tiles); t++) {
        const Index first = t * kernel::kTile, end = std::min(first + kernel::kTile, sequence.mask.keys);
        const auto measure = kernel::measure_tile(k, first, end, call.head_dim, keys.center, knee);
        keys.radius[t] = measure.radius;
        keys.weight[t] = measure.weight;
      }
    });
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

/// Fills in the sequences of a call, and where each kv head of theirs is in a cache.
template <class F, class All, class Cached>
void make_sequences(std::span<kernel::Sequence<F>> sequences, std::span<Cached> cached, Index kv_heads,
                    const All& all) {
  for (std::size_t s = 0; s < sequences.size(); s++) {
    std::construct_at(&sequences[s], all[Index(s)]);
    if constexpr (F::kCached) {
      for (Index kv = 0; kv < kv_heads; kv++)
        std::construct_at(&cached[s * std::size_t(kv_heads) + std::size_t(kv)], all.head(Index(s), kv));
      sequences[s].cached = cached.data() + s * std::size_t(kv_heads);
    }
  }
}

/// Room for a call of these sequences, scratch aside.
template <class F, class All>
typename CallMemory<F>::Sizes sizes_of(const kernel::Forward<F>& call, const All& all,
                                       const TableBias<typename F::T>& table) {
  using T = typename F::T;
  const kernel::ForwardScratch<F> scratch(call.head_dim, call.value_dim);
  typename CallMemory<F>::Sizes sizes;
  sizes.sequences = all.count();
  sizes.cached = F::kCached ? all.count() * call.kv_heads : 0;
  if (table.entries > 0) sizes.table = call.heads * kernel::Tables<T>{nullptr, table.entries, table.first}.size();
  for (Index s = 0; s < all.count(); s++) {
    const kernel::Sequence<F> sequence = all[s];
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
template <class F, class All>
void prepare(kernel::Forward<F>& call, CallMemory<F>& memory, const All& all, const TableBias<typename F::T>& table,
             const Executor& executor) {
  make_sequences<F>(memory.sequences, memory.cached, call.kv_heads, all);
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

/// Runs a checked call of the forward; All is ArraySequences, or CacheSequences of cached_dispatch.hpp. `table`: of a
/// bias that comes from one.
template <class F, class All>
void run(kernel::Forward<F> call, const All& all, const Executor& executor, Workspace& workspace,
         const TableBias<typename F::T>& table = {}) {
  typename CallMemory<F>::Sizes sizes = sizes_of(call, all, table);
  sizes.scratch = Index(kernel::ForwardScratch<F>(call.head_dim, call.value_dim).bytes) *
                  std::min<Index>(executor.slots(), sizes.items);
  Arena counted;
  CallMemory<F>(counted, sizes);
  Arena arena(workspace.reserve(counted.used()));
  CallMemory<F> memory(arena, sizes);
  prepare(call, memory, all, table, executor);
  run_forward(call, memory.items, memory.scratch.data(), executor);
}

/// Sets the rows of padding to 0: those outside `real[b]`.
template <class X>
void clear_padding(const View<X>& x, const TokenRanges& real) {
  for (Index b = 0; b < x.batch && !real.empty(); b++)
    for (Index h = 0; h < x.heads; h++)
      for (Index i = 0; i < x.tokens; i++) {
        if (real[b].begin <= i && i < real[b].end) i = real[b].end;
        if (i < x.tokens)
          std::fill_n(x.data + b * x.batch_stride + h * x.head_stride + i * x.token_stride, x.head_dim, X(0));
      }
}
/// Sets the lse of padding to -inf; [batch, heads, tokens].
template <class T>
void clear_padding(T* lse, Index heads, Index tokens, const TokenRanges& real) {
  for (Index row = 0; row < real.size() * heads; row++, lse += tokens) {
    const KeyRange range = real[row / heads];
    std::fill(lse, lse + range.begin, -std::numeric_limits<T>::infinity());
    std::fill(lse + range.end, lse + tokens, -std::numeric_limits<T>::infinity());
  }
}

/// That what a call of the forward writes lies apart from what it reads.
template <class E>
void check_memory(const View<E>& output, const std::optional<std::span<Sum<E>>>& lse, Index rows,
                  std::initializer_list<Memory> read) {
  const Memory to = memory_of(output, "output");
  require_apart(to, read);
  if (!lse) return;
  const Memory to_lse = memory_of(lse_row(*lse, rows), "lse");
  require_apart(to_lse, read);
  require_apart(to_lse, {to});
}

template <class E, BiasKind kind>
void forward(const ForwardCall<E>& call, const Options& options, Workspace& workspace) {
  using T = Sum<E>;
  using Law = BiasOf<kind, T>;
  const Sequences sequences = checked_sequences(call.sequences, options);
  check_inputs(call.q, call.k, call.v);
  check_bias<kind>(call.bias, call.q.heads, sequences);
  check_output(call.output, call.q, call.v.head_dim);
  const double scale = scale_of<T>(options, call.q.head_dim), tolerance = tolerance_of<T>(options);
  Pruning* const report = report_of(options, sequences, call.q.heads);
  resolve(options.mask, call.q.tokens, call.k.tokens);
  check_memory(call.output, call.lse, call.q.batch * call.q.heads * call.q.tokens,
               {memory_of(call.q, "q"), memory_of(call.k, "k"), memory_of(call.v, "v"), memory_of<kind>(call.bias)});
  clear_padding(call.output, sequences.query_ranges);
  if (call.lse) clear_padding(call.lse->data(), call.q.heads, call.q.tokens, sequences.query_ranges);

  const auto run_as = [&]<class F>(F, const auto& q, const auto& k, const auto& v, const auto& output) {
    T* const lse = call.lse ? call.lse->data() : nullptr;
    run(kernel::Forward<F>{{}, q.heads, k.heads, q.head_dim, v.head_dim, scale, report},
        ArraySequences<F>{q, k, v, output, lse, call.bias, sequences, options.mask, tolerance}, options.executor,
        workspace, call.bias.table);
  };
  if constexpr (kernel::kDotsPairs && std::is_same_v<E, Eigen::bfloat16>)
    if (options.dot_product)
      return run_as(kernel::Format<E, E, false, true, Law>(), call.q, call.k, call.v, call.output);
  using X = kernel::Erased<E>;
  run_as(kernel::Format<X, X, false, false, Law>(), kernel::erased(call.q), kernel::erased(call.k),
         kernel::erased(call.v), kernel::erased(call.output));
}

}  // namespace alibi::inline ALIBI_ABI::detail
