// Attention with linear biases (Press, Smith, Lewis, "Train Short, Test Long", arXiv 2108.12409).
//
//   s_ij = τ q_i·k_j - m_h |p_i - j|        the bias is outside the scale (footnote 10)
//   o_i  = Σ_j softmax_j(s_ij) v_j          over the keys that the mask lets query i see
//   lse_i = ln Σ_j exp(s_ij)
//
// q [batch, heads, queries, head_dim], k [batch, kv_heads, keys, head_dim], v [batch, kv_heads, keys, value_dim],
// slopes m [heads] or [batch, heads]; the result is [batch, heads, queries, value_dim]. heads is a multiple of
// kv_heads: query head h reads kv head h / (heads / kv_heads). Arrays are what view.hpp lists, all of one scalar:
// float, double, bfloat16 or half. The last two are summed up in float; slopes and lse are float with them.
//
// Keys so far back that they cannot matter are not read: each row may lose the share `tolerance` of its softmax mass,
// by default less than rounding takes from it (horizon.hpp derives the bound). So the cost of a head of slope m grows
// with tokens / m, not with their square. What a NaN or infinity in a value that is not read would have done is not
// seen; keys that are not finite are always read.
//
// A query that sees no key has output 0 and lse -inf. The same input gives the same bits on any number of threads.
//
// Errors: std::invalid_argument that names the argument, before anything is written. Not for: dropout, additive masks,
// gradients.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>

#include "alibi/call.hpp"
#include "alibi/error.hpp"
#include "alibi/executor.hpp"
#include "alibi/horizon.hpp"
#include "alibi/kernel/forward.hpp"
#include "alibi/mask.hpp"
#include "alibi/view.hpp"
#include "alibi/workspace.hpp"

namespace alibi::inline ALIBI_ISA {

struct Options {
  Mask mask = {};                              ///< which keys a query sees; default: causal, aligned at the end
  std::optional<double> scale = std::nullopt;  ///< τ; none: 1 / sqrt(head_dim)
  /// Share of a row's softmax mass that may be left out; 0: every key is read; none: half an ulp, 2^-24, or 2^-53 for
  /// double.
  std::optional<double> tolerance = std::nullopt;
  Executor executor = {};          ///< who runs the tasks; default: the calling thread
  std::span<Pruning> report = {};  ///< [batch x heads], to be filled in with what was left out; default: not wanted
};

/// What attention_forward() returns.
template <class Output, class Lse>
struct ForwardResult {
  Output output;  ///< [batch, heads, queries, value_dim]
  Lse lse;        ///< [batch, heads, queries], natural logarithm
};

namespace detail {

template <class E>
inline constexpr bool kIsScalar = std::is_same_v<E, float> || std::is_same_v<E, double> ||
                                  std::is_same_v<E, Eigen::bfloat16> || std::is_same_v<E, Eigen::half>;

template <class T>
bool is_empty(const View<T>& x) {
  return x.batch * x.heads * x.tokens * x.head_dim == 0;
}

/// Whether two views share a byte of the range from their first to their last element.
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
  return a_low < b_high && b_low < a_high;
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

template <class T, class E>
void check_slopes(const SlopeView<T>& slopes, const View<const E>& q) {
  require_equal(slopes.heads, q.heads, "slopes", "heads", "q");
  require(slopes.batch == q.batch || slopes.batch_stride == 0, "slopes has batch ", slopes.batch, "; expected ",
          q.batch, ", the batch of q, or a vector of heads");
  require(slopes.data || slopes.batch * slopes.heads == 0, "slopes is null; expected ", slopes.heads, " slopes");
  for (Index b = 0; b < slopes.batch; b++)
    for (Index h = 0; h < slopes.heads; h++) {
      const T m = slopes.data[b * slopes.batch_stride + h * slopes.head_stride];
      require(std::isfinite(m), "the slope of head ", h, " in batch ", b, " is ", m, "; expected a finite number");
    }
}

/// That an array which is written, `x`, shares no memory with the slopes or with any array that is read.
template <class X, class T, class... Read>
void require_apart(const View<X>& x, const char* name, const SlopeView<T>& m,
                   const std::pair<View<Read>, const char*>&... read) {
  const auto apart = [&](const auto& other, const char* other_name) {
    require(!overlap(x, other), name, " overlaps ", other_name, "; expected memory of its own");
  };
  (apart(read.first, read.second), ...);
  apart(View<const T>{m.data, m.batch, 1, m.heads, 1, m.batch_stride, 0, m.head_stride}, "slopes");
}

template <class E>
void check_output(const View<E>& output, const View<const E>& q, Index value_dim) {
  require(
      output.batch == q.batch && output.heads == q.heads && output.tokens == q.tokens && output.head_dim == value_dim,
      "output is [", output.batch, ", ", output.heads, ", ", output.tokens, ", ", output.head_dim, "]; expected [",
      q.batch, ", ", q.heads, ", ", q.tokens, ", ", value_dim, "], batch, heads and tokens of q, head_dim of v");
  require_memory(output, "output");
  require(!overlaps_itself(output), "output has strides ", output.batch_stride, ", ", output.head_stride, ", ",
          output.token_stride, " of batch, heads and tokens; expected rows that do not overlap");
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

inline Pruning* report_of(const Options& options, Index batch, Index heads) {
  require(options.report.empty() || Index(options.report.size()) == batch * heads, "report has ", options.report.size(),
          " entries; expected ", batch * heads, ", batch x heads of q");
  return options.report.data();
}

/// One entry of the batch of a view.
template <class X>
View<X> entry(View<X> x, Index b) {
  x.data += b * x.batch_stride;
  x.batch = 1;
  return x;
}

/// Checks a call and runs it; the errors are those that the comment above promises.
template <class E, class T>
void forward_views(const View<E>& output, std::optional<std::span<T>> lse, const View<const E>& q,
                   const View<const E>& k, const View<const E>& v, const SlopeView<T>& slopes, const Options& options,
                   Workspace& workspace) {
  using F = kernel::Format<E, E, false>;
  check_inputs(q, k, v);
  check_slopes(slopes, q);
  check_output(output, q, v.head_dim);
  const kernel::Forward<F> call{{},
                                q.heads,
                                k.heads,
                                q.head_dim,
                                v.head_dim,
                                scale_of<T>(options, q.head_dim),
                                report_of(options, q.batch, q.heads)};
  const double tolerance = tolerance_of<T>(options);
  const ResolvedMask mask = resolve(options.mask, q.tokens, k.tokens);
  const std::pair of_q(q, "q"), of_k(k, "k"), of_v(v, "v");
  require_apart(output, "output", slopes, of_q, of_k, of_v);
  if (lse) {
    const View<T> row = lse_row(*lse, q.batch * q.heads * q.tokens);
    require_apart(row, "lse", slopes, of_q, of_k, of_v);
    require(!overlap(row, output), "lse overlaps output; expected memory of its own");
  }
  const auto sequence = [&](Index b) {
    return kernel::Sequence<F>{.q = entry(q, b),
                               .output = entry(output, b),
                               .k = entry(k, b),
                               .v = entry(v, b),
                               .lse = lse ? lse->data() + b * q.heads * q.tokens : nullptr,
                               .lse_stride = q.tokens,
                               .slopes = slopes.data + b * slopes.batch_stride,
                               .slope_stride = slopes.head_stride,
                               .mask = mask,
                               .tolerance = tolerance};
  };
  run(call, q.batch, sequence, options.executor, workspace);
}

/// What attention adds up in for arrays of this kind; also the scalar of slopes and lse.
template <class Array>
using SumOf = kernel::Sum<typename Adapter<Array>::Scalar>;

template <class Output, class Q, class K, class V, class Slopes>
void forward_into(Output& output, std::optional<std::span<SumOf<Q>>> lse, const Q& q, const K& k, const V& v,
                  const Slopes& slopes, const Options& options, Workspace& workspace) {
  using E = typename Adapter<Q>::Scalar;
  static_assert(kIsScalar<E>, "alibi: q, k and v must hold float, double, Eigen::bfloat16 or Eigen::half.");
  static_assert(std::is_same_v<E, typename Adapter<K>::Scalar> && std::is_same_v<E, typename Adapter<V>::Scalar>,
                "alibi: q, k and v must hold the same scalar.");
  const auto into = Adapter<std::remove_const_t<Output>>::of(output, "output");
  static_assert(std::is_same_v<decltype(into), const View<E>>,
                "alibi: output must hold the same scalar as q, k and v, and not be const.");
  forward_views<E, SumOf<Q>>(into, lse, Adapter<Q>::of(q, "q"), Adapter<K>::of(k, "k"), Adapter<V>::of(v, "v"),
                             slope_view<SumOf<Q>>(slopes), options, workspace);
}

/// The result of q's kind for `v`'s head_dim.
template <class Q, class V>
auto new_output(const Q& q, const V& v) {
  static_assert(
      requires { typename Adapter<Q>::Output; },
      "alibi: for views there is no array type to return; use attention_into() with a view of your memory.");
  const auto queries = Adapter<Q>::of(q, "q");
  return Adapter<Q>::output(queries.batch, queries.heads, queries.tokens, Adapter<V>::of(v, "v").head_dim);
}

}  // namespace detail

/// Attention as defined at the top of this file, as a new array of q's kind: a tensor for tensors, a row-major matrix
/// for matrices of one head.
template <class Q, class K, class V, class Slopes>
auto attention(const Q& q, const K& k, const V& v, const Slopes& slopes, const Options& options = {}) {
  auto output = detail::new_output(q, v);
  Workspace workspace;
  detail::forward_into(output, std::nullopt, q, k, v, slopes, options, workspace);
  return output;
}

/// Attention and its log-sum-exp, as new arrays: auto [output, lse] = attention_forward(q, k, v, slopes).
template <class Q, class K, class V, class Slopes>
auto attention_forward(const Q& q, const K& k, const V& v, const Slopes& slopes, const Options& options = {}) {
  auto output = detail::new_output(q, v);
  const auto queries = Adapter<Q>::of(q, "q");
  auto lse = Adapter<Q>::lse(queries.batch, queries.heads, queries.tokens);
  Workspace workspace;
  detail::forward_into(output, lse_view<detail::SumOf<Q>>(lse), q, k, v, slopes, options, workspace);
  return ForwardResult<decltype(output), decltype(lse)>{std::move(output), std::move(lse)};
}

/// Attention into memory of the caller, [batch, heads, queries, value_dim], which may not overlap an input. Allocates
/// nothing once `workspace` has served a call of these shapes, as long as the executor does not.
template <class Output, class Q, class K, class V, class Slopes>
void attention_into(Output&& output, const Q& q, const K& k, const V& v, const Slopes& slopes, const Options& options,
                    Workspace& workspace) {
  detail::forward_into(output, std::nullopt, q, k, v, slopes, options, workspace);
}
template <class Output, class Q, class K, class V, class Slopes>
void attention_into(Output&& output, const Q& q, const K& k, const V& v, const Slopes& slopes,
                    const Options& options = {}) {
  Workspace workspace;
  attention_into(output, q, k, v, slopes, options, workspace);
}

/// The same with the log-sum-exp, [batch, heads, queries], what lse_view() takes.
template <class Output, class Lse, class Q, class K, class V, class Slopes>
void attention_forward_into(Output&& output, Lse&& lse, const Q& q, const K& k, const V& v, const Slopes& slopes,
                            const Options& options, Workspace& workspace) {
  detail::forward_into(output, lse_view<detail::SumOf<Q>>(lse), q, k, v, slopes, options, workspace);
}
template <class Output, class Lse, class Q, class K, class V, class Slopes>
void attention_forward_into(Output&& output, Lse&& lse, const Q& q, const K& k, const V& v, const Slopes& slopes,
                            const Options& options = {}) {
  Workspace workspace;
  attention_forward_into(output, lse, q, k, v, slopes, options, workspace);
}

}  // namespace alibi::inline ALIBI_ISA
