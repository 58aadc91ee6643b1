// Attention over sequences of different lengths, without work or memory for padding.
//
//   packed   sequences back to back: q [tokens, heads, head_dim], k [keys, kv_heads, head_dim], v [keys, kv_heads,
//            value_dim], with offsets where each begins. Arrays are Eigen::Tensor or TensorMap of rank 3, row-major
//            (column-major mirrored), or alibi::view(pointer, {1, heads, tokens, head_dim}, strides).
//   padded   arrays as attention() takes them, [batch, heads, tokens, ·]; each entry of the batch has tokens in one
//            range only, on the left, on the right or in between.
//
// Each sequence is a call of attention() of its own, to the last bit: positions, mask.query_offset and the default
// offset count in the sequence, so that relative distances do not change under padding. Slopes are [heads] or
// [sequences, heads], Options::report has [sequences x heads] entries. Memory of padding is not read.
//
// Errors: those of attention(), and std::invalid_argument for offsets and ranges that do not fit, before anything is
// written.
#pragma once

#include <algorithm>
#include <limits>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>

#include "alibi/attention.hpp"
#include "alibi/check.hpp"
#include "alibi/error.hpp"
#include "alibi/options.hpp"
#include "alibi/view.hpp"
#include "alibi/workspace.hpp"

namespace alibi::inline ALIBI_ISA {

/// Where sequences begin: sequence s has tokens starts[s], …, starts[s + 1] - 1. One entry more than there are
/// sequences, from 0 to the number of tokens, none below the one before it.
struct PackedStarts {
  std::span<const Index> queries;
  std::span<const Index> keys = {};  ///< of k and v; none: those of the queries
};

/// The tokens that are none of padding: [begin, end), one entry a batch entry.
struct Padding {
  std::span<const KeyRange> keys;
  std::span<const KeyRange> queries = {};  ///< none: as the keys if q has as many tokens as k, else all
};

namespace detail {

inline void check_starts(std::span<const Index> starts, Index tokens, const char* name, const char* of) {
  require(!starts.empty(), "starts.", name, " has 0 entries; expected at least 1, one more than there are sequences");
  require(starts.front() == 0, "starts.", name, " begins with ", starts.front(), "; expected 0");
  for (std::size_t s = 1; s < starts.size(); s++)
    require(starts[s - 1] <= starts[s], "starts.", name, "[", s, "] is ", starts[s], " after ", starts[s - 1],
            "; expected no entry below the one before it");
  require(starts.back() == tokens, "starts.", name, " ends with ", starts.back(), "; expected ", tokens,
          ", the tokens of ", of);
}

inline void check_ranges(std::span<const KeyRange> ranges, Index batch, Index tokens, const char* name,
                         const char* of) {
  require(Index(ranges.size()) == batch, "padding.", name, " has ", ranges.size(), " entries; expected ", batch,
          ", the batch of q");
  for (std::size_t b = 0; b < ranges.size(); b++)
    require(0 <= ranges[b].begin && ranges[b].begin <= ranges[b].end && ranges[b].end <= tokens, "padding.", name, "[",
            b, "] is [", ranges[b].begin, ", ", ranges[b].end, "); expected 0 <= begin <= end <= ", tokens,
            ", the tokens of ", of);
}

/// The sequences of packed arrays with so many tokens, once the starts are known to fit.
inline auto packed_parts(const PackedStarts& starts, Index queries, Index keys) {
  const std::span<const Index> of_q = starts.queries, of_k = starts.keys.empty() ? of_q : starts.keys;
  check_starts(of_q, queries, "queries", "q");
  check_starts(of_k, keys, starts.keys.empty() ? "queries" : "keys", "k");
  require(of_k.size() == of_q.size(), "starts.keys has ", of_k.size(), " entries; expected ", of_q.size(),
          ", as many as starts.queries");
  return [of_q, of_k](Index sequence) {
    const auto s = std::size_t(sequence);
    return Part{0, {of_q[s], of_q[s + 1]}, {of_k[s], of_k[s + 1]}};
  };
}

/// The sequences of padded arrays, once the ranges are known to fit.
inline auto padded_parts(const Padding& padding, Index batch, Index queries, Index keys) {
  check_ranges(padding.keys, batch, keys, "keys", "k");
  if (!padding.queries.empty()) check_ranges(padding.queries, batch, queries, "queries", "q");
  const auto of_q = padding.queries.empty() && queries == keys ? padding.keys : padding.queries;
  return [of_q, of_k = padding.keys, queries](Index b) {
    const auto at = std::size_t(b);
    return Part{b, of_q.empty() ? KeyRange{0, queries} : of_q[at], of_k[at]};
  };
}

/// Calls f(b, h, i) for every token of a view that is not in tokens(b).
template <class X, class Tokens, class Body>
void for_each_padding(const View<X>& x, const Tokens& tokens, const Body& f) {
  for (Index b = 0; b < x.batch; b++) {
    const KeyRange real = tokens(b);
    for (Index h = 0; h < x.heads; h++)
      for (Index i = 0; i < x.tokens; i++)
        if (i < real.begin || real.end <= i) f(b, h, i);
  }
}
/// Sets the rows of padding to 0.
template <class X, class Tokens>
void clear_padding(const View<X>& x, const Tokens& tokens) {
  for_each_padding(x, tokens, [&](Index b, Index h, Index i) {
    std::fill_n(x.data + b * x.batch_stride + h * x.head_stride + i * x.token_stride, x.head_dim, X(0));
  });
}

template <class Array>
using PackedSumOf = kernel::Sum<typename PackedAdapter<Array>::Scalar>;

template <class Output, class Q, class K, class V, class Slopes>
void packed_into(Output& output, std::optional<std::span<PackedSumOf<Q>>> lse, const Q& q, const K& k, const V& v,
                 const Slopes& slopes, const PackedStarts& starts, const Options& options, Workspace& workspace) {
  using E = typename PackedAdapter<Q>::Scalar;
  using T = PackedSumOf<Q>;
  const auto into = PackedAdapter<std::remove_const_t<Output>>::of(output, "output");
  check_scalars<E, typename PackedAdapter<K>::Scalar, typename PackedAdapter<V>::Scalar, decltype(into)>();
  const View<const E> queries = PackedAdapter<Q>::of(q, "q"), keys = PackedAdapter<K>::of(k, "k"),
                      values = PackedAdapter<V>::of(v, "v");
  forward_parts<E, T>(into, lse, queries, keys, values, bias_view<T>(slopes, queries.heads), options, workspace,
                      {Index(starts.queries.size()) - 1, true}, packed_parts(starts, queries.tokens, keys.tokens),
                      [] {});
}

template <class Output, class Q, class K, class V, class Slopes>
void padded_into(Output& output, std::optional<std::span<SumOf<Q>>> lse, const Q& q, const K& k, const V& v,
                 const Slopes& slopes, const Padding& padding, const Options& options, Workspace& workspace) {
  using E = typename Adapter<Q>::Scalar;
  using T = SumOf<Q>;
  const auto into = Adapter<std::remove_const_t<Output>>::of(output, "output");
  check_scalars<E, typename Adapter<K>::Scalar, typename Adapter<V>::Scalar, decltype(into)>();
  const View<const E> queries = Adapter<Q>::of(q, "q"), keys = Adapter<K>::of(k, "k"), values = Adapter<V>::of(v, "v");
  const auto part = padded_parts(padding, queries.batch, queries.tokens, keys.tokens);
  const auto real = [&](Index b) { return part(b).queries; };
  const auto clear = [&] {
    clear_padding(into, real);
    if (lse)
      for_each_padding(into, real, [&](Index b, Index h, Index i) {
        (*lse)[std::size_t((b * queries.heads + h) * queries.tokens + i)] = -std::numeric_limits<T>::infinity();
      });
  };
  forward_parts<E, T>(into, lse, queries, keys, values, bias_view<T>(slopes, queries.heads), options, workspace,
                      {queries.batch}, part, clear);
}

template <class Q, class V>
auto new_packed_output(const Q& q, const V& v) {
  static_assert(
      requires { typename PackedAdapter<Q>::Output; },
      "alibi: for views there is no array type to return; use attention_packed_into() with a view of your memory.");
  const auto queries = PackedAdapter<Q>::of(q, "q");
  return PackedAdapter<Q>::output(queries.tokens, queries.heads, PackedAdapter<V>::of(v, "v").head_dim);
}

}  // namespace detail

/// Attention of packed sequences, as a new tensor [tokens, heads, value_dim].
template <class Q, class K, class V, class Slopes>
auto attention_packed(const Q& q, const K& k, const V& v, const Slopes& slopes, const PackedStarts& starts,
                      const Options& options = {}) {
  auto output = detail::new_packed_output(q, v);
  Workspace workspace;
  detail::packed_into(output, std::nullopt, q, k, v, slopes, starts, options, workspace);
  return output;
}

/// The same with the log-sum-exp, a tensor [heads, tokens].
template <class Q, class K, class V, class Slopes>
auto attention_packed_forward(const Q& q, const K& k, const V& v, const Slopes& slopes, const PackedStarts& starts,
                              const Options& options = {}) {
  auto output = detail::new_packed_output(q, v);
  const auto queries = PackedAdapter<Q>::of(q, "q");
  auto lse = PackedAdapter<Q>::lse(queries.heads, queries.tokens);
  Workspace workspace;
  detail::packed_into(output, lse_view<detail::PackedSumOf<Q>, 2>(lse), q, k, v, slopes, starts, options, workspace);
  return ForwardResult<decltype(output), decltype(lse)>{std::move(output), std::move(lse)};
}

/// Into memory of the caller, as attention_into().
template <class Output, class Q, class K, class V, class Slopes>
void attention_packed_into(Output&& output, const Q& q, const K& k, const V& v, const Slopes& slopes,
                           const PackedStarts& starts, const Options& options, Workspace& workspace) {
  detail::packed_into(output, std::nullopt, q, k, v, slopes, starts, options, workspace);
}
template <class Output, class Q, class K, class V, class Slopes>
void attention_packed_into(Output&& output, const Q& q, const K& k, const V& v, const Slopes& slopes,
                           const PackedStarts& starts, const Options& options = {}) {
  Workspace workspace;
  attention_packed_into(output, q, k, v, slopes, starts, options, workspace);
}

/// The same with the log-sum-exp, [heads, tokens], what lse_view() takes; a tensor of rank 2.
template <class Output, class Lse, class Q, class K, class V, class Slopes>
void attention_packed_forward_into(Output&& output, Lse&& lse, const Q& q, const K& k, const V& v, const Slopes& slopes,
                                   const PackedStarts& starts, const Options& options, Workspace& workspace) {
  detail::packed_into(output, lse_view<detail::PackedSumOf<Q>, 2>(lse), q, k, v, slopes, starts, options, workspace);
}
template <class Output, class Lse, class Q, class K, class V, class Slopes>
void attention_packed_forward_into(Output&& output, Lse&& lse, const Q& q, const K& k, const V& v, const Slopes& slopes,
                                   const PackedStarts& starts, const Options& options = {}) {
  Workspace workspace;
  attention_packed_forward_into(output, lse, q, k, v, slopes, starts, options, workspace);
}

/// Attention of a padded batch, as a new array; rows of padding are 0.
template <class Q, class K, class V, class Slopes>
auto attention_padded(const Q& q, const K& k, const V& v, const Slopes& slopes, const Padding& padding,
                      const Options& options = {}) {
  auto output = detail::new_output(q, v);
  Workspace workspace;
  detail::padded_into(output, std::nullopt, q, k, v, slopes, padding, options, workspace);
  return output;
}

/// The same with the log-sum-exp; -inf for rows of padding.
template <class Q, class K, class V, class Slopes>
auto attention_padded_forward(const Q& q, const K& k, const V& v, const Slopes& slopes, const Padding& padding,
                              const Options& options = {}) {
  auto output = detail::new_output(q, v);
  const auto queries = Adapter<Q>::of(q, "q");
  auto lse = Adapter<Q>::lse(queries.batch, queries.heads, queries.tokens);
  Workspace workspace;
  detail::padded_into(output, lse_view<detail::SumOf<Q>>(lse), q, k, v, slopes, padding, options, workspace);
  return ForwardResult<decltype(output), decltype(lse)>{std::move(output), std::move(lse)};
}

/// Into memory of the caller, as attention_into().
template <class Output, class Q, class K, class V, class Slopes>
void attention_padded_into(Output&& output, const Q& q, const K& k, const V& v, const Slopes& slopes,
                           const Padding& padding, const Options& options, Workspace& workspace) {
  detail::padded_into(output, std::nullopt, q, k, v, slopes, padding, options, workspace);
}
template <class Output, class Q, class K, class V, class Slopes>
void attention_padded_into(Output&& output, const Q& q, const K& k, const V& v, const Slopes& slopes,
                           const Padding& padding, const Options& options = {}) {
  Workspace workspace;
  attention_padded_into(output, q, k, v, slopes, padding, options, workspace);
}

/// The same with the log-sum-exp, [batch, heads, queries], what lse_view() takes.
template <class Output, class Lse, class Q, class K, class V, class Slopes>
void attention_padded_forward_into(Output&& output, Lse&& lse, const Q& q, const K& k, const V& v, const Slopes& slopes,
                                   const Padding& padding, const Options& options, Workspace& workspace) {
  detail::padded_into(output, lse_view<detail::SumOf<Q>>(lse), q, k, v, slopes, padding, options, workspace);
}
template <class Output, class Lse, class Q, class K, class V, class Slopes>
void attention_padded_forward_into(Output&& output, Lse&& lse, const Q& q, const K& k, const V& v, const Slopes& slopes,
                                   const Padding& padding, const Options& options = {}) {
  Workspace workspace;
  attention_padded_forward_into(output, lse, q, k, v, slopes, padding, options, workspace);
}

}  // namespace alibi::inline ALIBI_ISA
