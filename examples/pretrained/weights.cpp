#include "weights.hpp"

#include <cstdint>
#include <cstring>
#include <new>
#include <string>

namespace pretrained {

namespace {

class Reader {
 public:
  Reader(const Checkpoint& checkpoint, const Configuration& configuration, Dtype dtype)
      : checkpoint_(checkpoint), c_(configuration), dtype_(dtype) {}

  Weights read() const {
    const bool is_mpt = c_.family == Family::mpt;
    const char* const embedding = is_mpt ? "wte" : "word_embeddings";
    // A checkpoint that was saved without the head has no prefix.
    const std::string prefix = checkpoint_.has(std::string(embedding) + ".weight") ? "" : "transformer.";
    Weights weights;
    weights.embedding = matrix(prefix + embedding + ".weight", c_.vocabulary, c_.dim);
    weights.head = c_.tied_embeddings ? weights.embedding : matrix("lm_head.weight", c_.vocabulary, c_.dim);
    if (c_.embedding_norm) weights.embedding_norm = norm(prefix + "word_embeddings_layernorm");
    for (Index i = 0; i < c_.layers; i++) {
      const std::string at = prefix + (is_mpt ? "blocks." : "h.") + std::to_string(i) + ".";
      weights.layers.push_back(layer(at, is_mpt ? kMptNames : kNames));
    }
    weights.final_norm = norm(prefix + (is_mpt ? "norm_f" : "ln_f"));
    return weights;
  }

 private:
  struct LayerNames {
    const char *attention_norm, *feed_forward_norm, *qkv, *output, *up, *down;
  };
  static constexpr LayerNames kMptNames = {"norm_1",        "norm_2",      "attn.Wqkv",
                                           "attn.out_proj", "ffn.up_proj", "ffn.down_proj"};
  /// BLOOM and Falcon.
  static constexpr LayerNames kNames = {
      "input_layernorm",      "post_attention_layernorm", "self_attention.query_key_value",
      "self_attention.dense", "mlp.dense_h_to_4h",        "mlp.dense_4h_to_h"};

  Layer layer(const std::string& at, const LayerNames& names) const {
    Layer layer;
    layer.attention_norm = norm(at + names.attention_norm);
    if (!c_.parallel_attention) layer.feed_forward_norm = norm(at + names.feed_forward_norm);
    layer.qkv = linear(at + names.qkv, c_.qkv_dim(), c_.dim);
    layer.output = linear(at + names.output, c_.dim, c_.dim);
    layer.up = linear(at + names.up, c_.feed_forward, c_.dim);
    layer.down = linear(at + names.down, c_.dim, c_.feed_forward);
    return layer;
  }

  Norm norm(const std::string& name) const {
    return {vector(name + ".weight", c_.dim),
            c_.norm_biases ? vector(name + ".bias", c_.dim) : Eigen::ArrayXf::Zero(c_.dim)};
  }

  Linear linear(const std::string& name, Index out, Index in) const {
    Linear linear{matrix(name + ".weight", out, in), {}};
    if (c_.linear_biases) linear.bias = vector(name + ".bias", out);
    return linear;
  }

  /// In float, after rounding to the dtype of the run.
  Eigen::ArrayXf vector(const std::string& name, Index size) const {
    const Matrix rounded = read_matrix(name, {size}, 1, size);
    Eigen::ArrayXf values(size);
    visit(rounded.dtype, [&]<class W>(W) { convert(rounded.row<W>(0), size, values.data()); });
    return values;
  }

  Matrix matrix(const std::string& name, Index rows, Index cols) const {
    return read_matrix(name, {rows, cols}, rows, cols);
  }

  Matrix read_matrix(const std::string& name, const std::vector<Index>& shape, Index rows, Index cols) const {
    const Tensor& tensor = checkpoint_.at(name);
    tensor.expect_shape(shape);
    Matrix result{tensor.bytes.data(), tensor.float_dtype(), rows, cols};
    // A header may have any length, so the numbers behind it may not be aligned.
    if (reinterpret_cast<std::uintptr_t>(result.data) % std::size_t(size_of(result.dtype)) != 0) {
      result.owned = allocate(tensor.bytes.size());
      std::memcpy(result.owned.get(), tensor.bytes.data(), tensor.bytes.size());
      result.data = result.owned.get();
    }
    return dtype_ == Dtype::float32 || dtype_ == result.dtype ? result : rounded(result);
  }

  Matrix rounded(const Matrix& from) const {
    Matrix to{nullptr, dtype_, from.rows, from.cols, allocate(std::size_t(from.rows * from.cols * size_of(dtype_)))};
    to.data = to.owned.get();
    Eigen::ArrayXf row(from.cols);
    visit(from.dtype, [&]<class From>(From) {
      visit(dtype_, [&]<class To>(To) {
        for (Index i = 0; i < from.rows; i++) {
          convert(from.row<From>(i), from.cols, row.data());
          convert(row.data(), from.cols, reinterpret_cast<To*>(to.owned.get()) + i * to.cols);
        }
      });
    });
    return to;
  }

  static std::shared_ptr<std::byte[]> allocate(std::size_t bytes) {
    return std::shared_ptr<std::byte[]>(new std::byte[bytes]);  // new aligns for every number
  }

  const Checkpoint& checkpoint_;
  const Configuration& c_;
  Dtype dtype_;
};

}  // namespace

Weights read_weights(const Checkpoint& checkpoint, const Configuration& configuration, Dtype dtype) {
  return Reader(checkpoint, configuration, dtype).read();
}

}  // namespace pretrained
