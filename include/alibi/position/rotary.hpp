// Rotary position embedding (Su et al., RoFormer, arXiv 2104.09864, equations 15 and 34). Each pair i of numbers of a
// query or key at position p is rotated by an angle,
//
//   (x, y)  ->  (x cos p θ_i - y sin p θ_i,  x sin p θ_i + y cos p θ_i),     θ_i = base^(-2i / d),   i = 0 … d/2 - 1
//
// so that q·k depends on positions through their difference alone. Values are not rotated.
//
// For contexts s times as long as the L tokens of the training:
//   interpolation   θ_i / s                                       position interpolation, arXiv 2306.15595
//   ntk             base s^(d / (d - 2)) in place of base         NTK-aware, as in arXiv 2309.00071, definition 1
//   yarn            (1 - γ_i) θ_i / s + γ_i θ_i                   YaRN, arXiv 2309.00071, definitions 2 and 3:
//                   γ_i rises from 0 to 1 while r_i = L θ_i / 2π, the number of turns within L tokens, rises from alpha
//                   to beta. q and k are also multiplied by 1 + 0.1 ln s, the square root of the inverse temperature.
//
// ALiBi combines with it: rotate q and k first, then call attention() with slopes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numbers>
#include <type_traits>
#include <vector>

#include "alibi/error.hpp"
#include "alibi/view.hpp"

namespace alibi {

/// Which numbers of a head form pair i, for d rotated numbers.
enum class RotaryPairs {
  adjacent,  ///< 2i and 2i + 1, as in the paper
  halves,    ///< i and i + d/2, as in GPT-NeoX and LLaMA
};

/// How the angles are scaled for contexts s times as long as those of the training. The head of rotary.hpp has the
/// formulas.
enum class RotaryScaling {
  none,           ///< not scaled
  interpolation,  ///< position interpolation (arXiv 2306.15595)
  ntk,            ///< NTK-aware (arXiv 2309.00071, definition 1)
  yarn            ///< YaRN (arXiv 2309.00071, definitions 2 and 3)
};

/// The configuration of a Rotary.
struct RotaryConfig {
  Index dims = 0;                               ///< d: the first d numbers of a head are rotated; 0: all
  double base = 10000;                          ///< θ_i = base^(-2i / d) radians per token; above 0
  RotaryPairs pairs = RotaryPairs::adjacent;    ///< which numbers form a pair
  RotaryScaling scaling = RotaryScaling::none;  ///< how the angles are scaled
  double factor = 1;                            ///< s, at least 1
  Index trained_length = 2048;                  ///< L, in tokens; for yarn
  double alpha = 1,                             ///< for yarn: at alpha turns and below, γ_i = 0; LLaMA models use 1
      beta = 32;                                ///< for yarn: at beta turns and above, γ_i = 1; LLaMA models use 32
};

inline namespace ALIBI_ABI {

/// Rotates arrays with heads of head_dim numbers (Su et al., arXiv 2104.09864, equation 34).
class Rotary {
 public:
  /// Computes the angles. Throws std::invalid_argument for an odd or too large number of dims, a base or a factor out
  /// of range, and for yarn with a trained length below 1 or alpha >= beta.
  explicit Rotary(Index head_dim, const RotaryConfig& config = {}) : head_dim_(head_dim), config_(config) {
    Index& dims = config_.dims;
    detail::require(head_dim > 0, "head_dim is ", head_dim, "; expected at least 1");
    if (dims == 0) dims = head_dim;
    detail::require(dims > 0 && dims % 2 == 0 && dims <= head_dim, "dims is ", dims, "; expected an even number up to ",
                    head_dim, ", the head_dim");
    detail::require(std::isfinite(config.base) && config.base > 0, "base is ", config.base,
                    "; expected a finite number above 0");
    detail::require(std::isfinite(config.factor) && config.factor >= 1, "factor is ", config.factor,
                    "; expected a finite number of at least 1");
    const double s = config.factor;
    double base = config.base;
    if (config.scaling == RotaryScaling::ntk) {
      detail::require(dims > 2, "dims is ", dims, "; expected at least 4 for the ntk scaling");
      base *= std::pow(s, double(dims) / double(dims - 2));
    }
    if (config.scaling == RotaryScaling::yarn) {
      detail::require(config.trained_length >= 1, "trained_length is ", config.trained_length,
                      "; expected at least 1 for the yarn scaling");
      detail::require(config.alpha < config.beta, "alpha is ", config.alpha, "; expected less than ", config.beta,
                      ", beta");
      magnitude_ = 1 + 0.1 * std::log(s);
    }
    for (Index i = 0; i < dims / 2; i++) {
      const double theta = std::pow(base, -2 * double(i) / double(dims));
      double kept = 1;  // γ
      if (config.scaling == RotaryScaling::interpolation) kept = 0;
      if (config.scaling == RotaryScaling::yarn) {
        const double turns = double(config.trained_length) * theta / (2 * std::numbers::pi);
        kept = std::clamp((turns - config.alpha) / (config.beta - config.alpha), 0., 1.);
      }
      frequencies_.push_back((1 - kept) * theta / s + kept * theta);
    }
  }

  /// The head_dim of the arrays.
  Index head_dim() const { return head_dim_; }
  /// [dims / 2]: the angle of each pair per token, in radians, after scaling.
  const std::vector<double>& frequencies() const { return frequencies_; }
  /// The factor by which rotate() also multiplies the rotated numbers: 1 + 0.1 ln s for yarn, otherwise 1.
  double magnitude() const { return magnitude_; }

  /// Rotates x in place, an array as in view.hpp, [batch, heads, tokens, head_dim]. Token t has position first + t.
  /// Throws std::invalid_argument for a head_dim that is not that of the rotation.
  template <class X>
  void rotate(X&& x, Index first = 0) const {
    turn(x, first, 1);
  }
  /// Replaces the gradient with respect to the result of rotate() by the gradient with respect to its argument, in
  /// place. Throws as rotate() does.
  template <class X>
  void rotate_gradient(X&& gradient, Index first = 0) const {
    turn(gradient, first, -1);
  }

 private:
  template <class X>
  void turn(X& array, Index first, int sign) const {
    using Array = Adapter<std::remove_const_t<X>>;
    using E = typename Array::Scalar;
    using T = std::conditional_t<std::is_same_v<E, double>, double, float>;
    const View<E> x = Array::of(array, "x");
    detail::require(x.head_dim == head_dim_, "x has head_dim ", x.head_dim, "; expected ", head_dim_,
                    ", that of the rotation");
    const Index pairs = config_.dims / 2;
    const bool adjacent = config_.pairs == RotaryPairs::adjacent;
    const Index step = adjacent ? 2 : 1, other = adjacent ? 1 : pairs;
    std::vector<T> cosine(static_cast<std::size_t>(pairs)), sine = cosine;
    for (Index t = 0; t < x.tokens; t++) {
      for (std::size_t i = 0; i < frequencies_.size(); i++) {
        const double angle = double(first + t) * frequencies_[i];
        cosine[i] = T(magnitude_ * std::cos(angle));
        sine[i] = T(sign * magnitude_ * std::sin(angle));
      }
      for (Index b = 0; b < x.batch; b++)
        for (Index h = 0; h < x.heads; h++) {
          E* const row = x.data + b * x.batch_stride + h * x.head_stride + t * x.token_stride;
          for (Index i = 0; i < pairs; i++) {
            E &u = row[i * step], &v = row[i * step + other];
            const T c = cosine[std::size_t(i)], s = sine[std::size_t(i)], p = T(u), r = T(v);
            u = E(p * c - r * s);
            v = E(p * s + r * c);
          }
        }
    }
  }

  Index head_dim_;
  RotaryConfig config_;
  double magnitude_ = 1;
  std::vector<double> frequencies_;
};

}  // namespace ALIBI_ABI
}  // namespace alibi
