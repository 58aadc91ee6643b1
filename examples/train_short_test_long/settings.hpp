// The settings that determine the result of one method's run to the last bit. A checkpoint is valid only for the same
// settings.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "attention_layer.hpp"

namespace experiment {

/// The number of parts of a batch, each with its own gradients. It does not depend on the number of threads, and
/// therefore neither do the results.
constexpr Index kShards = 8;

/// The longest evaluation, in training lengths.
constexpr Index kLongest = 16;

struct Settings {
  Shape shape = {.dim = 128, .layers = 4, .heads = 4, .training_length = 256};
  Index batch = 16;  // sequences
  Index steps = 2000;
  Index evaluated = 1 << 18;  // bytes of the validation text, at most
  double learning_rate = 2e-3;
  std::uint64_t seed = 1;
  std::uint64_t text_hash = 0;

  /// Of a training sequence, in bytes.
  Index length() const { return shape.training_length; }
};

inline std::string exact_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.17g", value);
  return text;
}

/// The names and values as text.
inline std::vector<std::pair<std::string, std::string>> fields_of(const Settings& settings) {
  const Shape& shape = settings.shape;
  return {{"method", std::string(name_of(shape.method))},
          {"attention", std::string(name_of(shape.backend))},
          {"dim", std::to_string(shape.dim)},
          {"layers", std::to_string(shape.layers)},
          {"heads", std::to_string(shape.heads)},
          {"length", std::to_string(settings.length())},
          {"batch", std::to_string(settings.batch)},
          {"steps", std::to_string(settings.steps)},
          {"evaluate", std::to_string(settings.evaluated)},
          {"learning-rate", exact_text(settings.learning_rate)},
          {"seed", std::to_string(settings.seed)},
          {"text (its hash)", std::to_string(settings.text_hash)}};
}

}  // namespace experiment
