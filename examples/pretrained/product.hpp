// Products of activations and weights, y = x W', on all threads: what four fifths of a model's arithmetic is.
//
//   x [rows, in] float, W [out, in] in the format it is stored in, y [rows, out] float
//
// Many rows: W is converted to float block by block, each block once for up to 512 rows, and multiplied by Eigen (or
// the BLAS that it was built with). Few rows, as in decoding: the memory's speed is the limit, so W is read once, and
// converted in registers. A task has at least 65,536 weights (or all), some microseconds of work. How the work is cut
// depends on the sizes alone, and so does every bit of the result.
#pragma once

#include <functional>
#include <vector>

#include "numbers.hpp"
#include "threads.hpp"
#include "weights.hpp"

namespace pretrained {

/// A finished block of y, whose rows and columns begin at `row` and `col`: [rows, cols], to be changed at will.
struct ProductBlock {
  Index row, col, rows, cols;
  float* numbers;
};

class Product {
 public:
  explicit Product(const Threads& threads);

  /// Calls store(block) for blocks that make up y, at once on several threads.
  void operator()(const float* x, Index rows, const Matrix& weight,
                  const std::function<void(const ProductBlock&)>& store);

 private:
  struct Scratch {
    std::vector<float> weight, result;
  };
  template <class W>
  void many_rows(const float* x, Index rows, const Matrix& weight,
                 const std::function<void(const ProductBlock&)>& store);
  template <class W>
  void few_rows(const float* x, Index rows, const Matrix& weight,
                const std::function<void(const ProductBlock&)>& store);

  const Threads& threads_;
  std::vector<Scratch> scratch_;  // one a thread
};

}  // namespace pretrained
