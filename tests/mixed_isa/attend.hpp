// The same attention, built once per instruction set. Raw pointers only: no Eigen object may cross from a translation
// unit to another with different flags, since its alignment depends on them.
#pragma once

#include <cstddef>

struct Shape {
  long heads, tokens, head_dim;
};

/// What a translation unit was compiled for, and what the kernels that the linker gave it took.
struct Unit {
  const char* isa;      ///< the namespace of its kernels
  int lanes;            ///< floats in a vector
  bool fma;             ///< whether multiply-adds are fused, which rounds differently
  std::size_t scratch;  ///< bytes the call asked for, which depends on the lanes of the kernels that ran
};

using Attend = Unit(float* out, const float* q, const float* k, const float* v, const float* slopes, Shape shape);

Attend attend_scalar, attend_baseline, attend_avx2, attend_native;
