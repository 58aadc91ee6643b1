// The rotation of queries and keys by their positions, for the methods that have one.
#pragma once

#include <algorithm>
#include <alibi/position/rotary.hpp>
#include <alibi/position/xpos.hpp>
#include <alibi/view.hpp>
#include <optional>

#include "attention_layer.hpp"

namespace experiment {

/// How a model trained at shape.training_length rotates in sequences of `tokens`.
inline std::optional<alibi::RotaryConfig> rotary_config(const Shape& shape, Index tokens) {
  alibi::RotaryConfig config = {.trained_length = shape.training_length};
  switch (shape.method) {
    case Method::rotary:
    case Method::rotary_alibi:
      return config;
    case Method::rotary_interpolation:
      config.scaling = alibi::RotaryScaling::interpolation;
      break;
    case Method::rotary_ntk:
      config.scaling = alibi::RotaryScaling::ntk;
      break;
    case Method::rotary_yarn:
      config.scaling = alibi::RotaryScaling::yarn;
      break;
    default:
      return std::nullopt;
  }
  config.factor = std::max(1.0, double(tokens) / double(shape.training_length));
  return config;
}

/// xPos with the proportion of the paper, which trains at 1,024 tokens with a scale base of 512.
inline std::optional<alibi::XposConfig> xpos_config(const Shape& shape, Index tokens) {
  if (shape.method != Method::xpos) return std::nullopt;
  return alibi::XposConfig{.scale_base = double(shape.training_length) / 2, .center = tokens / 2};
}

/// The rotation of q and k, which are side by side with v in rows of [batch x tokens, 3 dim]. Does nothing for methods
/// without one.
class Rotation {
 public:
  Rotation(const Shape& shape, const Extent& extent) : shape_(shape), extent_(extent) {
    if (const auto config = rotary_config(shape, extent.tokens)) rotary_.emplace(shape.head_dim(), *config);
    if (const auto config = xpos_config(shape, extent.tokens)) xpos_.emplace(shape.head_dim(), *config);
  }

  void rotate(Matrix& qkv) const {
    if (rotary_) rotary_->rotate(heads_of(qkv, 0, 2));  // q and k in one call, which computes the sines once
    if (xpos_) {
      xpos_->embed_queries(heads_of(qkv, 0, 1));
      xpos_->embed_keys(heads_of(qkv, 1, 1));
    }
  }

  /// Replaces the gradient with respect to the rotated q and k by that with respect to q and k.
  void rotate_gradient(Matrix& grad_qkv) const {
    if (rotary_) rotary_->rotate_gradient(heads_of(grad_qkv, 0, 2));
    if (xpos_) {
      xpos_->queries_gradient(heads_of(grad_qkv, 0, 1));
      xpos_->keys_gradient(heads_of(grad_qkv, 1, 1));
    }
  }

 private:
  /// `count` of q, k and v from `first` on, as [batch, count x heads, tokens, head_dim].
  alibi::View<float> heads_of(Matrix& qkv, Index first, Index count) const {
    const Index row = 3 * shape_.dim, head_dim = shape_.head_dim();
    return alibi::view(qkv.data() + first * shape_.dim, {extent_.batch, count * shape_.heads, extent_.tokens, head_dim},
                       {extent_.tokens * row, head_dim, row, 1});
  }

  Shape shape_;
  Extent extent_;
  std::optional<alibi::Rotary> rotary_;
  std::optional<alibi::Xpos> xpos_;
};

}  // namespace experiment
