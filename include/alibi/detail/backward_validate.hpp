// The checks of a call of the backward pass. Internal.
#pragma once

#include "alibi/detail/call.hpp"
#include "alibi/detail/overlap.hpp"
#include "alibi/detail/validate.hpp"
#include "alibi/error.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// Checks the array for the gradient of the bias, if it is wanted.
template <BiasKind kind, class T>
void check_grad_bias(const BiasEntries<T>& x, const BiasView<T>& bias, Index heads, Index sequences) {
  if (x.size() == 0) return;
  constexpr bool kTable = kind == BiasKind::table;
  const bool shared = bias.slopes.batch_stride == 0;
  const Index rows = kTable ? heads : shared ? 1 : sequences, cols = kTable ? bias.table.entries : heads;
  const bool one_line = (x.rows == 1 || x.cols == 1) && x.size() == rows * cols;
  require((x.rows == rows && x.cols == cols) || one_line, "the gradient of the bias is [", x.rows, ", ", x.cols,
          "]; expected [", rows, ", ", cols, "], ", kTable ? "the sizes of the table" : "the sizes of slopes");
  require(!kTable || !x.mirrored, "the gradient of the table is column-major; expected row-major");
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
  check_grad_bias<kind>(x.grad_bias, x.bias, x.q.heads, sequences.count);

  const View<T> grad_bias{x.grad_bias.data, 1, 1, 1, x.grad_bias.size(), 0, 0, 0};
  const Memory grad_output = x.grad_output.is_sum ? memory_of(x.grad_output.of_sum, "grad_output")
                                                  : memory_of(x.grad_output.of_scalar, "grad_output");
  const Memory to_q = memory_of(x.grad_q, "grad_q"), to_k = memory_of(x.grad_k, "grad_k"),
               to_v = memory_of(x.grad_v, "grad_v"), to_bias = memory_of(grad_bias, "the gradient of the bias");
  for (const Memory& written : {to_q, to_k, to_v, to_bias})
    require_disjoint(written,
                     {memory_of(x.q, "q"), memory_of(x.k, "k"), memory_of(x.v, "v"), memory_of(x.output, "output"),
                      grad_output, memory_of(lse, "lse"), memory_of(grad_lse, "grad_lse"), memory_of<kind>(x.bias)});
  require_rows(x.grad_q, "grad_q");
  require_rows(x.grad_k, "grad_k");
  require_rows(x.grad_v, "grad_v");
  require_disjoint(to_k, {to_q, to_bias});
  require_disjoint(to_v, {to_q, to_k, to_bias});
  require_disjoint(to_q, {to_bias});
}

}  // namespace alibi::inline ALIBI_ABI::detail
