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
// With ranges of keys alone no query is padding. Every query then keeps its position in the arrays, by default with the
// last query on the last key of the array, and sees those real keys that the mask shows it; whether there are as many
// queries as keys makes no difference. Rows that stand for padding tokens get a result like any other, to be ignored;
// give their ranges too, and they are not computed.
//
// Errors: those of attention(), and std::invalid_argument for offsets and ranges that do not fit, before anything is
// written.
#pragma once

#include <optional>
#include <span>
#include <utility>

#include "alibi/attention.hpp"
#include "alibi/detail/adapt.hpp"
#include "alibi/detail/call.hpp"
#include "alibi/options.hpp"
#include "alibi/view.hpp"
#include "alibi/workspace.hpp"

namespace alibi::inline ALIBI_ABI {

/// Where sequences begin: sequence s has tokens starts[s], …, starts[s + 1] - 1. One entry more than there are
/// sequences, from 0 to the number of tokens, none below the one before it.
struct PackedStarts {
  std::span<const Index> queries;
  std::span<const Index> keys = {};  ///< of k and v; none: those of the queries
};

/// The tokens that are none of padding: [begin, end), one entry a batch entry.
struct Padding {
  std::span<const KeyRange> keys;
  std::span<const KeyRange> queries = {};  ///< rows of q outside of them are padding, with output 0; none: all are real
};

namespace detail {

inline Sequences varlen_sequences(const PackedStarts& starts) {
  return {.kind = Sequences::Kind::varlen,
          .count = Index(starts.queries.size()) - 1,
          .query_starts = starts.queries,
          .key_starts = starts.keys};
}
inline Sequences padded_sequences(const Padding& padding) {
  return {.kind = Sequences::Kind::padded, .query_ranges = padding.queries, .key_ranges = padding.keys};
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
  detail::forward_into<PackedAdapter>(output, std::nullopt, q, k, v, slopes, detail::varlen_sequences(starts), options,
                                      workspace);
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
  detail::forward_into<PackedAdapter>(output, lse_view<detail::VarlenSumOf<Q>, 2>(lse), q, k, v, slopes,
                                      detail::varlen_sequences(starts), options, workspace);
  return ForwardResult<decltype(output), decltype(lse)>{std::move(output), std::move(lse)};
}

/// Into memory of the caller, as attention_into().
template <class Output, class Q, class K, class V, class Slopes>
void attention_packed_into(Output&& output, const Q& q, const K& k, const V& v, const Slopes& slopes,
                           const PackedStarts& starts, const Options& options, Workspace& workspace) {
  detail::forward_into<PackedAdapter>(output, std::nullopt, q, k, v, slopes, detail::varlen_sequences(starts), options,
                                      workspace);
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
  detail::forward_into<PackedAdapter>(output, lse_view<detail::VarlenSumOf<Q>, 2>(lse), q, k, v, slopes,
                                      detail::varlen_sequences(starts), options, workspace);
}
template <class Output, class Lse, class Q, class K, class V, class Slopes>
void attention_packed_forward_into(Output&& output, Lse&& lse, const Q& q, const K& k, const V& v, const Slopes& slopes,
                                   const PackedStarts& starts, const Options& options = {}) {
  Workspace workspace;
  attention_packed_forward_into(output, lse, q, k, v, slopes, starts, options, workspace);
}

/// Attention of a padded batch, as a new array; rows outside of padding.queries are 0.
template <class Q, class K, class V, class Slopes>
auto attention_padded(const Q& q, const K& k, const V& v, const Slopes& slopes, const Padding& padding,
                      const Options& options = {}) {
  auto output = detail::new_output(q, v);
  Workspace workspace;
  detail::forward_into<Adapter>(output, std::nullopt, q, k, v, slopes, detail::padded_sequences(padding), options,
                                workspace);
  return output;
}

/// The same with the log-sum-exp; -inf for rows outside of padding.queries.
template <class Q, class K, class V, class Slopes>
auto attention_padded_forward(const Q& q, const K& k, const V& v, const Slopes& slopes, const Padding& padding,
                              const Options& options = {}) {
  auto output = detail::new_output(q, v);
  auto lse = detail::new_lse(q);
  Workspace workspace;
  detail::forward_into<Adapter>(output, lse_view<detail::SumOf<Q>>(lse), q, k, v, slopes,
                                detail::padded_sequences(padding), options, workspace);
  return ForwardResult<decltype(output), decltype(lse)>{std::move(output), std::move(lse)};
}

/// Into memory of the caller, as attention_into().
template <class Output, class Q, class K, class V, class Slopes>
void attention_padded_into(Output&& output, const Q& q, const K& k, const V& v, const Slopes& slopes,
                           const Padding& padding, const Options& options, Workspace& workspace) {
  detail::forward_into<Adapter>(output, std::nullopt, q, k, v, slopes, detail::padded_sequences(padding), options,
                                workspace);
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
  detail::forward_into<Adapter>(output, lse_view<detail::SumOf<Q>>(lse), q, k, v, slopes,
                                detail::padded_sequences(padding), options, workspace);
}
template <class Output, class Lse, class Q, class K, class V, class Slopes>
void attention_padded_forward_into(Output&& output, Lse&& lse, const Q& q, const K& k, const V& v, const Slopes& slopes,
                                   const Padding& padding, const Options& options = {}) {
  Workspace workspace;
  attention_padded_forward_into(output, lse, q, k, v, slopes, padding, options, workspace);
}

}  // namespace alibi::inline ALIBI_ABI
