// The bound of pruning: from which distance on keys cannot matter, with a proof.
//
// The penalty -m |p_i - j| grows without bound; the gain of a key by its content is limited. Let c be any vector, and
// let every key j <= J that has not been read satisfy |k_j - c| <= R. For a query at p_i >= J, with n = J + 1 such
// keys,
//
//   Σ_{j <= J} e^{s_ij}  =  e^{τ q_i·c} Σ_j e^{τ q_i·(k_j - c) - m (p_i - j)}
//                       <=  e^{τ q_i·c + |τ| |q_i| R} Σ_j e^{-m (p_i - j)}                               (1)
//                        =  e^{τ q_i·c + |τ| |q_i| R - m (p_i - J)} · (1 - e^{-mn}) / (1 - e^{-m})       (2)
//
// (1) is the inequality of Cauchy and Schwarz, (2) the geometric series.
//
// The keys read so far give a lower bound of the softmax's denominator: e^μ l, with μ the reference of the online
// softmax and l its sum. If (2) is at most ε e^μ l for every query of a block, the block prunes all those keys: the
// pruned mass of each of its rows is at most the share ε of its softmax mass. With õ and l̃se the output and the
// log-sum-exp after pruning,
//
//   |o_i - õ_i| <= ε diam(V),      0 <= lse_i - l̃se_i <= -ln(1 - ε)                        (3)
//
// because o - õ = x (a - b), where x <= ε is the pruned share, a is a mean of pruned values and b a mean of kept ones.
// For keys after a bidirectional query the mirror image holds.
//
// Four choices make (2) sharp:
// - It uses the sum l, not only the maximum.
// - The centre c removes what all keys share, because softmax ignores it.
// - R is the radius of the remaining keys only.
// - Outlier tiles are judged one by one and do not enter the R of the other tiles (kernel/tile/key_bounds.hpp).
// If the keys are measured for the call, a sharper bound replaces R for query norms up to the chord norm: the logarithm
// of Σ_j e^{x |k_j - c| - m (p_i - j)} is convex in the norm x = |τ| |q_i| and lies below a chord
// (kernel/pruning/key_stats.hpp).
//
// The pruned mass of each row is accumulated, so that all parts together stay below ε. In floating point every step is
// rounded against pruning (kernel/pruning/bound.hpp).
//
// Prior art: adaptive computation pruning for the Forgetting Transformer (Lin et al., arXiv 2504.06949), with one
// scalar bound for each head; certified truncation by total variation (arXiv 2512.07647). Heads with slopes of 0 or
// below prune nothing.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "alibi/error.hpp"
#include "alibi/kernel/simd/isa.hpp"

namespace alibi {

/// The pruning statistics of one head of one sequence. A pair is a block of queries and a tile of 64 keys; over a cache
/// with up to 8 queries, a pair is one query and one tile. The sinks before a window are pairs of their own, also where
/// their tile holds keys of the window.
struct PruningStats {
  Index tiles_computed = 0;  ///< the number of pairs that were computed
  Index tiles_total = 0;     ///< the number of pairs in which some query sees some key
  /// An upper bound of the pruned mass, as a share of its softmax mass, of every row of the head; certified to within
  /// 2^-100.
  double mass_bound = 0;
};

inline namespace ALIBI_ABI {

/// The receptive field (Chi et al., ACL 2023) of a head of slope m: the number w of most recent keys that the head can
/// see within a tolerance. It is the smallest distance w that satisfies
///
///     e^{score_bound - m w} / (1 - e^{-m})  <=  tolerance e^{-score_bound}
///
/// If |τ q·k_j| <= score_bound for all keys, the keys at distances w and above have together at most `tolerance` of the
/// softmax mass of a causal query: the left side bounds their mass, and the query's own key has at least
/// e^{-score_bound}, both unnormalised.
///
/// Returns the largest Index, which means every key, for a slope of 0 or below and for a tolerance of 0. Throws
/// std::invalid_argument for a slope or a score_bound that is not finite, a score_bound below 0, and a tolerance
/// outside [0, 1).
inline Index receptive_field(double slope, double score_bound, double tolerance) {
  detail::require(std::isfinite(slope), "slope is ", slope, "; expected a finite number");
  detail::require(std::isfinite(score_bound) && score_bound >= 0, "score_bound is ", score_bound,
                  "; expected a finite number, at least 0");
  detail::require(tolerance >= 0 && tolerance < 1, "tolerance is ", tolerance, "; expected at least 0 and below 1");
  constexpr Index kEvery = std::numeric_limits<Index>::max();
  if (slope <= 0 || tolerance == 0) return kEvery;
  const double nats = 2 * score_bound - std::log(tolerance) - std::log(-std::expm1(-slope));
  const double distance = std::ceil(nats * (1 + 1e-14) / slope);  // 1e-14: the rounding of the sums above
  return distance < 0x1p62 ? std::max<Index>(Index(distance), 1) : kEvery;
}

}  // namespace ALIBI_ABI
}  // namespace alibi
