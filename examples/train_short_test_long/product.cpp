// g++ 12 reports the undefined operand of its own AVX-512 intrinsics as uninitialised where Eigen's product inlines
// them. The pragma takes effect only above the first include.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "product.hpp"

#include "../one_blas_thread.hpp"

namespace experiment {

namespace {

template <class A, class B>
void product_of(MatrixRef& c, const A& a, const B& b, float scale, bool adds) {
  if (!adds) c.setZero();
  c.noalias() += scale * a * b;
}

}  // namespace

void product(MatrixRef c, const Factor& a, const Factor& b, float scale, bool adds) {
  const auto with_b = [&](const auto& left) {
    b.is_transposed ? product_of(c, left, b.matrix.transpose(), scale, adds)
                    : product_of(c, left, b.matrix, scale, adds);
  };
  a.is_transposed ? with_b(a.matrix.transpose()) : with_b(a.matrix);
}

}  // namespace experiment
