// What a model is: the `config.json` of a BLOOM, MPT or Falcon checkpoint, reduced to the few ways in which their
// transformers differ.
//
//                    BLOOM                      MPT                     Falcon with alibi
//   fused qkv        [heads, 3, head_dim]       [3, heads, head_dim]    as BLOOM; multi_query: [heads + 2, head_dim]
//   slopes           slopes(heads)              slopes(heads, max)      slopes(heads) / sqrt(head_dim)
//   biases           yes                        no                      `bias`
//   embedding norm   yes                        no                      no
//   GELU             tanh form                  exact                   exact
//   besides          post-layernorm residuals   clip_qkv,               parallel_attn
//                                               softmax_scale
//
// MPT. alibi_bias_max and expansion_ratio are those of the authors' code; transformers (5.24) reads neither, and so
// runs MPT-7B-StoryWriter, whose alibi_bias_max is 16, with other slopes than it was trained with.
//
// Falcon. Its bias is added before the scale, softmax((q·k + m j) / sqrt(head_dim)), hence the slopes. Transformers
// rounds the slope to bfloat16, which is done here too, and then slope times position to bfloat16, which is not: there
// positions from 257 on are blurred, in float32 as well, and logits differ from those here. (They agree on shorter
// texts if the slopes are powers of two, that is for 1, 2, 4 or 8 heads.)
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "numbers.hpp"

namespace pretrained {

enum class Family { bloom, mpt, falcon };
enum class QkvLayout { heads_3, three_heads };  ///< [heads, 3, head_dim], or [heads, then kv_heads, then kv_heads]

struct Configuration {
  Family family = Family::bloom;
  Index vocabulary = 0, dim = 0, layers = 0, heads = 0, kv_heads = 0, feed_forward = 0;
  QkvLayout qkv_layout = QkvLayout::heads_3;
  std::vector<float> slopes;  ///< [heads], as attention takes them
  double scale = 0;           ///< of q·k
  double norm_epsilon = 1e-5;
  bool linear_biases = true, norm_biases = true, embedding_norm = false, exact_gelu = false, tied_embeddings = true;
  bool residual_after_norm = false;  ///< apply_residual_connection_post_layernorm
  bool parallel_attention = false;   ///< attention and feed-forward of a layer read the same norm
  std::optional<double> clip_qkv;
  std::vector<int> end_tokens;

  Index head_dim() const { return dim / heads; }
  Index qkv_dim() const { return (heads + 2 * kv_heads) * head_dim(); }
};

/// Throws std::runtime_error that names the file and the field, also for what is not supported.
Configuration read_configuration(const std::filesystem::path& config_json);

/// The same of a text; `name` stands for the file in errors.
Configuration parse_configuration(std::string_view json, const std::string& name);

}  // namespace pretrained
