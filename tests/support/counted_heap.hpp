// Replaces every form of operator new of a test program. Allocations are counted and can be made to fail. New memory is
// filled with NaN, so that reading it before writing shows in the results. Include this file once in a program.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

namespace heap {

inline std::size_t allocations = 0;
inline std::size_t allocations_left = std::numeric_limits<std::size_t>::max();  // until the next one fails

// Not inlined, because g++ would report the pair as mismatched.
[[gnu::noinline]] inline void* allocate(std::size_t size, std::size_t alignment) {
  if (allocations_left == 0) throw std::bad_alloc();
  allocations_left--;
  allocations++;
  void* p = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (!p) throw std::bad_alloc();
  return std::memset(p, 0xff, size);
}
[[gnu::noinline]] inline void release(void* p) noexcept { std::free(p); }

}  // namespace heap

// NOLINTBEGIN(misc-definitions-in-headers): included once in a program
void* operator new(std::size_t size) { return heap::allocate(size, alignof(std::max_align_t)); }
void* operator new[](std::size_t size) { return heap::allocate(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t to) { return heap::allocate(size, std::size_t(to)); }
void* operator new[](std::size_t size, std::align_val_t to) { return heap::allocate(size, std::size_t(to)); }
void operator delete(void* p) noexcept { heap::release(p); }
void operator delete[](void* p) noexcept { heap::release(p); }
void operator delete(void* p, std::size_t) noexcept { heap::release(p); }
void operator delete[](void* p, std::size_t) noexcept { heap::release(p); }
void operator delete(void* p, std::align_val_t) noexcept { heap::release(p); }
void operator delete[](void* p, std::align_val_t) noexcept { heap::release(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { heap::release(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { heap::release(p); }
// NOLINTEND(misc-definitions-in-headers)
