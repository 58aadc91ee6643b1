// The checks of a call of the backward pass. Internal.
#pragma once

#include <initializer_list>

#include "alibi/detail/call.hpp"
#include "alibi/detail/overlap.hpp"
#include "alibi/detail/validate.hpp"
#include "alibi/error.hpp"
#include "alibi/token_positions.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// Whether a gradient of positions is wanted.
template <class T>
bool wants_positions(const View<T>& x) {
  return x.head_dim > 0;
}

/// Checks the array for a gradient of slopes, or of a table, if it is wanted.
template <class T>
void check_grad_bias(const BiasEntries<T>& x, const char* name, Index rows, Index cols, const char* like) {
  if (x.size() == 0) return;
  const bool one_line = (x.rows == 1 || x.cols == 1) && x.size() == rows * cols;
  require((x.rows == rows && x.cols == cols) || one_line, name, " is [", x.rows, ", ", x.cols, "]; expected [", rows,
          ", ", cols, "], ", like);
}

/// Checks the arrays for the gradient of the bias that are wanted.
template <BiasKind kind, class E>
void check_grad_bias(const BackwardCall<E>& x, const SequenceList& sequences) {
  using T = Sum<E>;
  const Index heads = x.q.heads;
  const char* const name = "the gradient of the bias";
  const auto check_slopes_like = [&](const BiasEntries<T>& entries, const char* entries_name, const SlopeView& slopes) {
    check_grad_bias(entries, entries_name, slopes.batch_stride == 0 ? 1 : sequences.count, heads,
                    "the sizes of slopes");
  };
  const PositionBias& bias = x.bias.positions;
  const bool two_sided = kind == BiasKind::positions && !bias.one_slope;
  require(x.grad_after.size() == 0 || two_sided, name, " is alibi::two_sided(); expected one array");
  require(x.grad_bias.size() == 0 || x.grad_after.size() > 0 || !two_sided, name,
          " is one array; expected alibi::two_sided(before, after), like the slopes");
  const bool of_keys = wants_positions(x.grad_key_positions), of_queries = wants_positions(x.grad_query_positions);
  require((!of_keys && !of_queries) || bias.has_positions, name,
          " is alibi::positions(); expected none, because the bias has no positions");
  if constexpr (kind == BiasKind::table) {
    check_grad_bias(x.grad_bias, name, heads, x.bias.table.entries, "the sizes of the table");
    require(!x.grad_bias.mirrored, "the gradient of the table is column-major; expected row-major");
  } else if constexpr (kind == BiasKind::slopes) {
    check_slopes_like(x.grad_bias, name, x.bias.slopes);
  } else {
    check_slopes_like(x.grad_bias, two_sided ? "the gradient of the slopes before" : name, bias.before);
    if (two_sided) check_slopes_like(x.grad_after, "the gradient of the slopes after", bias.after);
    const auto check_like = [&](const View<T>& grad, const PositionView& like, const char* of) {
      if (!wants_positions(grad)) return;
      require(grad.batch == like.batch && grad.heads == like.heads && grad.tokens == like.tokens, "the gradient of ",
              of, " is [", grad.batch, ", ", grad.heads, ", ", grad.tokens, "]; expected [", like.batch, ", ",
              like.heads, ", ", like.tokens, "], the sizes of ", of);
      require(grad.data || grad.batch * grad.heads * grad.tokens == 0, "the gradient of ", of, " is null; expected ",
              grad.tokens, " positions");
    };
    check_like(x.grad_key_positions, bias.keys, bias.shared ? "positions" : "key positions");
    check_like(x.grad_query_positions, bias.queries, "query positions");
    require(!of_keys || of_queries != bias.shared, name, " has ", bias.shared ? "two arrays" : "one array",
            " for positions; expected ", bias.shared ? "one" : "two", ", as the bias has");
  }
}

/// Checks the shapes and the memory of a call of the backward pass.
template <BiasKind kind, class E>
void check_backward(const BackwardCall<E>& x, const SequenceList& sequences) {
  using T = Sum<E>;
  check_inputs(x.q, x.k, x.v);
  check_bias<kind>(x.bias, x.q.heads, sequences);
  check_shape(x.output, "output", x.q, x.v.head_dim, kLikeOutput);
  x.grad_output.is_sum ? check_shape(x.grad_output.of_sum, "grad_output", x.q, x.v.head_dim, kLikeOutput)
                       : check_shape(x.grad_output.of_scalar, "grad_output", x.q, x.v.head_dim, kLikeOutput);
  const Index rows = x.q.batch * x.q.heads * x.q.tokens;
  const auto lse = lse_row(x.lse, rows);
  const auto grad_lse = x.grad_lse ? lse_row(*x.grad_lse, rows, "grad_lse") : View<const T>{};
  check_shape(x.grad_q, "grad_q", x.q, x.q.head_dim, "the sizes of q");
  check_shape(x.grad_k, "grad_k", x.k, x.k.head_dim, "the sizes of k");
  check_shape(x.grad_v, "grad_v", x.v, x.v.head_dim, "the sizes of v");
  check_grad_bias<kind>(x, sequences);

  const auto as_row = [](const BiasEntries<T>& entries) {
    return View<T>{entries.data, 1, 1, 1, entries.size(), 0, 0, 0};
  };
  const View<T> grad_bias = as_row(x.grad_bias);
  const Memory grad_output = x.grad_output.is_sum ? memory_of(x.grad_output.of_sum, "grad_output")
                                                  : memory_of(x.grad_output.of_scalar, "grad_output");
  const Memory to_q = memory_of(x.grad_q, "grad_q"), to_k = memory_of(x.grad_k, "grad_k"),
               to_v = memory_of(x.grad_v, "grad_v"), to_bias = memory_of(grad_bias, "the gradient of the bias");
  const std::initializer_list<Memory> read = {memory_of(x.q, "q"),
                                              memory_of(x.k, "k"),
                                              memory_of(x.v, "v"),
                                              memory_of(x.output, "output"),
                                              grad_output,
                                              memory_of(lse, "lse"),
                                              memory_of(grad_lse, "grad_lse"),
                                              memory_of<kind>(x.bias)};
  for (const Memory& written : {to_q, to_k, to_v, to_bias}) require_disjoint(written, read);
  require_rows(x.grad_q, "grad_q");
  require_rows(x.grad_k, "grad_k");
  require_rows(x.grad_v, "grad_v");
  require_disjoint(to_k, {to_q, to_bias});
  require_disjoint(to_v, {to_q, to_k, to_bias});
  require_disjoint(to_q, {to_bias});
  if constexpr (kind == BiasKind::positions) {
    const Memory to_after = memory_of(as_row(x.grad_after), "the gradient of the slopes after"),
                 to_key_positions = memory_of(x.grad_key_positions, "the gradient of key positions"),
                 to_query_positions = memory_of(x.grad_query_positions, "the gradient of query positions");
    for (const Memory& written : {to_q, to_k, to_v, to_bias, to_after, to_key_positions, to_query_positions})
      require_disjoint(written, x.bias.positions);
    for (const Memory& written : {to_after, to_key_positions, to_query_positions}) {
      require_disjoint(written, read);
      require_disjoint(written, {to_q, to_k, to_v, to_bias});
    }
    require_disjoint(to_key_positions, {to_after, to_query_positions});
    require_disjoint(to_query_positions, {to_after});
    require_rows(x.grad_key_positions, "the gradient of key positions");
    require_rows(x.grad_query_positions, "the gradient of query positions");
  }
}

}  // namespace alibi::inline ALIBI_ABI::detail
