// With the compiled library only: says so, before main(), where a program and the library were built in ways that do
// not fit, which would otherwise show as a crash. Vector units may differ. Not a header for users.
#pragma once

#include <cstddef>
#include <vector>

#include "alibi/kernel/simd/isa.hpp"
#include "alibi/options.hpp"
#include "alibi/version.hpp"

#if defined(ALIBI_COMPILED)
namespace alibi::inline ALIBI_ABI::detail {

/// What the two have to agree on.
struct Build {
  int version = ALIBI_VERSION_MAJOR * 10000 + ALIBI_VERSION_MINOR * 100 + ALIBI_VERSION_PATCH;
  std::size_t vector_size = sizeof(std::vector<double>);  // 48, not 24, under _GLIBCXX_DEBUG
  std::size_t options_size = sizeof(Options);
};

/// Prints what does not fit, a vector unit that the processor lacks included, and aborts.
bool check_build(const Build& program);

inline const bool build_is_checked = check_build({});

}  // namespace alibi::inline ALIBI_ABI::detail
#endif
