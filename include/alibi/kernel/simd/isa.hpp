// The instruction set as a namespace, and the compiler flags that are refused.
//
// Functions, and classes with member functions, live in an inline namespace named after the vector unit that they are
// compiled for. Optimised translation units built with different -m flags can therefore be linked together: each calls
// its own functions. Pass only plain memory between such units. The alignment of these classes, and of arrays that
// Eigen owns, differs between them. Internal.
#pragma once

#if (defined(_MSVC_LANG) ? _MSVC_LANG : __cplusplus) < 202002L
#error "alibi needs C++20: compile with -std=c++20 or newer."
// The missing header ends the compilation here. Otherwise many syntax errors would follow.
#include "alibi needs C++20"
#endif

#include <Eigen/Core>

#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error \
    "alibi: -ffast-math, -ffinite-math-only and -fassociative-math are refused: masks are infinities here, and \
reassociation folds the range reduction of exp2 away (measured error 0.1, without a warning). Compile without them."
#endif

// These are macros, because a constant expression cannot name an inline namespace.
#if defined(EIGEN_VECTORIZE_AVX512) && defined(__AVX512BF16__) && defined(__AVX512BW__)
#define ALIBI_ISA avx512_bf16
#elif defined(EIGEN_VECTORIZE_AVX512)
#define ALIBI_ISA avx512
#elif defined(EIGEN_VECTORIZE_AVX2) && defined(EIGEN_VECTORIZE_FMA)
#define ALIBI_ISA avx2
#elif defined(EIGEN_VECTORIZE_AVX) && defined(EIGEN_VECTORIZE_FMA)
#define ALIBI_ISA avx_fma
#elif defined(EIGEN_VECTORIZE_AVX)
#define ALIBI_ISA avx
#elif defined(EIGEN_VECTORIZE_SSE4_1)
#define ALIBI_ISA sse4
#elif defined(EIGEN_VECTORIZE)
#define ALIBI_ISA baseline
#else
#define ALIBI_ISA scalar
#endif

// The namespace of everything except the kernels. Header-only, it is also named after the vector unit. With the
// compiled library (ALIBI_COMPILED) it has one fixed name, because a program and the library may be compiled for
// different vector units.
#if defined(ALIBI_COMPILED)
#define ALIBI_ABI compiled
#else
#define ALIBI_ABI ALIBI_ISA
#endif

namespace alibi {

using Index = Eigen::Index;
static_assert(sizeof(Index) == 8, "alibi: positions are 64-bit integers; define EIGEN_DEFAULT_DENSE_INDEX_TYPE so.");

inline namespace ALIBI_ISA {
namespace kernel {

#define ALIBI_TEXT_OF(name) #name
#define ALIBI_TEXT(macro) ALIBI_TEXT_OF(macro)
/// The name of the vector unit that this file is compiled for.
inline constexpr char kIsa[] = ALIBI_TEXT(ALIBI_ISA);
#undef ALIBI_TEXT
#undef ALIBI_TEXT_OF

}  // namespace kernel
}  // namespace ALIBI_ISA
}  // namespace alibi
