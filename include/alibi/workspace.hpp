// Scratch memory that outlives a call, for callers that must not allocate.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

#include "alibi/kernel/isa.hpp"

namespace alibi::inline ALIBI_ABI {

/// Scratch memory of the calls it is passed to, one at a time. It grows to what they need and keeps it, so that a call
/// with the shapes of an earlier one allocates nothing. Scratch is at most 1 MiB per executor slot, however many tokens
/// there are, as long as head_dim + value_dim is at most 5,000 floats. Beside it, where keys may be left out, for every
/// tile of 64 keys: 4 numbers a kv head, 5 where queries look ahead, and 1 or 2 a head; for every task, which is up to
/// 768 queries of a head, or a split of a cache, 32 bytes, and of a split the outputs of its rows. What
/// gradients need is in detail/backward_dispatch.hpp.
class Workspace {
 public:
  /// Bytes held.
  std::size_t size() const { return size_; }

  /// At least `bytes` bytes, aligned to a cache line; what was there before is lost.
  std::byte* reserve(std::size_t bytes) {
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(new (kLine) std::byte[bytes]);
      size_ = bytes;
    }
    return memory_.get();
  }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(std::byte* p) const { ::operator delete[](p, kLine); }
  };
  std::unique_ptr<std::byte[], Free> memory_;
  std::size_t size_ = 0;
};

}  // namespace alibi::inline ALIBI_ABI
