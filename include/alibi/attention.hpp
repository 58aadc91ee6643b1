// Attention with linear biases (Press, Smith, Lewis, "Train Short, Test Long", arXiv 2108.12409).
//
//   s_ij = τ q_i·k_j - m_h |p_i - j|        the bias is outside the scale (footnote 10)
//   o_i  = Σ_j softmax_j(s_ij) v_j          over the keys that the mask lets query i see
//   lse_i = ln Σ_j exp(s_ij)
//
// q [batch, heads, queries, head_dim], k [batch, kv_heads, keys, head_dim], v [batch, kv_heads, keys, value_dim],
// slopes m [heads] or [batch, heads]; the result is [batch, heads, queries, value_dim]. heads is a multiple of
// kv_heads: query head h reads kv head h / (heads / kv_heads). Arrays are what view.hpp lists, all of one scalar, float
// or double.
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

#include "alibi/error.hpp"
#include "alibi/executor.hpp"
#include "alibi/kernel/forward.hpp"
#include "alibi/mask.hpp"
#include "alibi/view.hpp"
#include "alibi/workspace.hpp"

namespace alibi::inline ALIBI_ISA {

struct Options {
  Mask mask = {};                              ///< which keys a query sees; default: causal, aligned at the end
  std::optional<double> scale = std::nullopt;  ///< τ; none: 1 / sqrt(head_dim)
  Executor executor = {};                      ///< who runs the tasks; default: the calling thread
};
/// What attention_forward() returns.
template <class Output, class Lse>
struct ForwardResult {
  Output output;  ///< [batch, heads, queries, value_dim]
  Lse lse;        ///< [batch, heads, queries], natural logarithm
};

namespace detail {

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

template <class T>
void check_slopes(const SlopeView<T>& slopes, const View<const T>& q) {
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

/// That an array which is written, `x`, shares no memory with any that is read.
template <class T>
void require_apart(const View<T>& x, const char* name, const kernel::Forward<T>& call) {
  const auto apart = [&](const auto& other, const char* other_name) {
    require(!overlap(x, other), name, " overlaps ", other_name, "; expected memory of its own");
  };
  const SlopeView<T>& m = call.slopes;
  apart(call.q, "q");
  apart(call.k, "k");
  apart(call.v, "v");
  apart(View<const T>{m.data, m.batch, 1, m.heads, 1, m.batch_stride, 0, m.head_stride}, "slopes");
}

/// Checks a call of the forward and fills in its defaults; the errors are those that the comment above promises.
template <class T>
kernel::Forward<T> checked(const View<const T>& q, const View<const T>& k, const View<const T>& v,
                           const View<T>& output, std::optional<std::span<T>> lse, const SlopeView<T>& slopes,
                           const Options& options) {
  check_inputs(q, k, v);
  check_slopes(slopes, q);
  require(
      output.batch == q.batch && output.heads == q.heads && output.tokens == q.tokens && output.head_dim == v.head_dim,
      "output is [", output.batch, ", ", output.heads, ", ", output.tokens, ", ", output.head_dim, "]; expected [",
      q.batch, ", ", q.heads, ", ", q.tokens, ", ", v.head_dim, "], batch, heads and tokens of q, head_dim of v");
  require_memory(output, "output");
  require(!overlaps_itself(output), "output has strides ", output.batch_stride, ", ", output.head_stride, ", ",
          output.token_stride, " of batch, heads and tokens; expected rows that do not overlap");

  const double scale = options.scale.value_or(1 / std::sqrt(double(q.head_dim)));
  require(std::isfinite(T(scale * std::numbers::log2e)), "scale is ", scale, "; expected a finite number");
  const kernel::Forward<T> call{
      q, k, v, output, lse ? lse->data() : nullptr, slopes, resolve(options.mask, q.tokens, k.tokens), scale};
  require_apart(output, "output", call);
  if (lse) {
    const Index rows = q.batch * q.heads * q.tokens;
    require(Index(lse->size()) == rows, "lse has ", lse->size(), " entries; expected ", rows,
            ", batch x heads x tokens of q");
    const View<T> row{lse->data(), 1, 1, 1, rows, 0, 0, 0};
    require(row.data || rows == 0, "lse is null; expected ", rows, " entries");
    require_apart(row, "lse", call);
    require(!overlap(row, output), "lse overlaps output; expected memory of its own");
  }
  return call;
}

template <class T>
void run(const kernel::Forward<T>& call, const Executor& executor, Workspace& workspace) {
  const kernel::ForwardPlan<T> plan(call.q.batch * call.q.heads, call.q.tokens, call.q.head_dim, call.v.head_dim);
  const std::size_t slots = std::size_t(std::min<Index>(executor.slots(), plan.tasks));
  std::byte* scratch = workspace.reserve(slots * plan.scratch_bytes);
  executor.for_each(plan.tasks, [&](Index task, int slot) {
    T* mine = reinterpret_cast<T*>(scratch + std::size_t(slot) * plan.scratch_bytes);
    kernel::ForwardTask<T>(call, plan, task, mine).run();
  });
}

template <class Output, class Q, class K, class V, class Slopes>
void forward_into(Output& output, std::optional<std::span<typename Adapter<Q>::Scalar>> lse, const Q& q, const K& k,
                  const V& v, const Slopes& slopes, const Options& options, Workspace& workspace) {
  using T = typename Adapter<Q>::Scalar;
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>, "alibi: q, k and v must hold float or double.");
  static_assert(std::is_same_v<T, typename Adapter<K>::Scalar> && std::is_same_v<T, typename Adapter<V>::Scalar>,
                "alibi: q, k and v must hold the same scalar.");
  const auto into = Adapter<std::remove_const_t<Output>>::of(output, "output");
  static_assert(std::is_same_v<decltype(into), const View<T>>,
                "alibi: output must hold the same scalar as q, k and v, and not be const.");
  const auto call = checked<T>(Adapter<Q>::of(q, "q"), Adapter<K>::of(k, "k"), Adapter<V>::of(v, "v"), into, lse,
                               slope_view<T>(slopes), options);
  run(call, options.executor, workspace);
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
  detail::forward_into(output, lse_view<typename Adapter<Q>::Scalar>(lse), q, k, v, slopes, options, workspace);
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
  detail::forward_into(output, lse_view<typename Adapter<Q>::Scalar>(lse), q, k, v, slopes, options, workspace);
}
template <class Output, class Lse, class Q, class K, class V, class Slopes>
void attention_forward_into(Output&& output, Lse&& lse, const Q& q, const K& k, const V& v, const Slopes& slopes,
                            const Options& options = {}) {
  Workspace workspace;
  attention_forward_into(output, lse, q, k, v, slopes, options, workspace);
}

}  // namespace alibi::inline ALIBI_ISA
