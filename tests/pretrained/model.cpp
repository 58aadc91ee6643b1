// Tiny BLOOM, MPT and Falcon checkpoints give the logits and tokens that transformers gives, however their tokens are
// read.
#include "model.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "batch.hpp"
#include "generation.hpp"
#include "golden_model.hpp"
#include "logits.hpp"
#include "perplexity.hpp"

namespace {

using pretrained::Dtype;
using pretrained::Index;
using pretrained::Model;
using test::Golden;

const pretrained::Threads& threads() {
  static const pretrained::Threads kThreads(2);
  return kThreads;
}

double largest_difference(std::span<const float> a, std::span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); i++) {
    const double difference = std::abs(double(a[i]) - double(b[i]));
    largest = difference <= largest ? largest : difference;  // NaN is larger than everything
  }
  return largest;
}

/// Logits of all tokens of a sequence, read some at a time.
std::vector<float> read_all(const Model& model, std::span<const int> ids, Index at_a_time) {
  const auto session = pretrained::new_session(model, threads(), {.batch = 1, .capacity = Index(ids.size())});
  std::vector<float> logits(ids.size() * std::size_t(session->vocabulary()));
  std::vector<Index> rows;
  for (Index first = 0; first < Index(ids.size()); first += at_a_time) {
    const Index tokens = std::min(at_a_time, Index(ids.size()) - first);
    session->read({.ids = ids.subspan(std::size_t(first), std::size_t(tokens)), .tokens = tokens});
    rows.resize(std::size_t(tokens));
    std::iota(rows.begin(), rows.end(), Index(0));
    const Index vocabulary = session->vocabulary();
    session->logits(rows, std::span(logits).subspan(std::size_t(first * vocabulary), std::size_t(tokens * vocabulary)));
  }
  return logits;
}

std::vector<std::vector<int>> continued(const Model& model, const std::vector<std::vector<int>>& prompts, Index tokens,
                                        const pretrained::Sampling& sampling = {}) {
  const auto session =
      pretrained::new_session(model, threads(), {.batch = Index(prompts.size()), .capacity = 100 + tokens});
  std::vector<std::vector<int>> result(prompts.size());
  pretrained::generate(*session, prompts, tokens, sampling,
                       [&](Index b, int id) { result[std::size_t(b)].push_back(id); });
  return result;
}

class PretrainedModel : public testing::TestWithParam<const char*> {
 protected:
  const Golden golden_{GetParam()};
  const Model model_{golden_.folder, Dtype::float32};
  std::vector<int> prompt() const {
    return {golden_.ids.begin(), golden_.ids.begin() + std::ptrdiff_t(golden_.ids.size() / 2)};
  }
};

TEST_P(PretrainedModel, LogitsAreThoseOfTransformers) {
  for (const Index at_a_time : {1, 3, 17, 64, 70})
    EXPECT_LT(largest_difference(read_all(model_, golden_.ids, at_a_time), golden_.logits), 1e-4)
        << at_a_time << " tokens at a time";
}

TEST_P(PretrainedModel, GreedyTokensAreThoseOfTransformers) {
  EXPECT_EQ(continued(model_, {prompt()}, Index(golden_.greedy.size()))[0], golden_.greedy);
}

TEST_P(PretrainedModel, BatchPaddedOnTheLeft) {
  const auto file = std::filesystem::path(testing::TempDir()) / (std::string("logits_") + GetParam() + ".safetensors");
  for (const Index chunk_rows : {3, 12, 512}) {  // 1, 4 and all tokens of three sequences at a time
    const auto session = pretrained::new_session(model_, threads(), {.batch = 3, .capacity = golden_.batch_tokens});
    pretrained::write_logits(*session, golden_.batch, file, chunk_rows);
    const pretrained::SafetensorsFile written(file);
    const pretrained::Tensor& logits = written.at("logits");
    logits.expect_shape({3, golden_.batch_tokens, session->vocabulary()});
    EXPECT_LT(largest_difference(test::numbers<float>(logits), golden_.batch_logits), 1e-4) << chunk_rows;
  }
  std::filesystem::remove(file);
}

TEST_P(PretrainedModel, PromptsGenerateTheSameAloneAndTogether) {
  const pretrained::Sampling sampled{.temperature = 1, .top_p = 0.9, .seed = 5};
  auto prompts = golden_.batch;
  prompts.push_back(prompt());
  const auto together = continued(model_, prompts, 20), drawn = continued(model_, prompts, 20, sampled);
  for (std::size_t i = 0; i < prompts.size(); i++) EXPECT_EQ(together[i], continued(model_, {prompts[i]}, 20)[0]);
  EXPECT_EQ(together.back(), std::vector<int>(golden_.greedy.begin(), golden_.greedy.begin() + 20));
  EXPECT_EQ(drawn, continued(model_, prompts, 20, sampled));
  EXPECT_NE(drawn, together);
}

TEST_P(PretrainedModel, PerplexityIsThatOfTheLogits) {
  const std::size_t vocabulary = golden_.logits.size() / golden_.ids.size();
  double sum = 0;
  for (std::size_t t = 0; t + 1 < golden_.ids.size(); t++) {
    const auto logits = std::span(golden_.logits).subspan(t * vocabulary, vocabulary);
    double whole = 0;
    for (const float x : logits) whole += std::exp(double(x));
    sum += std::log(whole) - double(logits[std::size_t(golden_.ids[t + 1])]);
  }
  const auto ignore = [](double) {};
  const auto p = pretrained::perplexity(model_, threads(), golden_.ids, 69, std::nullopt, std::nullopt, ignore);
  EXPECT_EQ(p.tokens, 69);
  EXPECT_NEAR(std::log(p.value), sum / 69, 1e-5);
  const auto first = pretrained::perplexity(model_, threads(), golden_.ids, 1, 69, 0.0, ignore);
  EXPECT_EQ(first.tokens, 69);
}

TEST_P(PretrainedModel, SixteenBitsAreNearFloat) {
  for (const auto& [dtype, bound] : {std::pair(Dtype::half, 0.05), std::pair(Dtype::bfloat16, 0.4)}) {
    const Model model(golden_.folder, dtype);
    const auto logits = read_all(model, golden_.ids, 70);
    EXPECT_LT(largest_difference(logits, golden_.logits), bound);
    EXPECT_GT(largest_difference(logits, golden_.logits), 1e-4);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, PretrainedModel,
                         testing::Values("bloom", "bloom_post_norm", "mpt", "falcon_multi_query", "falcon_rw"),
                         [](const auto& model) { return std::string(model.param); });

}  // namespace
