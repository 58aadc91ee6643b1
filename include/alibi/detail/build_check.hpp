// With the compiled library only: checks before main() that the program and the library were built in compatible ways.
// Otherwise an incompatibility would show as a crash. Vector units may differ. The sources of a unit of the library
// (ALIBI_UNIT) have no check: nothing in them may run on a processor that lacks the unit. Internal.
#pragma once

#include <cstddef>
#include <vector>

#include "alibi/kernel/simd/isa.hpp"
#include "alibi/options.hpp"
#include "alibi/version.hpp"

#if defined(ALIBI_COMPILED) && !defined(ALIBI_UNIT)
namespace alibi::inline ALIBI_ABI::detail {

/// The properties on which the program and the library must agree.
struct Build {
  int version = ALIBI_VERSION_MAJOR * 10000 + ALIBI_VERSION_MINOR * 100 + ALIBI_VERSION_PATCH;
  std::size_t vector_size = sizeof(std::vector<double>);  // 48, not 24, under _GLIBCXX_DEBUG
  std::size_t options_size = sizeof(Options);
};

/// Returns true if the program fits the library, and the library has kernels for this processor, which are those that
/// ALIBI_ISA in the environment asks for, if it does. Otherwise prints the reason and aborts.
bool check_build(const Build& program);

inline const bool build_is_checked = check_build({});

}  // namespace alibi::inline ALIBI_ABI::detail
#endif
