// The paper's experiment at a small scale. Usage: train_short_test_long [options]; --help lists the options.
//
// Small language models over bytes (model.hpp), which differ only in their position method, are trained on real text at
// one length, and evaluated on other text at 1, 2, 4, 8 and 16 times that length. The full version is the program
// without options; bench/README.md says how long it takes.
//
// Ctrl-C stops after the current step and keeps a checkpoint. --resume continues from it, with the same bits as a run
// that was never stopped.

// g++ 12 reports the undefined operand of its own AVX-512 intrinsics as uninitialised where Eigen's product inlines
// them. The pragma takes effect only above the first include.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <unistd.h>

#include <Eigen/Core>
#include <algorithm>
#include <alibi/executor.hpp>
#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <unsupported/Eigen/CXX11/ThreadPool>
#include <vector>

#include "bloom_folder.hpp"
#include "checkpoint.hpp"
#include "command_line.hpp"
#include "evaluate.hpp"
#include "picture.hpp"
#include "report.hpp"
#include "settings.hpp"
#include "stop.hpp"
#include "text.hpp"
#include "train.hpp"

namespace experiment {
namespace {

constexpr const char* kModelFolder = "alibi";  // of the trained ALiBi model, below --out
constexpr Index kValidations = 10, kValidationBytes = 1 << 15;

/// A progress line on a terminal; elsewhere only lines that are worth keeping.
class Progress {
 public:
  void show(const Settings& settings, const State& state) {
    if (!terminal_ || seconds_since(shown_) < 0.2) return;
    shown_ = Clock::now();
    const double left = double(settings.steps - state.step) * state.seconds.training / double(state.step);
    std::fprintf(stderr, "\r%s: step %td of %td, loss %.4f nats a byte, %.0f tokens/s, %.0f s left \033[K",
                 name(settings).c_str(), state.step, settings.steps, state.losses.back(), rate(settings, state), left);
  }
  void show_evaluation(Method method, Reading reading, Index length) const {
    if (terminal_)
      std::fprintf(stderr, "\r%s: evaluating at length %td, %s \033[K", std::string(name_of(method)).c_str(), length,
                   std::string(name_of(reading)).c_str());
  }
  void keep(const Settings& settings, const State& state) const {
    clear();
    std::printf("%-12s step %6td of %td   train %.4f   validation %.4f nats a byte   %7.0f tokens/s\n",
                name(settings).c_str(), state.step, settings.steps, state.losses.back(), state.validations.back().loss,
                rate(settings, state));
    std::fflush(stdout);
  }
  void clear() const {
    if (terminal_) std::fprintf(stderr, "\r\033[K");
  }

 private:
  static std::string name(const Settings& settings) { return std::string(name_of(settings.shape.method)); }
  static double rate(const Settings& settings, const State& state) {
    return double(state.step * settings.batch * settings.length()) / state.seconds.training;
  }

  bool terminal_ = isatty(STDERR_FILENO) == 1;
  Clock::time_point shown_;
};

/// The run of one trained method, from its checkpoint to the end.
class Run {
 public:
  /// `methods`: to evaluate, all of which trained_as() names the method of the settings.
  Run(const Settings& settings, const std::vector<Method>& methods, const Arguments& arguments, const Text& text,
      const alibi::Executor& executor)
      : settings_(settings),
        methods_(methods),
        checkpoint_(arguments.out / (std::string(name_of(settings.shape.method)) + ".checkpoint")),
        checkpoint_every_(arguments.checkpoint_every),
        text_(text),
        executor_(executor),
        evaluator_(settings, text.validation, executor),
        state_(settings.shape) {
    if (arguments.resume && std::filesystem::exists(checkpoint_))
      load_checkpoint(checkpoint_, settings_, state_);
    else
      initialise(state_.parameters, settings_.shape, settings_.seed);
  }

  /// Returns false if the run was stopped; the checkpoint is then written.
  bool finish() {
    const bool finished = train() && evaluate();
    progress_.clear();
    if (!finished) {
      save();
      std::cerr << "train_short_test_long: stopped at step " << state_.step << " of " << settings_.steps << " of "
                << name_of(settings_.shape.method) << "; --resume goes on from " << checkpoint_.string() << '\n';
    }
    return finished;
  }

  const Shape& shape() const { return settings_.shape; }
  const Parameters& parameters() const { return state_.parameters; }
  Outcome outcome() const { return outcome_of(settings_, methods_, state_); }

 private:
  void save() const { save_checkpoint(checkpoint_, settings_, state_); }

  bool validation_due() const {
    const Index every = std::max<Index>(1, settings_.steps / kValidations);
    const bool at = state_.step == settings_.steps || (state_.step > 0 && state_.step % every == 0);
    return at && (state_.validations.empty() || state_.validations.back().step < state_.step);
  }

  bool validate() {
    const Index bytes = std::min(evaluator_.bytes(), std::max(kValidationBytes, settings_.length()));
    const Evaluation evaluation =
        evaluator_.nonoverlapping(state_.parameters, settings_.shape.method, settings_.length(), bytes);
    if (stop_requested()) return false;
    state_.validations.push_back({state_.step, evaluation.loss});
    progress_.keep(settings_, state_);
    return true;
  }

  bool train() {
    Trainer trainer(settings_, text_.train, executor_, state_);
    while (!stop_requested()) {
      if (validation_due() && !validate()) return false;
      if (state_.step == settings_.steps) return true;
      trainer.step();
      if (!std::isfinite(state_.losses.back()))
        throw std::runtime_error("the loss of step " + std::to_string(state_.step) + " of " +
                                 std::string(name_of(settings_.shape.method)) +
                                 " is not finite; a lower --learning-rate may help");
      progress_.show(settings_, state_);
      if (state_.step % checkpoint_every_ == 0 || state_.step == settings_.steps) save();
    }
    return false;
  }

  bool evaluated(Method method, Reading reading, Index length) const {
    return std::ranges::any_of(state_.evaluations, [&](const Evaluation& e) {
      return e.method == method && e.reading == reading && e.length == length;
    });
  }

  bool evaluate() {
    for (const Method method : methods_)
      for (const Reading reading : {Reading::nonoverlapping, Reading::sliding})
        for (const Index length : evaluator_.lengths(method)) {
          if (evaluated(method, reading, length)) continue;
          progress_.show_evaluation(method, reading, length);
          const Evaluation evaluation = evaluator_.evaluate(state_.parameters, method, reading, length);
          if (stop_requested()) return false;
          state_.evaluations.push_back(evaluation);
        }
    save();
    return true;
  }

  Settings settings_;
  std::vector<Method> methods_;
  std::filesystem::path checkpoint_;
  Index checkpoint_every_;
  const Text& text_;
  alibi::Executor executor_;
  Evaluator evaluator_;
  State state_;
  Progress progress_;
};

/// Existing results are not overwritten without --resume.
void check_out(const Arguments& arguments) {
  if (arguments.resume) return;
  std::vector<std::string> names = {"results.csv", "training.csv", "perplexity.png", kModelFolder};
  for (const std::string_view method : kMethodNames) names.push_back(std::string(method) + ".checkpoint");
  for (const std::string& name : names)
    if (std::filesystem::exists(arguments.out / name))
      throw std::runtime_error((arguments.out / name).string() +
                               " is there from an earlier run; give --resume to go on with it, or another --out");
}

void check_text(const Text& text, const Arguments& arguments) {
  const Settings& settings = arguments.settings;
  const std::string name = arguments.text.front().string();
  if (Index(text.train.size()) <= settings.length())
    throw std::runtime_error("the text " + name + " has " + std::to_string(text.train.size()) +
                             " bytes to train on; expected more than " + std::to_string(settings.length()) +
                             ", the length");
  if (Index(text.validation.size()) <= kLongest * settings.length())
    throw std::runtime_error("the text " + name + " has " + std::to_string(text.validation.size()) +
                             " bytes to validate on, every sixteenth file or the last sixteenth of one; expected more "
                             "than " +
                             std::to_string(kLongest * settings.length()) + ", " + std::to_string(kLongest) +
                             " times the length");
}

void print_start(const Text& text, const Arguments& arguments) {
  const Settings& s = arguments.settings;
  std::printf("text: %zu files, %.2f MB to train on, %.2f MB to validate on\n", text.files,
              1e-6 * double(text.train.size()), 1e-6 * double(text.validation.size()));
  std::printf("model: dim %td, %td layers, %td heads, %.2f million parameters; %td steps of %td x %td bytes\n",
              s.shape.dim, s.shape.layers, s.shape.heads, 1e-6 * double(Parameters::size_of(s.shape)), s.steps, s.batch,
              s.length());
  std::fflush(stdout);
}

/// The methods in groups that share one trained model, in the order in which they were given.
std::vector<std::vector<Method>> by_trained_method(const std::vector<Method>& methods) {
  std::vector<std::vector<Method>> groups;
  for (const Method method : methods) {
    const auto group = std::ranges::find_if(
        groups, [&](const std::vector<Method>& g) { return trained_as(g[0]) == trained_as(method); });
    if (group == groups.end())
      groups.push_back({method});
    else
      group->push_back(method);
  }
  return groups;
}

int run(const Arguments& arguments) {
  if (arguments.picture) gnuplot::run("");  // detects a missing gnuplot now, and not after the training
  const Text text = read_text(arguments.text);
  check_text(text, arguments);
  check_out(arguments);
  Eigen::ThreadPool pool(arguments.threads, /*allow_spinning=*/false);
  const alibi::Executor executor(pool);

  std::vector<std::unique_ptr<Run>> runs;  // all checkpoints are read before anything is written
  for (const auto& methods : by_trained_method(arguments.methods)) {
    Settings settings = arguments.settings;
    settings.shape.method = trained_as(methods[0]);
    settings.text_hash = text.hash();
    runs.push_back(std::make_unique<Run>(settings, methods, arguments, text, executor));
  }
  std::filesystem::create_directories(arguments.out);
  print_start(text, arguments);

  std::vector<Outcome> outcomes;
  for (const auto& run : runs) {
    if (!run->finish()) return 130;
    outcomes.push_back(run->outcome());
    if (run->shape().method == Method::alibi)
      save_bloom_folder(arguments.out / kModelFolder, run->parameters(), run->shape());
    write_whole(arguments.out / "training.csv", training_csv(outcomes));
    write_whole(arguments.out / "results.csv", results_csv(outcomes));
  }
  print_table(outcomes);
  std::cout << "\nwrote " << (arguments.out / "results.csv").string() << " and "
            << (arguments.out / "training.csv").string() << '\n';
  if (std::ranges::count(arguments.methods, Method::alibi) > 0)
    std::cout << "saved the ALiBi model in " << (arguments.out / kModelFolder).string()
              << ", a BLOOM checkpoint that examples/pretrained runs\n";
  if (!arguments.picture) return 0;
  const std::string png = (arguments.out / "perplexity.png").string();
  draw(outcomes, png);
  std::cout << "drew " << png << '\n';
  return 0;
}

}  // namespace
}  // namespace experiment

int main(int argc, char** argv) {
  try {
    const std::filesystem::path eigen = ALIBI_EIGEN_SOURCES;
    const auto arguments = experiment::parse(argc, argv, {eigen / "Eigen", eigen / "unsupported" / "Eigen"});
    if (arguments.help) {
      std::cout << experiment::kUsage;
      return 0;
    }
    Eigen::setNbThreads(1);  // even if Eigen was built with OpenMP: the experiment has its own threads
    experiment::catch_signals();
    return experiment::run(arguments);
  } catch (const std::exception& error) {
    std::cerr << "train_short_test_long: " << error.what() << '\n';
    return 1;
  }
}
