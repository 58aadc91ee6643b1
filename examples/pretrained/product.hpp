// Products of activations and weights, y = x W', on all threads: what four fifths of a model's arithmetic is.
//
//   x [rows, in] float, W [out, in] in the format it is stored in, y [rows, out] float
//
// Many rows: y is cut into blocks of 512 by 256, or smaller ones if these are few, and each is multiplied by Eigen (or
// the BLAS that it was built with). Its rows of W are converted to float first. Few rows, as in decoding: the memory's
// speed is the limit, so W is read once, and converted in registers; a task has 16 to 256 rows of W, 65,536 weights
// where that allows it, some microseconds of work. How the work is cut depends on the sizes alone, and so does every
// bit of the result.
#pragma once

#include <functional>
#include <vector>

#include "numbers.hpp"
#include "threads.hpp"
#include "weights.hpp"

namespace pretrained {

/// A finished block of y, whose rows and columns begin at `row` and `col`: [rows, cols], to be changed at will. Its
/// rows are `stride` apart in memory.
struct ProductBlock {
  Index row, col, rows, cols;
  float* numbers;
  Index stride;
};

class Product {
 public:
  explicit Product(const Threads& threads);

  using Store = std::function<void(const ProductBlock&)>;

  /// Calls store(block) for blocks that make up y, at once on several threads. They lie in y; if y is null, in scratch
  /// memory.
  void operator()(const float* x, Index rows, const Matrix& weight, float* y, const Store& store);

 private:
  struct Scratch {
    std::vector<float> weight, result;
  };
  template <class W>
  void many_rows(const float* x, Index rows, const Matrix& weight, float* y, const Store& store);
  template <class W>
  void few_rows(const float* x, Index rows, const Matrix& weight, float* y, const Store& store);
  /// A block of y, or of the scratch memory of a thread.
  ProductBlock block(Index row, Index col, Index rows, Index cols, Index out, float* y, Scratch& scratch) const;

  const Threads& threads_;
  std::vector<Scratch> scratch_;  // one a thread
};

}  // namespace pretrained
