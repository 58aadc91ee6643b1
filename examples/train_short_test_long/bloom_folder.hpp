// Saves a model trained with Method::alibi as a folder in the layout of BLOOM checkpoints on the Hugging Face hub,
// which `pretrained` (examples/pretrained) and the class BloomForCausalLM of Python's transformers run:
//
//   config.json, tokenizer.json (a token for each byte), model.safetensors (float32)
//
// BLOOM keeps the matrix of a product as [out, in], and the columns of W_qkv as [heads, 3, head_dim]. Biases that this
// model does not have are zeros.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint.hpp"
#include "model.hpp"

namespace experiment {

namespace bloom {

using Json = nlohmann::ordered_json;

/// float32 tensors, in the format of safetensors: the size of the header, the header in JSON, the numbers.
class Tensors {
 public:
  void add(const std::string& name, const std::vector<Index>& shape, const Matrix& numbers) {
    const std::size_t begin = data_.size();
    data_.append(reinterpret_cast<const char*>(numbers.data()), std::size_t(numbers.size()) * sizeof(float));
    header_[name] = {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {begin, data_.size()}}};
  }
  void add_norm(const std::string& name, const NormParameters& norm) {
    add(name + ".weight", {norm.weight.size()}, norm.weight);
    add(name + ".bias", {norm.bias.size()}, norm.bias);
  }
  /// The matrix of y = x W, [in, out], and a bias of zeros.
  void add_linear(const std::string& name, const Matrix& matrix) {
    add(name + ".weight", {matrix.cols(), matrix.rows()}, matrix.transpose());
    add(name + ".bias", {matrix.cols()}, Matrix::Zero(1, matrix.cols()));
  }

  std::string file() const {
    static_assert(std::endian::native == std::endian::little, "safetensors files are little endian");
    std::string header = header_.dump();
    header.resize((header.size() + 7) / 8 * 8, ' ');  // numbers begin on a multiple of their size
    const std::uint64_t size = header.size();
    return std::string(reinterpret_cast<const char*>(&size), sizeof size) + header + data_;
  }

 private:
  Json header_ = {{"__metadata__", {{"format", "pt"}}}};
  std::string data_;
};

/// The columns of W_qkv from [3, heads, head_dim] to [heads, 3, head_dim].
inline Matrix interleaved_qkv(const Matrix& qkv, const Shape& shape) {
  const Index d = shape.head_dim();
  Matrix result(qkv.rows(), qkv.cols());
  for (Index h = 0; h < shape.heads; h++)
    for (Index part = 0; part < 3; part++)
      result.middleCols((3 * h + part) * d, d) = qkv.middleCols(part * shape.dim + h * d, d);
  return result;
}

inline std::string tensors(const Parameters& parameters, const Shape& shape) {
  Tensors tensors;
  tensors.add("transformer.word_embeddings.weight", {kSymbols, shape.dim}, parameters.embedding);
  tensors.add_norm("transformer.word_embeddings_layernorm", parameters.embedding_norm);
  for (std::size_t l = 0; l < parameters.layers.size(); l++) {
    const LayerParameters& layer = parameters.layers[l];
    const std::string name = "transformer.h." + std::to_string(l) + ".";
    tensors.add_norm(name + "input_layernorm", layer.attention_norm);
    tensors.add_linear(name + "self_attention.query_key_value", interleaved_qkv(layer.qkv, shape));
    tensors.add_linear(name + "self_attention.dense", layer.out);
    tensors.add_norm(name + "post_attention_layernorm", layer.mlp_norm);
    tensors.add_linear(name + "mlp.dense_h_to_4h", layer.up);
    tensors.add_linear(name + "mlp.dense_4h_to_h", layer.down);
  }
  tensors.add_norm("transformer.ln_f", parameters.final_norm);
  return tensors.file();
}

inline std::string config(const Shape& shape) {
  const Json config = {{"architectures", {"BloomForCausalLM"}},
                       {"model_type", "bloom"},
                       {"vocab_size", kSymbols},
                       {"hidden_size", shape.dim},
                       {"n_layer", shape.layers},
                       {"n_head", shape.heads},
                       {"layer_norm_epsilon", kNormEpsilon},
                       {"apply_residual_connection_post_layernorm", false},
                       {"tie_word_embeddings", true},
                       {"bos_token_id", nullptr},
                       {"eos_token_id", nullptr},
                       {"pad_token_id", nullptr},
                       {"dtype", "float32"}};
  return config.dump(2) + '\n';
}

/// The character that stands for a byte in vocabularies of byte-level BPE (Radford et al., 2019), as UTF-8: itself if
/// it is printable in Latin-1, otherwise the next unused one from U+0100 on.
inline std::vector<std::string> byte_characters() {
  std::vector<std::string> characters;
  unsigned unused = 0x100;
  for (unsigned byte = 0; byte < 256; byte++) {
    const bool printable = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
    const unsigned code = printable ? byte : unused++;
    if (code < 0x80)
      characters.push_back({char(code)});
    else
      characters.push_back({char(0xC0 | (code >> 6)), char(0x80 | (code & 0x3F))});
  }
  return characters;
}

/// A byte-level BPE without merges: token i is byte i.
inline std::string tokenizer() {
  Json vocabulary = Json::object();
  const std::vector<std::string> characters = byte_characters();
  for (std::size_t byte = 0; byte < characters.size(); byte++) vocabulary[characters[byte]] = byte;
  const Json bytes = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
  const Json tokenizer = {{"version", "1.0"},
                          {"truncation", nullptr},
                          {"padding", nullptr},
                          {"added_tokens", Json::array()},
                          {"normalizer", nullptr},
                          {"pre_tokenizer", bytes},
                          {"post_processor", nullptr},
                          {"decoder", bytes},
                          {"model",
                           {{"type", "BPE"},
                            {"dropout", nullptr},
                            {"unk_token", nullptr},
                            {"continuing_subword_prefix", nullptr},
                            {"end_of_word_suffix", nullptr},
                            {"fuse_unk", false},
                            {"byte_fallback", false},
                            {"vocab", vocabulary},
                            {"merges", Json::array()}}}};
  return tokenizer.dump(2) + '\n';
}

}  // namespace bloom

/// Writes the folder, or its files anew. Throws std::runtime_error that names a file that cannot be written, and
/// std::invalid_argument for another method, whose positions BLOOM does not have.
inline void save_bloom_folder(const std::filesystem::path& folder, const Parameters& parameters, const Shape& shape) {
  if (shape.method != Method::alibi)
    throw std::invalid_argument("a BLOOM folder of method " + std::string(name_of(shape.method)) + "; expected alibi");
  std::filesystem::create_directories(folder);
  write_whole(folder / "config.json", bloom::config(shape));
  write_whole(folder / "tokenizer.json", bloom::tokenizer());
  write_whole(folder / "model.safetensors", bloom::tensors(parameters, shape));
}

}  // namespace experiment
