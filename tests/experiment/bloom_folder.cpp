// A model of the experiment (examples/train_short_test_long), saved as a BLOOM folder, gives the same logits in the
// engine of examples/pretrained, and its tokenizer has a token for each byte.
//
// g++ 12 reports the undefined operand of its own AVX-512 intrinsics as uninitialised where Eigen's product inlines
// them. The pragma takes effect only above the first include.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "bloom_folder.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <string>
#include <vector>

#include "pretrained/model.hpp"
#include "pretrained/tokenizer.hpp"

namespace {

using experiment::Index;
using experiment::Method;

class ExperimentBloomFolder : public testing::Test {
 protected:
  ~ExperimentBloomFolder() override { std::filesystem::remove_all(folder_); }
  std::filesystem::path folder_ = std::filesystem::path(testing::TempDir()) / "alibi_experiment_bloom_folder";
};

TEST_F(ExperimentBloomFolder, GivesTheSameLogits) {
  constexpr Index kTokens = 70;
  const experiment::Shape shape = {.dim = 48, .layers = 2, .heads = 3, .training_length = kTokens};
  experiment::Parameters parameters(shape);
  experiment::initialise(parameters, shape, 1);
  for (Index i = 0; i < parameters.flat.size(); i++)
    parameters.flat[i] += 0.05F * float(experiment::random_normal(2, experiment::Stream::parameters, std::uint64_t(i)));
  experiment::save_bloom_folder(folder_, parameters, shape);

  std::string text;
  for (Index i = 0; i <= kTokens; i++) text += char(i * i * 7);
  experiment::Pass pass(shape, {1, kTokens}, false);
  pass.forward(parameters, std::vector<const char*>{text.data()});

  const auto tokenizer = pretrained::Tokenizer::load(folder_ / "tokenizer.json");
  const std::vector<int> ids = tokenizer.encode(std::string_view(text).substr(0, kTokens));
  ASSERT_EQ(Index(ids.size()), kTokens);
  for (std::size_t i = 0; i < ids.size(); i++) EXPECT_EQ(ids[i], int(static_cast<unsigned char>(text[i])));
  EXPECT_EQ(tokenizer.decode(ids), text.substr(0, kTokens));

  const pretrained::Model model(folder_, pretrained::Dtype::float32);
  const pretrained::Threads threads(1);
  const auto session = pretrained::new_session(model, threads, {.batch = 1, .capacity = kTokens});
  session->read({.ids = ids, .tokens = kTokens});
  std::vector<Index> rows(kTokens);
  std::iota(rows.begin(), rows.end(), Index(0));
  experiment::Matrix logits(kTokens, experiment::kSymbols);
  session->logits(rows, {logits.data(), std::size_t(logits.size())});
  EXPECT_GT(logits.cwiseAbs().maxCoeff(), 1);
  EXPECT_LE((logits - pass.logits()).cwiseAbs().maxCoeff(), 2e-5F * logits.cwiseAbs().maxCoeff());
}

TEST_F(ExperimentBloomFolder, IsOfAlibiModelsOnly) {
  const experiment::Shape shape = {.method = Method::rotary, .dim = 16, .layers = 1, .heads = 2, .training_length = 16};
  const experiment::Parameters parameters(shape);
  EXPECT_THROW(experiment::save_bloom_folder(folder_, parameters, shape), std::invalid_argument);
  EXPECT_FALSE(std::filesystem::exists(folder_));
}

}  // namespace
