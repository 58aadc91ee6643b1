// pretrained: generates text, writes logits and measures perplexity with BLOOM, MPT and Falcon checkpoints.
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <functional>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "command_line.hpp"
#include "configuration.hpp"
#include "generation.hpp"
#include "logits.hpp"
#include "model.hpp"
#include "ordered_output.hpp"
#include "perplexity.hpp"
#include "picture.hpp"
#include "text_file.hpp"
#include "tokenizer.hpp"

namespace pretrained {
namespace {

Tokenizer tokenizer_of(const Arguments& arguments) { return Tokenizer::load(arguments.model / "tokenizer.json"); }

Index longest(const std::vector<std::vector<int>>& sequences) {
  std::size_t longest = 0;
  for (const auto& sequence : sequences) longest = std::max(longest, sequence.size());
  return Index(longest);
}

double percent(double part, double whole) { return 100 * part / std::max(whole, 1e-9); }

/// One line, always of this form: scripts read it.
void print(const GenerationReport& r) {
  std::fprintf(stderr,
               "prefill: %td tokens, %.6f s, of which attention %.6f s; "
               "generation: %td tokens, %.6f s, of which attention %.6f s, %.2f tokens/s\n",
               r.prompt_tokens, r.prompt_seconds, r.prompt_attention_seconds, r.tokens, r.seconds, r.attention_seconds,
               double(r.tokens - r.first_tokens) / std::max(r.seconds, 1e-9));
}

/// Puts tokens out as they come: as ids, or as text.
class TokenOutput {
 public:
  TokenOutput(const Arguments& arguments, const Tokenizer* tokenizer, std::size_t count)
      : output_(std::cout, count), left_(count, arguments.tokens) {
    if (tokenizer) decoders_.assign(count, StreamDecoder(*tokenizer, true));
    for (std::size_t i = 0; tokenizer && i < count; i++) output_.add(i, arguments.prompts[i]);
    first_.assign(count, true);
  }

  void put(std::size_t sequence, int id, bool ends) {
    if (decoders_.empty()) {
      if (!first_[sequence]) output_.add(sequence, ",");
      output_.add(sequence, std::to_string(id));
    } else {
      output_.add(sequence, decoders_[sequence].push(id));
    }
    if (!std::cout) throw std::runtime_error("the output cannot be written");
    first_[sequence] = false;
    if (--left_[sequence] > 0 && !ends) return;
    if (!decoders_.empty()) output_.add(sequence, decoders_[sequence].finish());
    output_.complete(sequence);
  }

 private:
  OrderedOutput output_;
  std::vector<StreamDecoder> decoders_;
  std::vector<Index> left_;
  std::vector<bool> first_;
};

/// Errors name the option that the sequences come from.
void check(const char* option, const std::vector<std::vector<int>>& sequences, const Arguments& arguments) {
  try {
    check_sequences(sequences, read_configuration(arguments.model));
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(std::string(option) + ": " + error.what());
  }
}

void run_generate(const Arguments& arguments) {
  std::optional<Tokenizer> tokenizer;
  std::vector<std::vector<int>> prompts = arguments.ids;
  if (!arguments.prompts.empty()) {
    tokenizer = tokenizer_of(arguments);
    for (const std::string& prompt : arguments.prompts) prompts.push_back(tokenizer->encode(prompt));
  }
  check(tokenizer ? "--prompt" : "--ids", prompts, arguments);
  const Model model(arguments.model, arguments.dtypes[0]);
  const Threads threads(arguments.threads);
  const auto session = new_session(model, threads,
                                   {.batch = Index(prompts.size()),
                                    .capacity = longest(prompts) + arguments.tokens,
                                    .tolerance = arguments.tolerance});
  TokenOutput output(arguments, tokenizer ? &*tokenizer : nullptr, prompts.size());
  const auto& ends = model.configuration().end_tokens;
  print(generate(*session, prompts, arguments.tokens, arguments.sampling, [&](Index sequence, int id) {
    output.put(std::size_t(sequence), id, std::ranges::find(ends, id) != ends.end());
  }));
}

void run_logits(const Arguments& arguments) {
  check("--ids", arguments.ids, arguments);
  const Model model(arguments.model, arguments.dtypes[0]);
  const Threads threads(arguments.threads);
  const auto session = new_session(
      model, threads,
      {.batch = Index(arguments.ids.size()), .capacity = longest(arguments.ids), .tolerance = arguments.tolerance});
  write_logits(*session, arguments.ids, arguments.out);
}

std::vector<int> read_text(const Arguments& arguments, const Configuration& configuration) {
  const auto& file = arguments.text.empty() ? arguments.ids_file : arguments.text;
  std::vector<int> text =
      arguments.text.empty() ? read_ids(file) : tokenizer_of(arguments).encode(read_file(file), false);
  for (std::size_t i = 0; i < text.size(); i++)
    if (text[i] >= configuration.vocabulary)
      fail(file, "token " + std::to_string(i) + " is " + std::to_string(text[i]) + "; expected 0 to " +
                     std::to_string(configuration.vocabulary - 1));
  return text;
}

void run_perplexity(const Arguments& arguments) {
  std::vector<Curve> beside;
  if (!arguments.beside.empty()) beside = read_curves(arguments.beside.string());
  if (!arguments.picture.empty()) check_drawable(arguments.picture.string());
  const std::vector<int> text = read_text(arguments, read_configuration(arguments.model));
  std::vector<Index> windows = arguments.windows;
  if (windows.empty()) {
    const Index predictions = std::min(arguments.limit.value_or(Index(text.size())), Index(text.size()) - 1);
    for (const Index window : {512, 2048, 16384})
      if (window <= predictions || window == 512) windows.push_back(window);
  }
  for (const Index window : windows) whole_windows(Index(text.size()), window, arguments.limit);
  const Threads threads(arguments.threads);
  const bool shows_progress = isatty(STDERR_FILENO) != 0;
  std::vector<Curve> curves;
  for (const Dtype dtype : arguments.dtypes) {
    const Model model(arguments.model, dtype);
    Curve curve{std::string(name_of(dtype)), {}};
    for (const Index window : windows) {
      const auto progress = [&](double share) {
        if (shows_progress)
          std::fprintf(stderr, "\r%s, window %td: %.0f %%  ", curve.title.c_str(), window, 100 * share);
      };
      const Perplexity p = perplexity(model, threads, text, window, arguments.limit, arguments.tolerance, progress);
      if (shows_progress) std::fputs("\r\033[K", stderr);
      if (curves.empty() && curve.points.empty())
        std::printf("%-9s %8s %9s %11s %9s %10s\n", "dtype", "window", "tokens", "perplexity", "seconds", "attention");
      std::printf("%-9s %8td %9td %11.4f %9.2f %8.0f %%\n", curve.title.c_str(), window, p.tokens, p.value, p.seconds,
                  percent(p.attention_seconds, p.seconds));
      if (std::fflush(stdout) != 0) throw std::runtime_error("the output cannot be written");
      curve.points[window] = p.value;
    }
    curves.push_back(curve);
  }
  if (arguments.picture.empty()) return;
  curves.insert(curves.end(), beside.begin(), beside.end());
  draw(curves, arguments.picture.string());
}

void run(const Arguments& arguments) {
  switch (arguments.command) {
    case Command::help:
      std::cout << kUsage;
      break;
    case Command::generate:
      return run_generate(arguments);
    case Command::logits:
      return run_logits(arguments);
    case Command::perplexity:
      return run_perplexity(arguments);
  }
}

}  // namespace
}  // namespace pretrained

int main(int argc, char** argv) {
  try {
    pretrained::run(pretrained::parse_command_line(argc, argv));
    if (!std::cout.flush()) throw std::runtime_error("the output cannot be written");
    return 0;
  } catch (const pretrained::UsageError& error) {
    std::cerr << "pretrained: " << error.what() << '\n';
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "pretrained: " << error.what() << '\n';
    return 1;
  }
}
