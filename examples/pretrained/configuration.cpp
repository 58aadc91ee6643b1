#include "configuration.hpp"

#include <algorithm>
#include <alibi/slopes.hpp>
#include <cmath>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "json_field.hpp"

namespace pretrained {

namespace {

constexpr int kMostDim = 1 << 20, kMostLayers = 1 << 16, kMostVocabulary = 1 << 28;

/// The first of several names of a field that the file has, else the last one.
Field first_of(const Field& root, std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (!root[name].is_null()) return root[name];
  return root[*(names.end() - 1)];
}

Index positive(const Field& field, int most) { return field.integer(most + 1, 1); }

double positive_number(const Field& field) {
  const double value = field.number();
  if (!(value > 0 && value < 1e30)) field.expected("a number above 0");
  return value;
}

void refuse_unless(const Field& field, bool otherwise, bool supported) {
  if (field.boolean(otherwise) != supported)
    field.fail(std::string("is ") + (supported ? "false" : "true") + ", which is not supported");
}

void refuse_unless_absent(const Field& field) {
  if (!field.is_null()) field.fail("is " + field.shortened() + ", which is not supported");
}

std::vector<float> slopes_of(const Configuration& c, double max_bias = 8) {
  const Eigen::VectorXf slopes = alibi::slopes(c.heads, max_bias);
  return {slopes.begin(), slopes.end()};
}

void set_heads(Configuration& c, const Field& heads) {
  c.heads = c.kv_heads = positive(heads, 1 << 14);
  if (c.dim % c.heads != 0) heads.fail("is " + std::to_string(c.heads) + ", which does not divide the hidden size");
  c.scale = 1 / std::sqrt(double(c.head_dim()));
}

std::vector<int> end_tokens(const Field& field) {
  std::vector<int> tokens;
  if (field.is_array()) {
    for (std::size_t i = 0; i < field.array().size(); i++) tokens.push_back(field[i].integer(kMostVocabulary));
  } else if (!field.is_null()) {
    tokens.push_back(field.integer(kMostVocabulary));
  }
  return tokens;
}

void read_bloom(const Field& root, Configuration& c) {
  c.dim = positive(first_of(root, {"n_embed", "hidden_size"}), kMostDim);
  c.layers = positive(first_of(root, {"num_hidden_layers", "n_layer"}), kMostLayers);
  set_heads(c, first_of(root, {"num_attention_heads", "n_head"}));
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
  refuse_unless(root["no_bias"], true, true);
  refuse_unless_absent(root["logit_scale"]);
  const Field& norm = root["norm_type"];
  if (!norm.is_null() && !norm.equals("low_precision_layernorm") && !norm.equals("layernorm"))
    norm.fail("is " + norm.shortened() + ", which is not supported");

  const Field attention = root["attn_config"];
  refuse_unless(attention["alibi"], true, true);
  refuse_unless(attention["qk_ln"], false, false);
  refuse_unless(attention["prefix_lm"], false, false);
  refuse_unless(attention["attn_uses_sequence_id"], false, false);
  const Field type = attention["attn_type"];
  if (!type.is_null() && !type.equals("multihead_attention"))
    type.fail("is " + type.shortened() + ", which is not supported");
  const Field max = attention["alibi_bias_max"], clip = attention["clip_qkv"], scale = attention["softmax_scale"];
  c.slopes = slopes_of(c, max.is_null() ? 8 : positive_number(max));
  if (!clip.is_null() && !clip.equals(0)) c.clip_qkv = positive_number(clip);
  if (!scale.is_null()) c.scale = positive_number(scale);
}

void read_falcon(const Field& root, Configuration& c) {
  c.family = Family::falcon;
  refuse_unless(root["alibi"], false, true);
  refuse_unless(root["new_decoder_architecture"], false, false);
  c.dim = positive(first_of(root, {"n_embed", "hidden_size"}), kMostDim);
  c.layers = positive(first_of(root, {"n_layer", "num_hidden_layers"}), kMostLayers);
  set_heads(c, first_of(root, {"n_head", "num_attention_heads"}));
  const Field feed_forward = root["ffn_hidden_size"], activation = root["activation"];
  c.feed_forward = feed_forward.is_null() ? 4 * c.dim : positive(feed_forward, 16 * kMostDim);
  if (!activation.is_null() && !activation.equals("gelu"))
    activation.fail("is " + activation.shortened() + ", which is not supported");
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
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  const Field root(json, name);
  if (!json.is_object()) root.fail("is no JSON object");
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
  c.end_tokens = end_tokens(root["eos_token_id"]);
  return c;
}

Configuration read_configuration(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  if (!in) throw std::runtime_error(path.string() + ": cannot be read");
  return parse_configuration(text, path.string());
}

}  // namespace pretrained
