// The same attention, built once for each instruction set. The interface has raw pointers only: no Eigen object may be
// passed between translation units with different flags, because its alignment depends on them.
#pragma once

#include <cstddef>

struct Shape {
  long heads, tokens, head_dim;
};

/// What a translation unit was compiled for, and what the kernels that the linker chose for it used.
struct Unit {
  const char* isa;      ///< alibi::active_isa(), the namespace of its kernels
  int lanes;            ///< floats in a vector
  bool fma;             ///< whether multiply-adds are fused, which rounds differently
  std::size_t scratch;  ///< bytes that the call requested; depends on the lanes of the kernels that ran
};

using Attend = Unit(float* out, const float* q, const float* k, const float* v, const float* slopes, Shape shape);

Attend attend_scalar, attend_baseline, attend_avx2, attend_native;
