#include "configuration.hpp"

#include <alibi/slopes.hpp>
#include <cmath>
#include <initializer_list>

#include "json_field.hpp"
#include "mapped_file.hpp"

namespace pretrained {

namespace {

constexpr Index kMostDim = 1 << 20, kMostLayers = 1 << 16, kMostHeads = 1 << 14, kMostVocabulary = 1 << 28;

/// The field of the first of several names that the file has, else that of the last.
Field first_of(const Field& root, std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (!root[name].is_null()) return root[name];
  return root[*(names.end() - 1)];
}

Index positive(const Field& field, Index most) { return field.integer(most, 1); }

double positive_number(const Field& field) {
  const double value = field.number();
  if (!(value > 0 && value < 1e30)) field.expected("a number above 0 and below 1e30");
  return value;
}

std::vector<float> slopes_of(const Configuration& c, double max_bias = 8) {
  const Eigen::VectorXf slopes = alibi::slopes(c.heads, max_bias);
  return {slopes.begin(), slopes.end()};
}

void set_heads(Configuration& c, const Field& heads) {
  c.heads = c.kv_heads = positive(heads, kMostHeads);
  if (c.dim % c.heads != 0) heads.expected("a divisor of the hidden size, " + std::to_string(c.dim));
  c.scale = 1 / std::sqrt(double(c.head_dim()));
}

/// Nothing if the file does not have the field.
std::optional<std::vector<int>> end_tokens(const Field& root) {
  constexpr const char* kName = "eos_token_id";
  if (!root.object().contains(kName)) return std::nullopt;
  const Field field = root[kName];
  std::vector<int> tokens;
  if (field.is_array()) {
    for (std::size_t i = 0; i < field.array().size(); i++) tokens.push_back(int(field[i].integer(kMostVocabulary)));
  } else if (!field.is_null()) {
    tokens.push_back(int(field.integer(kMostVocabulary)));
  }
  return tokens;
}

/// Of BLOOM and Falcon. Where a file has both names, transformers takes the first.
void read_sizes(const Field& root, Configuration& c) {
  c.dim = positive(first_of(root, {"n_embed", "hidden_size"}), kMostDim);
  c.layers = positive(first_of(root, {"num_hidden_layers", "n_layer"}), kMostLayers);
  set_heads(c, first_of(root, {"num_attention_heads", "n_head"}));
}

void read_bloom(const Field& root, Configuration& c) {
  read_sizes(root, c);
  c.end_tokens = {2};
  c.feed_forward = 4 * c.dim;
  c.slopes = slopes_of(c);
  c.embedding_norm = true;
  c.residual_after_norm = root["apply_residual_connection_post_layernorm"].boolean(false);
}

void read_mpt(const Field& root, Configuration& c) {
  c.family = Family::mpt;
  c.dim = positive(root["d_model"], kMostDim);
  c.layers = positive(root["n_layers"], kMostLayers);
  set_heads(c, root["n_heads"]);
  c.feed_forward = c.dim * (root["expansion_ratio"].is_null() ? 4 : positive(root["expansion_ratio"], 64));
  c.qkv_layout = QkvLayout::three_heads;
  c.linear_biases = c.norm_biases = false;
  c.exact_gelu = true;
  root["no_bias"].support({true});
  root["logit_scale"].support({});
  root["norm_type"].support({"low_precision_layernorm", "layernorm"});
  const Field attention = root["attn_config"];
  attention["attn_type"].support({"multihead_attention"});
  attention["alibi"].support({true});
  for (const char* name : {"qk_ln", "qk_gn", "prefix_lm", "attn_uses_sequence_id", "rope"})
    attention[name].support({false});
  attention["sliding_window_size"].support({-1});
  const Field feed_forward = root["ffn_config"];
  if (!feed_forward.is_null()) feed_forward["ffn_type"].support({"mptmlp"});
  const Field max = attention["alibi_bias_max"], clip = attention["clip_qkv"], scale = attention["softmax_scale"];
  c.slopes = slopes_of(c, max.is_null() ? 8 : positive_number(max));
  if (!clip.is_null() && !clip.equals(0)) c.clip_qkv = positive_number(clip);
  if (!scale.is_null()) c.scale = positive_number(scale);
}

void read_falcon(const Field& root, Configuration& c) {
  c.family = Family::falcon;
  c.end_tokens = {11};
  if (!root["alibi"].equals(true)) root["alibi"].expected("true");
  root["new_decoder_architecture"].support({false});
  root["activation"].support({"gelu"});
  read_sizes(root, c);
  const Field feed_forward = root["ffn_hidden_size"];
  c.feed_forward = feed_forward.is_null() ? 4 * c.dim : positive(feed_forward, 16 * kMostDim);
  if (root["multi_query"].boolean(true)) {
    c.kv_heads = 1;
    c.qkv_layout = QkvLayout::three_heads;
  }
  c.linear_biases = root["bias"].boolean(false);
  c.parallel_attention = root["parallel_attn"].boolean(true);
  c.exact_gelu = true;
  c.slopes = slopes_of(c);
  for (float& slope : c.slopes) slope = float(double(bfloat16(slope)) * c.scale);
}

}  // namespace

Configuration parse_configuration(std::string_view text, const std::string& name) {
  const Json json = parse_json(text, name);
  const Field root(json, name);
  Configuration c;
  const Field type = root["model_type"];
  if (type.equals("bloom"))
    read_bloom(root, c);
  else if (type.equals("mpt"))
    read_mpt(root, c);
  else if (type.equals("falcon"))
    read_falcon(root, c);
  else
    type.expected("bloom, mpt or falcon");
  c.vocabulary = positive(root["vocab_size"], kMostVocabulary);
  if (!root["layer_norm_epsilon"].is_null()) c.norm_epsilon = positive_number(root["layer_norm_epsilon"]);
  c.tied_embeddings = root["tie_word_embeddings"].boolean(true);
  if (auto tokens = end_tokens(root)) c.end_tokens = *tokens;
  return c;
}

std::vector<int> parse_end_tokens(std::string_view text, const std::string& name) {
  const Json json = parse_json(text, name);
  return end_tokens(Field(json, name)).value_or(std::vector<int>());
}

Configuration read_configuration(const std::filesystem::path& folder) {
  const auto path = folder / "config.json", generation_path = folder / "generation_config.json";
  Configuration c = parse_configuration(MappedFile(path).text(), path.string());
  if (std::filesystem::exists(generation_path))
    c.end_tokens = parse_end_tokens(MappedFile(generation_path).text(), generation_path.string());
  return c;
}

}  // namespace pretrained
