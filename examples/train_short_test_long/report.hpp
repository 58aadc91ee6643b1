// The results of the runs: training.csv, results.csv, and the table on the terminal.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <numeric>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint.hpp"
#include "settings.hpp"

namespace experiment {

/// A finished run of a trained method, and the methods that were evaluated with its parameters.
struct Outcome {
  Settings settings;
  std::vector<Method> methods;
  std::uint64_t parameters_hash = 0;
  std::vector<double> losses;
  std::vector<Validation> validations;
  std::vector<Evaluation> evaluations;
  Seconds seconds;

  std::string_view name() const { return name_of(settings.shape.method); }
  Index length() const { return settings.length(); }
  Index tokens_per_step() const { return settings.batch * length(); }
  double tokens_per_second() const { return double(settings.steps * tokens_per_step()) / seconds.training; }
};

inline Outcome outcome_of(const Settings& settings, const std::vector<Method>& methods, const State& state) {
  const auto& flat = state.parameters.flat;
  const std::string_view bytes(reinterpret_cast<const char*>(flat.data()), std::size_t(flat.size()) * sizeof(float));
  return {settings, methods, fnv1a(bytes), state.losses, state.validations, state.evaluations, state.seconds};
}

/// The evaluations of one method, in a row of the tables and a line of the picture.
struct Line {
  Method method = Method::alibi;
  Index training_length = 0;
  std::vector<Evaluation> evaluations = {};
};

inline std::vector<Line> lines_of(const std::vector<Outcome>& outcomes) {
  std::vector<Line> lines;
  for (const Outcome& outcome : outcomes)
    for (const Method method : outcome.methods) {
      Line& line = lines.emplace_back(Line{.method = method, .training_length = outcome.length()});
      std::ranges::copy_if(outcome.evaluations, std::back_inserter(line.evaluations),
                           [method](const Evaluation& e) { return e.method == method; });
    }
  return lines;
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
  for (const Line& line : lines_of(outcomes))
    for (const Evaluation& e : line.evaluations)
      csv << name_of(line.method) << ',' << line.training_length << ',' << name_of(e.reading) << ',' << e.length << ','
          << e.stride << ',' << e.bytes << ',' << exact_text(e.loss) << ',' << exact_text(std::exp(e.loss)) << ','
          << std::llround(e.tokens_per_second) << '\n';
  return csv.str();
}

/// A column for each length; a method without positions at a length has a dash there.
inline void print_perplexities(const std::vector<Line>& lines, Reading reading) {
  const Index trained = lines[0].training_length;
  std::printf("%-22s", "length");
  for (Index length = trained; length <= kLongest * trained; length *= 2) std::printf("%10td", length);
  std::printf("\n");
  for (const Line& line : lines) {
    std::printf("%-22s", std::string(name_of(line.method)).c_str());
    for (Index length = trained; length <= kLongest * trained; length *= 2) {
      const auto found = std::ranges::find_if(
          line.evaluations, [&](const Evaluation& e) { return e.reading == reading && e.length == length; });
      if (found == line.evaluations.end())
        std::printf("%10s", "-");
      else
        std::printf("%10.4f", std::exp(found->loss));
    }
    std::printf("\n");
  }
}

inline void print_table(const std::vector<Outcome>& outcomes) {
  const std::vector<Line> lines = lines_of(outcomes);
  const Index trained = lines[0].training_length;
  std::printf("\nperplexity a byte, trained at length %td; nonoverlapping:\n", trained);
  print_perplexities(lines, Reading::nonoverlapping);
  std::printf("\nthe same, sliding by %td:\n", lines[0].evaluations.back().stride);
  print_perplexities(lines, Reading::sliding);
  if (std::ranges::any_of(lines, [](const Line& line) { return ends_at_training_length(line.method); }))
    std::printf("\nlearned has no embedding for positions beyond the training length.\n");
  std::printf("\n%-14s%12s%14s%16s%26s%20s\n", "training", "tokens/s", "in attention", "last loss", "the same, exactly",
              "parameters");
  for (const Outcome& outcome : outcomes)
    std::printf("%-14s%12.0f%13.1f%%%16.4f%26a%20llx\n", std::string(outcome.name()).c_str(),
                outcome.tokens_per_second(), 100 * outcome.seconds.attention / outcome.seconds.working,
                outcome.losses.back(), outcome.losses.back(), static_cast<unsigned long long>(outcome.parameters_hash));
}

}  // namespace experiment
