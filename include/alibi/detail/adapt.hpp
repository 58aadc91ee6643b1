// What a call is given as its bias: slopes, a table of distances, or none. Not a header for users.
#pragma once

#include <cmath>
#include <type_traits>

#include "alibi/error.hpp"
#include "alibi/kernel/bias.hpp"
#include "alibi/table_bias.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ISA::detail {

/// The bias of a call; LawOf<T> is how kernels make it. Beside a table the slopes are 0, and so they are for none.
template <class T, template <class> class LawOf>
struct BiasView {
  template <class X>
  using Law = LawOf<X>;
  static constexpr bool kTable = std::is_same_v<LawOf<T>, kernel::TableLaw<T>>;

  SlopeView<T> slopes;
  TableBias<T> table{};
};

template <class T>
inline constexpr T kZeroSlope = T(0);

/// `bias` as it is given to attention over `heads` heads that adds up in T.
template <class T, class Bias>
auto bias_view(const Bias& bias, Index heads) {
  const SlopeView<T> zero{&kZeroSlope<T>, 1, heads, 0, 0};
  if constexpr (std::is_same_v<Bias, NoBias>) {
    return BiasView<T, kernel::LinearBias>{zero};
  } else if constexpr (requires {
                         typename Bias::Scalar;
                         bias.entries;
                       }) {
    static_assert(std::is_same_v<typename Bias::Scalar, T>,
                  "alibi: a table must hold the scalar of q, k and v, or float where that is bfloat16 or half.");
    return BiasView<T, kernel::TableLaw>{zero, bias};
  } else {
    return BiasView<T, kernel::LinearBias>{slope_view<T>(bias)};
  }
}

template <class T>
void check_table(const TableBias<T>& table, Index heads) {
  require(table.heads == heads, "the table has heads ", table.heads, "; expected ", heads, ", the heads of q");
  require(table.entries >= 1, "the table has ", table.entries, " entries; expected at least 1");
  require(table.data || heads == 0, "the table is null; expected ", heads, " heads of ", table.entries, " entries");
  constexpr Index kFar = Index(1) << 61;
  require(-kFar <= table.first && table.first <= kFar, "the table's first distance is ", table.first,
          "; expected within ±2^61");
  for (Index h = 0; h < heads; h++)
    for (Index t = 0; t < table.entries; t++) {
      const T entry = table.data[h * table.head_stride + t];
      require(std::isfinite(entry), "entry ", t, " of head ", h, " of the table is ", entry,
              "; expected a finite number");
    }
}

}  // namespace alibi::inline ALIBI_ISA::detail
