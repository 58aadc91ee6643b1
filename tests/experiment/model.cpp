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
    // Every parameter matters, even those that begin as zeros or ones.
    for (Index i = 0; i < parameters_.flat.size(); i++)
      parameters_.flat[i] += 0.1F * float(experiment::random_normal(5, Stream::parameters, std::uint64_t(i)));
    for (Index i = 0; i < parameters_.t5.size(); i++) parameters_.t5.data()[i] *= 3;
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
  /// A sample of all parameters. The first 20 are the method's own, if it has any, and 40 those of norms, because there
  /// are few of them.
  Index sample(Index i) const {
    const auto place = [&](const experiment::MatrixMap& m) {
      return m.data() - parameters_.flat.data() + i % m.size();
    };
    const experiment::LayerParameters& layer = parameters_.layers[1];
    if (i < 20 && parameters_.t5.size() > 0) return place(parameters_.t5);
    if (i < 20 && parameters_.positions.size() > 0) return place(parameters_.positions);
    if (i < 30) return place(parameters_.embedding_norm.weight);
    if (i < 40) return place(parameters_.embedding_norm.bias);
    if (i < 50) return place(layer.attention_norm.weight);
    if (i < 60) return place(layer.mlp_norm.bias);
    return Index(experiment::random_bits(9, Stream::batches, std::uint64_t(i)) %
                 std::uint64_t(parameters_.flat.size()));
  }

  experiment::Shape shape_{std::get<Method>(GetParam()), std::get<Backend>(GetParam()), 16, 2, 2, kTokens};
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
                                          testing::Values(Method::alibi, Method::t5, Method::rotary,
                                                          Method::rotary_alibi, Method::xpos, Method::sinusoidal,
                                                          Method::learned)));

/// For evaluations of one window of the largest length.
experiment::Settings small_settings(Method method) {
  experiment::Settings settings{.shape = {.method = method, .dim = 16, .layers = 1, .heads = 2, .training_length = 16}};
  settings.evaluated = experiment::kLongest * settings.length();
  return settings;
}

// The variants of rotary that change it at evaluation are rotary itself at the training length, and differ beyond.
TEST(ExperimentEvaluation, ScaledRotationsDifferBeyondTheTrainingLength) {
  const experiment::Settings settings = small_settings(Method::rotary);
  experiment::Parameters parameters(settings.shape);
  experiment::initialise(parameters, settings.shape, 1);
  std::string text;
  for (Index i = 0; i <= settings.evaluated; i++) text += char('a' + i * i % 23);
  const experiment::Evaluator evaluator(settings, text, {});
  const auto loss = [&](Method method, Index length) {
    return evaluator.evaluate(parameters, method, experiment::Reading::nonoverlapping, length).loss;
  };
  for (const Method method : {Method::rotary_interpolation, Method::rotary_ntk, Method::rotary_yarn}) {
    EXPECT_EQ(loss(method, 16), loss(Method::rotary, 16)) << name_of(method);
    EXPECT_NE(loss(method, 64), loss(Method::rotary, 64)) << name_of(method);
    EXPECT_TRUE(std::isfinite(loss(method, 256))) << name_of(method);
  }
  EXPECT_NE(loss(Method::rotary_ntk, 64), loss(Method::rotary_interpolation, 64));
  EXPECT_NE(loss(Method::rotary_yarn, 64), loss(Method::rotary_interpolation, 64));
}

TEST(ExperimentEvaluation, LearnedPositionsEndAtTheTrainingLength) {
  const experiment::Settings settings = small_settings(Method::learned);
  const std::string text(1000, 'a');
  const experiment::Evaluator evaluator(settings, text, {});
  EXPECT_EQ(evaluator.lengths(Method::learned), std::vector<Index>{16});
  EXPECT_EQ(evaluator.lengths(Method::alibi), (std::vector<Index>{16, 32, 64, 128, 256}));
}

// The text has the minimum length. The evaluation must not read beyond it.
TEST(ExperimentEvaluation, PredictsTheSameBytesAtEveryLength) {
  const experiment::Settings settings = small_settings(Method::alibi);
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
  const Index slid = evaluator.sliding(parameters, Method::alibi, settings.length()).bytes;
  EXPECT_GE(slid, 1);
  for (Index length = settings.length(); length <= settings.evaluated; length *= 2) {
    const auto whole = evaluator.nonoverlapping(parameters, Method::alibi, length, evaluator.bytes());
    EXPECT_EQ(whole.bytes, settings.evaluated);
    EXPECT_EQ(evaluator.sliding(parameters, Method::alibi, length).bytes, slid);
    EXPECT_EQ(threaded.nonoverlapping(parameters, Method::alibi, length, evaluator.bytes()).loss, whole.loss);
    EXPECT_TRUE(std::isfinite(whole.loss) && whole.loss > 0) << whole.loss;
  }
}

}  // namespace
