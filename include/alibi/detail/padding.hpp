// Writes the results of rows that are padding. Internal.
#pragma once

#include <algorithm>
#include <limits>

#include "alibi/mask.hpp"
#include "alibi/token_ranges.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// Sets the rows that are padding, those outside `real[b]`, to 0.
template <class X>
void clear_padding(const View<X>& x, const TokenRanges& real) {
  for (Index b = 0; b < x.batch && !real.empty(); b++)
    for (Index h = 0; h < x.heads; h++)
      for (Index i = 0; i < x.tokens; i++) {
        if (real[b].begin <= i && i < real[b].end) i = real[b].end;
        if (i < x.tokens)
          std::fill_n(x.data + b * x.batch_stride + h * x.head_stride + i * x.token_stride, x.head_dim, X(0));
      }
}
/// Sets the lse [batch, heads, tokens] of rows that are padding to -inf.
template <class T>
void clear_padding(T* lse, Index heads, Index tokens, const TokenRanges& real) {
  for (Index row = 0; row < real.size() * heads; row++, lse += tokens) {
    const KeyRange range = real[row / heads];
    std::fill(lse, lse + range.begin, -std::numeric_limits<T>::infinity());
    std::fill(lse + range.end, lse + tokens, -std::numeric_limits<T>::infinity());
  }
}

}  // namespace alibi::inline ALIBI_ABI::detail
