// The checks at the door of every form of attention. Each throws std::invalid_argument that names the argument, what it
// was and what was expected; nothing has been written by then. Not a header for users.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <numbers>
#include <span>
#include <type_traits>
#include <utility>

#include "alibi/detail/call.hpp"
#include "alibi/error.hpp"
#include "alibi/options.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// The memory of an array, head_dim and strides counted in bytes, and the array's name.
struct Memory {
  View<const char> bytes;
  const char* name;
};

inline Memory memory_in_bytes(const void* data, const View<const char>& shape, Index size, const char* name) {
  return {{static_cast<const char*>(data), shape.batch, shape.heads, shape.tokens, shape.head_dim * size,
           shape.batch_stride * size, shape.head_stride * size, shape.token_stride * size},
          name};
}
template <class T>
Memory memory_of(const View<T>& x, const char* name) {
  return memory_in_bytes(
      x.data, {nullptr, x.batch, x.heads, x.tokens, x.head_dim, x.batch_stride, x.head_stride, x.token_stride},
      sizeof(T), name);
}
inline Memory memory_of(const SlopeView& m) {
  const Index size = size_of(m.scalar);
  return memory_in_bytes(m.data, {nullptr, m.batch, 1, m.heads, 1, m.batch_stride, 0, m.head_stride}, size, "slopes");
}
template <BiasKind kind, class T>
Memory memory_of(const BiasView<T>& bias) {
  if (kind == BiasKind::slopes) return memory_of(bias.slopes);
  const TableBias<T>& table = bias.table;
  return memory_of(View<const T>{table.data, 1, 1, table.heads, table.entries, 0, 0, table.head_stride}, "the table");
}

inline bool is_empty(const View<const char>& x) {
  return x.batch == 0 || x.heads == 0 || x.tokens == 0 || x.head_dim == 0;
}

/// The sizes and strides of a view but for head_dim's.
inline std::array<std::pair<Index, Index>, 3> axes_of(const View<const char>& x) {
  return {{{x.batch, x.batch_stride}, {x.heads, x.head_stride}, {x.tokens, x.token_stride}}};
}

/// Whether two arrays lie between one another's rows, as q, k and v do that are slices of one array: seen modulo one of
/// the strides, no two of their bytes are in the same place.
inline bool interleaved(const View<const char>& a, const View<const char>& b) {
  // The bytes of a view within one period, or 0 if they are not the same in every one.
  const auto extent = [](const View<const char>& x, Index period) {
    Index all = x.head_dim;
    for (const auto& [size, stride] : axes_of(x)) {
      if (size <= 1 || stride % period == 0) continue;
      if (stride < 0 || stride > period) return Index(0);
      all += (size - 1) * stride;
    }
    return all;
  };
  const auto gap = Index(reinterpret_cast<std::uintptr_t>(b.data) - reinterpret_cast<std::uintptr_t>(a.data));
  for (const Index period : {a.batch_stride, a.head_stride, a.token_stride}) {
    if (period <= 0) continue;
    const Index of_a = extent(a, period), of_b = extent(b, period), from = (gap % period + period) % period;
    if (of_a > 0 && of_b > 0 && of_a <= from && from + of_b <= period) return true;
  }
  return false;
}

/// Whether two arrays may share a byte.
inline bool overlap(const View<const char>& a, const View<const char>& b) {
  const auto range = [](const View<const char>& x) {
    std::uintptr_t low = reinterpret_cast<std::uintptr_t>(x.data), high = low + std::uintptr_t(x.head_dim);
    for (const auto& [size, stride] : axes_of(x)) (stride < 0 ? low : high) += std::uintptr_t((size - 1) * stride);
    return std::pair(low, high);
  };
  if (is_empty(a) || is_empty(b)) return false;
  const auto [a_low, a_high] = range(a);
  const auto [b_low, b_high] = range(b);
  return a_low < b_high && b_low < a_high && !interleaved(a, b);
}

/// Whether rows of an array may share memory with one another.
inline bool overlaps_itself(const View<const char>& x) {
  if (is_empty(x)) return false;
  std::array axes = axes_of(x);
  for (auto& [size, stride] : axes) stride = std::abs(stride);
  std::sort(axes.begin(), axes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  Index extent = x.head_dim;
  for (const auto& [size, stride] : axes)
    if (size > 1) {
      if (stride < extent) return true;
      extent += stride * (size - 1);
    }
  return false;
}

/// That an array which is written shares no memory with any of those that are read.
inline void require_apart(const Memory& written, std::initializer_list<Memory> read) {
  for (const Memory& other : read)
    require(!overlap(written.bytes, other.bytes), written.name, " overlaps ", other.name,
            "; expected memory of its own");
}

inline void require_equal(Index is, Index expected, const char* name, const char* what, const char* of) {
  require(is == expected, name, " has ", what, ' ', is, "; expected ", expected, ", the ", what, " of ", of);
}

template <class T>
void require_memory(const View<T>& x, const char* name) {
  const Index tokens = x.batch * x.heads * x.tokens;
  require(x.data || tokens == 0, name, " is null; expected ", tokens, " tokens of ", x.head_dim);
}

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

inline void check_slopes(const SlopeView& slopes, Index heads, const Sequences& sequences) {
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

template <class T>
void check_table(const TableBias<T>& table, Index heads) {
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

template <BiasKind kind, class T>
void check_bias(const BiasView<T>& bias, Index heads, const Sequences& sequences) {
  kind == BiasKind::table ? check_table(bias.table, heads) : check_slopes(bias.slopes, heads, sequences);
}

/// That x is as large as `like` in all but its head_dim; `what` says whose sizes these are.
template <class X, class L>
void check_shape(const View<X>& x, const char* name, const View<L>& like, Index head_dim, const char* what) {
  require(x.batch == like.batch && x.heads == like.heads && x.tokens == like.tokens && x.head_dim == head_dim, name,
          " is [", x.batch, ", ", x.heads, ", ", x.tokens, ", ", x.head_dim, "]; expected [", like.batch, ", ",
          like.heads, ", ", like.tokens, ", ", head_dim, "], ", what);
  require_memory(x, name);
}

/// That rows which are to be written do not overlap.
template <class X>
void require_rows(const View<X>& x, const char* name) {
  require(!overlaps_itself(memory_of(x, name).bytes), name, " has strides ", x.batch_stride, ", ", x.head_stride, ", ",
          x.token_stride, " of batch, heads and tokens; expected rows that do not overlap");
}

inline constexpr const char* kLikeOutput = "batch, heads and tokens of q, head_dim of v";

template <class E>
void check_output(const View<E>& output, const View<const E>& q, Index value_dim) {
  check_shape(output, "output", q, value_dim, kLikeOutput);
  require_rows(output, "output");
}

/// An lse array as a view of one row, so that its memory can be compared with others'.
template <class T>
View<T> lse_row(std::span<T> lse, Index rows) {
  require(Index(lse.size()) == rows, "lse has ", lse.size(), " entries; expected ", rows,
          ", batch x heads x tokens of q");
  require(lse.data() || rows == 0, "lse is null; expected ", rows, " entries");
  return {lse.data(), 1, 1, 1, rows, 0, 0, 0};
}

/// τ, checked.
template <class T>
double scale_of(const Options& options, Index head_dim) {
  const double scale = options.scale.value_or(1 / std::sqrt(double(head_dim)));
  require(std::isfinite(T(scale * std::numbers::log2e)), "scale is ", scale, "; expected a finite number");
  return scale;
}

/// The tolerance, checked. Below 2^-100 it is as good as 0.
template <class T>
double tolerance_of(const Options& options) {
  const double tolerance = options.tolerance.value_or(double(std::numeric_limits<T>::epsilon()) / 2);
  require(tolerance >= 0 && tolerance < 1, "tolerance is ", tolerance, "; expected at least 0 and below 1");
  return tolerance < 0x1p-100 ? 0 : tolerance;
}

inline Pruning* report_of(const Options& options, const Sequences& sequences, Index heads) {
  const Index entries = sequences.count * heads;
  require(options.report.empty() || Index(options.report.size()) == entries, "report has ", options.report.size(),
          " entries; expected ", entries,
          sequences.kind == Sequences::Kind::varlen ? ", sequences x heads of q" : ", batch x heads of q");
  return options.report.data();
}

inline void check_starts(std::span<const Index> starts, Index tokens, const char* name, const char* of) {
  require(!starts.empty(), "starts.", name, " has 0 entries; expected at least 1, one more than there are sequences");
  require(starts.front() == 0, "starts.", name, " begins with ", starts.front(), "; expected 0");
  for (std::size_t s = 1; s < starts.size(); s++)
    require(starts[s - 1] <= starts[s], "starts.", name, "[", s, "] is ", starts[s], " after ", starts[s - 1],
            "; expected no entry below the one before it");
  require(starts.back() == tokens, "starts.", name, " ends with ", starts.back(), "; expected ", tokens,
          ", the tokens of ", of);
}

/// `name` is of the ranges, `of` of the array whose tokens they are, `batch_of` of what has the batch.
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

/// The sequences of a call with what its options say of them, checked.
inline Sequences checked_sequences(Sequences sequences, const Options& options) {
  using Kind = Sequences::Kind;
  const Index batch = sequences.count, queries = sequences.queries;
  if (sequences.kind == Kind::varlen) {
    const bool shared = sequences.key_starts.empty();
    if (shared) sequences.key_starts = sequences.query_starts;
    check_starts(sequences.query_starts, queries, "queries", "q");
    check_starts(sequences.key_starts, sequences.keys, shared ? "queries" : "keys", "k");
    require(sequences.key_starts.size() == sequences.query_starts.size(), "starts.keys has ",
            sequences.key_starts.size(), " entries; expected ", sequences.query_starts.size(),
            ", as many as starts.queries");
    require(options.queries.empty(),
            "options.queries is given for packed sequences; expected none: their starts say it");
  }
  if (sequences.kind == Kind::padded) {
    check_ranges(sequences.key_ranges, batch, sequences.keys, "padding.keys", "k", "q");
    if (!sequences.query_ranges.empty())
      check_ranges(sequences.query_ranges, batch, queries, "padding.queries", "q", "q");
  }
  if (!options.queries.empty()) {
    require(sequences.query_ranges.empty(), "options.queries is given beside padding.queries; expected one of them");
    check_ranges(options.queries, batch, queries, "options.queries", "q", "q");
    sequences.query_ranges = options.queries;
  }
  return sequences;
}

}  // namespace alibi::inline ALIBI_ABI::detail
