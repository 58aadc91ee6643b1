// The options of a call of attention, the same for every form of it.
#pragma once

#include <optional>
#include <span>

#include "alibi/executor.hpp"
#include "alibi/mask.hpp"
#include "alibi/pruning.hpp"
#include "alibi/token_ranges.hpp"
#include "alibi/workspace.hpp"

namespace alibi::inline ALIBI_ABI {

/// The options of a call of attention or of its gradients.
struct Options {
  /// Which keys a query sees. Default: causal, with the last query on the last key.
  Mask mask = {};
  /// τ, the factor of q·k. Default: 1 / sqrt(head_dim).
  std::optional<double> scale = std::nullopt;
  /// The share of each row's softmax mass that pruning may remove, in [0, 1). 0: every key is read. Default: half an
  /// ulp of the scalar that sums are held in, 2^-24, or 2^-53 for double.
  std::optional<double> tolerance = std::nullopt;
  /// bfloat16 only: multiply with the processor's bfloat16 dot product instruction, where it has one, instead of in
  /// float. The instruction also rounds probabilities to bfloat16.
  bool bf16_dot = false;
  /// Runs the tasks of the call. Default: the calling thread.
  Executor executor = {};
  /// [batch x heads], or [sequences x heads] for varlen: receives the pruning statistics. Default: not wanted.
  std::span<PruningStats> pruning_stats = {};
  /// [batch]: the tokens of q that are real in each sequence, as counts or as ranges. The other rows are padding: they
  /// get output 0 and lse -inf, and are not read. By default the last real query has the position of the last real key.
  /// The list must outlive the call. Default, and an empty list: all.
  TokenRanges queries = {};
  /// [batch]: the tokens of k and v that are real in each sequence, as counts or as ranges. The others are not read.
  /// Positions count from the first real key. Without `queries`, every query is real and keeps its position in the
  /// arrays; the prefix and the sinks of the mask count there too. Not for varlen or a cache: cu_seqlens and append()
  /// state the real tokens there. The list must outlive the call. Default, and an empty list: all.
  TokenRanges keys = {};
  /// [batch], or [sequences] for varlen: mask.query_offset of each sequence, the position of its first real query among
  /// its keys. The list must outlive the call. Default, and an empty list: mask.query_offset.
  std::span<const Index> query_offsets = {};
  /// [batch], or [sequences] for varlen: mask.prefix of each sequence. The list must outlive the call. Default, and an
  /// empty list: mask.prefix.
  std::span<const Index> prefixes = {};
  /// Scratch memory that outlives the call. A call with the shapes of an earlier one then allocates nothing, as long as
  /// the executor does not. One call at a time may use it, so Options that name it belong to one
  /// thread. Default: memory of the call's own.
  Workspace* workspace = nullptr;
};

}  // namespace alibi::inline ALIBI_ABI

#if defined(ALIBI_COMPILED)
#include "alibi/detail/build_check.hpp"
#endif
