// O = α O + P V, transposed like the scores: each lane is a query.
//
//   O[d][query] = α[query] O[d][query] + Σ_key v[key][d] · P[key][query]
//
// Internal.
#pragma once

#include <cstddef>

#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/block.hpp"
#include "alibi/kernel/tile/microkernel.hpp"
#include "alibi/kernel/tile/rows.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// What happens to the output so far.
enum class Accumulate { overwrite, add, rescale };

/// acc += P V over keys [begin, ends[r]) of each vector r in [R, N). A row of values or probabilities holds one key, or
/// a pair of keys.
template <int R, int N, int M, class U, class T>
EIGEN_ALWAYS_INLINE void add_keys(const U* v, Index stride, const U* p, Index begin, const Index* ends,
                                  Vec<T> (&acc)[std::size_t(M)][kVectors]) {
  constexpr Index kKeys = kDepth<U>;
  const U* dim[std::size_t(M)];
#pragma GCC unroll 8
  for (int a = 0; a < M; a++) dim[a] = v + begin / kKeys * stride + a;
  multiply_add<R, N>(dim, stride, p + begin / kKeys * kBlock<T>, kBlock<T>, (ends[R] - begin) / kKeys, acc);
  if constexpr (R + 1 < N) add_keys<R + 1, N, M, U, T>(v, stride, p, ends[R], ends, acc);
}

/// Updates M value dims, the first of them at v and o, for N vectors of queries. The sum of a tile is computed by
/// itself and then added to o: one running sum over 16,384 keys would lose one or two digits of a float.
template <int M, int N, class U, class T>
EIGEN_ALWAYS_INLINE void value_dims(const U* v, Index stride, const U* p, const TileKeys& keys, Accumulate mode,
                                    const Vec<T>* factor, T* o) {
  Vec<T> acc[std::size_t(M)][kVectors];
#pragma GCC unroll 8
  for (int a = 0; a < M; a++)
#pragma GCC unroll 4
    for (int r = 0; r < N; r++) acc[a][r] = broadcast<T>(T(0));
  add_keys<0, N, M, U, T>(v, stride, p, keys.begin, keys.ends, acc);
#pragma GCC unroll 8
  for (int a = 0; a < M; a++)
#pragma GCC unroll 4
    for (int r = 0; r < N; r++) {
      T* at = o + a * kBlock<T> + r * kLanes<T>;
      if (mode == Accumulate::add) acc[a][r] = add(load<T>(at), acc[a][r]);
      if (mode == Accumulate::rescale) acc[a][r] = fma(load<T>(at), factor[r], acc[a][r]);
      store<T>(at, acc[a][r]);
    }
}

/// Adds the keys of a tile to the output: p [units of kScoreRows][kBlock], o [value_dim][kBlock]. Takes M dims at a
/// time, and half as many for the remaining dims.
template <int N, int M = kRows, class U, class T>
void accumulate(const U* v, Index stride, Index value_dim, const U* p, const TileKeys& keys, Accumulate mode,
                const Vec<T>* factor, T* o) {
  Index d = 0;
  for (; d + M <= value_dim; d += M) value_dims<M, N>(v + d, stride, p, keys, mode, factor, o + d * kBlock<T>);
  if constexpr (M > 1) {
    if (d < value_dim) accumulate<N, M / 2>(v + d, stride, value_dim - d, p, keys, mode, factor, o + d * kBlock<T>);
  }
}

}  // namespace alibi::inline ALIBI_ISA::kernel
