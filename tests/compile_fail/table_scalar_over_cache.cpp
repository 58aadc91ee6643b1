// expect: attention over a cache takes slopes or alibi::no_bias, not a table
#include "alibi/alibi.hpp"

auto over_cache(const Eigen::Tensor<float, 4, Eigen::RowMajor>& q, const alibi::KvCache<float>& cache,
                const alibi::RelativeBias<float>& table) {
  return alibi::attention(q, cache, table);
}
