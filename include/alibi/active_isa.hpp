// Which vector unit the kernels use.
#pragma once

#include <string_view>

#include "alibi/kernel/simd/isa.hpp"

#if defined(ALIBI_COMPILED)
#include "alibi/detail/build_check.hpp"
#endif

namespace alibi::inline ALIBI_ABI {

/// The vector unit of the kernels that are called from here:
///
///     avx512_bf16, avx512   AVX-512 with or without the bfloat16 dot product
///     avx2                  AVX2 and FMA
///     avx_fma, avx, sse4    older units of x86
///     baseline              what every processor of the kind has: SSE2, NEON
///     scalar                none
///
/// Header-only it is the unit that the calling file is compiled for. With the compiled library it is the unit that the
/// library chose at the start of the program: the widest of its units that the processor has, or the one that the
/// environment variable ALIBI_ISA names.
#if defined(ALIBI_COMPILED)
std::string_view active_isa();
#else
inline std::string_view active_isa() { return kernel::kIsa; }
#endif

}  // namespace alibi::inline ALIBI_ABI
