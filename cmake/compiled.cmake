# alibi::compiled is a static library. It contains once, for every scalar, bias and cache, the code that alibi::alibi
# compiles in every file that calls it. A file that links it sees declarations only, and may be compiled for any vector
# unit. The library is built only if something links it.
#
# It has its kernels for several vector units and chooses when the program starts; or it is built for one unit, with
# ALIBI_ARCH, or as CMAKE_CXX_FLAGS say (cmake/compiled/library.cmake).
include(cmake/compiled/library.cmake)

# Scalars with sums in float share their kernels, and therefore one source. The source that takes longest to compile
# comes first.
set(folder "${PROJECT_BINARY_DIR}/compiled")
set(entries)
set(sources)
set(of_float float bfloat16 half)
set(of_double double)
foreach(pass Backward Forward)
  string(TOLOWER ${pass} header)
  foreach(sum float double)
    set(of_source)
    foreach(scalar IN LISTS of_${sum})
      list(APPEND of_source "${pass}<${scalar}, BiasKind::slopes>" "${pass}<${scalar}, BiasKind::table>")
    endforeach()
    alibi_compile(${header}_${sum} detail/${header}_dispatch ${of_source})
    set(of_source)
    foreach(scalar IN LISTS of_${sum})
      list(APPEND of_source "${pass}<${scalar}, BiasKind::positions>")
    endforeach()
    alibi_compile(${header}_positions_${sum} detail/${header}_dispatch ${of_source})
  endforeach()
endforeach()
# alibi_compile_cached(<name> <scalars>...): makes one source of attention of these scalars over caches, "of q, of the
# cache".
macro(alibi_compile_cached name)
  set(of_source)
  foreach(scalars ${ARGN})
    list(APPEND of_source "Cached<${scalars}, BiasKind::slopes>" "Cached<${scalars}, BiasKind::table>")
  endforeach()
  alibi_compile(${name} detail/cached_dispatch ${of_source})
endmacro()
alibi_compile_cached(cached_float "float, float")
alibi_compile_cached(cached_double "double, double")
alibi_compile_cached(cached_float_over_16_bits "float, bfloat16" "float, half")
alibi_compile_cached(cached_16_bits "bfloat16, bfloat16" "half, half")
set(of_source)
foreach(scalar float double bfloat16 half)
  list(APPEND of_source "Cache<${scalar}>")
  set(given ${scalar})
  if(NOT scalar STREQUAL "float" AND NOT scalar STREQUAL "double")
    list(APPEND given float)
  endif()
  foreach(k IN LISTS given)
    foreach(v IN LISTS given)
      list(APPEND of_source "Append<${scalar}, ${k}, ${v}>")
    endforeach()
  endforeach()
endforeach()
alibi_compile(kv_cache detail/kv_cache/definitions ${of_source})

alibi_library(alibi_compiled)
add_library(alibi::compiled ALIAS alibi_compiled)
