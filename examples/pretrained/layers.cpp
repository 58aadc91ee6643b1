#include "layers.hpp"

#include <cmath>
#include <cstddef>
#include <numbers>
#include <type_traits>
#include <unsupported/Eigen/SpecialFunctions>

namespace pretrained {

template <class T>
template <class F>
void Layers<T>::map_rows(Array<T>& x, const F& f) const {
  threads_.for_rows(x.rows(), [&](Index begin, Index end) {
    Eigen::ArrayXf row(x.cols());
    for (Index i = begin; i < end; i++) {
      convert(&x(i, 0), x.cols(), row.data());
      f(row);
      convert(row.data(), x.cols(), &x(i, 0));
    }
  });
}

template <class T>
void Layers<T>::norm(const Array<T>& x, const Norm& norm, Array<T>& y) const {
  y.resize(x.rows(), x.cols());
  threads_.for_rows(x.rows(), [&](Index begin, Index end) {
    Eigen::ArrayXf row(x.cols());
    for (Index i = begin; i < end; i++) {
      convert(&x(i, 0), x.cols(), row.data());
      row -= row.mean();
      const float factor = 1 / std::sqrt(row.square().mean() + norm_epsilon_);
      row = row * factor * norm.weight + norm.bias;
      convert(row.data(), x.cols(), &y(i, 0));
    }
  });
}

template <class T>
const float* Layers<T>::in_float(const Array<T>& x) {
  if constexpr (std::is_same_v<T, float>) {
    return x.data();
  } else {
    factor_.resize(std::size_t(x.size()));
    threads_.for_rows(x.rows(), [&](Index begin, Index end) {
      convert(&x(begin, 0), (end - begin) * x.cols(), factor_.data() + begin * x.cols());
    });
    return factor_.data();
  }
}

template <class T>
void Layers<T>::linear(const Array<T>& x, const Linear& linear, Array<T>& y) {
  y.resize(x.rows(), linear.weight.rows);
  product_(in_float(x), x.rows(), linear.weight, [&](const ProductBlock& block) {
    for (Index i = 0; i < block.rows; i++) {
      Eigen::Map<Eigen::ArrayXf> sums(block.numbers + i * block.cols, block.cols);
      if (linear.bias.size() != 0) sums += linear.bias.segment(block.col, block.cols);
      convert(sums.data(), block.cols, &y(block.row + i, block.col));
    }
  });
}

template <class T>
void Layers<T>::logits(const Array<T>& x, const Matrix& weight, float* y) {
  product_(in_float(x), x.rows(), weight, [&](const ProductBlock& block) {
    for (Index i = 0; i < block.rows; i++)
      convert(block.numbers + i * block.cols, block.cols, y + (block.row + i) * weight.rows + block.col);
  });
}

template <class T>
void Layers<T>::add(Array<T>& x, const Array<T>& y) const {
  threads_.for_rows(x.rows(), [&](Index begin, Index end) {
    Eigen::ArrayXf left(x.cols()), right(x.cols());
    for (Index i = begin; i < end; i++) {
      convert(&x(i, 0), x.cols(), left.data());
      convert(&y(i, 0), x.cols(), right.data());
      left += right;
      convert(left.data(), x.cols(), &x(i, 0));
    }
  });
}

template <class T>
void Layers<T>::clip(Array<T>& x, double limit) const {
  map_rows(x, [&](auto& row) { row = row.cwiseMin(float(limit)).cwiseMax(-float(limit)); });
}

template <class T>
void Layers<T>::gelu(Array<T>& x, bool exact) const {
  map_rows(x, [&](auto& row) {
    if (exact)
      row = 0.5f * row * (1 + (row * float(1 / std::numbers::sqrt2)).erf());
    else
      row = 0.5f * row * (1 + (0.79788456f * row * (1 + 0.044715f * row.square())).tanh());
  });
}

template class Layers<float>;
template class Layers<bfloat16>;
template class Layers<half>;

}  // namespace pretrained
