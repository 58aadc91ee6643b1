// The command line, every number of it checked.
#pragma once

#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "generation.hpp"
#include "numbers.hpp"

namespace pretrained {

inline constexpr const char* kUsage =
    R"(pretrained: runs a BLOOM, MPT or Falcon (alibi) checkpoint, a folder as on the Hugging Face hub

  pretrained MODEL generate (--prompt TEXT [--prompt TEXT ...] | --ids 5,17,9 [--ids ...])
      continues prompts; of ids prints ids, one line a sequence, and needs no tokenizer
      --tokens N        at most, for each prompt (default: 64)
      --temperature X   0: the most probable token (default: 0)
      --top-p X         draw among the most probable tokens that have this share together (default: 1)
      --seed N          (default: 0)
  pretrained MODEL logits --ids 5,17,9 [--ids ...] --out FILE.safetensors
      writes `logits` [batch, tokens, vocabulary] in float32; sequences are padded on the left
  pretrained MODEL perplexity (--text FILE | --ids FILE.u16)
      in windows that do not overlap; a .u16 file holds ids of 16 bits, little endian
      --window LIST     tokens (default: those of 512,2048,16384 that fit)
      --limit N         predictions, at most (default: all)
      --picture FILE    draws perplexity against the window as PNG; needs gnuplot
      --beside FILE     JSON {"name": {"512": 6.9, ...}, ...}: more lines for the picture

  --dtype NAME          float, bfloat16 or half; perplexity takes a list (default: float)
  --threads N           (default: one a core)
  --tolerance X         share of a row's softmax mass that attention may leave unread (default: 2^-24; 0: reads all)
)";

/// A command line that cannot be understood.
class UsageError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

enum class Command { help, generate, logits, perplexity };

struct Arguments {
  Command command = Command::help;
  std::filesystem::path model;
  std::vector<std::string> prompts;
  std::vector<std::vector<int>> ids;
  Index tokens = 64;
  Sampling sampling;
  std::filesystem::path out, text, ids_file, picture, beside;
  std::vector<Index> windows;
  std::optional<Index> limit;
  std::vector<Dtype> dtypes = {Dtype::float32};
  int threads = 1;
  std::optional<double> tolerance;
};

/// Throws UsageError that names the option, what it was and what was expected.
Arguments parse_command_line(int argc, const char* const* argv);

}  // namespace pretrained
