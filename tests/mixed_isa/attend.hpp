// The same attention, built once per instruction set. Raw pointers only: no Eigen object may cross from a translation
// unit to another with different flags, since its alignment depends on them.
#pragma once

struct Shape {
  long heads, tokens, head_dim;
};

/// Returns whether it was built for fused multiply-adds, which round differently.
using Attend = bool(float* out, const float* q, const float* k, const float* v, const float* slopes, Shape shape);

Attend attend_baseline, attend_avx2, attend_native;
