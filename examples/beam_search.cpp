// Beam search over one cache: all beams share the tiles of their common beginning, and a step moves no keys.
//
// The cache has a sequence for each beam. The prompt is appended once and forked. After that, each step
//   1. reorders the cache, so that sequence b is the one that beam b continues,
//   2. appends the last letter of every beam, and attends,
//   3. keeps the best beams among all continuations of all beams by one letter.
//
// The program prints the beams and the memory that sharing saves. It checks the result against a beam search that
// computes everything afresh: at every step, every beam fills a cache of its own from the first letter on. Both give
// the same bits.
#include <algorithm>
#include <array>
#include <cstdio>
#include <exception>
#include <iostream>

#include "toy_model.hpp"

namespace {

constexpr Index kBeams = 4, kSteps = 50;

struct Beam {
  std::string text;
  double score = 0;  // the logarithm of the probability of all letters after the prompt
  Index parent = 0;  // the beam of the last step that it continues

  bool operator==(const Beam&) const = default;
};
using Beams = std::vector<Beam>;

/// The best continuations of beams by one letter. log_probabilities is [beams, letters].
Beams best_continuations(const Beams& beams, const Matrix& log_probabilities) {
  Beams all;
  for (Index b = 0; b < Index(beams.size()); b++)
    for (Index letter = 0; letter < ToyModel::kLetters; letter++) {
      const Beam& beam = beams[std::size_t(b)];
      all.push_back({beam.text + char('a' + letter), beam.score + double(log_probabilities(b, letter)), b});
    }
  std::ranges::stable_sort(all, std::greater(), &Beam::score);
  all.resize(std::size_t(kBeams));
  return all;
}

/// next(beams) gives the logarithms of the probabilities of the next letter of each beam, [beams, letters].
template <class Next>
Beams search(const std::string& prompt, const Next& next) {
  Beams beams(std::size_t(kBeams), Beam{prompt});
  for (Index b = 0; b < kBeams; b++) beams[std::size_t(b)].parent = b;
  for (Index step = 0; step < kSteps; step++) {
    const Matrix log_probabilities = next(beams);
    if (step == 0) beams.resize(1);  // all are the prompt: one stands for all
    beams = best_continuations(beams, log_probabilities);
  }
  return beams;
}

alibi::KvCache<float> new_cache(Index batch, Index capacity) {
  return alibi::KvCache<float>(
      {.batch = batch, .kv_heads = ToyModel::kHeads, .head_dim = ToyModel::kHeadDim, .capacity = capacity});
}

/// Appends the last letter of every beam to its sequence, attends, and returns the probabilities of the next letter.
Matrix step(const ToyModel& model, alibi::KvCache<float>& cache, const Beams& beams) {
  std::array<Index, kBeams> parents{};
  std::string last;
  for (std::size_t b = 0; b < beams.size(); b++) {
    parents[b] = beams[b].parent;
    last += beams[b].text.back();
  }
  cache.reorder(parents);
  const Matrix projected = model.project(last);
  const auto [q, k, v] = ToyModel::views(projected, kBeams);
  cache.append(k, v);
  Matrix attended(kBeams, ToyModel::kWidth), log_probabilities(kBeams, ToyModel::kLetters);
  alibi::attention_into(ToyModel::view(attended, kBeams), q, cache, model.slopes());
  for (Index b = 0; b < kBeams; b++)
    log_probabilities.row(b) = model.next(last[std::size_t(b)], attended.row(b)).transpose();
  return log_probabilities;
}

/// The same of a cache that is filled from the first letter on for every beam.
Matrix afresh(const ToyModel& model, const Beams& beams) {
  Matrix log_probabilities(kBeams, ToyModel::kLetters);
  for (Index b = 0; b < kBeams; b++) {
    const std::string& text = beams[std::size_t(b)].text;
    alibi::KvCache<float> cache = new_cache(1, Index(text.size()));
    const Matrix projected = model.project(text), last = projected.bottomRows(1);
    const auto [no_q, k, v] = ToyModel::views(projected, 1);
    cache.append(k, v);
    Matrix attended(1, ToyModel::kWidth);
    alibi::attention_into(ToyModel::view(attended, 1), ToyModel::views(last, 1).q, cache, model.slopes());
    log_probabilities.row(b) = model.next(text.back(), attended.row(0)).transpose();
  }
  return log_probabilities;
}

}  // namespace

int main() {
  try {
    const ToyModel model;
    const std::string prompt = ToyModel::prompt(1000, 1);

    // All letters of the prompt but the last, which the first step appends, as all steps do.
    alibi::KvCache<float> cache = new_cache(kBeams, Index(prompt.size()) + kSteps);
    const Matrix projected = model.project(prompt.substr(0, prompt.size() - 1));
    const auto [q, k, v] = ToyModel::views(projected, 1);
    cache.append(0, k, v);
    for (Index b = 1; b < kBeams; b++) cache.fork(0, b);

    const Beams beams = search(prompt, [&](const Beams& of) { return step(model, cache, of); });
    std::cout << "a prompt of " << prompt.size() << " letters, and the best " << kBeams << " ways to go on:\n";
    for (const Beam& beam : beams) std::printf("  %8.3f  %s\n", beam.score, beam.text.substr(prompt.size()).c_str());
    std::fflush(stdout);

    std::size_t unshared = 0;
    for (Index b = 0; b < kBeams; b++)
      for (Index h = 0; h < ToyModel::kHeads; h++) unshared += cache.bytes(b, h);
    std::printf("the cache holds %.2f MB; without sharing it would be %.2f MB\n", 1e-6 * double(cache.bytes()),
                1e-6 * double(unshared));

    const Beams expected = search(prompt, [&](const Beams& of) { return afresh(model, of); });
    if (beams != expected) throw std::runtime_error("a search that computes everything afresh finds other beams");
    std::puts("a search that computes everything afresh finds the same");
  } catch (const std::exception& error) {
    std::cerr << "beam_search: " << error.what() << '\n';
    return 1;
  }
}
