// What a transformer has besides attention. Arrays are [rows, dim], row-major, of the scalar T of the run: every
// function calculates in float and rounds its results to T once, as transformers does between layers.
#pragma once

#include <Eigen/Core>
#include <cstddef>
#include <vector>

#include "numbers.hpp"
#include "product.hpp"
#include "threads.hpp"
#include "weights.hpp"

namespace pretrained {

template <class T>
using Array = Eigen::Array<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

template <class T>
class Layers {
 public:
  Layers(const Threads& threads, double norm_epsilon)
      : threads_(threads), product_(threads), norm_epsilon_(float(norm_epsilon)), rows_(std::size_t(threads.count())) {}

  /// y = (x - mean) / sqrt(variance + epsilon) weight + bias, along each row; y may be x
  void norm(const Array<T>& x, const Norm& norm, Array<T>& y);

  /// y = x W' + b
  void linear(const Array<T>& x, const Linear& linear, Array<T>& y);

  /// y = x W' in float: logits [rows, vocabulary]
  void logits(const Array<T>& x, const Matrix& weight, float* y);

  /// x += y
  void add(Array<T>& x, const Array<T>& y) const;

  /// x = max(-limit, min(x, limit))
  void clip(Array<T>& x, double limit) const;

  /// x = x Φ(x): exact, or x / 2 (1 + tanh(sqrt(2 / π) (x + 0.044715 x³))).
  void gelu(Array<T>& x, bool exact) const;

 private:
  const float* in_float(const Array<T>& x);
  /// Calls f(first, floats) for short pieces of x in float, the first of which has the place `first` in x.
  template <class F>
  void map(Array<T>& x, const F& f) const;

  const Threads& threads_;
  Product product_;
  float norm_epsilon_;
  std::vector<Eigen::ArrayXf> rows_;  // one a thread: a row in float
  std::vector<float> factor_;         // the factor of a product, in float
};

extern template class Layers<float>;
extern template class Layers<bfloat16>;
extern template class Layers<half>;

}  // namespace pretrained
