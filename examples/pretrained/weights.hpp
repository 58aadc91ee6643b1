// The weights of a model, in memory or straight from the file.
//
// A matrix stays in the format of the file where that says the same: 16-bit weights are multiplied in float without a
// copy of them in float. Only where the run's own 16-bit format is another one are they rounded to it, once.
#pragma once

#include <Eigen/Core>
#include <cstddef>
#include <memory>
#include <optional>
#include <vector>

#include "configuration.hpp"
#include "numbers.hpp"
#include "safetensors.hpp"

namespace pretrained {

/// A matrix [rows, cols], row-major: of a linear layer [out, in].
struct Matrix {
  const void* data = nullptr;
  Dtype dtype = Dtype::float32;
  Index rows = 0, cols = 0;
  std::shared_ptr<std::byte[]> owned = nullptr;  // where it is not in a mapped file

  template <class W>
  const W* row(Index i) const {
    return static_cast<const W*>(data) + i * cols;
  }
};

struct Norm {
  Eigen::ArrayXf weight, bias;  // no bias: zeros
};

struct Linear {
  Matrix weight;
  Eigen::ArrayXf bias;  // no bias: empty
};

struct Layer {
  Norm attention_norm, feed_forward_norm;  // the second is empty for parallel attention
  Linear qkv, output, up, down;
};

struct Weights {
  Matrix embedding, head;
  std::optional<Norm> embedding_norm;
  std::vector<Layer> layers;
  Norm final_norm;
};

/// Weights for a run in `dtype`; they refer to the checkpoint. Throws std::runtime_error that names file and tensor for
/// one that is missing, or of another shape or type.
Weights read_weights(const Checkpoint& checkpoint, const Configuration& configuration, Dtype dtype);

}  // namespace pretrained
