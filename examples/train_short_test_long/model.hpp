// A decoder-only language model over bytes, forward and backward, in plain Eigen. With ALiBi it is BLOOM's architecture
// without the biases of matrix products, so that BLOOM's programs run it (bloom_folder.hpp):
//
//   x = norm(E[byte])  (+ positions)
//   a layer:  x += attention(norm(x) W_qkv) W_out
//             x += gelu(norm(x) W_up) W_down
//   logits = norm(x) E'
//
// Every norm is a layer norm with its own weight and bias. `rows` below is batch x tokens. Every matrix is row-major.
#pragma once

#include <Eigen/Core>
#include <alibi/position/sinusoidal.hpp>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "attention_layer.hpp"
#include "layers.hpp"
#include "parameters.hpp"
#include "product.hpp"
#include "rotation.hpp"

namespace experiment {

using Clock = std::chrono::steady_clock;
inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// The forward and backward pass of one thread over sequences of one length, with their memory. Sequences are pointers
/// to tokens + 1 bytes. Each byte is predicted from the bytes before it in its sequence.
class Pass {
 public:
  /// `training`: keeps the activations of every layer for the backward pass.
  Pass(const Shape& shape, const Extent& extent, bool training)
      : shape_(shape), extent_(extent), attention_(make_attention(shape, extent, training)), rotation_(shape, extent) {
    const Index n = extent.rows(), d = shape.dim;
    if (shape.method == Method::sinusoidal) sines_ = alibi::sinusoidal(extent.tokens, d);
    x_.resize(n, d);
    embedded_.resize(n, d);
    embedding_norm_.resize(n, d);
    final_norm_.resize(n, d);
    layers_.resize(std::size_t(training ? shape.layers : 1));
    for (Activations& a : layers_) a.resize(n, d);
    if (training) grad_hidden_.resize(n, kUp * d);
  }

  const Extent& extent() const { return extent_; }
  /// The time inside attention so far, without the rotation of q and k.
  double attention_seconds() const { return attention_seconds_; }
  /// [rows, symbols], of the last forward().
  const Matrix& logits() const { return logits_; }

  /// sequences [batch].
  void forward(const Parameters& parameters, std::span<const char* const> sequences) {
    sequences_.assign(sequences.begin(), sequences.end());
    embed(parameters);
    attention_->begin(parameters.t5);
    for (Index l = 0; l < shape_.layers; l++) forward_layer(parameters.layers[std::size_t(l)], activations(l));
    multiply(logits_, final_norm_.forward(x_, parameters.final_norm), transposed(parameters.embedding));
  }

  /// Called once after a forward. The sum over the sequences of -ln p(byte), in nats, of the last `scored` bytes of
  /// each. Replaces the logits by probabilities.
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
    // logits = norm(x) E'
    multiply(grad.embedding, transposed(logits_), final_norm_.output());
    multiply(grad_normed_, logits_, parameters.embedding);
    grad_x_.setZero(extent_.rows(), shape_.dim);
    final_norm_.backward(grad_normed_, parameters.final_norm, grad_x_, grad.final_norm);

    for (Index l = shape_.layers; l-- > 0;)
      backward_layer(parameters.layers[std::size_t(l)], activations(l), grad.layers[std::size_t(l)]);
    attention_->end(grad.t5);
    embed_backward(parameters, grad);
  }

 private:
  struct Activations {
    Norm attention_norm, mlp_norm;
    Matrix qkv;           // [rows, 3 dim]
    Matrix attended;      // [rows, dim]
    Saved saved;          // of attention
    Matrix hidden, gelu;  // [rows, 4 dim]

    void resize(Index rows, Index dim) {
      attention_norm.resize(rows, dim);
      mlp_norm.resize(rows, dim);
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

  /// x = norm(E[byte]) (+ positions)
  void embed(const Parameters& parameters) {
    const Index tokens = extent_.tokens;
    for (Index b = 0; b < extent_.batch; b++)
      for (Index t = 0; t < tokens; t++) embedded_.row(b * tokens + t) = parameters.embedding.row(symbol(b, t));
    x_ = embedding_norm_.forward(embedded_, parameters.embedding_norm);
    for (Index b = 0; b < extent_.batch; b++) {
      if (shape_.method == Method::sinusoidal) x_.middleRows(b * tokens, tokens) += sines_;
      if (shape_.method == Method::learned) x_.middleRows(b * tokens, tokens) += parameters.positions.topRows(tokens);
    }
  }

  /// Adds to grad.embedding, which holds the part of the logits.
  void embed_backward(const Parameters& parameters, Parameters& grad) {
    const Index tokens = extent_.tokens;
    grad.positions.setZero();
    if (shape_.method == Method::learned)
      for (Index b = 0; b < extent_.batch; b++)
        grad.positions.topRows(tokens) += grad_x_.middleRows(b * tokens, tokens);
    grad_normed_.setZero();
    embedding_norm_.backward(grad_x_, parameters.embedding_norm, grad_normed_, grad.embedding_norm);
    for (Index b = 0; b < extent_.batch; b++)
      for (Index t = 0; t < tokens; t++) grad.embedding.row(symbol(b, t)) += grad_normed_.row(b * tokens + t);
  }

  void forward_layer(const LayerParameters& layer, Activations& a) {
    multiply(a.qkv, a.attention_norm.forward(x_, layer.attention_norm), layer.qkv);
    rotation_.rotate(a.qkv);
    timed_attention([&] { attention_->forward(a.qkv, a.attended, a.saved); });
    add_product(x_, a.attended, layer.out);

    multiply(a.hidden, a.mlp_norm.forward(x_, layer.mlp_norm), layer.up);
    experiment::gelu(a.hidden, a.gelu);
    add_product(x_, a.gelu, layer.down);
  }

  /// Changes grad_x_ from the gradient with respect to x after the layer to that before the layer.
  void backward_layer(const LayerParameters& layer, const Activations& a, LayerParameters& grad) {
    // x += gelu(hidden) W_down
    multiply(grad.down, transposed(a.gelu), grad_x_);
    multiply(grad_hidden_, grad_x_, transposed(layer.down));
    gelu_backward(a.hidden, grad_hidden_);
    // hidden = norm(x) W_up
    multiply(grad.up, transposed(a.mlp_norm.output()), grad_hidden_);
    multiply(grad_normed_, grad_hidden_, transposed(layer.up));
    a.mlp_norm.backward(grad_normed_, layer.mlp_norm, grad_x_, grad.mlp_norm);

    // x += attended W_out
    multiply(grad.out, transposed(a.attended), grad_x_);
    multiply(grad_normed_, grad_x_, transposed(layer.out));
    // attended = attention(qkv)
    grad_qkv_.resize(extent_.rows(), 3 * shape_.dim);
    timed_attention([&] { attention_->backward(grad_normed_, a.qkv, a.attended, a.saved, grad_qkv_); });
    rotation_.rotate_gradient(grad_qkv_);
    // qkv = norm(x) W_qkv
    multiply(grad.qkv, transposed(a.attention_norm.output()), grad_qkv_);
    multiply(grad_normed_, grad_qkv_, transposed(layer.qkv));
    a.attention_norm.backward(grad_normed_, layer.attention_norm, grad_x_, grad.attention_norm);
  }

  Shape shape_;
  Extent extent_;
  std::unique_ptr<Attention> attention_;
  Rotation rotation_;
  Matrix sines_;  // [tokens, dim], of Method::sinusoidal
  std::vector<const char*> sequences_;
  std::vector<Activations> layers_;
  Matrix x_, embedded_;  // [rows, dim]
  Norm embedding_norm_, final_norm_;
  Matrix logits_;  // [rows, symbols]
  Matrix grad_x_, grad_normed_, grad_qkv_, grad_hidden_;
  double attention_seconds_ = 0;
};

}  // namespace experiment
