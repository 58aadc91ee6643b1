// xPos (Sun et al., "A Length-Extrapolatable Transformer", arXiv 2212.10554, algorithm 1): a rotary embedding whose
// pairs also decay with distance. Pair i of a query at position p is rotated as in rotary.hpp and multiplied by
// ζ_i^(p / B); pair i of a key at position j is multiplied by ζ_i^(-j / B). Their product is then multiplied by
//
//   ζ_i^((p - j) / B),      ζ_i = (2i / d + γ) / (1 + γ),     i = 0 … d/2 - 1,   γ = 0.4,   B = 512
//
// For a causal query, p - j >= 0, this falls with the distance. For p < j it grows, so xPos is for causal attention.
//
// Range: a factor of a query or key is ζ^(±distance from the centre / B). Positions are taken relative to
// XposConfig::center, which changes no product; the middle of the positions in use allows the largest range. In float,
// with the default γ and B, positions up to 34,900 from the centre are in range, in half up to 3,800. Beyond it
// embed_queries() and embed_keys() throw.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <type_traits>
#include <vector>

#include "alibi/error.hpp"
#include "alibi/position/rotary.hpp"
#include "alibi/view.hpp"

namespace alibi {

/// The configuration of an Xpos.
struct XposConfig {
  RotaryConfig rotary = {};  ///< the rotation; its dims are those that decay
  double gamma = 0.4;        ///< γ, above 0
  double scale_base = 512;   ///< B, in tokens, above 0
  Index center = 0;          ///< the position whose factor is 1
};

inline namespace ALIBI_ABI {

/// Embeds positions in arrays of queries and of keys with heads of head_dim numbers (Sun et al., arXiv 2212.10554,
/// algorithm 1).
class Xpos {
 public:
  /// Computes the angles and the decay. Throws std::invalid_argument for what Rotary refuses, and for a gamma or
  /// scale_base that is not above 0.
  explicit Xpos(Index head_dim, const XposConfig& config = {}) : rotary_(head_dim, config.rotary), config_(config) {
    detail::require(std::isfinite(config.gamma) && config.gamma > 0, "gamma is ", config.gamma,
                    "; expected a finite number above 0");
    detail::require(std::isfinite(config.scale_base) && config.scale_base > 0, "scale_base is ", config.scale_base,
                    "; expected a finite number above 0");
    const std::size_t pairs = rotary_.frequencies().size();
    for (std::size_t i = 0; i < pairs; i++)
      log_decay_.push_back(std::log((double(i) / double(pairs) + config.gamma) / (1 + config.gamma)) /
                           config.scale_base);
  }

  /// [dims / 2]: ln ζ_i / B, the logarithm of each pair's factor per token of distance; at most 0.
  const std::vector<double>& log_decay() const { return log_decay_; }
  /// The rotation.
  const Rotary& rotary() const { return rotary_; }

  /// Embeds positions in queries x in place, an array as in view.hpp, [batch, heads, tokens, head_dim]. Token t has
  /// position first + t. Throws std::invalid_argument, before x is written, for a head_dim that is not that of the
  /// embedding, and for positions so far from the centre that a factor is out of range.
  template <class X>
  void embed_queries(X&& x, Index first = 0) const {
    embed(x, first, 1);
  }
  /// Embeds positions in keys x in place; otherwise as embed_queries().
  template <class X>
  void embed_keys(X&& x, Index first = 0) const {
    embed(x, first, -1);
  }
  /// Replaces the gradient with respect to the result of embed_queries() by the gradient with respect to its argument,
  /// in place. Throws as embed_queries() does.
  template <class X>
  void queries_gradient(X&& gradient, Index first = 0) const {
    scale(gradient, first, 1);
    rotary_.rotate_gradient(gradient, first);
  }
  /// Replaces the gradient with respect to the result of embed_keys() by the gradient with respect to its argument, in
  /// place. Throws as embed_keys() does.
  template <class X>
  void keys_gradient(X&& gradient, Index first = 0) const {
    scale(gradient, first, -1);
    rotary_.rotate_gradient(gradient, first);
  }

 private:
  template <class X>
  void embed(X& x, Index first, int sign) const {
    scale(x, first, sign);  // it commutes with the rotation, and checks the range before anything is written
    rotary_.rotate(x, first);
  }

  template <class X>
  void scale(X& array, Index first, int sign) const {
    using Array = Adapter<std::remove_const_t<X>>;
    using E = typename Array::Scalar;
    using T = std::conditional_t<std::is_same_v<E, double>, double, float>;
    const View<E> x = Array::of(array, "x");
    const Index pairs = Index(log_decay_.size());
    detail::require(x.head_dim == rotary_.head_dim(), "x has head_dim ", x.head_dim, "; expected ", rotary_.head_dim(),
                    ", that of the embedding");
    const double farthest =
        std::max(std::abs(double(first - config_.center)), std::abs(double(first + x.tokens - 1 - config_.center)));
    // Keys get the inverse of what queries get: both ends of the range count.
    const double range =
        std::min(std::log(double(std::numeric_limits<E>::max())), -std::log(double(std::numeric_limits<E>::min())));
    const double limit = 0.98 * range / std::abs(log_decay_.front());
    detail::require(x.tokens == 0 || farthest <= limit, "a position is ", farthest,
                    " tokens from the center; expected at most ", std::floor(limit), ", where factors are in range");
    const bool adjacent = config_.rotary.pairs == RotaryPairs::adjacent;
    const Index step = adjacent ? 2 : 1, other = adjacent ? 1 : pairs;
    std::vector<T> factor(log_decay_.size());
    for (Index t = 0; t < x.tokens; t++) {
      for (std::size_t i = 0; i < factor.size(); i++)
        factor[i] = T(std::exp(double(sign) * double(first + t - config_.center) * log_decay_[i]));
      for (Index b = 0; b < x.batch; b++)
        for (Index h = 0; h < x.heads; h++) {
          E* const row = x.data + b * x.batch_stride + h * x.head_stride + t * x.token_stride;
          for (Index i = 0; i < pairs; i++) {
            E &u = row[i * step], &v = row[i * step + other];
            u = E(T(u) * factor[std::size_t(i)]);
            v = E(T(v) * factor[std::size_t(i)]);
          }
        }
    }
  }

  Rotary rotary_;
  XposConfig config_;
  std::vector<double> log_decay_;
};

}  // namespace ALIBI_ABI
}  // namespace alibi
