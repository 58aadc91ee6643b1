// Continues prompts: the next token is drawn from the logits of the last one, appended, and read.
//
//   temperature 0   the most probable token
//   otherwise       token i with a probability in proportion to exp(logit_i / temperature), among the most probable
//                   tokens that have `top_p` of it together (Holtzman et al., "The Curious Case of Neural Text
//                   Degeneration", arXiv 1904.09751)
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <span>
#include <vector>

#include "model.hpp"

namespace pretrained {

struct Sampling {
  double temperature = 0;
  double top_p = 1;
  std::uint64_t seed = 0;
};

/// Draws the tokens of one sequence; its draws do not depend on what other sequences are generated beside it.
class Sampler {
 public:
  Sampler(const Sampling& sampling, std::uint64_t sequence);

  /// Throws std::runtime_error for logits that are not finite.
  int draw(std::span<const float> logits);

 private:
  Sampling sampling_;
  std::mt19937_64 random_;
  std::vector<double> weights_;
  std::vector<int> order_;
};

struct GenerationReport {
  Index prompt_tokens = 0, tokens = 0;                      ///< of all sequences
  Index first_tokens = 0;                                   ///< of `tokens`, those drawn from the logits of the prompts
  double prompt_seconds = 0, prompt_attention_seconds = 0;  ///< of reading the prompts and drawing the first tokens
  double seconds = 0, attention_seconds = 0;                ///< of the other tokens
};

/// Prompts of any lengths as one batch, up to `tokens` more for each; a sequence ends with a token of
/// Configuration::end_tokens. on_token(sequence, id) is told each token, end tokens included, when it is drawn. The
/// session is as long as needed: capacity is the longest prompt and `tokens`.
GenerationReport generate(Session& session, std::span<const std::vector<int>> prompts, Index tokens,
                          const Sampling& sampling, const std::function<void(Index, int)>& on_token);

}  // namespace pretrained
