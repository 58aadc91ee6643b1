// The results of the runs: training.csv, results.csv, and the table on the terminal.
#pragma once

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <numeric>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint.hpp"
#include "settings.hpp"

namespace experiment {

/// A finished run.
struct Outcome {
  Settings settings;
  std::uint64_t parameters_hash = 0;
  std::vector<double> losses;
  std::vector<Validation> validations;
  std::vector<Evaluation> evaluations;
  Seconds seconds;

  std::string_view name() const { return name_of(settings.shape.method); }
  Index tokens_per_step() const { return settings.batch * settings.length; }
  double tokens_per_second() const { return double(settings.steps * tokens_per_step()) / seconds.training; }
};

inline Outcome outcome_of(const Settings& settings, const State& state) {
  const auto& flat = state.parameters.flat;
  const std::string_view bytes(reinterpret_cast<const char*>(flat.data()), std::size_t(flat.size()) * sizeof(float));
  return {settings, fnv1a(bytes), state.losses, state.validations, state.evaluations, state.seconds};
}

/// The loss of a row is the mean since the row before. There are about a hundred rows for each method.
inline std::string training_csv(const std::vector<Outcome>& outcomes) {
  std::ostringstream csv;
  csv << "method,step,tokens,train_loss_nats,validation_loss_nats\n";
  for (const Outcome& outcome : outcomes) {
    const Index steps = outcome.settings.steps, every = std::max<Index>(1, steps / 100);
    auto validation = outcome.validations.begin();
    for (Index step = 1, before = 0; step <= steps; step++) {
      const bool validated = validation != outcome.validations.end() && validation->step == step;
      if (step % every != 0 && !validated && step != steps) continue;
      const auto first = outcome.losses.begin() + before, last = outcome.losses.begin() + step;
      csv << outcome.name() << ',' << step << ',' << step * outcome.tokens_per_step() << ','
          << exact_text(std::accumulate(first, last, 0.0) / double(step - before)) << ',';
      if (validated) csv << exact_text((validation++)->loss);
      csv << '\n';
      before = step;
    }
  }
  return csv.str();
}

inline std::string results_csv(const std::vector<Outcome>& outcomes) {
  std::ostringstream csv;
  csv << "method,training_length,evaluation,length,stride,bytes,loss_nats,perplexity,tokens_per_second\n";
  for (const Outcome& outcome : outcomes)
    for (const Evaluation& e : outcome.evaluations)
      csv << outcome.name() << ',' << outcome.settings.length << ',' << name_of(e.reading) << ',' << e.length << ','
          << e.stride << ',' << e.bytes << ',' << exact_text(e.loss) << ',' << exact_text(std::exp(e.loss)) << ','
          << std::llround(e.tokens_per_second) << '\n';
  return csv.str();
}

inline void print_perplexities(const std::vector<Outcome>& outcomes, Reading reading) {
  bool header = true;
  for (const Outcome& outcome : outcomes) {
    if (header) {
      std::printf("%-14s", "length");
      for (const Evaluation& e : outcome.evaluations)
        if (e.reading == reading) std::printf("%10td", e.length);
      std::printf("\n");
    }
    header = false;
    std::printf("%-14s", std::string(outcome.name()).c_str());
    for (const Evaluation& e : outcome.evaluations)
      if (e.reading == reading) std::printf("%10.4f", std::exp(e.loss));
    std::printf("\n");
  }
}

inline void print_table(const std::vector<Outcome>& outcomes) {
  std::printf("\nperplexity a byte, trained at length %td; nonoverlapping:\n", outcomes[0].settings.length);
  print_perplexities(outcomes, Reading::nonoverlapping);
  std::printf("\nthe same, sliding by %td:\n", outcomes[0].evaluations.back().stride);
  print_perplexities(outcomes, Reading::sliding);
  std::printf("\n%-14s%12s%14s%16s%26s%20s\n", "training", "tokens/s", "in attention", "last loss", "the same, exactly",
              "parameters");
  for (const Outcome& outcome : outcomes)
    std::printf("%-14s%12.0f%13.1f%%%16.4f%26a%20llx\n", std::string(outcome.name()).c_str(),
                outcome.tokens_per_second(), 100 * outcome.seconds.attention / outcome.seconds.working,
                outcome.losses.back(), outcome.losses.back(), static_cast<unsigned long long>(outcome.parameters_hash));
}

}  // namespace experiment
