// Merges results of attention over disjoint parts of the keys: split keys, ring attention, a shared prefix.
//
//   lse_i = ln Σ_s exp(lse_s,i)        o_i = Σ_s exp(lse_s,i - lse_i) o_s,i        s: the parts
//
// This is the result over all keys of the parts, up to rounding. The order of the parts and of several merges does not
// matter either, up to rounding. Sums are in double and rounded once. A row that sees no key of a part has lse -inf and
// output 0 there, and so it has in the result if it sees no key at all. The gradients of a part need the merged output
// and lse (backward.hpp).
//
// An lse in float is rounded by 2^-24 of its size, and the weights exp(lse_s - lse) by as much: with scores below 100
// they are off by less than 1e-5. Outputs of bfloat16 and half are rounded by each call that makes them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <initializer_list>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include "alibi/attention.hpp"
#include "alibi/backward.hpp"
#include "alibi/error.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ABI {

namespace detail {

/// How merge_into() reads arrays of a type. Tensors of rank 3 are those of varlen attention.
template <class Output>
struct MergeTraits {
  using Array = Adapter<Output>;
  using Scalar = typename Array::Scalar;
  using Part = ForwardResultView<Scalar, Adapter>;
};
template <class Output>
  requires(Output::NumDimensions == 3)
struct MergeTraits<Output> {
  using Array = VarlenAdapter<Output>;
  using Scalar = typename Array::Scalar;
  using Part = ForwardResultView<Scalar, VarlenAdapter>;
};

/// Merges row `row` of all parts, query `i` of head h of sequence b. `weights` has an entry for each part, `sums` one
/// for each value dim: scratch memory.
template <class E, class Part>
void merge_row(const View<E>& output, std::span<Sum<E>> lse, std::span<const Part> parts, Index b, Index h, Index i,
               std::span<double> weights, std::span<double> sums) {
  constexpr double kNone = -std::numeric_limits<double>::infinity();
  const auto row = std::size_t((b * output.heads + h) * output.tokens + i);
  double largest = kNone, sum = 0;
  bool sees_no_key = true;  // not so for NaN, which max() ignores
  for (const Part& part : parts) {
    largest = std::max(largest, double(part.lse[row]));
    sees_no_key = sees_no_key && double(part.lse[row]) == kNone;
  }
  for (std::size_t s = 0; s < parts.size(); s++)
    sum += weights[s] = sees_no_key ? 0 : std::exp(double(parts[s].lse[row]) - largest);
  std::fill(sums.begin(), sums.end(), 0.);
  for (std::size_t s = 0; s < parts.size(); s++) {
    if (weights[s] == 0) continue;  // what is not finite there does not matter
    const View<const E>& x = parts[s].output;
    const E* const from = x.data + b * x.batch_stride + h * x.head_stride + i * x.token_stride;
    for (std::size_t d = 0; d < sums.size(); d++) sums[d] += weights[s] / sum * double(from[d]);
  }
  E* const to = output.data + b * output.batch_stride + h * output.head_stride + i * output.token_stride;
  for (std::size_t d = 0; d < sums.size(); d++) to[d] = E(Sum<E>(sums[d]));
  lse[row] = Sum<E>(sees_no_key ? kNone : largest + std::log(sum));
}

template <class E, class Part>
void merge_views(const View<E>& output, std::span<Sum<E>> lse, std::span<const Part> parts) {
  require(!parts.empty(), "there are no parts to merge; expected at least one");
  const auto check_lse = [&](std::span<const Sum<E>> x, auto... name) {
    const Index rows = output.batch * output.heads * output.tokens;
    require(Index(x.size()) == rows, name..., " has ", Index(x.size()), " entries; expected ", rows,
            ", one for each row of output");
  };
  check_lse(lse, "lse");
  for (Index s = 0; s < Index(parts.size()); s++) {
    const View<const E>& x = parts[std::size_t(s)].output;
    require(x.batch == output.batch && x.heads == output.heads && x.tokens == output.tokens &&
                x.head_dim == output.head_dim,
            "the output of part ", s, " is [", x.batch, ", ", x.heads, ", ", x.tokens, ", ", x.head_dim,
            "]; expected [", output.batch, ", ", output.heads, ", ", output.tokens, ", ", output.head_dim,
            "], the shape of output");
    check_lse(parts[std::size_t(s)].lse, "the lse of part ", s);
  }
  std::vector<double> weights(parts.size()), sums(std::size_t(output.head_dim));
  for (Index b = 0; b < output.batch; b++)
    for (Index h = 0; h < output.heads; h++)
      for (Index i = 0; i < output.tokens; i++) merge_row<E, Part>(output, lse, parts, b, h, i, weights, sums);
}

}  // namespace detail

/// Merges results of attention over disjoint parts of the keys into memory of the caller, which may be that of a part:
///
///     merge_into(output, lse, {{output, lse}, {output_2, lse_2}});       adds a part, as ring attention does
///
/// A part is written {output, lse}, or a ForwardResult. Outputs are [batch, heads, queries, value_dim], of varlen
/// attention tensors [tokens, heads, value_dim]; lse as attention_with_lse() returns it. The equations are above.
/// Throws std::invalid_argument, before anything is written, if a shape differs from that of `output`.
template <class Output, class Lse>
void merge_into(Output&& output, Lse&& lse,
                std::span<const typename detail::MergeTraits<std::remove_cvref_t<Output>>::Part> parts) {
  using Traits = detail::MergeTraits<std::remove_cvref_t<Output>>;
  using Part = typename Traits::Part;
  using E = typename Traits::Scalar;
  const View<E> into = Traits::Array::of(output, "output");
  detail::merge_views<E, Part>(into, lse_view<detail::Sum<E>, Part::kRank>(lse), parts);
}
/// The same for parts in braces.
template <class Output, class Lse>
void merge_into(Output&& output, Lse&& lse,
                std::initializer_list<typename detail::MergeTraits<std::remove_cvref_t<Output>>::Part> parts) {
  using Part = typename detail::MergeTraits<std::remove_cvref_t<Output>>::Part;
  merge_into(output, lse, std::span<const Part>(parts.begin(), parts.size()));
}

/// merge_into() as a new array, from results of attention_with_lse() of one type:
///
///     auto [output, lse] = merge(attention_with_lse(q, k1, v1, slopes, options_1), attention_with_lse(q, k2, v2, …));
template <class Output, class Lse, class... Parts>
ForwardResult<Output, Lse> merge(const ForwardResult<Output, Lse>& first, const Parts&... others) {
  static_assert((std::is_same_v<Parts, ForwardResult<Output, Lse>> && ...),
                "alibi: the parts of merge() must be results of one type; merge_into() takes any.");
  ForwardResult<Output, Lse> result = first;
  merge_into(result.output, result.lse, {first, others...});
  return result;
}

}  // namespace alibi::inline ALIBI_ABI
