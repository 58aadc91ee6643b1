#include "product.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <type_traits>
#include <utility>

#include "../one_blas_thread.hpp"

namespace pretrained {

namespace {

// The blocks of y. Larger ones pack x and W less often, by 2 % of the time on one thread; a chunk of 512 rows then has
// few blocks for more than some 8 threads, unless W is large.
constexpr Index kRowBlock = 512, kLeastRowBlock = 256, kColBlock = 256, kLeastColBlock = 64;
constexpr Index kTasks = 8;  // wanted at least, for as many threads
constexpr Index kFewRows = 8;
constexpr Index kLanes = EIGEN_MAX_STATIC_ALIGN_BYTES / Index(sizeof(float));

using Block = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Lanes = Eigen::Array<float, kLanes, 1>;

template <class W>
Lanes load(const W* w) {
  alignas(Lanes) std::array<float, std::size_t(kLanes)> lanes;
  for (std::size_t i = 0; i < lanes.size(); i++) lanes[i] = widened(w + i);
  return Eigen::Map<const Lanes>(lanes.data());
}

/// Calls f(0), …, f(N - 1), each with a constant: g++ leaves a loop a loop at -O2, and its sums in memory.
template <Index N, class F>
void unrolled(const F& f) {
  [&]<Index... I>(std::integer_sequence<Index, I...>) {
    (f(std::integral_constant<Index, I>()), ...);
  }(std::make_integer_sequence<Index, N>());
}

/// y[r * stride] = x_r·w for `R` rows of x, each `in` long.
template <Index R, class W>
void dot(const float* x, const W* w, Index in, float* y, Index stride) {
  constexpr Index kSums = 4 / R;  // of a row, so that one does not wait for the other
  std::array<Lanes, 4> sums;
  unrolled<4>([&](auto n) { sums[n].setZero(); });
  Index i = 0;
  for (; i + kSums * kLanes <= in; i += kSums * kLanes)
    unrolled<4>([&](auto n) {
      constexpr Index kRow = n / kSums, kOffset = n % kSums * kLanes;
      sums[n] += load(x + kRow * in + i + kOffset) * load(w + i + kOffset);
    });
  unrolled<R>([&](auto r) {
    float sum = 0;
    unrolled<kSums>([&](auto s) { sum += sums[r * kSums + s].sum(); });
    for (Index rest = i; rest < in; rest++) sum += x[r * in + rest] * widened(w + rest);
    y[r * stride] = sum;
  });
}

/// `count` rows of W from `row` on, in float: where they lie, or in scratch memory.
template <class W>
const float* rows_in_float(const Matrix& weight, Index row, Index count, std::vector<float>& scratch) {
  if constexpr (std::is_same_v<W, float>) {
    return weight.row<float>(row);
  } else {
    scratch.resize(std::max(scratch.size(), std::size_t(count * weight.cols)));
    convert(weight.row<W>(row), count * weight.cols, scratch.data());
    return scratch.data();
  }
}

Index blocks(Index size, Index block) { return (size + block - 1) / block; }

}  // namespace

Product::Product(const Threads& threads) : threads_(threads), scratch_(std::size_t(threads.count())) {}

void Product::operator()(const float* x, Index rows, const Matrix& weight, float* y, const Store& store) {
  visit(weight.dtype, [&]<class W>(W) {
    rows > kFewRows ? many_rows<W>(x, rows, weight, y, store) : few_rows<W>(x, rows, weight, y, store);
  });
}

ProductBlock Product::block(Index row, Index col, Index rows, Index cols, Index out, float* y, Scratch& scratch) const {
  if (y) return {row, col, rows, cols, y + row * out + col, out};
  scratch.result.resize(std::max(scratch.result.size(), std::size_t(rows * cols)));
  return {row, col, rows, cols, scratch.result.data(), cols};
}

template <class W>
void Product::many_rows(const float* x, Index rows, const Matrix& weight, float* y, const Store& store) {
  const Index in = weight.cols, out = weight.rows;
  Index row_block = kRowBlock, col_block = kColBlock;
  const auto tasks = [&] { return blocks(rows, row_block) * blocks(out, col_block); };
  while (tasks() < kTasks && row_block > kLeastRowBlock) row_block /= 2;
  while (tasks() < kTasks && col_block > kLeastColBlock) col_block /= 2;
  const Index row_blocks = blocks(rows, row_block);
  threads_.executor().for_each(tasks(), [&](Index task, int slot) {
    Scratch& scratch = scratch_[std::size_t(slot)];
    const Index row = task % row_blocks * row_block, col = task / row_blocks * col_block;
    const ProductBlock result =
        block(row, col, std::min(row_block, rows - row), std::min(col_block, out - col), out, y, scratch);
    const float* const w = rows_in_float<W>(weight, col, result.cols, scratch.weight);
    Eigen::Map<Block, 0, Eigen::OuterStride<>>(result.numbers, result.rows, result.cols,
                                               Eigen::OuterStride<>(result.stride))
        .noalias() = Eigen::Map<const Block>(x + row * in, result.rows, in) *
                     Eigen::Map<const Block>(w, result.cols, in).transpose();
    store(result);
  });
}

template <class W>
void Product::few_rows(const float* x, Index rows, const Matrix& weight, float* y, const Store& store) {
  const Index in = weight.cols, out = weight.rows, width = std::clamp<Index>((Index(1) << 16) / in, 16, 256);
  threads_.executor().for_each(blocks(out, width), [&](Index task, int slot) {
    Scratch& scratch = scratch_[std::size_t(slot)];
    const Index col = task * width;
    const ProductBlock result = block(0, col, rows, std::min(width, out - col), out, y, scratch);
    // One row of W after another: memory is read in order.
    for (Index c = 0; c < result.cols; c++) {
      const auto each_row = [&](const auto* w) {
        const auto number = [&](Index r) { return result.numbers + r * result.stride + c; };
        Index r = 0;
        for (; r + 4 <= rows; r += 4) dot<4>(x + r * in, w, in, number(r), result.stride);
        for (; r < rows; r++) dot<1>(x + r * in, w, in, number(r), result.stride);
      };
      // bfloat16 is widened in registers; for half, g++ makes vector code of long loops only.
      if constexpr (std::is_same_v<W, half>)
        each_row(rows_in_float<W>(weight, col + c, 1, scratch.weight));
      else
        each_row(weight.row<W>(col + c));
    }
    store(result);
  });
}

}  // namespace pretrained
