# What the project's own tests, benchmarks and examples link; no user ever sees these flags. Eigen, being imported, is
# searched as a system path and so stays silent; alibi's own headers are not.
find_package(Threads REQUIRED)

set(CMAKE_CXX_EXTENSIONS OFF)

# Header-only, and with the compiled library, which is what links most.
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
