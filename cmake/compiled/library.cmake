# How the compiled library is made: from a list of entries, the functions that it contains. Callers set `folder`, the
# folder of the sources that are generated, and empty lists `entries` and `sources`.
#
# A library with several units has the same sources in each unit, compiled for another vector unit, and calls those of
# the unit that it chose. The object files of a unit hold more than its kernels: every inline function of the standard
# library and of Eigen that the compiler did not inline, compiled with the flags of the unit. A linker keeps one of all
# functions of one name, so that a program could get a std::vector with AVX-512 instructions, and die on a processor
# without them. Therefore the objects of a unit are linked into one (ld -r), and all its symbols become local to it
# (objcopy) but one, the table alibi_unit_<name>. The linker then has nothing to merge. --force-group-allocation
# dissolves the groups by which it would still discard sections of the same name. Nothing in a unit runs before its table
# is used, because no source of a unit has an initialiser. tests/dispatch checks all of this.
set(ALIBI_UNITS
    "baseline;avx2;avx512;avx512_bf16"
    CACHE STRING "The vector units of alibi::compiled, from narrow to wide, if ALIBI_ARCH is empty (x86-64 with ELF)"
)

# The flags of each unit: what the kernels gain from. The check of the processor follows from them.
set(alibi_flags_baseline "")
set(alibi_flags_avx2 -mavx2 -mfma -mf16c -mbmi -mbmi2)
set(alibi_flags_avx512 ${alibi_flags_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl)
set(alibi_flags_avx512_bf16 ${alibi_flags_avx512} -mavx512bf16)

# alibi_instantiate(<file> <header> <entry>...): writes a source with the definitions of a header and explicit
# instantiations of the entries.
function(alibi_instantiate file header)
  string(REGEX REPLACE "(bfloat16|half)" "Eigen::\\1" text "${ARGN}")
  string(REGEX REPLACE "Forward<([^;,]*), ([^;]*)>" "void detail::forward<\\1, \\2>(const ForwardCall<\\1>&, const Options&)" text "${text}")
  string(REGEX REPLACE "Backward<([^;,]*), ([^;]*)>" "void detail::backward<\\1, \\2>(const BackwardCall<\\1>&, const Options&)" text "${text}")
  string(
    REGEX REPLACE "Cached<([^;,]*), ([^;,]*), ([^;]*)>"
    "void detail::forward_cached<\\1, \\2, \\3>(const CachedCall<\\1, \\2>&, const Options&)" text "${text}"
  )
  string(REGEX REPLACE "Cache<([^;]*)>" "class KvCache<\\1>" text "${text}")
  string(
    REGEX REPLACE "Append<([^;,]*), ([^;,]*), ([^;,]*)>"
    "void KvCache<\\1>::append_views(const View<const \\2>&, const View<const \\3>&, const AppendTo&)"
    text "${text}"
  )
  list(JOIN text ";\ntemplate " instantiations)
  file(
    CONFIGURE OUTPUT "${file}" @ONLY
    CONTENT "// Made by cmake/compiled/library.cmake.\n#include \"@header@\"\n
namespace alibi {
using namespace detail;  // NOLINT(google-build-using-namespace): where the types of the calls are
template @instantiations@;
}\n"
  )
endfunction()

# alibi_compile(<name> <header> <entry>...): makes one source of a library, and appends to `sources` and `entries`.
function(alibi_compile name header)
  alibi_instantiate("${folder}/${name}.cpp" "alibi/${header}.hpp" ${ARGN})
  set(sources ${sources} "${folder}/${name}.cpp" PARENT_SCOPE)
  set(entries ${entries} ${ARGN} PARENT_SCOPE)
endfunction()

# alibi_one_unit_because(<variable>): sets it to the reason why a library has one unit, or to nothing.
function(alibi_one_unit_because reason)
  set(${reason} "" PARENT_SCOPE)
  if(ALIBI_ARCH)
    set(${reason} "ALIBI_ARCH is ${ALIBI_ARCH}" PARENT_SCOPE)
    return()
  endif()
  if(NOT ALIBI_UNITS)
    set(${reason} "ALIBI_UNITS is empty" PARENT_SCOPE)
    return()
  endif()
  get_property(multi_config GLOBAL PROPERTY GENERATOR_IS_MULTI_CONFIG)
  if(multi_config)
    set(${reason} "the generator has several configurations" PARENT_SCOPE)
    return()
  endif()

  # Flags of the project or of a parent apply to every unit. Compiled again at each configuration, because they change.
  include(CheckCXXSourceCompiles)
  string(TOUPPER "${CMAKE_BUILD_TYPE}" config)
  get_directory_property(directory_flags COMPILE_OPTIONS)
  list(FILTER directory_flags EXCLUDE REGEX "\\$<")
  list(JOIN directory_flags " " directory_flags)
  set(CMAKE_REQUIRED_FLAGS "${CMAKE_CXX_FLAGS_${config}} ${directory_flags}")
  set(CMAKE_REQUIRED_QUIET ON)
  unset(ALIBI_FLAGS_ARE_BASELINE CACHE)
  check_cxx_source_compiles(
    "
#if !defined(__x86_64__) || defined(__ILP32__) || !defined(__ELF__) || !defined(__GNUC__) || defined(__SSE3__)
#error
#endif
int main() {}"
    ALIBI_FLAGS_ARE_BASELINE
  )
  if(NOT ALIBI_FLAGS_ARE_BASELINE)
    set(${reason} "the compiler's flags are not those of the baseline of x86-64 with ELF" PARENT_SCOPE)
    return()
  endif()

  # With clang++, CMAKE_LINKER may be lld; ld.bfd is GNU's linker beside it.
  set(ALIBI_LINKER "" CACHE INTERNAL "The linker that makes one object file of a unit")
  foreach(linker "${CMAKE_LINKER}" ld.bfd)
    execute_process(COMMAND "${linker}" --help OUTPUT_VARIABLE help ERROR_QUIET RESULT_VARIABLE failed)
    if(NOT failed AND help MATCHES "force-group-allocation" AND help MATCHES "elf64-x86-64" AND NOT ALIBI_LINKER)
      set(ALIBI_LINKER "${linker}" CACHE INTERNAL "")
    endif()
  endforeach()
  execute_process(COMMAND "${CMAKE_OBJCOPY}" --help OUTPUT_VARIABLE help ERROR_QUIET)
  if(NOT ALIBI_LINKER)
    set(${reason} "no linker has --force-group-allocation: GNU's, '${CMAKE_LINKER}' or ld.bfd" PARENT_SCOPE)
  elseif(NOT help MATCHES "keep-global-symbol")
    set(${reason} "'${CMAKE_OBJCOPY}' has no --keep-global-symbol" PARENT_SCOPE)
  endif()
endfunction()

# alibi_add_unit(<target> <name> <flag>...): makes the object file of a unit, and adds it to a library.
function(alibi_add_unit target name)
  if(NOT DEFINED alibi_flags_${name})
    message(FATAL_ERROR "alibi: ALIBI_UNITS has '${name}'; expected some of baseline, avx2, avx512, avx512_bf16")
  endif()
  set(unit ${target}_${name})
  add_library(${unit} OBJECT EXCLUDE_FROM_ALL ${sources} "${PROJECT_SOURCE_DIR}/cmake/compiled/unit.cpp")
  target_link_libraries(${unit} PRIVATE alibi::alibi)
  target_include_directories(${unit} PRIVATE "${folder}" "${PROJECT_SOURCE_DIR}/cmake/compiled")
  target_compile_definitions(${unit} PRIVATE ALIBI_COMPILED ALIBI_UNIT=${name})
  # These object files are linked below, so that they must not be those of link-time optimisation. objcopy does not make
  # unique symbols local.
  target_compile_options(
    ${unit} PRIVATE ${ARGN} ${alibi_flags_${name}} -fno-lto "$<$<CXX_COMPILER_ID:GNU>:-fno-gnu-unique>"
  )
  set_target_properties(
    ${unit} PROPERTIES CXX_EXTENSIONS OFF POSITION_INDEPENDENT_CODE ON INTERPROCEDURAL_OPTIMIZATION OFF
  )

  set(object "${folder}/${unit}.o")
  add_custom_command(
    OUTPUT "${object}"
    COMMAND "${ALIBI_LINKER}" -r --force-group-allocation -o "${object}.all" "$<TARGET_OBJECTS:${unit}>"
    COMMAND "${CMAKE_OBJCOPY}" --keep-global-symbol=alibi_unit_${name} "${object}.all" "${object}"
    COMMAND "${CMAKE_COMMAND}" -E rm "${object}.all"
    DEPENDS "$<TARGET_OBJECTS:${unit}>"
    COMMENT "Making the unit ${name} of ${target}"
    COMMAND_EXPAND_LISTS VERBATIM
  )
  set_source_files_properties("${object}" PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  target_sources(${target} PRIVATE "${object}")
  add_dependencies(${target} ${unit})
endfunction()

# alibi_library(<target> <flag>...): makes the library of `entries` and `sources`. Flags are for the kernels.
function(alibi_library target)
  add_library(${target} STATIC EXCLUDE_FROM_ALL "${PROJECT_SOURCE_DIR}/cmake/compiled/build.cpp")
  target_link_libraries(${target} PUBLIC alibi::alibi)
  target_include_directories(${target} PRIVATE "${folder}" "${PROJECT_SOURCE_DIR}/cmake/compiled")
  target_compile_definitions(${target} PUBLIC ALIBI_COMPILED)
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF POSITION_INDEPENDENT_CODE ON)

  alibi_one_unit_because(reason)
  set_target_properties(${target} PROPERTIES ALIBI_ONE_UNIT_BECAUSE "${reason}")
  if(reason)
    target_sources(${target} PRIVATE ${sources})
    target_compile_options(${target} PRIVATE ${ARGN} "$<$<BOOL:${ALIBI_ARCH}>:-march=${ALIBI_ARCH}>")
    return()
  endif()

  list(TRANSFORM entries REPLACE "<" "Entry<" OUTPUT_VARIABLE types)
  list(TRANSFORM types REPLACE "(bfloat16|half)" "Eigen::\\1")
  list(JOIN types ",\n    " types)
  list(TRANSFORM ALIBI_UNITS PREPEND "alibi_unit_" OUTPUT_VARIABLE tables)
  list(JOIN tables ", " names)
  list(TRANSFORM tables PREPEND "&")
  list(JOIN tables ", " addresses)
  file(
    CONFIGURE OUTPUT "${folder}/units.hpp" @ONLY
    CONTENT "// The units of the library. Made by cmake/compiled/library.cmake.
#pragma once

#include \"unit.hpp\"

namespace alibi::inline ALIBI_ABI::detail {

using Unit = UnitOf<
    @types@>;

extern \"C\" {
[[gnu::visibility(\"hidden\")]] extern const Unit @names@;
}

/// From narrow to wide.
inline constexpr const UnitInfo* kUnits[] = {@addresses@};

}  // namespace alibi::inline ALIBI_ABI::detail\n"
  )
  alibi_instantiate("${folder}/dispatch.cpp" dispatch.hpp ${entries})
  target_sources(${target} PRIVATE "${folder}/dispatch.cpp")
  target_compile_definitions(${target} PRIVATE ALIBI_DISPATCHED)
  foreach(name IN LISTS ALIBI_UNITS)
    alibi_add_unit(${target} ${name} ${ARGN})
  endforeach()
endfunction()
