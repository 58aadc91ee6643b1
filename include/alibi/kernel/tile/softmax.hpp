// The online softmax (Milakov & Gimelshein, arXiv 1805.02867), one row for each lane, in base 2.
//
// After some keys, the state of a row is (reference, sum), with sum = Σ_j 2^(s_j - reference). The output so far is
// O = Σ_j 2^(s_j - reference) v_j. The reference, μ, need only be close to the maximum. It moves only when a score
// exceeds it by more than kSlack, so that most tiles rescale nothing. This costs no digits, because sums are
// floating-point numbers.
//
// States of disjoint sets of keys can be merged. The merge is associative and commutative up to rounding, and empty()
// is its identity. Internal.
#pragma once

#include <cstddef>
#include <limits>

#include "alibi/kernel/simd/bf16.hpp"
#include "alibi/kernel/simd/exp2.hpp"
#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/rows.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

template <class T>
inline constexpr T kSlack = T(8);

// The smallest probability is 2^kNegligible. Smaller ones change no result, but their products with values would be
// subnormal numbers, which take a hundred times as long.
template <class T>
inline constexpr T kNegligible = sizeof(T) == 4 ? T(-100) : T(-960);

template <class T>
struct SoftmaxState {
  Vec<T> reference, sum;

  /// The state without keys. The reference is finite, so that differences of references are never inf - inf.
  static SoftmaxState empty() { return {broadcast<T>(std::numeric_limits<T>::lowest() / 2), broadcast<T>(T(0))}; }

  /// Whether a score of `largest` in any lane requires raise().
  bool outgrown(Vec<T> largest) const { return any_lt(add(reference, broadcast<T>(kSlack<T>)), largest); }

  /// Raises the reference to `largest`. Returns the factor for the outputs so far; `sum` is already multiplied by it.
  Vec<T> raise(Vec<T> largest) {
    const Vec<T> previous = reference;
    reference = max(reference, largest);
    const Vec<T> factor = exp2<T>(sub(previous, reference));
    sum = mul(sum, factor);
    return factor;
  }

  /// Adds the keys of `other`. The merged output is factors.self times the output of this state plus factors.other
  /// times the output of `other`.
  struct Factors {
    Vec<T> self, other;
  };
  Factors merge(SoftmaxState other) {
    const Factors factors{raise(other.reference), other.raise(reference)};
    sum = add(sum, other.sum);
    return factors;
  }

  /// The factor for the outputs at the end: 1 / sum, or 0 for a row that sees no key.
  Vec<T> normalizer() const {
    const Vec<T> zero = broadcast<T>(T(0));
    return select_le(sum, zero, zero, div(broadcast<T>(T(1)), sum));
  }
};

/// 2^x, at least 2^kNegligible. If Masked, negligible probabilities are 0 instead; those of masked scores are
/// negligible.
template <bool Masked, class T>
EIGEN_ALWAYS_INLINE Vec<T> probability(Vec<T> x) {
  const Vec<T> p = exp2<T>(x, kNegligible<T>);
  if constexpr (Masked) return select_lt(x, broadcast<T>(kNegligible<T>), broadcast<T>(T(0)), p);
  return p;
}

/// Replaces S by P = 2^(S - shift) in place and adds P to `sum`, for keys [begin, ends[r]) of each vector r in [R, N).
/// A row of pairs, U, holds two keys. It is written to memory whose scores have already been read.
template <class U, int R, int N, bool Masked, class T>
EIGEN_ALWAYS_INLINE void exponentiate_keys(T* s, Index begin, const Index* ends, const Vec<T>* shift, Vec<T>* sum) {
  for (Index j = begin; j < ends[R]; j += kDepth<U>)
#pragma GCC unroll 4
    for (int r = R; r < N; r++) {
      T* at = s + j * kBlock<T> + r * kLanes<T>;
      const Vec<T> p = probability<Masked, T>(sub(load<T>(at), shift[r]));
      sum[r] = add(sum[r], p);
      if constexpr (kDepth<U> == 1) {
        store<T>(at, p);
      } else {
        const Vec<T> next = probability<Masked, T>(sub(load<T>(at + kBlock<T>), shift[r]));
        sum[r] = add(sum[r], next);
        store_pair(reinterpret_cast<U*>(s) + j / 2 * kBlock<T> + r * kLanes<T>, p, next);
      }
    }
  if constexpr (R + 1 < N) exponentiate_keys<U, R + 1, N, Masked>(s, ends[R], ends, shift, sum);
}

/// Replaces the scores, at most `largest` without their `offset`, by probabilities of type U, and adds these to the
/// sums of the states. If the offset is huge, the reference is rounded, but no exponent exceeds kSlack.
template <class U, int N, bool Masked, class T>
EIGEN_ALWAYS_INLINE void exponentiate(T* s, Index begin, const Index* ends, const Vec<T>* offset, const Vec<T>* largest,
                                      SoftmaxState<T>* state) {
  Vec<T> shift[std::size_t(N)], sum[std::size_t(N)];
#pragma GCC unroll 4
  for (int r = 0; r < N; r++) {
    shift[r] = max(sub(state[r].reference, offset[r]), sub(largest[r], broadcast<T>(kSlack<T>)));
    sum[r] = broadcast<T>(T(0));
  }
  exponentiate_keys<U, 0, N, Masked>(s, begin, ends, shift, sum);
#pragma GCC unroll 4
  for (int r = 0; r < N; r++) state[r].sum = add(state[r].sum, sum[r]);
}

}  // namespace alibi::inline ALIBI_ISA::kernel
