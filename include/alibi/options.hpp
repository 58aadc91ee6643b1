// What a call of attention may ask for, in every form of it.
#pragma once

#include <optional>
#include <span>

#include "alibi/executor.hpp"
#include "alibi/horizon.hpp"
#include "alibi/mask.hpp"

namespace alibi::inline ALIBI_ISA {

struct Options {
  Mask mask = {};                              ///< which keys a query sees; default: causal, aligned at the end
  std::optional<double> scale = std::nullopt;  ///< τ; none: 1 / sqrt(head_dim)
  /// Share of a row's softmax mass that may be left out; 0: every key is read; none: half an ulp, 2^-24, or 2^-53 for
  /// double.
  std::optional<double> tolerance = std::nullopt;
  /// bfloat16 only: multiply with the processor's dot product instruction, which rounds probabilities to bfloat16 too;
  /// false: in float; none: as is faster on this processor, where it has the instruction.
  std::optional<bool> dot_product = std::nullopt;
  Executor executor = {};          ///< who runs the tasks; default: the calling thread
  std::span<Pruning> report = {};  ///< [batch x heads], to be filled in with what was left out; default: not wanted
};

}  // namespace alibi::inline ALIBI_ISA
