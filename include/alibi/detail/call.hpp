// A call of attention as plain data. The public functions make it from their arguments in their first lines, and all
// layers below use nothing else. From here on, templates depend on the scalars and on the kind of bias alone, so that
// each is compiled once, in the compiled library or in a file of the user. Internal.
#pragma once

#include <cstddef>
#include <optional>
#include <span>

#include "alibi/mask.hpp"
#include "alibi/options.hpp"
#include "alibi/relative_bias.hpp"
#include "alibi/token_positions.hpp"
#include "alibi/token_ranges.hpp"
#include "alibi/view.hpp"

namespace alibi {
inline namespace ALIBI_ABI {

template <class S>
class KvCache;

namespace detail {

/// The kind of bias of a call: a slope for each head, which is 0 for no bias; a table of distances; or positions and
/// slopes for each side, of which there may be one kind alone.
enum class BiasKind { slopes, table, positions };

/// The bias of a call. With a table or positions, the slopes are 0.
template <class T>
struct BiasView {
  SlopeView slopes;
  RelativeBias<T> table{};
  PositionBias positions{};
};

/// One sequence of a call: its batch entry, and the ranges of its tokens there. The position of its first query among
/// its keys is mask.query_offset - offset_shift; `default_offset` replaces a query_offset that is not given. The prefix
/// and the sinks of the mask shrink by offset_shift too.
struct SequenceSlice {
  Index batch;
  KeyRange queries, keys;
  Index default_offset, offset_shift = 0;
};

/// The sequences of a call. `queries` and `keys` are the numbers of tokens of the arrays.
struct SequenceList {
  enum class Kind {
    batch,   ///< one sequence in each batch entry
    varlen,  ///< sequences side by side in one batch entry
  };
  Kind kind = Kind::batch;
  Index count = 0, queries = 0, keys = 0;
  TokenRanges query_ranges = {}, key_ranges = {};               // for Kind::batch; empty: all tokens
  std::span<const Index> cu_seqlens_q = {}, cu_seqlens_k = {};  // for Kind::varlen
  std::span<const Index> query_offsets = {}, prefixes = {};     // of each sequence; empty: those of the mask

  const char* name() const { return kind == Kind::varlen ? "the number of sequences" : "the batch of q"; }

  /// The mask of sequence s, from that of the call.
  Mask mask_of(Mask mask, Index s) const {
    if (!query_offsets.empty()) mask.query_offset = query_offsets[std::size_t(s)];
    if (!prefixes.empty()) mask.prefix = prefixes[std::size_t(s)];
    return mask;
  }

  SequenceSlice operator[](Index s) const {
    SequenceSlice slice{s, {0, queries}, {0, keys}, 0};
    const auto at = std::size_t(s);
    if (kind == Kind::varlen) {
      slice.batch = 0;
      slice.queries = {cu_seqlens_q[at], cu_seqlens_q[at + 1]};
      slice.keys = {cu_seqlens_k[at], cu_seqlens_k[at + 1]};
    }
    if (!query_ranges.empty()) slice.queries = query_ranges[s];
    if (!key_ranges.empty()) {
      slice.keys = key_ranges[s];
      if (query_ranges.empty()) {  // every query keeps its position in the arrays
        slice.default_offset = keys - queries;
        slice.offset_shift = slice.keys.begin;
        return slice;
      }
    }
    slice.default_offset = slice.keys.end - slice.keys.begin - (slice.queries.end - slice.queries.begin);
    return slice;
  }
};

/// A call of the forward over arrays; `lse` is [batch, heads, queries], if it is wanted.
template <class E>
struct ForwardCall {
  View<const E> q, k, v;
  View<E> output;
  std::optional<std::span<Sum<E>>> lse;
  BiasView<Sum<E>> bias;
  SequenceList sequences;
};

/// A call of the forward over a cache; `lse` is [batch, heads, queries], if it is wanted.
template <class E, class S>
struct CachedCall {
  View<const E> q;
  View<E> output;
  std::optional<std::span<Sum<E>>> lse;
  const KvCache<S>& cache;
  BiasView<Sum<E>> bias;
};

/// A view of the gradient of slopes, [heads] or [batch, heads], or of a table, [heads, entries]. Entries lie side by
/// side, row by row.
template <class T>
struct BiasEntries {
  T* data = nullptr;
  Index rows = 0, cols = 0;  // one row for an array of rank 1
  bool mirrored = false;     // a column-major tensor, read in the mirrored order

  Index size() const { return rows * cols; }
};

/// A call of the backward pass.
template <class E>
struct BackwardCall {
  View<const E> q, k, v, output;
  EitherView<E> grad_output;
  std::optional<std::span<const Sum<E>>> grad_lse;  // [batch, heads, queries]; none: 0
  std::span<const Sum<E>> lse;
  BiasView<Sum<E>> bias;
  View<Sum<E>> grad_q, grad_k, grad_v;
  BiasEntries<Sum<E>> grad_bias;  // of two-sided slopes, those before
  SequenceList sequences;
  // For BiasKind::positions. Gradients of positions are [batch, heads, tokens] with a head_dim of 1. If keys and
  // queries share them, grad_keys is for both.
  BiasEntries<Sum<E>> grad_after{};
  View<Sum<E>> grad_key_positions{}, grad_query_positions{};
};

// Each function checks a call and runs it. It throws std::invalid_argument for a wrong argument, before anything is
// written.

template <class E, BiasKind bias>
void forward(const ForwardCall<E>& call, const Options& options);

template <class E, class S, BiasKind bias>
void forward_cached(const CachedCall<E, S>& call, const Options& options);

template <class E, BiasKind bias>
void backward(const BackwardCall<E>& call, const Options& options);

}  // namespace detail
}  // namespace ALIBI_ABI
}  // namespace alibi
