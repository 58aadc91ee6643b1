#include "layers.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numbers>
#include <type_traits>
#include <unsupported/Eigen/SpecialFunctions>

namespace pretrained {

namespace {

constexpr Index kPiece = 1024;  // floats that stay in the first cache
using Piece = Eigen::Array<float, Eigen::Dynamic, 1, 0, kPiece, 1>;

}  // namespace

template <class T>
template <class F>
void Layers<T>::map(Array<T>& x, const F& f) const {
  threads_.for_rows(x.rows(), [&](Index begin, Index end, int) {
    Piece piece;
    for (Index i = begin * x.cols(); i < end * x.cols(); i += kPiece) {
      piece.resize(std::min(kPiece, end * x.cols() - i));
      convert(x.data() + i, piece.size(), piece.data());
      f(i, piece);
      convert(piece.data(), piece.size(), x.data() + i);
    }
  });
}

template <class T>
void Layers<T>::norm(const Array<T>& x, const Norm& norm, Array<T>& y) {
  y.resize(x.rows(), x.cols());
  threads_.for_rows(x.rows(), [&](Index begin, Index end, int slot) {
    Eigen::ArrayXf& row = rows_[std::size_t(slot)];
    row.resize(x.cols());
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
    threads_.for_rows(x.rows(), [&](Index begin, Index end, int) {
      convert(&x(begin, 0), (end - begin) * x.cols(), factor_.data() + begin * x.cols());
    });
    return factor_.data();
  }
}

template <class T>
void Layers<T>::linear(const Array<T>& x, const Linear& linear, Array<T>& y) {
  y.resize(x.rows(), linear.weight.rows);
  float* in_place = nullptr;
  if constexpr (std::is_same_v<T, float>) in_place = y.data();
  product_(in_float(x), x.rows(), linear.weight, in_place, [&](const ProductBlock& block) {
    for (Index i = 0; i < block.rows; i++) {
      Eigen::Map<Eigen::ArrayXf> sums(block.numbers + i * block.stride, block.cols);
      if (linear.bias.size() != 0) sums += linear.bias.segment(block.col, block.cols);
      if (!in_place) convert(sums.data(), block.cols, &y(block.row + i, block.col));
    }
  });
}

template <class T>
void Layers<T>::logits(const Array<T>& x, const Matrix& weight, float* y) {
  product_(in_float(x), x.rows(), weight, y, [](const ProductBlock&) {});
}

template <class T>
void Layers<T>::add(Array<T>& x, const Array<T>& y) const {
  map(x, [&](Index first, auto& piece) {
    Piece other(piece.size());
    convert(y.data() + first, other.size(), other.data());
    piece += other;
  });
}

template <class T>
void Layers<T>::clip(Array<T>& x, double limit) const {
  map(x, [&](Index, auto& piece) { piece = piece.cwiseMin(float(limit)).cwiseMax(-float(limit)); });
}

template <class T>
void Layers<T>::gelu(Array<T>& x, bool exact) const {
  map(x, [&](Index, auto& piece) {
    if (exact)
      piece = 0.5f * piece * (1 + (piece * float(1 / std::numbers::sqrt2)).erf());
    else
      piece = 0.5f * piece * (1 + (0.79788456f * piece * (1 + 0.044715f * piece.square())).tanh());
  });
}

template class Layers<float>;
template class Layers<bfloat16>;
template class Layers<half>;

}  // namespace pretrained
