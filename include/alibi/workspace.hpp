// Scratch memory that outlives a call, for callers that must not allocate in a call (Options::workspace).
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <utility>

#include "alibi/kernel/simd/isa.hpp"

namespace alibi::inline ALIBI_ABI {

class Workspace;

namespace detail {

/// At least `bytes` bytes of the workspace, aligned to a cache line. Discards the previous contents.
std::byte* scratch_memory(Workspace& workspace, std::size_t bytes);

}  // namespace detail

/// Scratch memory for calls, one at a time. It grows to what a call needs and keeps that, so that a call with the
/// shapes of an earlier one allocates nothing.
///
/// Size: at most 1 MiB for each task that runs at once, whatever the number of tokens, as long as head_dim + value_dim
/// is at most 5,000 floats. If keys may be pruned, in addition for each tile of 64 keys: 4 numbers for each kv head (5
/// for a bidirectional mask) and 1 for each head (2 for a bidirectional mask). For each task, which is up to 768
/// queries of a head or one split of a cache, 32 bytes; for a split also the outputs of its rows.
/// detail/backward_dispatch.hpp lists what gradients need.
///
/// A workspace, and Options that name it, belong to one thread at a time.
class Workspace {
 public:
  Workspace() = default;
  /// The other workspace is empty afterwards.
  Workspace(Workspace&& other) noexcept : memory_(std::move(other.memory_)), size_(std::exchange(other.size_, 0)) {}
  Workspace& operator=(Workspace&& other) noexcept {
    memory_ = std::move(other.memory_);
    size_ = std::exchange(other.size_, 0);
    return *this;
  }

  /// Bytes held.
  std::size_t size() const { return size_; }

 private:
  friend std::byte* detail::scratch_memory(Workspace&, std::size_t);

  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(std::byte* p) const { ::operator delete[](p, kLine); }
  };
  std::unique_ptr<std::byte[], Free> memory_;
  std::size_t size_ = 0;
};

inline std::byte* detail::scratch_memory(Workspace& workspace, std::size_t bytes) {
  if (bytes > workspace.size_) {
    workspace.memory_.reset();
    workspace.size_ = 0;
    workspace.memory_.reset(new (Workspace::kLine) std::byte[bytes]);
    workspace.size_ = bytes;
  }
  return workspace.memory_.get();
}

}  // namespace alibi::inline ALIBI_ABI
