// The online softmax (Milakov & Gimelshein, arXiv 1805.02867), one row a lane, in base 2.
//
// A row's state after some of its keys is (reference, sum):  sum = Σ_j 2^(s_j - reference), and with it goes the output
// so far, O = Σ_j 2^(s_j - reference) v_j. The reference need not be the maximum, only near it: it moves when a score
// outgrows it by 2^kSlack, so that most tiles rescale nothing. No digit is lost by that, sums being floating-point.
//
// States of disjoint sets of keys merge: associative and commutative up to rounding, with empty() as identity.
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

// The least probability is 2^kNegligible: lower ones change no result, but their products with values would be
// subnormal numbers, which take a hundred times as long.
template <class T>
inline constexpr T kNegligible = sizeof(T) == 4 ? T(-100) : T(-960);

template <class T>
struct SoftmaxState {
  Vec<T> reference, sum;

  /// No key seen. The reference is finite, so that differences of references are never inf - inf.
  static SoftmaxState empty() { return {broadcast<T>(std::numeric_limits<T>::lowest() / 2), broadcast<T>(T(0))}; }

  /// Whether a score up to `largest` calls for raise().
  bool outgrown(Vec<T> largest) const { return any_lt(add(reference, broadcast<T>(kSlack<T>)), largest); }

  /// Moves the reference up to `largest`; returns the factor that sums and outputs so far are to be multiplied with,
  /// which `sum` has been.
  Vec<T> raise(Vec<T> largest) {
    const Vec<T> previous = reference;
    reference = max(reference, largest);
    const Vec<T> factor = exp2<T>(sub(previous, reference));
    sum = mul(sum, factor);
    return factor;
  }

  /// Takes in the keys of `other`. Its outputs are to be multiplied with the second factor and added to this one's,
  /// multiplied with the first.
  struct Factors {
    Vec<T> self, other;
  };
  Factors merge(SoftmaxState other) {
    const Factors factors{raise(other.reference), other.raise(reference)};
    sum = add(sum, other.sum);
    return factors;
  }

  /// What outputs are to be multiplied with at the end: 1 / sum, or 0 for a row that saw no key.
  Vec<T> normalizer() const {
    const Vec<T> zero = broadcast<T>(T(0));
    return select_le(sum, zero, zero, div(broadcast<T>(T(1)), sum));
  }
};

/// 2^x, at least 2^kNegligible; with Masked, what is negligible, masked scores first of all, becomes 0.
template <bool Masked, class T>
EIGEN_ALWAYS_INLINE Vec<T> probability(Vec<T> x) {
  const Vec<T> p = exp2<T>(x, kNegligible<T>);
  if constexpr (Masked) return select_lt(x, broadcast<T>(kNegligible<T>), broadcast<T>(T(0)), p);
  return p;
}

/// P = 2^(S - shift) in place over the keys [begin, ends[N - 1]) of vectors [R, N), the first of which drops out at
/// ends[R]; `sum` grows by P. Rows of pairs, U, hold two keys: they begin where their two rows of scores were, the
/// first of which has been read by then.
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

/// Scores, at most `largest`, become probabilities, of type U, `offset` being added to every score, and the states'
/// sums grow by them. Beside a huge offset the reference is rounded: no exponent exceeds kSlack all the same.
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
