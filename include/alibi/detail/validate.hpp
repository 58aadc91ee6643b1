// The checks at the door of every form of attention. Each throws std::invalid_argument that names the argument, what it
// was and what was expected; nothing has been written by then. Not a header for users.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <span>
#include <type_traits>
#include <utility>

#include "alibi/bias_view.hpp"
#include "alibi/error.hpp"
#include "alibi/options.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ISA::detail {

template <class E>
inline constexpr bool kIsScalar = std::is_same_v<E, float> || std::is_same_v<E, double> ||
                                  std::is_same_v<E, Eigen::bfloat16> || std::is_same_v<E, Eigen::half>;

template <class T>
bool is_empty(const View<T>& x) {
  return x.batch * x.heads * x.tokens * x.head_dim == 0;
}

/// Whether two views of numbers of one size lie between one another's rows, as q, k and v do that are slices of one
/// array: seen modulo one of the strides, no two of their numbers are in the same place.
template <class T, class U>
bool interleaved(const View<T>& a, const View<U>& b) {
  if (sizeof(T) != sizeof(U)) return false;
  // The numbers of a view within one period, or 0 if they are not the same in every one.
  const auto extent = [](const auto& x, Index period) {
    Index all = x.head_dim;
    for (const auto& [size, stride] :
         {std::pair(x.batch, x.batch_stride), std::pair(x.heads, x.head_stride), std::pair(x.tokens, x.token_stride)}) {
      if (size <= 1 || stride % period == 0) continue;
      if (stride < 0 || stride > period) return Index(0);
      all += (size - 1) * stride;
    }
    return all;
  };
  const auto gap = std::intptr_t(reinterpret_cast<std::uintptr_t>(b.data) - reinterpret_cast<std::uintptr_t>(a.data));
  if (gap % std::intptr_t(sizeof(T)) != 0) return false;
  for (const Index period : {a.batch_stride, a.head_stride, a.token_stride}) {
    if (period <= 0) continue;
    const Index of_a = extent(a, period), of_b = extent(b, period);
    const Index from = (Index(gap / std::intptr_t(sizeof(T))) % period + period) % period;
    if (of_a > 0 && of_b > 0 && of_a <= from && from + of_b <= period) return true;
  }
  return false;
}

/// Whether two views may share a byte.
template <class T, class U>
bool overlap(const View<T>& a, const View<U>& b) {
  const auto range = []<class X>(const View<X>& x) {
    const X *low = x.data, *high = x.data + x.head_dim;
    for (const auto& [size, stride] :
         {std::pair(x.batch, x.batch_stride), std::pair(x.heads, x.head_stride), std::pair(x.tokens, x.token_stride)})
      (stride < 0 ? low : high) += (size - 1) * stride;
    return std::pair(reinterpret_cast<std::uintptr_t>(low), reinterpret_cast<std::uintptr_t>(high));
  };
  if (is_empty(a) || is_empty(b)) return false;
  const auto [a_low, a_high] = range(a);
  const auto [b_low, b_high] = range(b);
  return a_low < b_high && b_low < a_high && !interleaved(a, b);
}

/// Whether rows of a view may share memory with one another.
template <class T>
bool overlaps_itself(const View<T>& x) {
  if (is_empty(x)) return false;
  std::array axes{std::pair(std::abs(x.batch_stride), x.batch), std::pair(std::abs(x.head_stride), x.heads),
                  std::pair(std::abs(x.token_stride), x.tokens)};
  std::sort(axes.begin(), axes.end());
  Index extent = x.head_dim;
  for (const auto& [stride, size] : axes)
    if (size > 1) {
      if (stride < extent) return true;
      extent += stride * (size - 1);
    }
  return false;
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

/// Compile-time misuse that every form shares: E of q, K of k, V of v, Output a view.
template <class E, class K, class V, class Output>
constexpr void check_scalars() {
  static_assert(kIsScalar<E>, "alibi: q, k and v must hold float, double, Eigen::bfloat16 or Eigen::half.");
  static_assert(std::is_same_v<E, K> && std::is_same_v<E, V>, "alibi: q, k and v must hold the same scalar.");
  static_assert(std::is_same_v<std::remove_const_t<Output>, View<E>>,
                "alibi: output must hold the same scalar as q, k and v, and not be const.");
}

/// What slopes and reports are given for: each entry of the batch, or each of the sequences packed into one.
struct Sequences {
  Index count;
  bool packed = false;

  const char* name() const { return packed ? "the number of sequences" : "the batch of q"; }
};

template <class T>
void check_slopes(const SlopeView<T>& slopes, Index heads, const Sequences& sequences) {
  require_equal(slopes.heads, heads, "slopes", "heads", "q");
  require(slopes.batch == sequences.count || slopes.batch_stride == 0, "slopes has batch ", slopes.batch, "; expected ",
          sequences.count, ", ", sequences.name(), ", or a vector of heads");
  require(slopes.data || slopes.batch * slopes.heads == 0, "slopes is null; expected ", slopes.heads, " slopes");
  for (Index b = 0; b < slopes.batch; b++)
    for (Index h = 0; h < slopes.heads; h++) {
      const T m = slopes.data[b * slopes.batch_stride + h * slopes.head_stride];
      require(std::isfinite(m), "the slope of head ", h, " in batch ", b, " is ", m, "; expected a finite number");
    }
}

template <class Bias>
void check_bias(const Bias& bias, Index heads, const Sequences& sequences) {
  Bias::kTable ? check_table(bias.table, heads) : check_slopes(bias.slopes, heads, sequences);
}

/// That an array which is written, `x`, shares no memory with any array that is read.
template <class X, class... Read>
void require_apart(const View<X>& x, const char* name, const std::pair<View<Read>, const char*>&... read) {
  const auto apart = [&](const auto& other, const char* other_name) {
    require(!overlap(x, other), name, " overlaps ", other_name, "; expected memory of its own");
  };
  (apart(read.first, read.second), ...);
}

/// The memory of a bias and its name, for require_apart().
template <class T>
std::pair<View<const T>, const char*> memory_of(const SlopeView<T>& m) {
  return {{m.data, m.batch, 1, m.heads, 1, m.batch_stride, 0, m.head_stride}, "slopes"};
}
template <class T, template <class> class Law>
std::pair<View<const T>, const char*> memory_of(const BiasView<T, Law>& bias) {
  if (!bias.kTable) return memory_of(bias.slopes);
  const TableBias<T>& table = bias.table;
  return {{table.data, 1, 1, table.heads, table.entries, 0, 0, table.head_stride}, "the table"};
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
  require(!overlaps_itself(x), name, " has strides ", x.batch_stride, ", ", x.head_stride, ", ", x.token_stride,
          " of batch, heads and tokens; expected rows that do not overlap");
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
          " entries; expected ", entries, sequences.packed ? ", sequences x heads of q" : ", batch x heads of q");
  return options.report.data();
}

}  // namespace alibi::inline ALIBI_ISA::detail
