// How far a head sees: the distance from which on keys cannot matter, with a proof.
//
// The penalty -m |p_i - j| grows without bound, what a key can gain by its content does not. Let c be any vector, and
// let every key j <= J that has not been read satisfy |k_j - c| <= R. For a query at p_i >= J, with n = J + 1 such
// keys,
//
//   Σ_{j <= J} e^{s_ij}  =  e^{τ q_i·c} Σ_j e^{τ q_i·(k_j - c) - m (p_i - j)}
//                       <=  e^{τ q_i·c + τ |q_i| R} Σ_j e^{-m (p_i - j)}                  (1) Cauchy and Schwarz
//                        =  e^{τ q_i·c + τ |q_i| R - m (p_i - J)} · (1 - e^{-mn}) / (1 - e^{-m})   (2) geometric series
//
// The keys read so far give a lower bound of the softmax's denominator: e^μ l, with μ the reference of the online
// softmax and l its sum. Where (2) is at most ε e^μ l for every query of a block, the block drops all those keys: each
// of its rows loses at most the share ε of its softmax mass. Then, with õ the output and l̃se the log-sum-exp that
// result,
//
//   |o_i - õ_i| <= ε diam(V),      0 <= lse_i - l̃se_i <= -ln(1 - ε)                        (3)
//
// since o - õ = x (a - b), with x <= ε the share that is left out, and a and b means of values that are left out and
// kept. The mirror image holds for keys behind a bidirectional query.
//
// What makes (2) sharp: the sum l, not only the maximum; a centre c, because softmax ignores what all keys share; the
// radius R of the unread keys alone; tiles of outliers are judged one by one, and left out of the others' R
// (kernel/radii.hpp). Where keys are measured for a call, R is not asked of each of them: the logarithm of
// Σ_j e^{x |k_j - c| - m (p_i - j)} is convex in the norm x = τ |q_i|, and lies below a chord (kernel/measure.hpp).
//
// What each row may still lose is counted, so that the parts together stay below ε. In floating point every step is
// rounded against pruning (kernel/pruning.hpp).
//
// Prior art: adaptive computation pruning for the Forgetting Transformer (Lin et al., arXiv 2504.06949), with one
// scalar bound a head; certified truncation by total variation (arXiv 2512.07647). Slopes of 0 or below prune nothing.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "alibi/error.hpp"
#include "alibi/kernel/simd/isa.hpp"

namespace alibi {

/// What pruning did in one head of one sequence. A pair is a block of queries and a tile of 64 keys.
struct PruningStats {
  Index tiles_computed = 0;  ///< pairs that were computed
  Index tiles_total = 0;     ///< pairs of which some query sees some key
  double mass_bound = 0;     ///< certified to within 2^-100: no row of the head lost more of its softmax mass
};

inline namespace ALIBI_ABI {

/// How many of the most recent keys a head of slope m can see: the least distance w that the following proves enough.
/// Provided |τ q·k_j| <= score_bound for all its keys, those at distances w and above have together at most `tolerance`
/// of a causal query's softmax mass, because the query's own key has at least e^-score_bound of it, unnormalised:
///
///   e^{score_bound - m w} / (1 - e^{-m})  <=  tolerance e^{-score_bound}
///
/// The largest Index for a slope or a tolerance of 0, and for slopes below 0: every key.
/// Throws std::invalid_argument for a slope or a score_bound that is not finite, a score_bound below 0, and a tolerance
/// outside [0, 1).
inline Index receptive_field(double slope, double score_bound, double tolerance) {
  detail::require(std::isfinite(slope), "slope is ", slope, "; expected a finite number");
  detail::require(std::isfinite(score_bound) && score_bound >= 0, "score_bound is ", score_bound,
                  "; expected a finite number, at least 0");
  detail::require(tolerance >= 0 && tolerance < 1, "tolerance is ", tolerance, "; expected at least 0 and below 1");
  constexpr Index kEvery = std::numeric_limits<Index>::max();
  if (slope <= 0 || tolerance == 0) return kEvery;
  const double nats = 2 * score_bound - std::log(tolerance) - std::log(-std::expm1(-slope));
  const double distance = std::ceil(nats * (1 + 1e-14) / slope);  // as many digits as the sums above may lose
  return distance < 0x1p62 ? std::max<Index>(Index(distance), 1) : kEvery;
}

}  // namespace ALIBI_ABI
}  // namespace alibi
