# alibi::compiled is a static library. It contains once, for every scalar, bias and cache, the code that alibi::alibi
# compiles in every file that calls it. A file that links it sees declarations only. It is built for ALIBI_ARCH, or as
# CMAKE_CXX_FLAGS say; files that link it may be compiled for any other vector unit. It is built only if something links
# it.
set(sources)

# alibi_compile(<name> <header> <instantiation>...): makes one source of the library.
function(alibi_compile name header)
  set(open "namespace detail {")
  set(close "}")
  if(header STREQUAL "kv_cache/definitions")
    set(open "")
    set(close "")
  endif()
  list(JOIN ARGN ";\ntemplate " instantiations)
  string(REGEX REPLACE "(bfloat16|half)" "Eigen::\\1" instantiations "${instantiations}")
  set(source "${PROJECT_BINARY_DIR}/compiled/${name}.cpp")
  file(
    CONFIGURE OUTPUT "${source}" @ONLY
    CONTENT "// Made by cmake/compiled.cmake.\n#include \"alibi/detail/@header@.hpp\"\n
namespace alibi {
inline namespace ALIBI_ABI {
@open@
template @instantiations@;
@close@
}
}\n"
  )
  set(sources ${sources} "${source}" PARENT_SCOPE)
endfunction()

# Scalars with sums in float share their kernels, and therefore one source. The source that takes longest to compile
# comes first.
set(of_float float bfloat16 half)
set(of_double double)
foreach(pass backward forward)
  set(call BackwardCall)
  if(pass STREQUAL "forward")
    set(call ForwardCall)
  endif()
  foreach(sum float double)
    set(instantiations)
    foreach(scalar IN LISTS of_${sum})
      foreach(bias slopes table)
        list(APPEND instantiations
          "void ${pass}<${scalar}, BiasKind::${bias}>(const ${call}<${scalar}>&, const Options&)")
      endforeach()
    endforeach()
    alibi_compile(${pass}_${sum} ${pass}_dispatch ${instantiations})
  endforeach()
endforeach()
foreach(name float double float_over_16_bits 16_bits)
  set(float float/float)
  set(double double/double)
  set(float_over_16_bits float/bfloat16 float/half)
  set(16_bits bfloat16/bfloat16 half/half)
  set(instantiations)
  foreach(pair IN LISTS ${name})
    string(REPLACE "/" ", " scalars "${pair}")
    list(APPEND instantiations
      "void forward_cached<${scalars}>(const CachedCall<${scalars}>&, const Options&)")
  endforeach()
  alibi_compile(cached_${name} cached_dispatch ${instantiations})
endforeach()
set(instantiations)
foreach(scalar float double bfloat16 half)
  list(APPEND instantiations "class KvCache<${scalar}>")
  set(given ${scalar})
  if(NOT scalar STREQUAL "float" AND NOT scalar STREQUAL "double")
    list(APPEND given float)
  endif()
  foreach(k IN LISTS given)
    foreach(v IN LISTS given)
      list(APPEND instantiations
        "void KvCache<${scalar}>::append_views(const View<const ${k}>&, const View<const ${v}>&, const std::optional<TokenRanges>&)")
    endforeach()
  endforeach()
endforeach()
alibi_compile(kv_cache kv_cache/definitions ${instantiations})

add_library(alibi_compiled STATIC EXCLUDE_FROM_ALL ${sources} "${CMAKE_CURRENT_LIST_DIR}/compiled_build.cpp")
add_library(alibi::compiled ALIAS alibi_compiled)
target_link_libraries(alibi_compiled PUBLIC alibi::alibi)
target_compile_definitions(alibi_compiled PUBLIC ALIBI_COMPILED)
target_compile_options(alibi_compiled PRIVATE "$<$<BOOL:${ALIBI_ARCH}>:-march=${ALIBI_ARCH}>")
set_target_properties(alibi_compiled PROPERTIES CXX_EXTENSIONS OFF POSITION_INDEPENDENT_CODE ON)
