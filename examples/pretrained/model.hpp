// A model that reads tokens: weights, and the sequences that are under way.
//
//   const Model model(folder, Dtype::bfloat16);
//   Threads threads(4);
//   const auto session = new_session(model, threads, {.batch = 1, .capacity = 2048});
//   session->read({.ids = ids, .tokens = 3});               // any number of tokens at a time
//   session->logits(rows, numbers);                         // of what was read last
//
// float: everything in float. bfloat16 and half: every linear layer, norm, activation and sum rounds its results to
// that type, as transformers does; attention takes and returns 16 bits, and keeps its scores in float. Distances are
// integers, so that far positions are as exact as near ones in every type.
#pragma once

#include <alibi/mask.hpp>
#include <alibi/view.hpp>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "configuration.hpp"
#include "numbers.hpp"
#include "safetensors.hpp"
#include "threads.hpp"
#include "weights.hpp"

namespace pretrained {

using alibi::KeyRange;

class Model {
 public:
  /// A folder as on the hub. Throws std::runtime_error that names the file and what is wrong with it.
  Model(const std::filesystem::path& folder, Dtype dtype);
  Model(const Model&) = delete;  // weights point into the checkpoint
  Model& operator=(const Model&) = delete;

  const Configuration& configuration() const { return configuration_; }
  const Weights& weights() const { return weights_; }
  Dtype dtype() const { return dtype_; }

 private:
  Configuration configuration_;
  Checkpoint checkpoint_;
  Dtype dtype_;
  Weights weights_;
};

/// Throws std::invalid_argument for a sequence that is empty or has a token that the model does not know.
void check_sequences(std::span<const std::vector<int>> sequences, const Configuration& configuration);

/// The next tokens of every sequence of a batch. Padding is not calculated.
struct Chunk {
  std::span<const int> ids;          ///< [batch, tokens]
  Index tokens = 0;                  ///< of each sequence
  std::span<const KeyRange> real{};  ///< [batch], which of them are not padding; empty: all
};

struct SessionOptions {
  Index batch = 1;                                 ///< sequences
  Index capacity = 0;                              ///< tokens of each, at most
  std::optional<double> tolerance = std::nullopt;  ///< of attention's pruning
  /// Receives q and k of each layer before its attention, [batch, heads, tokens, head_dim], of a model in float. For
  /// measurements.
  std::function<void(Index layer, const alibi::View<const float>& q, const alibi::View<const float>& k)> observe = {};
};

/// A batch of sequences, each with its own length, over one cache of keys and values.
class Session {
 public:
  virtual ~Session() = default;

  /// Appends tokens. Throws std::invalid_argument, before anything is changed, for sizes that do not fit, a token that
  /// the model does not know, and sequences beyond their capacity.
  virtual void read(const Chunk& chunk) = 0;

  /// Logits [rows.size(), vocabulary] of tokens of the last chunk, padding excepted: row sequence * tokens + token.
  virtual void logits(std::span<const Index> rows, std::span<float> out) = 0;

  /// Forgets what was read.
  virtual void clear() = 0;

  const Configuration& configuration() const { return configuration_; }
  Index batch() const { return options_.batch; }
  Index vocabulary() const { return configuration_.vocabulary; }
  const Threads& threads() const { return threads_; }
  /// Seconds that attention took so far, appending to the cache included.
  double attention_seconds() const { return attention_seconds_; }

 protected:
  Session(const Configuration& configuration, const Threads& threads, const SessionOptions& options)
      : configuration_(configuration), threads_(threads), options_(options) {}

  const Configuration& configuration_;
  const Threads& threads_;
  SessionOptions options_;
  double attention_seconds_ = 0;
};

/// A session in the model's dtype; model and threads outlive it.
std::unique_ptr<Session> new_session(const Model& model, const Threads& threads, const SessionOptions& options);

}  // namespace pretrained
