#include "model.hpp"

#include <alibi/cached_attention.hpp>
#include <alibi/kv_cache.hpp>
#include <alibi/layouts.hpp>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "layers.hpp"
#include "stopwatch.hpp"

namespace pretrained {

namespace {

void check_token(int id, const Configuration& configuration, std::size_t sequence, std::size_t place) {
  if (id >= 0 && id < configuration.vocabulary) return;
  throw std::invalid_argument("token " + std::to_string(place) + " of sequence " + std::to_string(sequence) + " is " +
                              std::to_string(id) + "; expected 0 to " + std::to_string(configuration.vocabulary - 1));
}

/// A session whose activations and caches hold T.
template <class T>
class TypedSession final : public Session {
 public:
  TypedSession(const Model& model, const Threads& threads, const SessionOptions& options)
      : Session(model.configuration(), threads, options),
        weights_(model.weights()),
        layers_(threads, configuration_.norm_epsilon),
        slopes_(Eigen::Map<const Eigen::VectorXf>(configuration_.slopes.data(), configuration_.heads)) {
    for (Index i = 0; i < configuration_.layers; i++)
      caches_.emplace_back(alibi::KvCacheConfig{.batch = options.batch,
                                                .kv_heads = configuration_.kv_heads,
                                                .head_dim = configuration_.head_dim(),
                                                .capacity = options.capacity});
  }

  void read(const Chunk& chunk) override {
    check(chunk);
    place_rows(chunk);
    embed(chunk);
    for (std::size_t i = 0; i < weights_.layers.size(); i++) layer(weights_.layers[i], i);
  }

  void logits(std::span<const Index> rows, std::span<float> out) override {
    if (Index(out.size()) != Index(rows.size()) * vocabulary())
      throw std::invalid_argument("logits have " + std::to_string(out.size()) + " places; expected " +
                                  std::to_string(Index(rows.size()) * vocabulary()));
    norm_.resize(Index(rows.size()), configuration_.dim);
    for (std::size_t i = 0; i < rows.size(); i++) norm_.row(Index(i)) = hidden_.row(row_of(rows[i]));
    layers_.norm(norm_, weights_.final_norm, norm_);
    layers_.logits(norm_, weights_.head, out.data());
  }

  void clear() override {
    for (auto& cache : caches_) cache.truncate(0);
  }

 private:
  void check(const Chunk& chunk) const {
    if (chunk.tokens < 0 || Index(chunk.ids.size()) != batch() * chunk.tokens ||
        (!chunk.real.empty() && Index(chunk.real.size()) != batch()))
      throw std::invalid_argument("the sizes of a chunk do not fit its batch of " + std::to_string(batch()));
    for (Index b = 0; b < batch(); b++) {
      const auto [begin, end] = real_tokens(chunk, b);
      if (begin < 0 || begin > end || end > chunk.tokens)
        throw std::invalid_argument("the real tokens of sequence " + std::to_string(b) + " are not in its chunk");
      for (Index t = begin; t < end; t++)
        check_token(chunk.ids[std::size_t(b * chunk.tokens + t)], configuration_, std::size_t(b), std::size_t(t));
      const Index length = caches_.front().length(b) + end - begin;
      if (length > options_.capacity)
        throw std::invalid_argument("sequence " + std::to_string(b) + " would have " + std::to_string(length) +
                                    " tokens; expected at most " + std::to_string(options_.capacity));
    }
  }

  static KeyRange real_tokens(const Chunk& chunk, Index b) {
    return chunk.real.empty() ? KeyRange{0, chunk.tokens} : chunk.real[std::size_t(b)];
  }

  /// Gives each real token a row, sequence after sequence; padding has none.
  void place_rows(const Chunk& chunk) {
    tokens_ = chunk.tokens;
    real_.clear();
    first_row_.clear();
    rows_ = 0;
    for (Index b = 0; b < batch(); b++) {
      real_.push_back(real_tokens(chunk, b));
      first_row_.push_back(rows_);
      rows_ += real_.back().end - real_.back().begin;
    }
  }

  /// The row of place sequence * tokens + token of the last chunk.
  Index row_of(Index place) const {
    if (place >= 0 && place < batch() * tokens_) {
      const auto b = std::size_t(place / tokens_);
      const Index token = place % tokens_;
      if (token >= real_[b].begin && token < real_[b].end) return first_row_[b] + token - real_[b].begin;
    }
    throw std::invalid_argument("logits of place " + std::to_string(place) + ", which is not a token that was read");
  }

  /// hidden = embedding of each token
  void embed(const Chunk& chunk) {
    hidden_.resize(rows_, configuration_.dim);
    embedded_.resize(configuration_.dim);
    visit(weights_.embedding.dtype, [&]<class W>(W) {
      for (Index b = 0, row = 0; b < batch(); b++)
        for (Index t = real_[std::size_t(b)].begin; t < real_[std::size_t(b)].end; t++, row++) {
          const int id = chunk.ids[std::size_t(b * chunk.tokens + t)];
          convert(weights_.embedding.row<W>(id), embedded_.size(), embedded_.data());
          convert(embedded_.data(), embedded_.size(), &hidden_(row, 0));
        }
    });
    if (weights_.embedding_norm) layers_.norm(hidden_, *weights_.embedding_norm, hidden_);
  }

  void layer(const Layer& layer, std::size_t number) {
    const Configuration& c = configuration_;
    layers_.norm(hidden_, layer.attention_norm, norm_);
    layers_.linear(norm_, layer.qkv, wide_);
    if (c.clip_qkv) layers_.clip(wide_, *c.clip_qkv);
    attend(number);
    layers_.linear(attended_, layer.output, output_);
    if (c.parallel_attention) {
      feed_forward(layer, norm_, attended_);
      layers_.add(attended_, output_);
      layers_.add(hidden_, attended_);
      return;
    }
    if (c.residual_after_norm) hidden_.swap(norm_);
    layers_.add(hidden_, output_);
    layers_.norm(hidden_, layer.feed_forward_norm, norm_);
    feed_forward(layer, norm_, output_);
    if (c.residual_after_norm) hidden_.swap(norm_);
    layers_.add(hidden_, output_);
  }

  /// attended = attention over the cache, after what is new has been appended. wide holds the fused q, k and v, which
  /// are read where they lie; only a chunk with padding is copied, into the places of a batch.
  void attend(std::size_t layer) {
    const Stopwatch time;
    const Configuration& c = configuration_;
    alibi::LayoutSizes sizes;
    sizes.batch = batch();
    sizes.tokens = tokens_;
    sizes.heads = c.heads;
    sizes.kv_heads = c.kv_heads;
    sizes.head_dim = c.head_dim();
    const bool padded = rows_ != batch() * tokens_;
    if (padded) {
      padded_wide_.resize(batch() * tokens_, wide_.cols());
      for (Index b = 0; b < batch(); b++) of_sequence(padded_wide_, b) = wide_.middleRows(first_row(b), count(b));
    }
    const T* const fused = (padded ? padded_wide_ : wide_).data();
    const auto [q, k, v] =
        c.qkv_layout == QkvLayout::heads_3 ? alibi::view_bsh3d(fused, sizes) : alibi::view_bs3hd(fused, sizes);
    if (options_.observe) {
      if constexpr (std::is_same_v<T, float>)
        options_.observe(Index(layer), q, k);
      else
        throw std::invalid_argument("q and k are observed of a model of 16 bits; expected float");
    }
    alibi::KvCache<T>& cache = caches_[layer];
    cache.append(k, v, real_);
    Array<T>& result = padded ? padded_attended_ : attended_;
    result.resize(batch() * tokens_, c.dim);
    alibi::attention_into(alibi::view_bshd(result.data(), sizes), q, cache, slopes_,
                          {.scale = c.scale,
                           .tolerance = options_.tolerance,
                           .executor = threads_.executor(),
                           .queries = real_,
                           .workspace = &workspace_});
    if (padded) {
      attended_.resize(rows_, c.dim);
      for (Index b = 0; b < batch(); b++) attended_.middleRows(first_row(b), count(b)) = of_sequence(result, b);
    }
    attention_seconds_ += time.seconds();
  }

  Index first_row(Index b) const { return first_row_[std::size_t(b)]; }
  Index count(Index b) const { return real_[std::size_t(b)].end - real_[std::size_t(b)].begin; }
  /// The real tokens of a sequence in an array [batch * tokens, …].
  auto of_sequence(Array<T>& padded, Index b) const {
    return padded.middleRows(b * tokens_ + real_[std::size_t(b)].begin, count(b));
  }

  /// y = W_down gelu(W_up x)
  void feed_forward(const Layer& layer, const Array<T>& x, Array<T>& y) {
    layers_.linear(x, layer.up, wide_);
    layers_.gelu(wide_, configuration_.exact_gelu);
    layers_.linear(wide_, layer.down, y);
  }

  const Weights& weights_;
  Layers<T> layers_;
  Eigen::VectorXf slopes_;
  std::vector<alibi::KvCache<T>> caches_;  // one a layer
  alibi::Workspace workspace_;
  // Of the last chunk: its tokens, and which of them are real; all real ones, and the first of each sequence.
  Index tokens_ = 0, rows_ = 0;
  std::vector<KeyRange> real_;
  std::vector<Index> first_row_;
  Array<T> hidden_, norm_, wide_, attended_, output_;  // [rows, …]
  Array<T> padded_wide_, padded_attended_;             // [batch * tokens, …]
  Eigen::ArrayXf embedded_;
};

}  // namespace

Model::Model(const std::filesystem::path& folder, Dtype dtype)
    : configuration_(read_configuration(folder)),
      checkpoint_(folder),
      dtype_(dtype),
      weights_(read_weights(checkpoint_, configuration_, dtype)) {}

void check_sequences(std::span<const std::vector<int>> sequences, const Configuration& configuration) {
  if (sequences.empty()) throw std::invalid_argument("there is no prompt");
  for (std::size_t b = 0; b < sequences.size(); b++) {
    if (sequences[b].empty()) throw std::invalid_argument("prompt " + std::to_string(b) + " is empty");
    for (std::size_t t = 0; t < sequences[b].size(); t++) check_token(sequences[b][t], configuration, b, t);
  }
}

std::unique_ptr<Session> new_session(const Model& model, const Threads& threads, const SessionOptions& options) {
  return visit(model.dtype(), [&]<class T>(T) -> std::unique_ptr<Session> {
    return std::make_unique<TypedSession<T>>(model, threads, options);
  });
}

}  // namespace pretrained
