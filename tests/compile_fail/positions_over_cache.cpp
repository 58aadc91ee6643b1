// expect: attention over a cache takes slopes, a table or alibi::no_bias, not positions or two-sided
#include "alibi/alibi.hpp"

auto over_cache(const Eigen::Tensor<float, 4, Eigen::RowMajor>& q, const alibi::KvCache<float>& cache,
                const Eigen::VectorXf& slopes) {
  return alibi::attention(q, cache, alibi::two_sided(slopes, slopes));
}
