// A decoder-only language model over bytes, forward and backward, in plain Eigen:
//
//   x = √dim E[byte]  (+ positions)
//   a layer:  x += attention(norm(x) W_qkv) W_out
//             x += gelu(norm(x) W_up) W_down
//   logits = (norm(x) ⊙ g) E'
//
// norm divides a row by its root mean square. It needs no gain before a matrix product. There are no biases. `rows`
// below is batch x tokens. Every matrix is row-major.
#pragma once

#include <Eigen/Core>
#include <alibi/position/rotary.hpp>
#include <alibi/position/sinusoidal.hpp>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numbers>
#include <optional>
#include <span>
#include <vector>

#include "attention_layer.hpp"
#include "product.hpp"
#include "random.hpp"

namespace experiment {

using Clock = std::chrono::steady_clock;
inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr Index kSymbols = 256, kUp = 4;
constexpr float kNormEpsilon = 1e-5F;

/// The parameters, or numbers of their shape: one vector of floats, and the matrices in it.
class Parameters {
 public:
  struct Layer {
    MatrixMap qkv;   // [dim, 3 dim]
    MatrixMap out;   // [dim, dim]
    MatrixMap up;    // [dim, 4 dim]
    MatrixMap down;  // [4 dim, dim]
  };

  explicit Parameters(const Shape& shape)
      : flat(Eigen::VectorXf::Zero(size_of(shape))),
        next_(flat.data()),
        embedding(take(kSymbols, shape.dim)),
        gain(take(1, shape.dim)),
        t5(take(shape.heads, kT5Buckets.buckets)) {
    const Index d = shape.dim;
    for (Index l = 0; l < shape.layers; l++)  // braces are evaluated from left to right
      layers.push_back(Layer{take(d, 3 * d), take(d, d), take(d, kUp * d), take(kUp * d, d)});
  }
  // Not copyable, because the maps of a copy would refer to the original.
  Parameters(const Parameters&) = delete;
  Parameters& operator=(const Parameters&) = delete;

  /// The number of floats.
  static Index size_of(const Shape& shape) {
    const Index d = shape.dim;
    return round_up(kSymbols * d) + round_up(d) + round_up(shape.heads * kT5Buckets.buckets) +
           shape.layers * (round_up(3 * d * d) + round_up(d * d) + 2 * round_up(kUp * d * d));
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

  float* next_;

 public:
  MatrixMap embedding;  // [symbols, dim], E
  MatrixMap gain;       // [1, dim], g
  MatrixMap t5;         // [heads, buckets], the bias of Method::t5
  std::vector<Layer> layers;
};

/// Normal numbers, scaled so that each product keeps the size of its input. The two matrices of a layer whose products
/// are added to x are smaller, by the number of additions.
inline void initialise(Parameters& parameters, const Shape& shape, std::uint64_t seed) {
  const auto fill = [&](MatrixMap& matrix, double deviation) {
    for (Index i = 0; i < matrix.size(); i++) {
      const Index place = matrix.data() + i - parameters.flat.data();
      matrix.data()[i] = float(deviation * random_normal(seed, Stream::parameters, std::uint64_t(place)));
    }
  };
  const double of_dim = 1 / std::sqrt(double(shape.dim)), adds = 1 / std::sqrt(2 * double(shape.layers));
  fill(parameters.embedding, of_dim);
  parameters.gain.setOnes();
  for (Parameters::Layer& layer : parameters.layers) {
    fill(layer.qkv, of_dim);
    fill(layer.out, of_dim * adds);
    fill(layer.up, of_dim);
    fill(layer.down, of_dim / std::sqrt(double(kUp)) * adds);
  }
}

// Parts

/// A matrix whose rows are divided by their root mean square.
struct Normed {
  Matrix rows;              // [rows, dim]
  Eigen::VectorXf inverse;  // [rows], 1 / root mean square

  void resize(Index count, Index dim) {
    rows.resize(count, dim);
    inverse.resize(count);
  }
};

/// x [rows, dim].
inline void norm(const Matrix& x, Normed& normed) {
  for (Index r = 0; r < x.rows(); r++) {
    normed.inverse[r] = 1 / std::sqrt(x.row(r).squaredNorm() / float(x.cols()) + kNormEpsilon);
    normed.rows.row(r) = x.row(r) * normed.inverse[r];
  }
}

/// grad_normed [rows, dim]; adds to grad_x [rows, dim].
inline void norm_backward(const Matrix& grad_normed, const Normed& normed, Matrix& grad_x) {
  for (Index r = 0; r < grad_x.rows(); r++) {
    // n = x / sqrt(mean(x²) + ε)
    const float along = grad_normed.row(r).dot(normed.rows.row(r)) / float(grad_x.cols());
    grad_x.row(r) += normed.inverse[r] * (grad_normed.row(r) - along * normed.rows.row(r));
  }
}

constexpr float kGeluCubic = 0.044715F;
inline const float kGeluScale = std::sqrt(2 / std::numbers::pi_v<float>);

/// x, y [rows, cols]: the approximation by tanh of Hendrycks and Gimpel, arXiv 1606.08415.
inline void gelu(const Matrix& x, Matrix& y) {
  for (Index r = 0; r < x.rows(); r++) {
    const auto a = x.row(r).array();
    y.row(r).array() = 0.5F * a * (1 + (kGeluScale * (a + kGeluCubic * a.cube())).tanh());
  }
}

/// Converts the gradient with respect to y to that with respect to x, in place.
inline void gelu_backward(const Matrix& x, Matrix& grad) {
  Eigen::Array<float, 1, Eigen::Dynamic> tanh(x.cols());
  for (Index r = 0; r < x.rows(); r++) {
    const auto a = x.row(r).array();
    // y = a (1 + tanh(s (a + c a³))) / 2
    tanh = (kGeluScale * (a + kGeluCubic * a.cube())).tanh();
    grad.row(r).array() *= 0.5F * (1 + tanh + a * (1 - tanh.square()) * kGeluScale * (1 + 3 * kGeluCubic * a.square()));
  }
}

// Model

/// The forward and backward pass of one thread over sequences of one length, with their memory. Sequences are pointers
/// to tokens + 1 bytes. Each byte is predicted from the bytes before it in its sequence.
class Pass {
 public:
  /// `training`: keeps the activations of every layer for the backward pass.
  Pass(const Shape& shape, const Extent& extent, bool training)
      : shape_(shape), extent_(extent), attention_(make_attention(shape, extent, training)) {
    const Index n = extent.rows(), d = shape.dim;
    if (shape.method == Method::sinusoidal) positions_ = alibi::sinusoidal(extent.tokens, d);
    if (shape.method == Method::rotary) rotary_.emplace(shape.head_dim());
    x_.resize(n, d);
    final_.resize(n, d);
    layers_.resize(std::size_t(training ? shape.layers : 1));
    for (Activations& a : layers_) a.resize(n, d);
    if (training) grad_hidden_.resize(n, kUp * d);
  }

  const Extent& extent() const { return extent_; }
  /// The time inside attention so far, without the rotation of q and k.
  double attention_seconds() const { return attention_seconds_; }

  /// sequences [batch].
  void forward(const Parameters& parameters, std::span<const char* const> sequences) {
    sequences_.assign(sequences.begin(), sequences.end());
    embed(parameters);
    attention_->begin(parameters.t5);
    for (Index l = 0; l < shape_.layers; l++) forward_layer(parameters.layers[std::size_t(l)], activations(l));
    norm(x_, final_);
    scaled_ = final_.rows.array().rowwise() * parameters.gain.row(0).array();
    multiply(logits_, scaled_, transposed(parameters.embedding));
  }

  /// Called once after a forward. The sum over the sequences of -ln p(byte), in nats, of the last `scored` bytes of
  /// each.
  double loss(Index scored) {
    double sum = 0;
    for (Index b = 0; b < extent_.batch; b++)
      for (Index t = extent_.tokens - scored; t < extent_.tokens; t++) {
        auto row = logits_.row(b * extent_.tokens + t).array();
        const float largest = row.maxCoeff(), wanted = row[symbol(b, t + 1)];
        row = (row - largest).exp();
        const float total = row.sum();
        row /= total;
        sum += std::log(double(total)) + double(largest) - double(wanted);
      }
    return sum;
  }

  /// Called after loss() of all bytes. Overwrites `grad` by the gradient of `scale` times that loss.
  void backward(const Parameters& parameters, float scale, Parameters& grad) {
    // loss = -ln softmax(logits)[byte]
    for (Index b = 0; b < extent_.batch; b++)
      for (Index t = 0; t < extent_.tokens; t++) logits_(b * extent_.tokens + t, symbol(b, t + 1)) -= 1;
    logits_ *= scale;
    // logits = scaled E'
    multiply(grad.embedding, transposed(logits_), scaled_);
    multiply(grad_normed_, logits_, parameters.embedding);
    // scaled = norm(x) ⊙ g
    grad.gain = grad_normed_.cwiseProduct(final_.rows).colwise().sum();
    grad_normed_.array().rowwise() *= parameters.gain.row(0).array();
    grad_x_.setZero(extent_.rows(), shape_.dim);
    norm_backward(grad_normed_, final_, grad_x_);

    for (Index l = shape_.layers; l-- > 0;)
      backward_layer(parameters.layers[std::size_t(l)], activations(l), grad.layers[std::size_t(l)]);
    attention_->end(grad.t5);
    // x = √dim E[byte]
    for (Index b = 0; b < extent_.batch; b++)
      for (Index t = 0; t < extent_.tokens; t++)
        grad.embedding.row(symbol(b, t)) += std::sqrt(float(shape_.dim)) * grad_x_.row(b * extent_.tokens + t);
  }

 private:
  struct Activations {
    Normed before_attention, before_mlp;
    Matrix qkv;           // [rows, 3 dim]
    Matrix attended;      // [rows, dim]
    Saved saved;          // of attention
    Matrix hidden, gelu;  // [rows, 4 dim]

    void resize(Index rows, Index dim) {
      before_attention.resize(rows, dim);
      before_mlp.resize(rows, dim);
      qkv.resize(rows, 3 * dim);
      attended.resize(rows, dim);
      hidden.resize(rows, kUp * dim);
      gelu.resize(rows, kUp * dim);
    }
  };

  Activations& activations(Index layer) { return layers_[std::size_t(layer) % layers_.size()]; }
  Index symbol(Index b, Index t) const { return static_cast<unsigned char>(sequences_[std::size_t(b)][t]); }

  template <class Call>
  void timed_attention(const Call& call) {
    const auto start = Clock::now();
    call();
    attention_seconds_ += seconds_since(start);
  }

  void embed(const Parameters& parameters) {
    for (Index b = 0; b < extent_.batch; b++) {
      for (Index t = 0; t < extent_.tokens; t++)
        x_.row(b * extent_.tokens + t) = std::sqrt(float(shape_.dim)) * parameters.embedding.row(symbol(b, t));
      if (shape_.method == Method::sinusoidal) x_.middleRows(b * extent_.tokens, extent_.tokens) += positions_;
    }
  }

  void forward_layer(const Parameters::Layer& layer, Activations& a) {
    norm(x_, a.before_attention);
    multiply(a.qkv, a.before_attention.rows, layer.qkv);
    if (rotary_) rotary_->rotate(queries_and_keys(a.qkv, shape_, extent_));
    timed_attention([&] { attention_->forward(a.qkv, a.attended, a.saved); });
    add_product(x_, a.attended, layer.out);

    norm(x_, a.before_mlp);
    multiply(a.hidden, a.before_mlp.rows, layer.up);
    experiment::gelu(a.hidden, a.gelu);
    add_product(x_, a.gelu, layer.down);
  }

  /// Changes grad_x_ from the gradient with respect to x after the layer to that before the layer.
  void backward_layer(const Parameters::Layer& layer, const Activations& a, Parameters::Layer& grad) {
    // x += gelu(hidden) W_down
    multiply(grad.down, transposed(a.gelu), grad_x_);
    multiply(grad_hidden_, grad_x_, transposed(layer.down));
    gelu_backward(a.hidden, grad_hidden_);
    // hidden = norm(x) W_up
    multiply(grad.up, transposed(a.before_mlp.rows), grad_hidden_);
    multiply(grad_normed_, grad_hidden_, transposed(layer.up));
    norm_backward(grad_normed_, a.before_mlp, grad_x_);

    // x += attended W_out
    multiply(grad.out, transposed(a.attended), grad_x_);
    multiply(grad_normed_, grad_x_, transposed(layer.out));
    // attended = attention(qkv)
    grad_qkv_.resize(extent_.rows(), 3 * shape_.dim);
    timed_attention([&] { attention_->backward(grad_normed_, a.qkv, a.attended, a.saved, grad_qkv_); });
    if (rotary_) rotary_->rotate_gradient(queries_and_keys(grad_qkv_, shape_, extent_));
    // qkv = norm(x) W_qkv
    multiply(grad.qkv, transposed(a.before_attention.rows), grad_qkv_);
    multiply(grad_normed_, grad_qkv_, transposed(layer.qkv));
    norm_backward(grad_normed_, a.before_attention, grad_x_);
  }

  Shape shape_;
  Extent extent_;
  std::unique_ptr<Attention> attention_;
  std::optional<alibi::Rotary> rotary_;
  Matrix positions_;  // [tokens, dim]
  std::vector<const char*> sequences_;
  std::vector<Activations> layers_;
  Matrix x_;  // [rows, dim]
  Normed final_;
  Matrix scaled_, logits_;  // [rows, dim], [rows, symbols]
  Matrix grad_x_, grad_normed_, grad_qkv_, grad_hidden_;
  double attention_seconds_ = 0;
};

}  // namespace experiment
