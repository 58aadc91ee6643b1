// With the compiled library only: checks before main() that the program and the library were built in compatible ways.
// Otherwise an incompatibility would show as a crash. Vector units may differ. Internal.
#pragma once

#include <cstddef>
#include <vector>

#include "alibi/kernel/simd/isa.hpp"
#include "alibi/options.hpp"
#include "alibi/version.hpp"

#if defined(ALIBI_COMPILED)
namespace alibi::inline ALIBI_ABI::detail {

/// The properties on which the program and the library must agree.
struct Build {
  int version = ALIBI_VERSION_MAJOR * 10000 + ALIBI_VERSION_MINOR * 100 + ALIBI_VERSION_PATCH;
  std::size_t vector_size = sizeof(std::vector<double>);  // 48, not 24, under _GLIBCXX_DEBUG
  std::size_t options_size = sizeof(Options);
};

/// Returns true if the program fits the library. Otherwise, and if the processor lacks a vector unit that the library
/// uses, prints the reason and aborts.
bool check_build(const Build& program);

inline const bool build_is_checked = check_build({});

}  // namespace alibi::inline ALIBI_ABI::detail
#endif
