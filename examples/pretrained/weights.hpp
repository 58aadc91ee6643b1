// The weights of a model, in memory or straight from the file.
//
// A run in float, or in the dtype of the file, reads a matrix where it lies in the file. A run in another 16-bit dtype
// rounds a copy of it, once.
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

/// A matrix [rows, cols], row-major. The weight of a linear layer is [out, in].
struct Matrix {
  const void* data = nullptr;
  Dtype dtype = Dtype::float32;
  Index rows = 0, cols = 0;
  std::shared_ptr<std::byte[]> owned = nullptr;  // the numbers, if they are not in a mapped file

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

/// Weights for a run in `dtype`. They point into the checkpoint. Throws std::runtime_error that names file and tensor
/// if one is missing, or has another shape or dtype.
Weights read_weights(const Checkpoint& checkpoint, const Configuration& configuration, Dtype dtype);

}  // namespace pretrained
