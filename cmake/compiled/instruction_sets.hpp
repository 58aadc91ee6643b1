// The instruction sets that the code of a file may use, as bits. Internal to the compiled library.
#pragma once

#include "alibi/kernel/simd/isa.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// Those that compilers use, or kernels name, beyond the baseline of x86-64.
enum InstructionSet : unsigned {
  kSse41 = 1 << 0,
  kAvx = 1 << 1,
  kAvx2 = 1 << 2,
  kFma = 1 << 3,
  kF16c = 1 << 4,
  kBmi = 1 << 5,
  kBmi2 = 1 << 6,
  kAvx512f = 1 << 7,
  kAvx512bw = 1 << 8,
  kAvx512dq = 1 << 9,
  kAvx512vl = 1 << 10,
  kAvx512bf16 = 1 << 11,
};

namespace {

/// Those that the flags of this file allow. Differs between files, so that it is local to each.
constexpr unsigned kOwnSets = 0u
#if defined(__SSE4_1__)
                              | kSse41
#endif
#if defined(__AVX__)
                              | kAvx
#endif
#if defined(__AVX2__)
                              | kAvx2
#endif
#if defined(__FMA__)
                              | kFma
#endif
#if defined(__F16C__)
                              | kF16c
#endif
#if defined(__BMI__)
                              | kBmi
#endif
#if defined(__BMI2__)
                              | kBmi2
#endif
#if defined(__AVX512F__)
                              | kAvx512f
#endif
#if defined(__AVX512BW__)
                              | kAvx512bw
#endif
#if defined(__AVX512DQ__)
                              | kAvx512dq
#endif
#if defined(__AVX512VL__)
                              | kAvx512vl
#endif
#if defined(__AVX512BF16__)
                              | kAvx512bf16
#endif
    ;

}  // namespace
}  // namespace alibi::inline ALIBI_ABI::detail
