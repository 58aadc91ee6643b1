// Perplexity per token, exp of the mean of -ln p(next token), in windows that do not overlap: each token of a text is
// predicted once, from the tokens before it in its window. Windows longer than those of training show whether a model
// extrapolates.
#pragma once

#include <functional>
#include <optional>
#include <span>

#include "model.hpp"

namespace pretrained {

struct Perplexity {
  Index window = 0;
  Index tokens = 0;  ///< predicted
  double value = 0;
  double seconds = 0, attention_seconds = 0;
};

/// The whole windows among the first `limit` predictions; a text of n tokens has n - 1. Throws std::invalid_argument
/// for a window below 1, or where there is not one whole window.
Index whole_windows(Index text_tokens, Index window, std::optional<Index> limit);

/// Over whole_windows() windows. Logits are made and consumed some rows at a time. progress(share done) is called now
/// and then.
Perplexity perplexity(const Model& model, const Threads& threads, std::span<const int> text, Index window,
                      std::optional<Index> limit, std::optional<double> tolerance,
                      const std::function<void(double)>& progress);

}  // namespace pretrained
