// Tiny BLOOM, MPT and Falcon checkpoints give the logits and tokens that transformers gives, however their tokens are
// read.
#include "model.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "batch.hpp"
#include "generation.hpp"
#include "golden_model.hpp"
#include "logits.hpp"
#include "perplexity.hpp"
#include "threads.hpp"

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
std::vector<float> read_all(const Model& model, std::span<const int> ids, Index at_a_time,
                            const pretrained::Threads& by = threads()) {
  const auto session = pretrained::new_session(model, by, {.batch = 1, .capacity = Index(ids.size())});
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
  for (const Index chunk_rows : {3, 12, 512}) {  // tokens of three sequences at a time
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

// One sequence ends in the middle, the others go on; the end token is in generation_config.json.
TEST_P(PretrainedModel, SequencesEndOneByOne) {
  auto prompts = golden_.batch;
  prompts.push_back(prompt());
  auto expected = continued(model_, prompts, 20);
  const auto length = [](const std::vector<int>& tokens, int end) {  // with the end token
    return std::min<Index>(std::ranges::find(tokens, end) - tokens.begin() + 1, Index(tokens.size()));
  };
  int end = 0;
  for (bool found = false; !found && end < model_.configuration().vocabulary; end += !found) {
    const auto [least, most] =
        std::ranges::minmax(expected, {}, [&](const auto& tokens) { return length(tokens, end); });
    found = length(least, end) + 2 < length(most, end);
  }
  ASSERT_LT(end, model_.configuration().vocabulary) << "no token ends one sequence before another";
  for (auto& tokens : expected) tokens.resize(std::size_t(length(tokens, end)));

  const auto folder = std::filesystem::path(testing::TempDir()) / (std::string("ends_") + GetParam());
  std::filesystem::remove_all(folder);
  std::filesystem::copy(golden_.folder, folder);
  std::ofstream(folder / "generation_config.json") << R"({"eos_token_id": [)" << end << "]}";
  EXPECT_EQ(continued(Model(folder, Dtype::float32), prompts, 20), expected);
  std::filesystem::remove_all(folder);
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

// Bounds relative to the largest logit, in units of the last place of a 16-bit type: 2^-11 and 2^-8.
TEST_P(PretrainedModel, SixteenBitsAreNearFloat) {
  const double largest = largest_difference(golden_.logits, std::vector<float>(golden_.logits.size()));
  for (const auto& [dtype, unit] : {std::pair(Dtype::half, 0x1p-11), std::pair(Dtype::bfloat16, 0x1p-8)}) {
    const Model model(golden_.folder, dtype);
    for (const Index at_a_time : {1, 17, 70}) {
      const double difference = largest_difference(read_all(model, golden_.ids, at_a_time), golden_.logits) / largest;
      EXPECT_LT(difference, 16 * unit) << pretrained::name_of(dtype) << ", " << at_a_time << " at a time";
      EXPECT_GT(difference, unit / 8) << pretrained::name_of(dtype) << " rounds nothing";
    }
  }
}

TEST_P(PretrainedModel, BitsDoNotDependOnThreads) {
  for (const Dtype dtype : {Dtype::float32, Dtype::bfloat16, Dtype::half}) {
    const Model model(golden_.folder, dtype);
    const pretrained::Threads one(1), two(2), three(3);
    for (const Index at_a_time : {1, 70}) {
      const auto expected = read_all(model, golden_.ids, at_a_time, one);
      EXPECT_EQ(read_all(model, golden_.ids, at_a_time, two), expected);
      EXPECT_EQ(read_all(model, golden_.ids, at_a_time, three), expected);
    }
  }
}

TEST_P(PretrainedModel, BadCallsChangeNothing) {
  const auto session = pretrained::new_session(model_, threads(), {.batch = 2, .capacity = 4});
  const auto vocabulary = std::size_t(session->vocabulary());
  const std::vector<int> ids = {1, 2, 0, 3};  // the second sequence has one token, padded on the left
  const std::vector<pretrained::KeyRange> real = {{0, 2}, {1, 2}};
  session->read({ids, 2, real});
  std::vector<float> before(2 * vocabulary), after(before.size());
  const std::vector<Index> last = {1, 3};
  session->logits(last, before);

  const auto is_refused = [&](const std::vector<int>& bad, Index tokens, std::vector<pretrained::KeyRange> bad_real) {
    EXPECT_THROW(session->read({bad, tokens, bad_real}), std::invalid_argument);
  };
  is_refused({1, 2, 3}, 2, {});                                                       // sizes
  is_refused({1, 2}, 1, {{0, 1}});                                                    // ranges of another batch
  is_refused({1, 2}, 1, {{0, 2}, {0, 1}});                                            // beyond the chunk
  is_refused({1, int(vocabulary)}, 1, {});                                            // no such token
  is_refused({1, -1}, 1, {});                                                         // nor this
  is_refused({1, 2, 3, 1, 2, 3}, 3, {});                                              // beyond the capacity
  for (const std::vector<Index>& rows : {std::vector<Index>{0, 2}, {0, 4}, {-1, 0}})  // padding, or not read
    EXPECT_THROW(session->logits(rows, after), std::invalid_argument);
  EXPECT_THROW(session->logits(last, std::span(after).first(vocabulary)), std::invalid_argument);

  session->logits(last, after);
  EXPECT_EQ(after, before);
  session->read({std::vector<int>{1, 2, 3, 4}, 2, {}});  // fits: 4 and 3 tokens
}

TEST(PretrainedPerplexity, RefusesWindowsThatDoNotFit) {
  EXPECT_EQ(pretrained::whole_windows(1025, 512, std::nullopt), 2);
  EXPECT_EQ(pretrained::whole_windows(1024, 512, std::nullopt), 1);
  EXPECT_EQ(pretrained::whole_windows(1025, 512, 1023), 1);
  EXPECT_THROW(pretrained::whole_windows(512, 512, std::nullopt), std::invalid_argument);
  EXPECT_THROW(pretrained::whole_windows(0, 1, std::nullopt), std::invalid_argument);
  EXPECT_THROW(pretrained::whole_windows(1025, 0, std::nullopt), std::invalid_argument);
}

TEST(PretrainedSampler, DrawsInProportionAmongTheMostProbable) {
  std::vector<float> logits;  // probabilities 0.4, 0.1, 0.3, 0.2
  for (const double p : {0.4, 0.1, 0.3, 0.2}) logits.push_back(float(std::log(p) + 3));
  const auto shares = [&](const pretrained::Sampling& sampling) {
    std::vector<double> result(4);
    pretrained::Sampler sampler(sampling, 0);
    for (int i = 0; i < 20000; i++) result[std::size_t(sampler.draw(logits))] += 1.0 / 20000;
    return result;
  };
  const auto expect = [&](const pretrained::Sampling& sampling, const std::vector<double>& expected) {
    const auto drawn = shares(sampling);
    for (std::size_t i = 0; i < 4; i++) EXPECT_NEAR(drawn[i], expected[i], expected[i] == 0 ? 0 : 0.02) << i;
  };
  expect({.temperature = 0}, {1, 0, 0, 0});
  expect({.temperature = 1}, {0.4, 0.1, 0.3, 0.2});
  expect({.temperature = 0.5}, {16.0 / 30, 1.0 / 30, 9.0 / 30, 4.0 / 30});
  expect({.temperature = 1, .top_p = 0.65}, {4.0 / 7, 0, 3.0 / 7, 0});
  expect({.temperature = 1, .top_p = 1e-9}, {1, 0, 0, 0});
  expect({.temperature = 1e-300}, {1, 0, 0, 0});

  logits[1] = std::nanf("");
  EXPECT_THROW(pretrained::Sampler({}, 0).draw(logits), std::runtime_error);
}

TEST(PretrainedThreads, CallEveryTaskOnce) {
  for (const int count : {1, 2, 3, 8}) {
    const pretrained::Threads several(count);
    for (const Index tasks : {0, 1, 2, 3, 100})
      for (int round = 0; round < 200; round++) {
        std::vector<std::atomic<int>> calls(static_cast<std::size_t>(tasks)), slots(static_cast<std::size_t>(count));
        several.executor().for_each(tasks, [&](Index i, int slot) {
          EXPECT_EQ(slots[std::size_t(slot)]++, 0) << "two calls at once in a slot";
          calls[std::size_t(i)]++;
          several.executor().for_each(2, [](Index, int) {});  // from inside
          slots[std::size_t(slot)]--;
        });
        for (const auto& of_task : calls) EXPECT_EQ(of_task, 1);
        if (round % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // workers sleep
      }
  }
  const pretrained::Threads shared(3);  // by two threads at once
  std::atomic<int> sum = 0;
  const auto add = [&] {
    for (int i = 0; i < 500; i++) shared.executor().for_each(10, [&](Index, int) { sum++; });
  };
  std::thread other(add);
  add();
  other.join();
  EXPECT_EQ(sum, 10000);
  EXPECT_THROW(shared.executor().for_each(10,
                                          [](Index i, int) {
                                            if (i == 5) throw std::runtime_error("task");
                                          }),
               std::runtime_error);
}

INSTANTIATE_TEST_SUITE_P(Families, PretrainedModel,
                         testing::Values("bloom", "bloom_post_norm", "mpt", "falcon_multi_query", "falcon_rw"),
                         [](const auto& model) { return std::string(model.param); });

}  // namespace
