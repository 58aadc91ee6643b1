// Attention between the model and the library, with two implementations:
//
//   s_ij = τ q_i·k_j + b_h(i - j),   P = softmax(s) over j <= i,   o_i = Σ_j P_ij v_j
//
// The method determines b: -m_h x with slopes, w_h,bucket(x) for t5, otherwise 0.
//
// q, k and v are fused: they are side by side in the rows of one matrix. They are read there, and their gradients are
// written in the same layout.
#pragma once

#include <Eigen/Core>
#include <alibi/attention.hpp>
#include <alibi/backward.hpp>
#include <alibi/position/t5_bias.hpp>
#include <alibi/relative_bias.hpp>
#include <alibi/slopes.hpp>
#include <alibi/workspace.hpp>
#include <array>
#include <cmath>
#include <memory>
#include <string_view>
#include <vector>

#include "method.hpp"
#include "product.hpp"

namespace experiment {

enum class Backend { alibi, naive };
inline constexpr std::array<std::string_view, 2> kBackendNames = {"alibi", "naive"};
inline std::string_view name_of(Backend backend) { return kBackendNames[std::size_t(backend)]; }

struct Shape {
  Method method = Method::alibi;
  Backend backend = Backend::alibi;
  Index dim = 0, layers = 0, heads = 0;
  Index training_length = 0;  // bytes of a training sequence
  Index head_dim() const { return dim / heads; }
};

inline constexpr alibi::T5Buckets kT5Buckets = {};

/// Several sequences of one length.
struct Extent {
  Index batch = 0, tokens = 0;
  Index rows() const { return batch * tokens; }
};

/// The numbers that a forward saves for its backward pass.
struct Saved {
  Eigen::VectorXf lse;   // library: [batch x heads x tokens]
  Matrix probabilities;  // naive: [batch x heads x tokens, tokens]; of one head only, without training
};

/// Causal attention of one thread.
class Attention {
 public:
  /// `training`: a backward pass follows each forward.
  Attention(const Shape& shape, const Extent& extent, bool training)
      : shape_(shape), extent_(extent), training_(training) {}
  virtual ~Attention() = default;

  /// Called before the first layer. `t5` [heads, buckets]: the learned weights, used with Method::t5 only.
  virtual void begin(const MatrixMap& t5) = 0;
  /// qkv [batch x tokens, 3 dim], output [batch x tokens, dim].
  virtual void forward(const Matrix& qkv, Matrix& output, Saved& saved) = 0;
  /// The gradients have the same shapes; grad_qkv is overwritten.
  virtual void backward(const Matrix& grad_output, const Matrix& qkv, const Matrix& output, const Saved& saved,
                        Matrix& grad_qkv) = 0;
  /// Called after the last layer. grad_t5 [heads, buckets] is overwritten by the sum over all backward() since begin().
  virtual void end(MatrixMap& grad_t5) = 0;

 protected:
  /// A view of q, k or v, in the rows of [batch x tokens, 3 dim], as [batch, heads, tokens, head_dim].
  template <class Qkv>
  auto part(Qkv& qkv, Index which) const {
    return heads(qkv.data() + which * shape_.dim, 3 * shape_.dim);
  }
  /// A view of [batch x tokens, dim] as [batch, heads, tokens, head_dim].
  template <class Rows>
  auto whole(Rows& rows) const {
    return heads(rows.data(), shape_.dim);
  }

  Shape shape_;
  Extent extent_;
  bool training_;

 private:
  template <class T>
  alibi::View<T> heads(T* data, Index row) const {
    const Index head_dim = shape_.head_dim();
    return alibi::view(data, {extent_.batch, shape_.heads, extent_.tokens, head_dim},
                       {extent_.tokens * row, head_dim, row, 1});
  }
};

/// Attention in plain Eigen, written from the formulas. Each step computes a whole matrix.
class NaiveAttention : public Attention {
 public:
  using Attention::Attention;

  void begin(const MatrixMap& t5) override {
    const Index n = extent_.tokens;
    const Eigen::VectorXf slopes = alibi::slopes(shape_.heads);
    bias_.setZero(shape_.heads, n);
    grad_bias_.setZero(shape_.heads, n);
    for (Index h = 0; h < shape_.heads; h++)
      for (Index x = 0; x < n; x++) {
        if (has_slopes(shape_.method)) bias_(h, n - 1 - x) = -slopes[h] * float(x);
        if (shape_.method == Method::t5) bias_(h, n - 1 - x) = t5(h, alibi::t5_bucket(-x, kT5Buckets));
      }
  }

  void forward(const Matrix& qkv, Matrix& output, Saved& saved) override {
    const Index n = extent_.tokens, heads = shape_.heads, d = shape_.head_dim();
    saved.probabilities.resize(training_ ? extent_.batch * heads * n : n, n);
    for (Index b = 0; b < extent_.batch; b++)
      for (Index h = 0; h < heads; h++) {
        auto p = saved.probabilities.middleRows(training_ ? (b * heads + h) * n : 0, n);
        multiply(p, block(qkv, 0, b, h), transposed(block(qkv, 1, b, h)), scale());
        softmax(p, h);
        multiply(output.block(b * n, h * d, n, d), p, block(qkv, 2, b, h));
      }
  }

  void backward(const Matrix& grad_output, const Matrix& qkv, const Matrix& output, const Saved& saved,
                Matrix& grad_qkv) override {
    const Index n = extent_.tokens, heads = shape_.heads, d = shape_.head_dim();
    for (Index b = 0; b < extent_.batch; b++)
      for (Index h = 0; h < heads; h++) {
        const auto p = saved.probabilities.middleRows((b * heads + h) * n, n);
        const auto grad_o = grad_output.block(b * n, h * d, n, d), o = output.block(b * n, h * d, n, d);
        // o = P v
        multiply(block(grad_qkv, 2, b, h), transposed(p), grad_o);
        multiply(grad_scores_, grad_o, transposed(block(qkv, 2, b, h)));
        // P = softmax(s)
        row_sums_.noalias() = grad_o.cwiseProduct(o).rowwise().sum();
        grad_scores_.colwise() -= row_sums_;
        grad_scores_.array() *= p.array();
        // s = τ q k' + b
        if (shape_.method == Method::t5)
          for (Index i = 0; i < n; i++) grad_bias_.row(h).segment(n - 1 - i, i + 1) += grad_scores_.row(i).head(i + 1);
        multiply(block(grad_qkv, 0, b, h), grad_scores_, block(qkv, 1, b, h), scale());
        multiply(block(grad_qkv, 1, b, h), transposed(grad_scores_), block(qkv, 0, b, h), scale());
      }
  }

  void end(MatrixMap& grad_t5) override {
    grad_t5.setZero();
    if (shape_.method != Method::t5) return;
    for (Index x = 0; x < extent_.tokens; x++)
      grad_t5.col(alibi::t5_bucket(-x, kT5Buckets)) += grad_bias_.col(extent_.tokens - 1 - x);
  }

 private:
  float scale() const { return 1 / std::sqrt(float(shape_.head_dim())); }

  template <class Qkv>
  Eigen::Block<Qkv> block(Qkv& qkv, Index which, Index b, Index h) const {
    const Index n = extent_.tokens, d = shape_.head_dim();
    return {qkv, b * n, which * shape_.dim + h * d, n, d};
  }

  template <class Scores>
  void softmax(Scores& s, Index h) const {
    const Index n = extent_.tokens;
    for (Index i = 0; i < n; i++) {
      auto visible = s.row(i).head(i + 1).array();
      visible += bias_.row(h).segment(n - 1 - i, i + 1).array();
      visible = (visible - visible.maxCoeff()).exp();
      visible /= visible.sum();
      s.row(i).tail(n - 1 - i).setZero();
    }
  }

  Matrix bias_, grad_bias_;  // [heads, tokens], from the most distant key to the query's own, as in a row of scores
  Matrix grad_scores_;
  Eigen::VectorXf row_sums_;
};

/// Attention by this library.
class LibraryAttention : public Attention {
 public:
  using Attention::Attention;

  void begin(const MatrixMap& t5) override {
    if (shape_.method != Method::t5) return;
    table_ = alibi::t5_table(t5, kT5Buckets);
    layer_grad_table_.resize(table_.rows(), table_.cols());
    grad_table_.setZero(table_.rows(), table_.cols());
  }

  void forward(const Matrix& qkv, Matrix& output, Saved& saved) override {
    saved.lse.resize(extent_.rows() * shape_.heads);
    const auto call = [&](const auto& bias) {
      alibi::attention_with_lse_into(whole(output), saved.lse, part(qkv, 0), part(qkv, 1), part(qkv, 2), bias,
                                     {.workspace = &workspace_});
    };
    if (has_slopes(shape_.method))
      call(slopes_);
    else if (shape_.method == Method::t5)
      call(alibi::relative_bias(table_, alibi::t5_first_distance(kT5Buckets)));
    else
      call(alibi::no_bias);
  }

  void backward(const Matrix& grad_output, const Matrix& qkv, const Matrix& output, const Saved& saved,
                Matrix& grad_qkv) override {
    const auto q = part(qkv, 0), k = part(qkv, 1), v = part(qkv, 2), o = whole(output);
    const auto grad_q = part(grad_qkv, 0), grad_k = part(grad_qkv, 1), grad_v = part(grad_qkv, 2);
    const auto call = [&](const alibi::GradientViews<float>& gradients, const auto& bias) {
      alibi::attention_backward_into(gradients, whole(grad_output), q, k, v, bias, {o, saved.lse},
                                     {.workspace = &workspace_});
    };
    if (has_slopes(shape_.method)) {  // the slopes are not learned
      call({grad_q, grad_k, grad_v}, slopes_);
    } else if (shape_.method == Method::t5) {
      call({grad_q, grad_k, grad_v, layer_grad_table_},
           alibi::relative_bias(table_, alibi::t5_first_distance(kT5Buckets)));
      grad_table_ += layer_grad_table_;
    } else {
      call({grad_q, grad_k, grad_v}, alibi::no_bias);
    }
  }

  void end(MatrixMap& grad_t5) override {
    if (shape_.method == Method::t5)
      grad_t5 = alibi::t5_weights_gradient(grad_table_, kT5Buckets);
    else
      grad_t5.setZero();
  }

 private:
  Eigen::VectorXf slopes_ = alibi::slopes(shape_.heads);
  Matrix table_, grad_table_, layer_grad_table_;  // [heads, distances]
  alibi::Workspace workspace_;
};

inline std::unique_ptr<Attention> make_attention(const Shape& shape, const Extent& extent, bool training) {
  if (shape.backend == Backend::naive) return std::make_unique<NaiveAttention>(shape, extent, training);
  return std::make_unique<LibraryAttention>(shape, extent, training);
}

}  // namespace experiment
