// The `config.json` of a BLOOM, MPT or Falcon checkpoint, reduced to what these models differ in.
//
//                    BLOOM                    MPT                      Falcon with alibi
//   fused qkv        [heads, 3, head_dim]     [3, heads, head_dim]     [heads, 3, head_dim], multi_query:
//                                                                      [heads + 2, head_dim]
//   slopes           slopes(heads)            slopes(heads,            slopes(heads) / sqrt(head_dim)
//                                               alibi_bias_max)
//   linear biases    yes                      no                       if `bias`
//   norm biases      yes                      no                       yes
//   embedding norm   yes                      no                       no
//   GELU             tanh                     exact                    exact
//   options          apply_residual_          clip_qkv,                parallel_attn
//                    connection_post_         softmax_scale,
//                    layernorm                expansion_ratio
//
// MPT: the authors' code reads alibi_bias_max and expansion_ratio, and so does this. Transformers 5.24 takes 8 and 4
// for every model. MPT-7B-StoryWriter has alibi_bias_max 16: transformers runs it with other slopes than its own.
//
// Falcon: the bias is added before the scale, softmax((q·k + m j) / sqrt(head_dim)), so the slopes are scaled too.
// Transformers rounds the slope to bfloat16, and then the product of slope and position, in a float32 run as well. The
// slope is rounded here too. The product is not, so logits differ from those of transformers, unless the product is
// exact: up to position 256, for slopes that are powers of two (up to 8 heads).
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "numbers.hpp"

namespace pretrained {

enum class Family { bloom, mpt, falcon };
/// The rows of the fused weight: for each head q, k and v; or all heads of q, then those of k, then those of v.
enum class QkvLayout { heads_3, three_heads };

struct Configuration {
  Family family = Family::bloom;
  Index vocabulary = 0, dim = 0, layers = 0, heads = 0, kv_heads = 0, feed_forward = 0;
  QkvLayout qkv_layout = QkvLayout::heads_3;
  std::vector<float> slopes;  ///< [heads], as attention takes them
  double scale = 0;           ///< of q·k
  double norm_epsilon = 1e-5;
  bool linear_biases = true, norm_biases = true, embedding_norm = false, exact_gelu = false, tied_embeddings = true;
  bool residual_after_norm = false;  ///< apply_residual_connection_post_layernorm
  bool parallel_attention = false;   ///< attention and feed-forward read the same norm of the same input
  std::optional<double> clip_qkv;
  std::vector<int> end_tokens;  ///< a sequence ends with any of them

  Index head_dim() const { return dim / heads; }
  Index qkv_dim() const { return (heads + 2 * kv_heads) * head_dim(); }
};

/// Reads `config.json`, and end tokens from `generation_config.json` if there is one, as transformers does. Throws
/// std::runtime_error that names the file and the field, for what is wrong and for what is not supported.
Configuration read_configuration(const std::filesystem::path& folder);

/// `config.json`, given its text; `name` stands for the file in errors.
Configuration parse_configuration(std::string_view json, const std::string& name);

/// The end tokens of `generation_config.json`, given its text. Without the field there are none.
std::vector<int> parse_end_tokens(std::string_view json, const std::string& name);

}  // namespace pretrained
