// The checks of the arguments of every form of attention. Each check throws std::invalid_argument, before anything is
// written. The message names the argument, its value and what was expected. Internal.
#pragma once

#include <cmath>
#include <cstddef>
#include <initializer_list>
#include <limits>
#include <numbers>
#include <optional>
#include <span>

#include "alibi/detail/call.hpp"
#include "alibi/detail/overlap.hpp"
#include "alibi/detail/position_validate.hpp"
#include "alibi/error.hpp"
#include "alibi/kv_cache_config.hpp"
#include "alibi/options.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// Checks that size `what` of array `name` is that of array `of`.
inline void require_equal(Index is, Index expected, const char* name, const char* what, const char* of) {
  require(is == expected, name, " has ", what, ' ', is, "; expected ", expected, ", the ", what, " of ", of);
}

/// Checks that a view with tokens is not null.
template <class T>
void require_memory(const View<T>& x, const char* name) {
  const Index tokens = x.batch * x.heads * x.tokens;
  require(x.data || tokens == 0, name, " is null; expected ", tokens, " tokens of ", x.head_dim);
}

/// Checks the shapes of q, k and v.
template <class T>
void check_inputs(const View<const T>& q, const View<const T>& k, const View<const T>& v) {
  require_equal(k.batch, q.batch, "k", "batch", "q");
  require_equal(v.batch, q.batch, "v", "batch", "q");
  require_equal(v.heads, k.heads, "v", "heads", "k");
  require(k.heads > 0 || q.heads == 0, "k has heads 0; expected at least 1");
  require(k.heads == 0 || q.heads % k.heads == 0, "q has heads ", q.heads, "; expected a multiple of ", k.heads,
          ", the heads of k and v");
  require_equal(k.head_dim, q.head_dim, "k", "head_dim", "q");
  require_equal(v.tokens, k.tokens, "v", "tokens", "k");
  require(q.head_dim > 0, "q has head_dim 0; expected at least 1");
  require(v.head_dim > 0, "v has head_dim 0; expected at least 1");
  require_memory(q, "q");
  require_memory(k, "k");
  require_memory(v, "v");
}

/// Checks that slopes fit the heads and sequences of a call and are finite.
inline void check_slopes(const SlopeView& slopes, Index heads, const SequenceList& sequences) {
  require_equal(slopes.heads, heads, "slopes", "heads", "q");
  require(slopes.batch == sequences.count || slopes.batch_stride == 0, "slopes has batch ", slopes.batch, "; expected ",
          sequences.count, ", ", sequences.name(), ", or a vector of heads");
  require(slopes.data || slopes.batch * slopes.heads == 0, "slopes is null; expected ", slopes.heads, " slopes");
  for (Index b = 0; b < slopes.batch; b++)
    for (Index h = 0; h < slopes.heads; h++) {
      const double m = slope_at(slopes, b, h);
      require(std::isfinite(m), "the slope of head ", h, " in batch ", b, " is ", m, "; expected a finite number");
    }
}

/// Checks that a table fits the heads of a call and is finite.
template <class T>
void check_table(const RelativeBias<T>& table, Index heads) {
  require(table.heads == heads, "the table has heads ", table.heads, "; expected ", heads, ", the heads of q");
  require(table.entries >= 1, "the table has ", table.entries, " entries; expected at least 1");
  require(table.data || heads == 0, "the table is null; expected ", heads, " heads of ", table.entries, " entries");
  constexpr Index kFar = Index(1) << 61;
  require(-kFar <= table.first && table.first <= kFar, "the table's first distance is ", table.first,
          "; expected within ±2^61");
  for (Index h = 0; h < heads; h++)
    for (Index t = 0; t < table.entries; t++) {
      const double entry = double(table.data[h * table.head_stride + t]);
      require(std::isfinite(entry), "entry ", t, " of head ", h, " of the table is ", entry,
              "; expected a finite number");
    }
}

/// Checks the bias of a call.
template <BiasKind kind, class T>
void check_bias(const BiasView<T>& bias, Index heads, const SequenceList& sequences) {
  if constexpr (kind == BiasKind::positions)
    check_position_bias(bias.positions, heads, sequences);
  else
    kind == BiasKind::table ? check_table(bias.table, heads) : check_slopes(bias.slopes, heads, sequences);
}

/// Checks that the mask of a call is one that the kernel for its bias knows.
template <BiasKind kind>
void check_mask(const Options& options) {
  if constexpr (kind == BiasKind::positions) {
    const Index sinks = options.mask.sinks.value_or(0);
    require(options.mask.prefix == 0, "mask.prefix is ", options.mask.prefix,
            " with two-sided slopes or positions; expected 0");
    require(options.prefixes.empty(), "options.prefixes is given with two-sided slopes or positions; expected none");
    require(sinks == 0, "mask.sinks is ", sinks, " with two-sided slopes or positions; expected 0");
  }
}

/// Checks that x has the sizes of `like`, but this head_dim; `what` says for the message whose sizes these are.
template <class X, class L>
void check_shape(const View<X>& x, const char* name, const View<L>& like, Index head_dim, const char* what) {
  require(x.batch == like.batch && x.heads == like.heads && x.tokens == like.tokens && x.head_dim == head_dim, name,
          " is [", x.batch, ", ", x.heads, ", ", x.tokens, ", ", x.head_dim, "]; expected [", like.batch, ", ",
          like.heads, ", ", like.tokens, ", ", head_dim, "], ", what);
  require_memory(x, name);
}

/// Checks that the rows of an array that is written do not overlap.
template <class X>
void require_rows(const View<X>& x, const char* name) {
  require(!overlaps_itself(memory_of(x, name).bytes), name, " has strides ", x.batch_stride, ", ", x.head_stride, ", ",
          x.token_stride, " of batch, heads and tokens; expected rows that do not overlap");
}

/// Whose sizes an output has, for check_shape().
inline constexpr const char* kLikeOutput = "batch, heads and tokens of q, head_dim of v";

/// Checks the shape and the strides of an output.
template <class E>
void check_output(const View<E>& output, const View<const E>& q, Index value_dim) {
  check_shape(output, "output", q, value_dim, kLikeOutput);
  require_rows(output, "output");
}

/// A checked lse array as a view of one row, so that its memory can be compared with that of other arrays.
template <class T>
View<T> lse_row(std::span<T> lse, Index rows, const char* name = "lse") {
  require(Index(lse.size()) == rows, name, " has ", lse.size(), " entries; expected ", rows,
          ", batch x heads x tokens of q");
  require(lse.data() || rows == 0, name, " is null; expected ", rows, " entries");
  return {lse.data(), 1, 1, 1, rows, 0, 0, 0};
}

/// The scale τ of a call, checked.
template <class T>
double scale_of(const Options& options, Index head_dim) {
  const double scale = options.scale.value_or(1 / std::sqrt(double(head_dim)));
  require(std::isfinite(T(scale * std::numbers::log2e)), "scale is ", scale, "; expected a finite number");
  return scale;
}

/// The tolerance of a call, checked. A tolerance below 2^-100 counts as 0.
template <class T>
double tolerance_of(const Options& options) {
  const double tolerance = options.tolerance.value_or(double(std::numeric_limits<T>::epsilon()) / 2);
  require(tolerance >= 0 && tolerance < 1, "tolerance is ", tolerance, "; expected at least 0 and below 1");
  return tolerance < 0x1p-100 ? 0 : tolerance;
}

/// The pruning statistics of a call, [sequences][heads], checked; null if they are not wanted.
inline PruningStats* pruning_stats_of(const Options& options, const SequenceList& sequences, Index heads) {
  const Index entries = sequences.count * heads;
  require(options.pruning_stats.empty() || Index(options.pruning_stats.size()) == entries, "pruning_stats has ",
          options.pruning_stats.size(), " entries; expected ", entries,
          sequences.kind == SequenceList::Kind::varlen ? ", sequences x heads of q" : ", batch x heads of q");
  return options.pruning_stats.data();
}

/// Checks the cumulative lengths `name` of an array `of` with this number of tokens.
inline void check_cu_seqlens(std::span<const Index> cu_seqlens, Index tokens, const char* name, const char* of) {
  require(!cu_seqlens.empty(), name, " has 0 entries; expected at least 1, one more than there are sequences");
  require(cu_seqlens.front() == 0, name, " begins with ", cu_seqlens.front(), "; expected 0");
  for (std::size_t s = 1; s < cu_seqlens.size(); s++)
    require(cu_seqlens[s - 1] <= cu_seqlens[s], name, "[", s, "] is ", cu_seqlens[s], " after ", cu_seqlens[s - 1],
            "; expected no entry below the one before it");
  require(cu_seqlens.back() == tokens, name, " ends with ", cu_seqlens.back(), "; expected ", tokens,
          ", the tokens of ", of);
}

/// Checks token ranges. `name` is the argument, `of` the array whose tokens they are, `batch_of` what has the batch.
inline void check_ranges(const TokenRanges& ranges, Index batch, Index tokens, const char* name, const char* of,
                         const char* batch_of) {
  require(ranges.size() == batch, name, " has ", ranges.size(), " entries; expected ", batch, ", the batch of ",
          batch_of);
  for (Index b = 0; b < batch; b++) {
    const KeyRange range = ranges[b];
    require(0 <= range.begin && range.begin <= range.end && range.end <= tokens, name, "[", b, "] is [", range.begin,
            ", ", range.end, "); expected 0 <= begin <= end <= ", tokens, ", the tokens of ", of);
  }
}

/// Checks a list `name` with one number for each sequence, which replaces mask.`of`; `given`: whether that is given
/// too.
inline void check_per_sequence(std::span<const Index> list, const SequenceList& sequences, const char* name,
                               const char* of, bool given) {
  if (list.empty()) return;
  require(Index(list.size()) == sequences.count, "options.", name, " has ", list.size(), " entries; expected ",
          sequences.count, ", ", sequences.name());
  require(!given, "options.", name, " is given with mask.", of, "; expected one of them");
}

/// The sequences with the query offsets and prefixes of the options, checked.
inline SequenceList with_masks(SequenceList sequences, const Options& options) {
  constexpr Index kFar = Index(1) << 61;
  const auto& offsets = options.query_offsets;
  const auto& prefixes = options.prefixes;
  check_per_sequence(offsets, sequences, "query_offsets", "query_offset", options.mask.query_offset.has_value());
  for (std::size_t s = 0; s < offsets.size(); s++)
    require(-kFar <= offsets[s] && offsets[s] <= kFar, "options.query_offsets[", s, "] is ", offsets[s],
            "; expected within ±2^61");
  check_per_sequence(prefixes, sequences, "prefixes", "prefix", options.mask.prefix != 0);
  require(prefixes.empty() || options.mask.causal,
          "options.prefixes is given with a bidirectional mask; expected none, or a causal mask");
  for (std::size_t s = 0; s < prefixes.size(); s++)
    require(prefixes[s] >= 0, "options.prefixes[", s, "] is ", prefixes[s], "; expected 0 or more");
  sequences.query_offsets = offsets;
  sequences.prefixes = prefixes;
  return sequences;
}

/// The checked sequences of a call, with the token ranges, query offsets and prefixes of its options.
inline SequenceList checked_sequences(SequenceList sequences, const Options& options) {
  if (sequences.kind == SequenceList::Kind::varlen) {
    const bool shared = sequences.cu_seqlens_k.empty();
    if (shared) sequences.cu_seqlens_k = sequences.cu_seqlens_q;
    check_cu_seqlens(sequences.cu_seqlens_q, sequences.queries, "cu_seqlens_q", "q");
    check_cu_seqlens(sequences.cu_seqlens_k, sequences.keys, shared ? "cu_seqlens_q" : "cu_seqlens_k", "k");
    require(sequences.cu_seqlens_k.size() == sequences.cu_seqlens_q.size(), "cu_seqlens_k has ",
            sequences.cu_seqlens_k.size(), " entries; expected ", sequences.cu_seqlens_q.size(),
            ", as many as cu_seqlens_q");
    require(options.queries.empty() && options.keys.empty(), "options.", options.queries.empty() ? "keys" : "queries",
            " is given for varlen attention; expected none: cu_seqlens say which tokens there are");
    return with_masks(sequences, options);
  }
  if (!options.queries.empty())
    check_ranges(options.queries, sequences.count, sequences.queries, "options.queries", "q", "q");
  if (!options.keys.empty()) check_ranges(options.keys, sequences.count, sequences.keys, "options.keys", "k", "q");
  sequences.query_ranges = options.queries;
  sequences.key_ranges = options.keys;
  return with_masks(sequences, options);
}

/// Checks that the arrays that a call of the forward writes share no memory with each other or with those that it
/// reads.
template <class E>
void check_memory(const View<E>& output, const std::optional<std::span<Sum<E>>>& lse, Index rows,
                  std::initializer_list<Memory> read) {
  const Memory to = memory_of(output, "output");
  require_disjoint(to, read);
  if (!lse) return;
  const Memory to_lse = memory_of(lse_row(*lse, rows), "lse");
  require_disjoint(to_lse, read);
  require_disjoint(to_lse, {to});
}

/// Checks queries over a cache of this config.
template <class E>
void check_queries(const View<const E>& q, const KvCacheConfig& config) {
  require_equal(q.batch, config.batch, "q", "batch", "the cache");
  require(q.heads % config.kv_heads == 0, "q has heads ", q.heads, "; expected a multiple of ", config.kv_heads,
          ", the kv_heads of the cache");
  require_equal(q.head_dim, config.head_dim, "q", "head_dim", "the cache");
  require_memory(q, "q");
}

}  // namespace alibi::inline ALIBI_ABI::detail
