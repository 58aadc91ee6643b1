// Counts the allocations of a part of a test program. Every form of operator new is counted. Eigen's own heap does not
// use operator new; it throws while allocation is forbidden. The build includes this file before everything that
// includes Eigen.
#pragma once

#include <cstddef>
#include <stdexcept>

#define eigen_assert(condition) \
  if (!(condition)) throw std::logic_error(#condition)
#define EIGEN_RUNTIME_NO_MALLOC

#include <Eigen/Core>

#include "counted_heap.hpp"

namespace heap {

template <class Body>
std::size_t allocations_of(Body body) {
  const std::size_t before = allocations;
  Eigen::internal::set_is_malloc_allowed(false);
  body();
  Eigen::internal::set_is_malloc_allowed(true);
  return allocations - before;
}

}  // namespace heap
