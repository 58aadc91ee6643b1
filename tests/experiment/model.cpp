// The backward pass of the experiment's language model (examples/train_short_test_long) against finite differences of
// its forward, for every position method, with this library's attention and with plain Eigen.
//
// g++ 12 reports the undefined operand of its own AVX-512 intrinsics as uninitialised where Eigen's product inlines
// them. The pragma takes effect only above the first include.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "model.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <vector>

#include "evaluate.hpp"

namespace {

using experiment::Backend;
using experiment::Index;
using experiment::Method;
using experiment::Stream;

constexpr Index kTokens = 100, kSamples = 300;

class ExperimentModel : public testing::TestWithParam<std::tuple<Backend, Method>> {
 protected:
  ExperimentModel() {
    experiment::initialise(parameters_, shape_, 1);
    for (Index i = 0; i < parameters_.t5.size(); i++)
      parameters_.t5.data()[i] = 0.3F * float(experiment::random_normal(5, Stream::parameters, std::uint64_t(i)));
    for (std::uint64_t i = 0; i < 400; i++) text_ += char('a' + experiment::random_bits(3, Stream::batches, i) % 20);
  }

  double loss() {
    pass_.forward(parameters_, std::vector<const char*>{text_.data(), text_.data() + 200});
    return pass_.loss(kTokens);
  }
  /// The derivative by central differences.
  double slope_at(Index parameter) {
    constexpr float kStep = 1e-2F;
    float& value = parameters_.flat[parameter];
    const float before = value;
    value = before + kStep;
    const double above = loss();
    value = before - kStep;
    const double below = loss();
    value = before;
    return (above - below) / (2 * double(kStep));
  }
  /// A sample of all parameters. The first 20 are T5's, because there are few of them.
  Index sample(Index i) const {
    if (i < 20) return parameters_.t5.data() - parameters_.flat.data() + i;
    return Index(experiment::random_bits(9, Stream::batches, std::uint64_t(i)) %
                 std::uint64_t(parameters_.flat.size()));
  }

  experiment::Shape shape_{std::get<Method>(GetParam()), std::get<Backend>(GetParam()), 16, 2, 2};
  experiment::Parameters parameters_{shape_}, gradient_{shape_};
  experiment::Pass pass_{shape_, {2, kTokens}, true};
  std::string text_;
};

TEST_P(ExperimentModel, GradientIsTheSlopeOfTheLoss) {
  loss();
  pass_.backward(parameters_, 1, gradient_);
  double worst = 0, largest = 0;
  for (Index i = 0; i < kSamples; i++) {
    const double expected = slope_at(sample(i));
    worst = std::max(worst, std::abs(expected - double(gradient_.flat[sample(i)])));
    largest = std::max(largest, std::abs(expected));
  }
  EXPECT_GT(largest, 1);
  EXPECT_LE(worst, 1e-3 * largest);  // the accuracy of differences of a loss in float
}

TEST_P(ExperimentModel, BothAttentionsGiveTheSameLoss) {
  experiment::Shape other = shape_;
  other.backend = shape_.backend == Backend::naive ? Backend::alibi : Backend::naive;
  experiment::Pass pass(other, {2, kTokens}, true);
  pass.forward(parameters_, std::vector<const char*>{text_.data(), text_.data() + 200});
  const double here = loss();
  EXPECT_NEAR(pass.loss(kTokens), here, 1e-6 * here);
}

INSTANTIATE_TEST_SUITE_P(Methods, ExperimentModel,
                         testing::Combine(testing::Values(Backend::alibi, Backend::naive),
                                          testing::Values(Method::alibi, Method::sinusoidal, Method::rotary,
                                                          Method::t5)));

// The text has the minimum length. The evaluation must not read beyond it.
TEST(ExperimentEvaluation, PredictsTheSameBytesAtEveryLength) {
  experiment::Settings settings{.shape = {.method = Method::alibi, .dim = 16, .layers = 1, .heads = 2}, .length = 16};
  settings.evaluated = experiment::kLongest * settings.length;
  experiment::Parameters parameters(settings.shape);
  experiment::initialise(parameters, settings.shape, 1);
  std::vector<char> text(std::size_t(settings.evaluated) + 1);
  for (std::size_t i = 0; i < text.size(); i++) text[i] = char('a' + i * i % 23);
  const alibi::Executor three(3, [](Index count, alibi::Task task) {
    std::vector<std::jthread> threads;
    for (Index i = 0; i < count; i++) threads.emplace_back([=] { task(i); });
  });
  const std::string_view view(text.data(), text.size());
  const experiment::Evaluator evaluator(settings, view, {}), threaded(settings, view, three);
  ASSERT_EQ(evaluator.bytes(), settings.evaluated);
  const Index slid = evaluator.sliding(parameters, settings.length).bytes;
  EXPECT_GE(slid, 1);
  for (Index length = settings.length; length <= settings.evaluated; length *= 2) {
    const auto whole = evaluator.nonoverlapping(parameters, length, evaluator.bytes());
    EXPECT_EQ(whole.bytes, settings.evaluated);
    EXPECT_EQ(evaluator.sliding(parameters, length).bytes, slid);
    EXPECT_EQ(threaded.nonoverlapping(parameters, length, evaluator.bytes()).loss, whole.loss);
    EXPECT_TRUE(std::isfinite(whole.loss) && whole.loss > 0) << whole.loss;
  }
}

}  // namespace
