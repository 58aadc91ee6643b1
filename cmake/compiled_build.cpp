// The part of alibi/detail/build_check.hpp that is in the compiled library.
#include <cstdio>
#include <cstdlib>

#include "alibi/detail/build_check.hpp"

namespace alibi::inline ALIBI_ABI::detail {

namespace {

/// Aborts with a message if `program` and `library` differ.
void require_same(const char* what, long long program, long long library, const char* advice) {
  if (program == library) return;
  std::fprintf(stderr, "alibi: %s is %lld in this program and %lld in the compiled library it is linked with. %s\n",
               what, program, library, advice);
  std::abort();
}

/// A vector unit that the library uses and this processor lacks; null: none.
const char* missing_unit() {
#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
  __builtin_cpu_init();
#if defined(__AVX512F__)
  if (!__builtin_cpu_supports("avx512f")) return "AVX-512";
#endif
#if defined(__AVX2__)
  if (!__builtin_cpu_supports("avx2")) return "AVX2";
#endif
#if defined(__FMA__)
  if (!__builtin_cpu_supports("fma")) return "FMA";
#endif
#endif
  return nullptr;
}

}  // namespace

bool check_build(const Build& program) {
  const Build library;
  require_same("the version (major * 10000 + minor * 100 + patch)", program.version, library.version,
               "Build both from the same copy of alibi.");
  require_same("sizeof(std::vector<double>)", (long long)program.vector_size, (long long)library.vector_size,
               "Compile both with the same settings of the standard library (_GLIBCXX_DEBUG).");
  require_same("sizeof(alibi::Options)", (long long)program.options_size, (long long)library.options_size,
               "Compile both with the same compiler and standard library.");
  if (const char* const unit = missing_unit()) {
    std::fprintf(stderr,
                 "alibi: the compiled library was built for %s, which this processor does not have. Build it with "
                 "another -DALIBI_ARCH.\n",
                 unit);
    std::abort();
  }
  return true;
}

}  // namespace alibi::inline ALIBI_ABI::detail
