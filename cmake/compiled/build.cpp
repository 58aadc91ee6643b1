// The part of the compiled library that runs first: checks the program (alibi/detail/build_check.hpp) and chooses the
// unit (alibi/active_isa.hpp). With ALIBI_DISPATCHED the library has several units, else one, which this file is
// compiled for like the others.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "alibi/active_isa.hpp"
#include "alibi/detail/build_check.hpp"
#include "instruction_sets.hpp"
#include "unit.hpp"

#if defined(ALIBI_DISPATCHED)
#include "units.hpp"
#endif

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#include <cpuid.h>
#endif

namespace alibi::inline ALIBI_ABI {
namespace detail {

namespace {

#if !defined(ALIBI_DISPATCHED)
constexpr UnitInfo kOwn{kernel::kIsa, kOwnSets, {}};
constexpr const UnitInfo* kUnits[] = {&kOwn};
#endif

/// Aborts with a message if `program` and `library` differ.
void require_same(const char* what, long long program, long long library, const char* advice) {
  if (program == library) return;
  std::fprintf(stderr, "alibi: %s is %lld in this program and %lld in the compiled library it is linked with. %s\n",
               what, program, library, advice);
  std::abort();
}

/// The name of the first of these instruction sets that the processor, or the operating system, lacks; null: none.
const char* missing(unsigned sets) {
#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
  __builtin_cpu_init();
  if ((sets & kSse41) && !__builtin_cpu_supports("sse4.1")) return "SSE4.1";
  if ((sets & kAvx) && !__builtin_cpu_supports("avx")) return "AVX";
  if ((sets & kAvx2) && !__builtin_cpu_supports("avx2")) return "AVX2";
  if ((sets & kFma) && !__builtin_cpu_supports("fma")) return "FMA";
  if ((sets & kBmi) && !__builtin_cpu_supports("bmi")) return "BMI1";
  if ((sets & kBmi2) && !__builtin_cpu_supports("bmi2")) return "BMI2";
  if ((sets & kAvx512f) && !__builtin_cpu_supports("avx512f")) return "AVX-512F";
  if ((sets & kAvx512bw) && !__builtin_cpu_supports("avx512bw")) return "AVX-512BW";
  if ((sets & kAvx512dq) && !__builtin_cpu_supports("avx512dq")) return "AVX-512DQ";
  if ((sets & kAvx512vl) && !__builtin_cpu_supports("avx512vl")) return "AVX-512VL";
  if ((sets & kAvx512bf16) && !__builtin_cpu_supports("avx512bf16")) return "AVX-512 BF16";
  if (sets & kF16c) {  // clang 14 has no name for it
    constexpr unsigned kF16cBit = 1u << 29;
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kF16cBit)) return "F16C";
  }
#else
  static_cast<void>(sets);
#endif
  return nullptr;
}

/// Prints "text name" for each unit, with commas, and ends the process.
[[noreturn]] void abort_with_units(const char* text) {
  std::fprintf(stderr, "%s", text);
  for (const UnitInfo* const unit : kUnits) std::fprintf(stderr, "%s %s", unit == kUnits[0] ? "" : ",", unit->name);
  std::fprintf(stderr, ".\n");
  std::abort();
}

/// The unit that ALIBI_ISA in the environment names, or null if that is empty or not set.
const UnitInfo* unit_of_environment() {
  const char* const asked = std::getenv("ALIBI_ISA");
  if (!asked || !*asked) return nullptr;
  for (const UnitInfo* const unit : kUnits) {
    if (std::strcmp(unit->name, asked) != 0) continue;
    if (const char* const lacking = missing(unit->instruction_sets)) {
      std::fprintf(stderr,
                   "alibi: the environment variable ALIBI_ISA is \"%s\", but this processor does not have %s.\n", asked,
                   lacking);
      std::abort();
    }
    return unit;
  }
  std::fprintf(stderr, "alibi: the environment variable ALIBI_ISA is \"%s\". ", asked);
  abort_with_units("The compiled library has:");
}

/// The unit of the environment, or else the widest that the processor has. Units are listed from narrow to wide.
const UnitInfo& choose_unit() {
  if (const UnitInfo* const unit = unit_of_environment()) return *unit;
  for (std::size_t i = std::size(kUnits); i-- > 0;)
    if (!missing(kUnits[i]->instruction_sets)) return *kUnits[i];
  std::fprintf(stderr, "alibi: this processor does not have %s. ", missing(kUnits[0]->instruction_sets));
  abort_with_units(
      "Build the compiled library with another -DALIBI_ARCH or with -DALIBI_UNITS; this one was built for:");
}

}  // namespace

const UnitInfo& active_unit() {
  static const UnitInfo& unit = choose_unit();
  return unit;
}

bool check_build(const Build& program) {
  const Build library;
  require_same("the version (major * 10000 + minor * 100 + patch)", program.version, library.version,
               "Build both from the same copy of alibi.");
  require_same("sizeof(std::vector<double>)", (long long)program.vector_size, (long long)library.vector_size,
               "Compile both with the same settings of the standard library (_GLIBCXX_DEBUG).");
  require_same("sizeof(alibi::Options)", (long long)program.options_size, (long long)library.options_size,
               "Compile both with the same compiler and standard library.");
  if (active_unit().layout != Layout()) {
    std::fprintf(stderr, "alibi: the unit %s of the compiled library has another layout of its classes.\n",
                 active_unit().name);
    std::abort();
  }
  return true;
}

}  // namespace detail

std::string_view active_isa() { return detail::active_unit().name; }

}  // namespace alibi::inline ALIBI_ABI
