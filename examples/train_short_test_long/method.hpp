// The position methods that are compared, and what distinguishes them:
//
//   method                  score of query i and key j, before softmax        added to the embeddings
//   alibi                   τ q_i·k_j - m_h (i - j), the authors' slopes
//   t5                      τ q_i·k_j + w_h,bucket(i - j), learned
//   rotary                  τ R_i q_i · R_j k_j, rotated by positions
//   rotary-alibi            τ R_i q_i · R_j k_j - m_h (i - j)
//   xpos                    τ X_i q_i · X_j k_j, rotated and decaying
//   sinusoidal              τ q_i·k_j                                         fixed sines
//   learned                 τ q_i·k_j                                         learned, one a position
//
// Three more change the rotation of the trained rotary model at evaluation, for windows longer than those of the
// training: rotary-interpolation, rotary-ntk and rotary-yarn (alibi/position/rotary.hpp has their formulas).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace experiment {

enum class Method : std::int64_t {
  alibi,
  t5,
  rotary,
  rotary_alibi,
  rotary_interpolation,
  rotary_ntk,
  rotary_yarn,
  xpos,
  sinusoidal,
  learned
};
inline constexpr std::array<std::string_view, 10> kMethodNames = {
    "alibi",      "t5",          "rotary", "rotary-alibi", "rotary-interpolation",
    "rotary-ntk", "rotary-yarn", "xpos",   "sinusoidal",   "learned"};
inline constexpr std::string_view name_of(Method method) { return kMethodNames[std::size_t(method)]; }

/// The method of the model that a method evaluates.
inline constexpr Method trained_as(Method method) {
  switch (method) {
    case Method::rotary_interpolation:
    case Method::rotary_ntk:
    case Method::rotary_yarn:
      return Method::rotary;
    default:
      return method;
  }
}

inline constexpr bool has_slopes(Method method) { return method == Method::alibi || method == Method::rotary_alibi; }

/// Whether a model has no positions beyond the training length.
inline constexpr bool ends_at_training_length(Method method) { return method == Method::learned; }

}  // namespace experiment
