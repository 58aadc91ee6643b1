// Evaluation at any length, without further training, in the two ways of the paper (its appendix B):
//
//   nonoverlapping   The text is cut into windows of `length`. Every byte is predicted from the bytes before it in its
//                    window. With longer windows, fewer bytes are near the start of a window and have little context.
//   sliding          The window moves by `stride`, and only the last `stride` bytes of each window are predicted, each
//                    from at least length - stride bytes. The predicted bytes are the same for every length.
#pragma once

#include <algorithm>
#include <alibi/executor.hpp>
#include <memory>
#include <numeric>
#include <span>
#include <string_view>
#include <vector>

#include "checkpoint.hpp"
#include "model.hpp"
#include "settings.hpp"
#include "stop.hpp"

namespace experiment {

/// The number of windows of a sliding evaluation. They are spread over the text, because reading all of it in this way
/// would take 16 · 4 · 16 times as long as reading it once.
constexpr Index kSlidingWindows = 256, kSlidingStrides = 4;  // kSlidingStrides: strides in a training length

class Evaluator {
 public:
  /// `text` must outlive the evaluator, and hold at least one window of the largest length and one more byte.
  Evaluator(const Settings& settings, std::string_view text, const alibi::Executor& executor)
      : shape_(settings.shape),
        longest_(kLongest * settings.length()),
        bytes_(std::min(settings.evaluated, Index(text.size()) - 1) / longest_ * longest_),
        text_(text),
        executor_(executor) {}

  /// The used bytes of the validation text; 0 if the text is too short.
  Index bytes() const { return bytes_; }

  /// Lengths in increasing order, for a method that trained_as() names the trained method.
  std::vector<Index> lengths(Method method) const {
    std::vector<Index> result;
    const Index last = ends_at_training_length(method) ? shape_.training_length : longest_;
    for (Index length = shape_.training_length; length <= last; length *= 2) result.push_back(length);
    return result;
  }

  Evaluation evaluate(const Parameters& parameters, Method method, Reading reading, Index length) const {
    return reading == Reading::sliding ? sliding(parameters, method, length)
                                       : nonoverlapping(parameters, method, length, bytes_);
  }

  Evaluation nonoverlapping(const Parameters& parameters, Method method, Index length, Index bytes) const {
    std::vector<const char*> windows;
    for (Index at = 0; at + length <= bytes; at += length) windows.push_back(text_.data() + at);
    Evaluation evaluation{.method = method, .reading = Reading::nonoverlapping, .length = length, .stride = length};
    score(parameters, windows, evaluation);
    return evaluation;
  }

  Evaluation sliding(const Parameters& parameters, Method method, Index length) const {
    const Index stride = shape_.training_length / kSlidingStrides, room = bytes_ - longest_;
    const Index count = std::min(kSlidingWindows, room / stride + 1);
    std::vector<const char*> windows;
    for (Index i = 0; i < count; i++) {
      const Index end = longest_ + i * room / std::max<Index>(count - 1, 1);
      windows.push_back(text_.data() + end - length);
    }
    Evaluation evaluation{.method = method, .reading = Reading::sliding, .length = length, .stride = stride};
    score(parameters, windows, evaluation);
    return evaluation;
  }

 private:
  /// Predicts the last `stride` bytes of each window. The result is undefined once a stop is requested.
  void score(const Parameters& parameters, const std::vector<const char*>& windows, Evaluation& evaluation) const {
    const auto start = Clock::now();
    const Index count = Index(windows.size()), group = longest_ / evaluation.length;  // all tasks have the same size
    std::vector<double> losses(std::size_t((count + group - 1) / group));
    std::vector<std::unique_ptr<Pass>> passes(std::size_t(executor_.max_concurrency()));
    Shape shape = shape_;
    shape.method = evaluation.method;
    executor_.for_each(Index(losses.size()), [&](Index task, int slot) {
      if (stop_requested()) return;
      const Index first = task * group, batch = std::min(group, count - first);
      std::unique_ptr<Pass>& pass = passes[std::size_t(slot)];
      if (!pass || pass->extent().batch != batch)
        pass = std::make_unique<Pass>(shape, Extent{batch, evaluation.length}, false);
      pass->forward(parameters, std::span(windows).subspan(std::size_t(first), std::size_t(batch)));
      losses[std::size_t(task)] = pass->loss(evaluation.stride);
    });
    evaluation.bytes = count * evaluation.stride;
    evaluation.loss = std::accumulate(losses.begin(), losses.end(), 0.0) / double(evaluation.bytes);
    evaluation.tokens_per_second = double(count * evaluation.length) / seconds_since(start);
  }

  Shape shape_;
  Index longest_, bytes_;
  std::string_view text_;
  alibi::Executor executor_;
};

}  // namespace experiment
