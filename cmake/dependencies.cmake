include(FetchContent)

set(INSTALL_GTEST OFF CACHE BOOL "")
set(BENCHMARK_ENABLE_INSTALL OFF CACHE BOOL "")
set(BENCHMARK_ENABLE_TESTING OFF CACHE BOOL "")

# alibi_dependency(<target> <package> <repository> <tag>): uses the installed package, or else fetches its sources.
macro(alibi_dependency target package repository tag)
  find_package(${package} QUIET)
  if(NOT TARGET ${target})
    message(STATUS "${package} is not installed: fetching ${repository}")
    FetchContent_Declare(${package} GIT_REPOSITORY "${repository}" GIT_TAG ${tag} GIT_SHALLOW ON)
    FetchContent_MakeAvailable(${package})
  endif()
endmacro()
