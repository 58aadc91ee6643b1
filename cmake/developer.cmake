# The targets that the tests, benchmarks and examples of this project link. Users never get these flags. Eigen is an
# imported target: its headers are system headers and give no warnings. The headers of alibi do give them.
find_package(Threads REQUIRED)

set(CMAKE_CXX_EXTENSIONS OFF)

# alibi_header_only compiles everything from headers. alibi_developer also links the compiled library; most targets use
# it.
add_library(alibi_header_only INTERFACE)
target_link_libraries(alibi_header_only INTERFACE alibi::alibi Threads::Threads)
target_compile_options(
  alibi_header_only
  INTERFACE
    -Wall
    -Wextra
    -Wpedantic
    -Wshadow
    -Wconversion
    -Wsign-conversion
    "$<$<BOOL:${ALIBI_ARCH}>:-march=${ALIBI_ARCH}>"
    "$<$<BOOL:${ALIBI_WERROR}>:-Werror>"
)
add_library(alibi_developer INTERFACE)
target_link_libraries(alibi_developer INTERFACE alibi_header_only alibi::compiled)
