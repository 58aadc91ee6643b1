// expect: a table must hold the scalar of q, k and v, or float where that is bfloat16 or half
#include "alibi/alibi.hpp"

auto over_cache(const Eigen::Tensor<float, 4, Eigen::RowMajor>& q, const alibi::KvCache<float>& cache,
                const alibi::RelativeBias<double>& table) {
  return alibi::attention(q, cache, table);
}
