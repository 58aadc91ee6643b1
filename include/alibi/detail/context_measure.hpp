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
#include <vector>

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
Eigen::Matrix<Sum<E>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> tokens_of(const View<const E>& x, Index b,
                                                                                 Index h, Index begin, Index end) {
  using Rows = Eigen::Matrix<E, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  return Eigen::Map<const Rows, 0, Eigen::OuterStride<>>(token_of(x, b, h, begin), end - begin, x.head_dim,
                                                         Eigen::OuterStride<>(x.token_stride))
      .template cast<Sum<E>>();
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
      const float above = float(norm) * (1 + 2 * std::numeric_limits<float>::epsilon());
      radius = std::max(radius, std::isfinite(above) ? above : std::numeric_limits<float>::infinity());
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
  float radius;                      // the largest of the rank's own keys
  double scale, slope;               // slope > 0
  Index left;                        // the largest distance of a visible key before the query
  bool both_sides;                   // whether a query sees keys after it
  std::span<const Sum<E>> lse = {};  // of the rows, if it is known
};

/// a_i, |τ q_i| and the logarithm of the lower bound of the mass, of all rows. Rows that are not finite get an infinite
/// a_i.
template <class E>
void measure_queries_of(const MeasuredHead<E>& x, std::span<double> score, std::span<double> norm,
                        std::span<double> log_masses) {
  using T = Sum<E>;
  using Column = Eigen::Array<T, Eigen::Dynamic, 1>;
  constexpr double kUnit = double(std::numeric_limits<T>::epsilon()) / 2;
  constexpr Index kNear = 32, kFar = 8;  // the keys whose mass is summed
  const Index n = x.q.tokens, dims = x.q.head_dim, blocks = context_blocks(n);
  const Eigen::Map<const Eigen::Matrix<T, Eigen::Dynamic, 1>> c(x.center, dims);
  const double key_norm = double(kernel::norm_of(x.center, dims)) + double(x.radius);
  Column scores(kNear);
  for (Index block = 0; block < blocks; block++) {
    const Index begin = block * kContextRows, end = std::min(begin + kContextRows, n);
    const bool is_near = block < 4 || (x.both_sides && block >= blocks - 4);
    const Index most = std::min(is_near ? kNear : kFar, x.left + 1), first = std::max<Index>(begin - most + 1, 0);
    const auto q = tokens_of(x.q, x.b, x.h, begin, end);
    const auto k = x.lse.empty() ? tokens_of(x.k, x.b, x.g, first, end) : decltype(tokens_of(x.k, 0, 0, 0, 0))();
    for (Index i = begin; i < end; i++) {
      const auto query = q.row(i - begin);
      const double tau_q = std::abs(x.scale) * double(kernel::norm_above<T>(query.squaredNorm(), dims)) * (1 + 1e-14);
      double log_mass, margin = 1e-3 + 4 * kUnit * double(dims + 8) * tau_q * key_norm;
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
      double& a = score[std::size_t(i)];
      a = x.scale * double(query.dot(c)) - log_mass + margin;
      norm[std::size_t(i)] = tau_q;
      log_masses[std::size_t(i)] = log_mass;
      if (!std::isfinite(a) || !std::isfinite(tau_q)) {
        a = std::numeric_limits<double>::infinity();
        norm[std::size_t(i)] = 0;
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
