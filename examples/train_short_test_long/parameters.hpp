// The parameters of the language model, or numbers of their shape, such as gradients: one vector of floats, and the
// matrices in it.
#pragma once

#include <Eigen/Core>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention_layer.hpp"
#include "product.hpp"
#include "random.hpp"

namespace experiment {

constexpr Index kSymbols = 256, kUp = 4;

/// The parameters of a layer norm.
struct NormParameters {
  MatrixMap weight;  // [1, dim]
  MatrixMap bias;    // [1, dim]
};

struct LayerParameters {
  NormParameters attention_norm;
  MatrixMap qkv;  // [dim, 3 dim]: q, k, v, each [heads, head_dim]
  MatrixMap out;  // [dim, dim]
  NormParameters mlp_norm;
  MatrixMap up;    // [dim, 4 dim]
  MatrixMap down;  // [4 dim, dim]
};

class Parameters {
 public:
  explicit Parameters(const Shape& shape)
      : flat(Eigen::VectorXf::Zero(size_of(shape))),
        next_(flat.data()),
        embedding(take(kSymbols, shape.dim)),
        embedding_norm(take_norm(shape.dim)),
        final_norm(take_norm(shape.dim)) {
    const Index d = shape.dim;
    for (Index l = 0; l < shape.layers; l++)  // braces are evaluated from left to right
      layers.push_back(
          LayerParameters{take_norm(d), take(d, 3 * d), take(d, d), take_norm(d), take(d, kUp * d), take(kUp * d, d)});
    // Last, so that the methods start from the same numbers in everything else.
    if (shape.method == Method::t5) new (&t5) MatrixMap(take(shape.heads, kT5Buckets.buckets));
    if (shape.method == Method::learned) new (&positions) MatrixMap(take(shape.training_length, d));
  }
  // Not copyable, because the maps of a copy would refer to the original.
  Parameters(const Parameters&) = delete;
  Parameters& operator=(const Parameters&) = delete;

  /// The number of floats.
  static Index size_of(const Shape& shape) {
    const Index d = shape.dim, norm = 2 * round_up(d);
    Index size = round_up(kSymbols * d) + 2 * norm +
                 shape.layers * (2 * norm + round_up(3 * d * d) + round_up(d * d) + 2 * round_up(kUp * d * d));
    if (shape.method == Method::t5) size += round_up(shape.heads * kT5Buckets.buckets);
    if (shape.method == Method::learned) size += round_up(shape.training_length * d);
    return size;
  }

  Eigen::VectorXf flat;

 private:
  // Each matrix begins on a cache line. Eigen then cuts it into vectors in the same way in each run, which fixes every
  // bit.
  static Index round_up(Index count) { return (count + 15) / 16 * 16; }

  MatrixMap take(Index rows, Index cols) {
    float* const data = next_;
    next_ += round_up(rows * cols);
    return {data, rows, cols};
  }
  NormParameters take_norm(Index dim) { return {take(1, dim), take(1, dim)}; }

  float* next_;

 public:
  MatrixMap embedding;  // [symbols, dim], E
  NormParameters embedding_norm, final_norm;
  std::vector<LayerParameters> layers;
  MatrixMap t5 = {nullptr, 0, 0};         // [heads, buckets], the bias of Method::t5; empty for others
  MatrixMap positions = {nullptr, 0, 0};  // [training_length, dim], added by Method::learned; empty for others
};

/// Normal numbers, scaled so that each product keeps the size of its input. The two matrices of a layer whose products
/// are added to x are smaller, by the number of additions. Norms begin as the identity.
inline void initialise(Parameters& parameters, const Shape& shape, std::uint64_t seed) {
  const auto fill = [&](MatrixMap& matrix, double deviation) {
    for (Index i = 0; i < matrix.size(); i++) {
      const Index place = matrix.data() + i - parameters.flat.data();
      matrix.data()[i] = float(deviation * random_normal(seed, Stream::parameters, std::uint64_t(place)));
    }
  };
  const double of_dim = 1 / std::sqrt(double(shape.dim)), adds = 1 / std::sqrt(2 * double(shape.layers));
  fill(parameters.embedding, of_dim);
  fill(parameters.positions, of_dim);
  parameters.embedding_norm.weight.setOnes();
  parameters.final_norm.weight.setOnes();
  for (LayerParameters& layer : parameters.layers) {
    layer.attention_norm.weight.setOnes();
    layer.mlp_norm.weight.setOnes();
    fill(layer.qkv, of_dim);
    fill(layer.out, of_dim * adds);
    fill(layer.up, of_dim);
    fill(layer.down, of_dim / std::sqrt(double(kUp)) * adds);
  }
}

}  // namespace experiment
