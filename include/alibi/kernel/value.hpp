// O = α O + P V, transposed like the scores: a lane is a query.
//
//   O[d][query] = α[query] O[d][query] + Σ_key v[key][d] · P[key][query]
#pragma once

#include <type_traits>
#include <utility>

#include "alibi/kernel/product.hpp"
#include "alibi/kernel/score.hpp"
#include "alibi/kernel/simd.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// What becomes of the output that is there already.
enum class Before { none, keep, rescale };

/// N vectors of queries; v packed, p [kTile][kBlock], o [value_dim, rounded up to kRows][kBlock].
template <int N, class T>
void accumulate(const T* v, Index value_dim, const T* p, const TileKeys& keys, Before before, const Pack<T>* factor,
                T* o) {
  constexpr int W = kLanes<T>;
  for (Index d = 0; d < value_dim; d += kRows, o += kRows * kBlock<T>) {
    Pack<T> acc[kRows][kVectors];
#pragma GCC unroll 8
    for (int a = 0; a < kRows; a++)
#pragma GCC unroll 4
      for (int r = 0; r < N; r++) {
        acc[a][r] = before == Before::none ? splat<T>(T(0)) : load<T>(o + a * kBlock<T> + r * W);
        if (before == Before::rescale) acc[a][r] = mul(acc[a][r], factor[r]);
      }
    const T* x = v + d / kPack<T> * kPack<T> * kTile + d % kPack<T>;
    Index key = keys.begin;
    [&]<int... R>(std::integer_sequence<int, R...>) {  // the vectors before R need no more keys
      ((multiply_add<R, N>(x + key * kPack<T>, p + key * kBlock<T>, keys.ends[R] - key, acc), key = keys.ends[R]), ...);
    }(std::make_integer_sequence<int, N>());
#pragma GCC unroll 8
    for (int a = 0; a < kRows; a++)
#pragma GCC unroll 4
      for (int r = 0; r < N; r++) store<T>(o + a * kBlock<T> + r * W, acc[a][r]);
  }
}

}  // namespace alibi::inline ALIBI_ISA::kernel
