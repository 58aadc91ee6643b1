// Divides the memory of a workspace into arrays. Internal.
#pragma once

#include <cstddef>
#include <span>
#include <utility>

#include "alibi/kernel/simd/isa.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// Takes arrays from a workspace, each on cache lines of its own. Without memory it only counts the bytes.
class Arena {
 public:
  explicit Arena(std::byte* memory = nullptr) : memory_(memory) {}
  template <class X>
  std::span<X> take(Index size) {
    const std::size_t at = std::exchange(used_, used_ + (std::size_t(size) * sizeof(X) + 63) / 64 * 64);
    return memory_ ? std::span(reinterpret_cast<X*>(memory_ + at), std::size_t(size)) : std::span<X>();
  }
  std::size_t used() const { return used_; }

 private:
  std::byte* memory_;
  std::size_t used_ = 0;
};

}  // namespace alibi::inline ALIBI_ABI::detail
