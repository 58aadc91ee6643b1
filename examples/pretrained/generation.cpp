#include "generation.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <numeric>
#include <stdexcept>

#include "batch.hpp"
#include "stopwatch.hpp"

namespace pretrained {

Sampler::Sampler(const Sampling& sampling, std::uint64_t sequence) : sampling_(sampling) {
  std::seed_seq seed{sampling.seed & 0xFFFF'FFFF, sampling.seed >> 32, sequence};
  random_.seed(seed);
}

int Sampler::draw(std::span<const float> logits) {
  if (!Eigen::Map<const Eigen::ArrayXf>(logits.data(), Index(logits.size())).isFinite().all())
    throw std::runtime_error("the model's logits are not finite");
  const auto best = std::ranges::max_element(logits);
  if (sampling_.temperature == 0) return int(best - logits.begin());
  weights_.resize(logits.size());
  std::ranges::transform(logits, weights_.begin(),
                         [&](float x) { return std::exp((double(x) - double(*best)) / sampling_.temperature); });
  const double whole = std::accumulate(weights_.begin(), weights_.end(), 0.0);
  const bool some = sampling_.top_p < 1;
  // All tokens below this weight have less than 1 - top_p together: none of them is among those that are kept.
  const double least = some ? (1 - sampling_.top_p) * whole / double(logits.size()) : 0;
  order_.clear();
  for (std::size_t i = 0; i < weights_.size(); i++)
    if (weights_[i] >= least) order_.push_back(int(i));
  double kept = whole;
  if (some) {
    std::ranges::stable_sort(order_, std::greater(), [&](int id) { return weights_[std::size_t(id)]; });
    kept = 0;
    std::size_t count = 0;
    while (count < order_.size() && kept < sampling_.top_p * whole) kept += weights_[std::size_t(order_[count++])];
    order_.resize(count);
  }
  double left = double(random_() >> 11) * 0x1p-53 * kept;  // uniform in [0, kept)
  for (const int id : order_)
    if ((left -= weights_[std::size_t(id)]) < 0) return id;
  return order_.front();
}

GenerationReport generate(Session& session, std::span<const std::vector<int>> prompts, Index tokens,
                          const Sampling& sampling, const std::function<void(Index, int)>& on_token) {
  check_sequences(prompts, session.configuration());
  const Index count = Index(prompts.size());
  const auto& ends = session.configuration().end_tokens;
  GenerationReport report;
  std::vector<Sampler> samplers;
  for (Index b = 0; b < count; b++) {
    samplers.emplace_back(sampling, std::uint64_t(b));
    report.prompt_tokens += Index(prompts[std::size_t(b)].size());
  }
  const auto vocabulary = std::size_t(session.vocabulary());
  std::vector<float> logits(prompts.size() * vocabulary);
  std::vector<int> ids(prompts.size(), 0);
  std::vector<KeyRange> real(prompts.size(), KeyRange{0, 1});  // a sequence that has ended has none
  std::vector<Index> live(prompts.size());                     // the others, with one row of the logits each
  std::iota(live.begin(), live.end(), Index(0));

  const Stopwatch prompt_time;
  const double attention_before = session.attention_seconds();
  session.clear();
  const Batch batch = pad_left(prompts);
  read_in_chunks(session, batch, [&](Index first, const Chunk& chunk) {
    if (first + chunk.tokens < batch.tokens) return;
    std::vector<Index> last;
    for (Index b = 0; b < count; b++) last.push_back((b + 1) * chunk.tokens - 1);
    session.logits(last, logits);
  });
  /// Draws a token of each live sequence.
  const auto draw = [&] {
    for (std::size_t row = 0; row < live.size(); row++) {
      const auto b = std::size_t(live[row]);
      ids[b] = samplers[b].draw(std::span(logits).subspan(row * vocabulary, vocabulary));
      report.tokens++;
      on_token(live[row], ids[b]);
      if (std::ranges::find(ends, ids[b]) != ends.end()) real[b].end = 0;
    }
    std::erase_if(live, [&](Index b) { return real[std::size_t(b)].end == 0; });
  };
  if (tokens > 0) draw();
  report.first_tokens = report.tokens;
  report.prompt_seconds = prompt_time.seconds();
  report.prompt_attention_seconds = session.attention_seconds() - attention_before;

  const Stopwatch time;
  for (Index step = 1; step < tokens && !live.empty(); step++) {
    session.read({ids, 1, real});
    session.logits(live, std::span(logits).first(live.size() * vocabulary));
    draw();
  }
  report.seconds = time.seconds();
  report.attention_seconds = session.attention_seconds() - attention_before - report.prompt_attention_seconds;
  return report;
}

}  // namespace pretrained
