#include "attend.hpp"

#include "alibi/active_isa.hpp"
#include "alibi/attention.hpp"
#include "alibi/kernel/simd/vec.hpp"
#include "alibi/view.hpp"

// out, q, k, v: [heads, tokens, head_dim], contiguous.
Unit ATTEND(float* out, const float* q, const float* k, const float* v, const float* slopes, Shape shape) {
  const auto view = [n = shape.tokens, h = shape.heads, d = shape.head_dim](auto* data) {
    return alibi::view(data, {1, h, n, d}, {h * n * d, n * d, d, 1});
  };
  alibi::Workspace workspace;
  alibi::attention_into(view(out), view(q), view(k), view(v), Eigen::Map<const Eigen::VectorXf>(slopes, shape.heads),
                        {.workspace = &workspace});
#ifdef __FMA__
  constexpr bool kFma = true;
#else
  constexpr bool kFma = false;
#endif
  return {alibi::active_isa().data(), alibi::kernel::kLanes<float>, kFma, workspace.size()};
}
