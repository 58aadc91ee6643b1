// Training of one model: Adam with warm-up and cosine decay, on batches that depend only on seed and step. The bits are
// the same on any number of threads and after any number of interruptions.
#pragma once

#include <algorithm>
#include <alibi/executor.hpp>
#include <array>
#include <cmath>
#include <memory>
#include <numbers>
#include <numeric>
#include <span>
#include <string_view>
#include <vector>

#include "checkpoint.hpp"
#include "model.hpp"
#include "random.hpp"
#include "settings.hpp"

namespace experiment {

constexpr float kBeta1 = 0.9F, kBeta2 = 0.98F, kAdamEpsilon = 1e-8F;
constexpr double kLargestNorm = 1;         // of a gradient; a longer gradient is scaled to it
constexpr double kWarmUp = 0.05;           // share of the steps in which the learning rate grows
constexpr double kLastRate = 0.1;          // the final share of the learning rate
constexpr Index kOptimiserPart = 1 << 14;  // parameters of one task

inline double learning_rate_at(Index step, const Settings& settings) {
  const double warm_up = std::max(1.0, kWarmUp * double(settings.steps));
  if (double(step) < warm_up) return settings.learning_rate * double(step + 1) / (warm_up + 1);
  const double passed = (double(step) - warm_up) / std::max(1.0, double(settings.steps) - warm_up);
  return settings.learning_rate * (kLastRate + (1 - kLastRate) * (1 + std::cos(std::numbers::pi * passed)) / 2);
}

class Trainer {
 public:
  /// `text` must outlive the trainer, and be longer than a sequence.
  Trainer(const Settings& settings, std::string_view text, const alibi::Executor& executor, State& state)
      : settings_(settings), text_(text), executor_(executor), state_(state) {
    for (Index s = 0; s < kShards; s++) gradients_.push_back(std::make_unique<Parameters>(settings.shape));
    passes_.resize(std::size_t(executor.max_concurrency()));
  }

  /// Runs one step. The loss before the step is appended to state.losses.
  void step() {
    const auto start = Clock::now();
    double working = 0;
    const double loss = compute_gradients(working);
    const auto optimiser = Clock::now();
    update();
    working += seconds_since(optimiser) * double(executor_.max_concurrency());
    state_.losses.push_back(loss);
    state_.step++;
    state_.seconds.working += working;
    state_.seconds.training += seconds_since(start);
  }

 private:
  /// The loss of the next batch, in nats per byte. gradients_ receives the part of each shard.
  double compute_gradients(double& working) {
    std::array<double, kShards> losses{}, seconds{}, attention{};
    executor_.for_each(kShards, [&](Index s, int slot) {
      const auto start = Clock::now();
      const Index batch = settings_.batch / kShards;
      std::unique_ptr<Pass>& pass = passes_[std::size_t(slot)];
      if (!pass) pass = std::make_unique<Pass>(settings_.shape, Extent{batch, settings_.length()}, true);
      const double attention_before = pass->attention_seconds();
      pass->forward(state_.parameters, sequences(s * batch, batch));
      losses[std::size_t(s)] = pass->loss(settings_.length());
      pass->backward(state_.parameters, 1 / float(tokens()), *gradients_[std::size_t(s)]);
      attention[std::size_t(s)] = pass->attention_seconds() - attention_before;
      seconds[std::size_t(s)] = seconds_since(start);
    });
    working += std::accumulate(seconds.begin(), seconds.end(), 0.0);
    state_.seconds.attention += std::accumulate(attention.begin(), attention.end(), 0.0);
    return std::accumulate(losses.begin(), losses.end(), 0.0) / double(tokens());
  }

  Index tokens() const { return settings_.batch * settings_.length(); }

  std::vector<const char*> sequences(Index first, Index count) const {
    std::vector<const char*> result;
    const auto places = std::uint64_t(Index(text_.size()) - settings_.length());
    for (Index i = first; i < first + count; i++) {
      const auto number = std::uint64_t(state_.step * settings_.batch + i);
      result.push_back(text_.data() + random_bits(settings_.seed, Stream::batches, number) % places);
    }
    return result;
  }

  /// Calls body(index of the task, first parameter, number of parameters) in parallel.
  template <class Body>
  Index for_each_part(const Body& body) const {
    const Index size = state_.parameters.flat.size(), parts = (size + kOptimiserPart - 1) / kOptimiserPart;
    executor_.for_each(parts, [&](Index p, int) {
      const Index first = p * kOptimiserPart;
      body(p, first, std::min(kOptimiserPart, size - first));
    });
    return parts;
  }

  /// Sums the gradients of the shards in the first of them, and applies Adam (Kingma and Ba, arXiv 1412.6980, algorithm
  /// 1).
  void update() {
    std::vector<double> squares(std::size_t(state_.parameters.flat.size() / kOptimiserPart + 1));
    for_each_part([&](Index p, Index first, Index count) {
      auto sum = gradients_[0]->flat.segment(first, count);
      for (std::size_t s = 1; s < kShards; s++) sum += gradients_[s]->flat.segment(first, count);
      squares[std::size_t(p)] = double(sum.squaredNorm());
    });
    const double norm = std::sqrt(std::accumulate(squares.begin(), squares.end(), 0.0));
    const auto shorten = float(std::min(1.0, kLargestNorm / norm));

    const double t = double(state_.step + 1);
    const auto unbias1 = float(1 / (1 - std::pow(double(kBeta1), t)));
    const auto unbias2 = float(1 / (1 - std::pow(double(kBeta2), t)));
    const auto rate = float(learning_rate_at(state_.step, settings_));
    for_each_part([&](Index, Index first, Index count) {
      const auto g = gradients_[0]->flat.segment(first, count).array() * shorten;
      auto m = state_.first_moment.segment(first, count).array();
      auto v = state_.second_moment.segment(first, count).array();
      m = kBeta1 * m + (1 - kBeta1) * g;
      v = kBeta2 * v + (1 - kBeta2) * g.square();
      state_.parameters.flat.segment(first, count).array() -=
          rate * unbias1 * m / ((unbias2 * v).sqrt() + kAdamEpsilon);
    });
  }

  const Settings& settings_;
  std::string_view text_;
  alibi::Executor executor_;
  State& state_;
  std::vector<std::unique_ptr<Parameters>> gradients_;  // [shards]
  std::vector<std::unique_ptr<Pass>> passes_;           // [slots]
};

}  // namespace experiment
