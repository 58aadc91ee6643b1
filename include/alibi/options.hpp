// What a call of attention may ask for, in every form of it.
#pragma once

#include <optional>
#include <span>

#include "alibi/executor.hpp"
#include "alibi/horizon.hpp"
#include "alibi/mask.hpp"
#include "alibi/token_ranges.hpp"

namespace alibi::inline ALIBI_ABI {

struct Options {
  Mask mask = {};                              ///< which keys a query sees; default: causal, aligned at the end
  std::optional<double> scale = std::nullopt;  ///< τ; none: 1 / sqrt(head_dim)
  /// Share of a row's softmax mass that may be left out; 0: every key is read; none: half an ulp, 2^-24, or 2^-53 for
  /// double.
  std::optional<double> tolerance = std::nullopt;
  /// bfloat16 only: multiply with the processor's dot product instruction, where it has one. That rounds probabilities
  /// to bfloat16 too. false: in float.
  bool dot_product = false;
  Executor executor = {};          ///< who runs the tasks; default: the calling thread
  std::span<Pruning> report = {};  ///< [batch x heads], to be filled in with what was left out; default: not wanted
  /// [batch], the queries of each sequence that are real, the others being padding with output 0 and lse -inf: counts
  /// (the first so many) or ranges. The last real one sits on the last key. Default: all.
  TokenRanges queries = {};
};

}  // namespace alibi::inline ALIBI_ABI

#if defined(ALIBI_COMPILED)
#include "alibi/detail/build.hpp"
#endif
