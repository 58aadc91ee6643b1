// Measures the keys of a head for pruning: a centre, and how far each tile reaches from it (radii.hpp). One pass over
// the keys, 3 head_dim operations a key against the 4 head_dim of each query that meets it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "alibi/kernel/radii.hpp"
#include "alibi/kernel/rows.hpp"
#include "alibi/kernel/simd.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// The mean of up to 64 keys spread over all, rounded to S; 0 where it is not finite. Any centre is right, a mean makes
/// the radii small.
template <class S, class T>
void find_center(Rows<const S> k, Index keys, Index head_dim, T* center) {
  const Index sample = std::min<Index>(keys, 64);
  std::fill_n(center, head_dim, T(0));
  for (Index i = 0; i < sample; i++) {
    const S* key = k[(2 * i + 1) * keys / (2 * sample)];
    for (Index d = 0; d < head_dim; d++) center[d] += T(key[d]);
  }
  for (Index d = 0; d < head_dim; d++) {
    center[d] = T(S(center[d] / T(sample)));
    if (!std::isfinite(center[d])) center[d] = T(0);
  }
}

/// At least |k_j - c| for keys [first, end).
template <class S, class T>
T radius_of(Rows<const S> k, Index first, Index end, Index head_dim, const T* center) {
  constexpr int W = kLanes<T>;
  T largest = 0;
  for (Index j = first; j < end; j++) {
    const S* key = k[j];
    Pack<T> sum[2] = {splat<T>(T(0)), splat<T>(T(0))};
    Index d = 0;
    for (; d + W <= head_dim; d += W) {
      const Pack<T> x = sub(widen<T>(key + d), load<T>(center + d));
      sum[d / W % 2] = fma(x, x, sum[d / W % 2]);
    }
    T square = reduce_add(add(sum[0], sum[1]));
    for (; d < head_dim; d++) square += (T(key[d]) - center[d]) * (T(key[d]) - center[d]);
    if (!(square <= std::numeric_limits<T>::max())) return std::numeric_limits<T>::infinity();
    largest = std::max(largest, square);
  }
  return norm_above(largest, head_dim);
}

/// At least |c|.
template <class T>
T norm_of(const T* center, Index head_dim) {
  T square = 0;
  for (Index d = 0; d < head_dim; d++) square += center[d] * center[d];
  return norm_above(square, head_dim);
}

/// What radii.hpp derives from the radii of tiles 0, 1, …; `before`, `apart` and, if it is not null, `behind` have room
/// for as many entries.
template <class T>
Radii<T> summarize(const T* center, Index head_dim, const T* radius, Index tiles, T* before, T* behind,
                   std::int32_t* apart) {
  Radii<T> radii{center, norm_of(center, head_dim), 0, 0, tiles, radius, before, behind, apart, 0};
  Ordinary<T> ordinary;
  for (Index t = 0; t < tiles; t++) {
    radii.largest = std::max(radii.largest, radius[t]);
    before[t] = ordinary.largest(t, radius[t]);
    if (ordinary.apart(t, radius[t])) apart[radii.apart_count++] = std::int32_t(t);
    ordinary.add(t, radius[t]);
  }
  if (behind) {
    T largest = 0;
    for (Index t = tiles, left = radii.apart_count; t-- > 0;) {
      if (left > 0 && apart[left - 1] == t)
        left--;
      else
        largest = std::max(largest, radius[t]);
      behind[t] = largest;
    }
  }
  return radii;
}

}  // namespace alibi::inline ALIBI_ISA::kernel
