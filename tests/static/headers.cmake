# Every header alone: one translation unit each, which includes that header and nothing else, twice. Linked into one
# program, so that a function that is not inline is found too.
file(GLOB_RECURSE headers RELATIVE "${PROJECT_SOURCE_DIR}/include" CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/include/*.hpp")
if(NOT TARGET alibi::mpi)
  list(FILTER headers EXCLUDE REGEX "^alibi/(detail/mpi/|mpi\\.hpp)")
endif()

set(sources "${CMAKE_CURRENT_BINARY_DIR}/headers/main.cpp")
file(CONFIGURE OUTPUT headers/main.cpp CONTENT "int main() {}\n")
foreach(header IN LISTS headers)
  string(REGEX REPLACE "\\.hpp$" ".cpp" source "headers/${header}")
  file(CONFIGURE OUTPUT "${source}" CONTENT "#include <${header}>\n#include <${header}>\n")
  list(APPEND sources "${CMAKE_CURRENT_BINARY_DIR}/${source}")
endforeach()

add_executable(test_headers ${sources})
target_link_libraries(test_headers PRIVATE alibi_header_only)
if(TARGET alibi::mpi)
  target_link_libraries(test_headers PRIVATE alibi::mpi)
endif()
# Every header includes this one, and it Eigen: parsed once, it hides nothing that a header forgets.
target_precompile_headers(test_headers PRIVATE <alibi/kernel/simd/isa.hpp>)
target_compile_options(test_headers PRIVATE -O1)
add_test(NAME headers COMMAND test_headers)
set_tests_properties(headers PROPERTIES LABELS static)
add_dependencies(alibi_tests test_headers)
