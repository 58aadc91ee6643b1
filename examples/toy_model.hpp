// The smallest language model that needs attention, for the examples of caches: one layer with random weights, over the
// letters a to z. A model of more layers has a cache for each, and does with all of them what the examples do with one.
#pragma once

#include <algorithm>
#include <alibi/alibi.hpp>
#include <cmath>
#include <span>
#include <string>
#include <vector>

using alibi::Index;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

class ToyModel {
 public:
  static constexpr Index kLetters = 26, kHeads = 4, kHeadDim = 16, kWidth = kHeads * kHeadDim;

  /// q, k and v of tokens, side by side: [tokens, 3 x heads x head_dim].
  Matrix project(const std::string& tokens) const {
    Matrix fused(Index(tokens.size()), 3 * kWidth);
    for (Index i = 0; i < fused.rows(); i++) fused.row(i) = of_letter_.row(tokens[std::size_t(i)] - 'a');
    return fused;
  }
  /// Views of them, for `batch` sequences of as many tokens each: [batch, heads, tokens, head_dim].
  static alibi::QkvViews<const float> views(const Matrix& fused, Index batch) {
    return alibi::view_bs3hd(fused.data(),
                             {.batch = batch, .tokens = fused.rows() / batch, .heads = kHeads, .head_dim = kHeadDim});
  }
  /// A view of what attention writes for them, [batch x tokens, heads x head_dim].
  static alibi::View<float> view(Matrix& attended, Index batch) {
    return alibi::view_bshd(attended.data(),
                            {.batch = batch, .tokens = attended.rows() / batch, .heads = kHeads, .head_dim = kHeadDim});
  }
  const Eigen::VectorXf& slopes() const { return slopes_; }

  /// The logarithms of the probabilities of the next letter, [letters], after a token and what it attended to.
  Eigen::VectorXf next(char token, const Eigen::Ref<const Eigen::RowVectorXf>& attended) const {
    const Eigen::RowVectorXf hidden = embedding_.row(token - 'a') + 4 * attended;
    Eigen::VectorXf logits = 0.3F * output_ * hidden.transpose();
    double sum = 0;
    for (const float x : logits) sum += std::exp(double(x));
    logits.array() -= float(std::log(sum));
    return logits;
  }

  /// Text to begin with: the same in every run.
  static std::string prompt(Index length, unsigned seed) {
    std::string text;
    for (Index i = 0; i < length; i++) {
      seed = seed * 1664525 + 1013904223;  // Numerical Recipes, ranqd1
      text += char('a' + (seed >> 16) % kLetters);
    }
    return text;
  }

 private:
  // Random numbers of Eigen, the same in every run.
  Matrix embedding_ = Matrix::Random(kLetters, kWidth), output_ = Matrix::Random(kLetters, kWidth);
  Matrix weights_ = Matrix::Random(kWidth, 3 * kWidth) / 3, of_letter_ = embedding_.lazyProduct(weights_);
  Eigen::VectorXf slopes_ = alibi::slopes(kHeads);
};
