// Causal attention of one head with ALiBi in plain Eigen, without this library, and its gradients. The benchmarks
// compare with them.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

namespace bench {

using Eigen::Index;

/// The formula as written: the whole matrix of scores, its bias and mask, softmax by rows, times V.
template <class T>
class EigenNaive {
 public:
  using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

  explicit EigenNaive(Index tokens) : scores_(tokens, tokens) {}
  std::size_t scratch_bytes() const { return std::size_t(scores_.size()) * sizeof(T); }

  void operator()(const Matrix& q, const Matrix& k, const Matrix& v, T slope, Matrix& output) {
    using Column = Eigen::Matrix<T, Eigen::Dynamic, 1>;
    const T scale = 1 / std::sqrt(T(q.cols()));
    scores_.noalias() = scale * q * k.transpose();
    for (Index i = 0; i < scores_.rows(); i++)
      for (Index j = 0; j < scores_.cols(); j++)
        scores_(i, j) = j <= i ? scores_(i, j) - slope * T(i - j) : -std::numeric_limits<T>::infinity();

    const Column largest = scores_.rowwise().maxCoeff();
    scores_ = (scores_.colwise() - largest).array().exp();
    const Column sum = scores_.rowwise().sum();
    scores_.array().colwise() /= sum.array();
    output.noalias() = scores_ * v;
  }

 private:
  Matrix scores_;
};

/// The fastest form found in plain Eigen. Blocks of 128 queries are multiplied with the keys up to the block's last,
/// which avoids half of the work. The bias is a slice of one line. The bias, maximum and exponential of a row take two
/// vectorised passes over its visible keys. The output, which is narrower, is divided by the sum.
template <class T>
class EigenBlocked {
 public:
  using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Row = Eigen::Array<T, 1, Eigen::Dynamic>;

  EigenBlocked(Index tokens, Index head_dim) : bias_(tokens), scores_(kRows * tokens), queries_(kRows, head_dim) {}
  std::size_t scratch_bytes() const { return std::size_t(bias_.size() + scores_.size() + queries_.size()) * sizeof(T); }

  void operator()(const Matrix& q, const Matrix& k, const Matrix& v, T slope, Matrix& output) {
    const Index n = q.rows();
    const T scale = 1 / std::sqrt(T(q.cols()));
    for (Index x = 0; x < n; x++) bias_[x] = -slope * T(n - 1 - x);  // the bias of query p: the last p + 1 entries

    for (Index first = 0; first < n; first += kRows) {
      const Index rows = std::min(kRows, n - first), keys = first + rows;
      Eigen::Map<Matrix> scores(scores_.data(), rows, keys);
      queries_.topRows(rows) = scale * q.middleRows(first, rows);
      scores.noalias() = queries_.topRows(rows) * k.topRows(keys).transpose();

      for (Index r = 0; r < rows; r++) {
        const Index visible = first + r + 1;
        auto row = scores.row(r).head(visible).array();
        const auto bias = bias_.tail(visible);
        const T largest = (row + bias).maxCoeff();
        row = (row + bias - largest).max(T(-80)).exp();  // smaller weights would be denormal, and slow
        sum_[r] = row.sum();
        scores.row(r).tail(keys - visible).setZero();
      }
      auto out = output.middleRows(first, rows);
      out.noalias() = scores * v.topRows(keys);
      out.array().colwise() /= sum_.head(rows);
    }
  }

 private:
  static constexpr Index kRows = 128;
  Row bias_, scores_;
  Matrix queries_;
  Eigen::Array<T, kRows, 1> sum_;
};

/// The fastest form of the gradients found in plain Eigen, from the output and the lse of a forward, so that each
/// weight takes one exponential. Blocks of queries are combined with blocks of keys that fit into the second-level
/// cache; blocks after the diagonal are not computed. Scores become weights and their gradient in one vectorised pass
/// over the visible keys of a row. The queries are scaled, and with them the scores and the gradient of the keys.
template <class T>
class EigenBlockedBackward {
 public:
  using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Row = Eigen::Array<T, 1, Eigen::Dynamic>;

  EigenBlockedBackward(Index tokens, Index head_dim)
      : distance_(tokens),
        bias_(tokens),
        weights_(kRows * kKeys),
        grad_scores_(kRows * kKeys),
        queries_(kRows, head_dim) {
    for (Index x = 0; x < tokens; x++)
      distance_[x] = T(tokens - 1 - x);  // the distances of query p: the last p + 1 entries
  }
  std::size_t scratch_bytes() const {
    const Index numbers = 2 * distance_.size() + 2 * weights_.size() + queries_.size();
    return std::size_t(numbers) * sizeof(T);
  }

  /// Returns the gradient of the slope.
  T operator()(const Matrix& grad_output, const Matrix& q, const Matrix& k, const Matrix& v, T slope,
               const Matrix& output, const T* lse, Matrix& grad_q, Matrix& grad_k, Matrix& grad_v) {
    const Index n = q.rows();
    const T scale = 1 / std::sqrt(T(q.cols()));
    T grad_slope = 0;
    bias_ = -slope * distance_;
    grad_q.setZero(), grad_k.setZero(), grad_v.setZero();

    for (Index first = 0; first < n; first += kRows) {
      const Index rows = std::min(kRows, n - first);
      const auto grad_out = grad_output.middleRows(first, rows);
      queries_.topRows(rows) = scale * q.middleRows(first, rows);
      mean_.head(rows) = grad_out.cwiseProduct(output.middleRows(first, rows)).rowwise().sum().array();
      for (Index start = 0; start < first + rows; start += kKeys) {
        const Index keys = std::min(kKeys, first + rows - start);
        Eigen::Map<Matrix> weights(weights_.data(), rows, keys), grad_scores(grad_scores_.data(), rows, keys);
        weights.noalias() = queries_.topRows(rows) * k.middleRows(start, keys).transpose();
        grad_scores.noalias() = grad_out * v.middleRows(start, keys).transpose();
        for (Index r = 0; r < rows; r++) {
          const Index query = first + r, visible = std::clamp<Index>(query + 1 - start, 0, keys);
          auto weight = weights.row(r).head(visible).array();
          auto grad_score = grad_scores.row(r).head(visible).array();
          weight = (weight + bias_.segment(n - 1 - query + start, visible) - lse[query]).max(T(-80)).exp();
          grad_score = weight * (grad_score - mean_[r]);
          grad_slope -= (grad_score * distance_.segment(n - 1 - query + start, visible)).sum();
          weights.row(r).tail(keys - visible).setZero();
          grad_scores.row(r).tail(keys - visible).setZero();
        }
        grad_v.middleRows(start, keys).noalias() += weights.transpose() * grad_out;
        grad_k.middleRows(start, keys).noalias() += grad_scores.transpose() * queries_.topRows(rows);
        grad_q.middleRows(first, rows).noalias() += grad_scores * k.middleRows(start, keys);
      }
    }
    grad_q *= scale;
    return grad_slope;
  }

 private:
  static constexpr Index kRows = 128, kKeys = 512;
  Row distance_, bias_, weights_, grad_scores_;
  Matrix queries_;
  Eigen::Array<T, kRows, 1> mean_;
};

}  // namespace bench
