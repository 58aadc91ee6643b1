// What the plan of several ranks knows of queries and keys (detail/context_plan.hpp): a centre of the keys, the radius
// of each tile of keys, and for each query its norm, its score against the centre and a lower bound of the softmax mass
// of its row.
//
// The lower bound is the mass of the row's last keys on its own rank, its own key included: of 32 keys for the rows
// next to the end of the piece, where a smaller bound would fetch more keys, of 8 for the others. This costs some 10
// products of a query for each row, and is known before attention starts, so that keys travel while the rank attends to
// its own.
//
// Rounding: a score of h dims is off by at most (h + 2) u |τ q| |k|, with u half an ulp (Higham 2002, section 3.1); the
// exponentials and the sums by less than 1e-4. Both are added to a_i; norms and radii are rounded up. Internal.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <type_traits>

#include "alibi/detail/context_plan.hpp"
#include "alibi/kernel/tile/key_bounds.hpp"
#include "alibi/view.hpp"

// g++ 12 warns of its own AVX-512 intrinsics, because it takes their undefined operand for uninitialised.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace alibi::inline ALIBI_ABI::detail {

/// Token i of head h of sequence b.
template <class E>
const E* token_of(const View<const E>& x, Index b, Index h, Index i) {
  return x.data + b * x.batch_stride + h * x.head_stride + i * x.token_stride;
}

/// Tokens [begin, end) of a head in the scalar of the sums, [tokens, head_dim].
template <class E>
auto tokens_of(const View<const E>& x, Index b, Index h, Index begin, Index end) {
  using Rows = Eigen::Matrix<E, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Converted = Eigen::Matrix<Sum<E>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Eigen::Map<const Rows, 0, Eigen::OuterStride<>> tokens(token_of(x, b, h, begin), end - begin, x.head_dim,
                                                               Eigen::OuterStride<>(x.token_stride));
  if constexpr (std::is_same_v<E, Sum<E>>)
    return tokens;
  else
    return Converted(tokens.template cast<Sum<E>>());
}

/// The mean of up to 64 keys of a head, spread evenly over all; 0 where it is not finite. Every centre is correct; a
/// mean makes the radii small.
template <class E, class T>
void measure_center(const View<const E>& k, Index b, Index g, T* center) {
  const Index sample = std::min<Index>(k.tokens, 64);
  std::fill_n(center, k.head_dim, T(0));
  for (Index i = 0; i < sample; i++) {
    const E* const key = token_of(k, b, g, (2 * i + 1) * k.tokens / (2 * sample));
    for (Index d = 0; d < k.head_dim; d++) center[d] += T(key[d]) / T(sample);
  }
  for (Index d = 0; d < k.head_dim; d++)
    if (!std::isfinite(center[d])) center[d] = T(0);
}

/// The radius of each tile of a head, at least |k_j - c| of its keys; infinite if one is not finite. Returns the
/// largest.
template <class E, class T>
float measure_radii(const View<const E>& k, Index b, Index g, const T* center, std::span<float> radii) {
  const Eigen::Map<const Eigen::Matrix<T, 1, Eigen::Dynamic>> c(center, k.head_dim);
  float largest = 0;
  for (Index t = 0; t < Index(radii.size()); t++) {
    const auto keys = tokens_of(k, b, g, t * kContextTile, std::min((t + 1) * kContextTile, k.tokens));
    float radius = 0;
    for (Index j = 0; j < keys.rows(); j++) {
      const T norm = kernel::norm_above<T>((keys.row(j) - c).squaredNorm(), k.head_dim);
      const float above = std::nextafter(float(norm), std::numeric_limits<float>::infinity());
      // A norm that is not finite is infinite here (norm_above), and so is the radius then.
      radius = std::max(radius, above);
    }
    radii[std::size_t(t)] = radius;
    largest = std::max(largest, radius);
  }
  return largest;
}

/// The queries of a head, and the keys that they share a rank with.
template <class E>
struct MeasuredHead {
  View<const E> q, k;
  Index b, h, g;                     // sequence, query head, kv head
  const Sum<E>* center;              // of the kv head, [head_dim]
  float own_radius;                  // the largest of the rank's own keys
  float far_radius;                  // … of the keys of other ranks
  double scale, slope;               // slope > 0
  double share;                      // of the softmax mass, that a plan leaves out
  Index left;                        // the largest distance of a visible key before the query
  bool both_sides;                   // whether a query sees keys after it
  std::span<const Sum<E>> lse = {};  // of the rows, if it is known
};

/// What the plan knows of the rows of a head, [tokens].
struct MeasuredRows {
  std::span<double> score, norm;  // a_i and |τ q_i|; of rows that are not finite, infinite and 0
  std::span<double> log_mass;     // the logarithm of the lower bound of the mass that a_i contains
};

/// Measures the rows of a head.
///
/// A row has at least the mass e^{-|τ q_i| (|c| + R)} of its own key, and so a_i is at most |τ q_i| (2 |c| + R). Blocks
/// of rows so far from the ends of the piece that this already rules out every other key are measured no further.
template <class E>
void measure_queries_of(const MeasuredHead<E>& x, const MeasuredRows& rows) {
  using T = Sum<E>;
  using Column = Eigen::Array<T, Eigen::Dynamic, 1>;
  constexpr double kUnit = double(std::numeric_limits<T>::epsilon()) / 2;
  constexpr Index kNear = 32, kFar = 8;  // the keys whose mass is summed
  const Index n = x.q.tokens, dims = x.q.head_dim, blocks = context_blocks(n);
  const Eigen::Map<const Eigen::Matrix<T, Eigen::Dynamic, 1>> c(x.center, dims);
  const double center_norm = double(kernel::norm_of(x.center, dims)), key_norm = center_norm + double(x.own_radius);
  Column scores(kNear);
  for (Index block = 0; block < blocks; block++) {
    const Index begin = block * kContextRows, end = std::min(begin + kContextRows, n);
    const auto q = tokens_of(x.q, x.b, x.h, begin, end);
    const auto margin_of = [&](double norm) { return 1e-3 + 4 * kUnit * double(dims + 8) * norm * key_norm; };
    double largest_norm = 0;
    for (Index i = begin; i < end; i++) {
      const double norm = std::abs(x.scale) * double(kernel::norm_above<T>(q.row(i - begin).squaredNorm(), dims));
      rows.norm[std::size_t(i)] = norm * (1 + 1e-14);
      largest_norm = std::max(largest_norm, rows.norm[std::size_t(i)]);
    }
    // Far below the share, so that these rows use none of it up.
    const Index distance = x.both_sides ? std::min(begin + 1, n - end + 1) : begin + 1;
    const double farthest = largest_norm * (center_norm + key_norm + double(x.far_radius)) + margin_of(largest_norm) -
                            x.slope * double(distance) - std::log(-std::expm1(-x.slope));
    if (x.lse.empty() && farthest <= std::log(x.share) - 10) {
      for (Index i = begin; i < end; i++) {
        const double norm = rows.norm[std::size_t(i)];
        rows.log_mass[std::size_t(i)] = -norm * key_norm;
        rows.score[std::size_t(i)] = norm * (center_norm + key_norm) + margin_of(norm);
      }
      continue;
    }
    const bool is_near = block < 4 || (x.both_sides && block >= blocks - 4);
    const Index most = std::min(is_near ? kNear : kFar, x.left + 1), first = std::max<Index>(begin - most + 1, 0);
    const auto k = tokens_of(x.k, x.b, x.g, first, end);
    for (Index i = begin; i < end; i++) {
      const auto query = q.row(i - begin);
      double& norm = rows.norm[std::size_t(i)];
      double log_mass, margin = margin_of(norm);
      if (!x.lse.empty()) {
        log_mass = double(x.lse[std::size_t(i)]);
        margin += 1e-5 * std::abs(log_mass);
      } else {
        const Index keys = std::min(most, i + 1);
        for (Index d = 0; d < keys; d++)
          scores[d] = T(x.scale) * T(query.dot(k.row(i - d - first))) - T(x.slope) * T(d);
        const double largest = double(scores.head(keys).maxCoeff());
        log_mass = largest + std::log(double((scores.head(keys) - T(largest)).exp().sum()));
        margin += 8 * kUnit * std::abs(largest);
      }
      double& a = rows.score[std::size_t(i)];
      a = x.scale * double(query.dot(c)) - log_mass + margin;
      rows.log_mass[std::size_t(i)] = log_mass;
      if (!std::isfinite(a) || !std::isfinite(norm)) {
        a = std::numeric_limits<double>::infinity();
        norm = 0;
      }
    }
  }
}

/// Replaces the lower bounds of the mass of rows by the mass that their lse states.
template <class T>
void raise_masses(std::span<double> score, std::span<const double> log_masses, std::span<const T> lse) {
  for (std::size_t i = 0; i < score.size(); i++) {
    const double raised = score[i] + log_masses[i] - double(lse[i]) + 1e-5 * std::abs(double(lse[i]));
    if (raised < score[i]) score[i] = raised;  // not for rows that are not finite
  }
}

}  // namespace alibi::inline ALIBI_ABI::detail

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
