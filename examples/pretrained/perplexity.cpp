#include "perplexity.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "batch.hpp"
#include "stopwatch.hpp"

namespace pretrained {

namespace {

/// -ln softmax(logits)[target]
double loss(std::span<const float> logits, int target) {
  const Eigen::Map<const Eigen::ArrayXf> x(logits.data(), Index(logits.size()));
  const float largest = x.maxCoeff();
  return std::log(double((x - largest).exp().sum())) + double(largest) - double(logits[std::size_t(target)]);
}

/// Adds up the losses of rows of the chunk that a session has just read.
class Losses {
 public:
  explicit Losses(Session& session)
      : session_(session),
        most_(logit_rows(session)),
        logits_(std::size_t(most_ * session.vocabulary())),
        losses_(std::size_t(most_)) {}

  void add(std::span<const Index> rows, std::span<const int> targets) {
    const auto vocabulary = std::size_t(session_.vocabulary());
    for (std::size_t first = 0; first < rows.size(); first += std::size_t(most_)) {
      const auto some = rows.subspan(first, std::min(std::size_t(most_), rows.size() - first));
      const std::span logits = std::span(logits_).first(some.size() * vocabulary);
      session_.logits(some, logits);
      session_.threads().for_rows(Index(some.size()), [&](Index begin, Index end, int) {
        for (auto i = std::size_t(begin); i < std::size_t(end); i++)
          losses_[i] = loss(logits.subspan(i * vocabulary, vocabulary), targets[first + i]);
      });
      sum_ = std::accumulate(losses_.begin(), losses_.begin() + std::ptrdiff_t(some.size()), sum_);
      if (!std::isfinite(sum_)) throw std::runtime_error("the model's logits are not finite");
    }
  }
  double sum() const { return sum_; }

 private:
  Session& session_;
  Index most_;  // rows whose logits are in memory at a time
  std::vector<float> logits_;
  std::vector<double> losses_;
  double sum_ = 0;
};

}  // namespace

Index whole_windows(Index text_tokens, Index window, std::optional<Index> limit) {
  if (window < 1) throw std::invalid_argument("the window is " + std::to_string(window) + "; expected at least 1");
  const Index predictions = std::max<Index>(0, std::min(limit.value_or(text_tokens), text_tokens - 1));
  if (predictions < window)
    throw std::invalid_argument("the window is " + std::to_string(window) + "; expected at most the " +
                                std::to_string(predictions) + " predictions");
  return predictions / window;
}

Perplexity perplexity(const Model& model, const Threads& threads, std::span<const int> text, Index window,
                      std::optional<Index> limit, std::optional<double> tolerance,
                      const std::function<void(double)>& progress) {
  const Index windows = whole_windows(Index(text.size()), window, limit);
  const Stopwatch time;
  const Index together = std::min(windows, std::max<Index>(1, kChunkRows / window));  // short windows, side by side
  const auto session = new_session(model, threads, {.batch = together, .capacity = window, .tolerance = tolerance});
  Losses losses(*session);
  std::vector<Index> rows;
  std::vector<int> targets;
  for (Index first = 0; first < windows; first += together) {
    const Index count = std::min(together, windows - first);
    Batch batch{.size = together, .tokens = window};
    const auto begin = text.begin() + first * window;
    batch.ids.assign(begin, begin + count * window);
    batch.ids.resize(std::size_t(together * window));
    for (Index b = 0; b < together; b++) batch.real.push_back({0, b < count ? window : 0});
    session->clear();
    read_in_chunks(*session, batch, [&](Index start, const Chunk& chunk) {
      rows.resize(std::size_t(count * chunk.tokens));
      std::iota(rows.begin(), rows.end(), Index(0));
      targets.clear();
      for (Index b = 0; b < count; b++) {
        const auto next = begin + b * window + start + 1;
        targets.insert(targets.end(), next, next + chunk.tokens);
      }
      losses.add(rows, targets);
      progress(double(first * window + count * (start + chunk.tokens)) / double(windows * window));
    });
  }
  const Index tokens = windows * window;
  return {window, tokens, std::exp(losses.sum() / double(tokens)), time.seconds(), session->attention_seconds()};
}

}  // namespace pretrained
