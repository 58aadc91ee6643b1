// The common parts of the benchmarks: inputs and their check (inputs.hpp), the machine's limits (peak.hpp), and in this
// file the registration of cases and the table that is printed at the end.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "inputs.hpp"
#include "peak.hpp"

namespace bench {

/// The work of an iteration, reported per second of wall clock; `inverse` reports seconds per unit.
inline benchmark::Counter per_second(double amount) { return {amount, benchmark::Counter::kIsIterationInvariantRate}; }
inline benchmark::Counter inverse(double amount) {
  using benchmark::Counter;
  return {amount, Counter::Flags(Counter::kIsIterationInvariantRate | Counter::kInvert)};
}

/// The column `name`: the time of the rival over the time of a case. The rival's name has `rival` in place of `method`.
struct Ratio {
  const char *name, *method, *rival;
};

/// Prints one line for each case, in the order of registration although repetitions are shuffled: the median, its
/// spread (cv, the standard deviation of time over the mean) and the counters of the median, except those for a picture
/// only.
class Table : public benchmark::BenchmarkReporter {
 public:
  explicit Table(std::vector<Ratio> ratios) : ratios_(std::move(ratios)) {}

  bool ReportContext(const Context& context) override {
    PrintBasicContext(&GetErrorStream(), context);
    std::fprintf(stderr, "Repetitions are shuffled over all cases; the table follows when all are done.\n");
    return true;
  }

  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      Line& line = lines_[run.family_index];
      if (run.run_type == Run::RT_Aggregate && run.aggregate_name == "cv") {
        line.spread = run.real_accumulated_time;
      } else if (run.run_type == Run::RT_Iteration || run.aggregate_name == "median") {
        line.name = run.run_name.function_name;
        line.seconds = run.real_accumulated_time / double(std::max<std::int64_t>(run.iterations, 1));
        for (const auto& [name, counter] : run.counters)
          if (!name.starts_with("head_")) line.counters[name] = counter.value;
      }
    }
  }

  void Finalize() override {
    if (lines_.empty()) return;
    compare_rivals();
    std::size_t width = 4;
    std::set<std::string> columns;
    for (const auto& [index, line] : lines_) {
      width = std::max(width, line.name.size());
      for (const auto& [column, value] : line.counters) columns.insert(column);
    }
    std::printf("%-*s %12s %6s", int(width), "case", "median", "cv");
    for (const auto& column : columns) std::printf(" %11s", column.c_str());
    std::printf("\n");
    for (const auto& [index, line] : lines_) {
      const auto [time, unit] = readable(line.seconds);
      std::printf("%-*s %9.4g %s", int(width), line.name.c_str(), time, unit);
      std::isnan(line.spread) ? std::printf(" %6s", "-") : std::printf(" %5.1f%%", 100 * line.spread);
      for (const auto& column : columns) {
        const auto found = line.counters.find(column);
        const double value = found == line.counters.end() ? std::nan("") : found->second;
        std::isnan(value) ? std::printf(" %11s", "-") : std::printf(value < 1e4 ? " %11.4g" : " %11.0f", value);
      }
      std::printf("\n");
    }
  }

 private:
  struct Line {
    std::string name;
    double seconds = 0, spread = std::nan("");  // NaN: a single repetition
    std::map<std::string, double> counters;
  };

  void compare_rivals() {
    for (auto& [index, line] : lines_)
      for (const Ratio& ratio : ratios_) {
        const std::size_t at = line.name.find(ratio.method);
        if (at == std::string::npos) continue;
        std::string rival = line.name;
        rival.replace(at, std::strlen(ratio.method), ratio.rival);
        for (const auto& [other, found] : lines_)
          if (found.name == rival) line.counters[ratio.name] = found.seconds / line.seconds;
      }
  }

  static std::pair<double, const char*> readable(double seconds) {
    if (seconds < 1e-6) return {1e9 * seconds, "ns"};
    if (seconds < 1e-3) return {1e6 * seconds, "us"};
    return seconds < 1 ? std::pair(1e3 * seconds, "ms") : std::pair(seconds, "s ");
  }

  std::vector<Ratio> ratios_;
  std::map<Index, Line> lines_;
};

/// Names and registers a case: wall clock, and at least a tenth of a second for each repetition. A case with calls of
/// seconds sets its number of repetitions; 0 uses the number of the command line.
template <class Body>
auto* add(const std::string& name, Body body, int repetitions = 0) {
  auto* added = benchmark::RegisterBenchmark(name.c_str(), std::move(body))->UseRealTime()->MinTime(0.1);
  return repetitions == 0 ? added : added->Repetitions(repetitions);
}

/// Times `call`. `check` checks its result the first time the case runs. A slow call has no warm-up call; its timed
/// result is checked, still before anything is printed.
template <class Call, class Check>
void time(benchmark::State& state, const std::string& name, const Call& call, const Check& check, bool slow = false) {
  if (!slow) call();
  if (!slow && first_run(name)) check();
  for (auto _ : state) {
    call();
    benchmark::ClobberMemory();
  }
  if (slow && first_run(name)) check();
}

/// Times `call` and `rival` alternately, and alternates which one is first, because the ratio of medians of separate
/// cases is too noisy. Returns the rival's time over the call's, the median over the pairs.
template <class Call, class Rival>
double time_in_turn(benchmark::State& state, const Call& call, const Rival& rival) {
  std::vector<double> ratios;
  double theirs = 0;
  const auto run_rival = [&] {
    state.PauseTiming();
    theirs = seconds(rival);
    state.ResumeTiming();
  };
  for (auto _ : state) {
    const bool rival_first = ratios.size() % 2 == 0;
    if (rival_first) run_rival();
    const double ours = seconds(call);
    if (!rival_first) run_rival();
    ratios.push_back(theirs / ours);
  }
  const auto middle = ratios.begin() + std::ptrdiff_t(ratios.size() / 2);
  std::nth_element(ratios.begin(), middle, ratios.end());
  return *middle;
}

/// The main function of a benchmark, called after its cases are registered. Flags of the command line override these
/// defaults. `ratios` are columns of the table.
inline int main(int argc, char** argv, std::vector<Ratio> ratios = {}) {
  std::string defaults[] = {"--benchmark_repetitions=7", "--benchmark_display_aggregates_only=true",
                            "--benchmark_enable_random_interleaving=true"};
  std::vector<char*> arguments = {argv[0]};
  for (auto& flag : defaults) arguments.push_back(flag.data());
  arguments.insert(arguments.end(), argv + 1, argv + argc);
  const bool own_format = std::any_of(argv + 1, argv + argc,
                                      [](const char* flag) { return std::strstr(flag, "--benchmark_format") == flag; });

  int count = int(arguments.size());
  benchmark::Initialize(&count, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) return 1;
  benchmark::AddCustomContext("vector_unit", alibi::kernel::kIsa);
  Table table(std::move(ratios));
  benchmark::RunSpecifiedBenchmarks(own_format ? nullptr : &table);
  return 0;  // also if a filter selected nothing, because it may be meant for another program
}

}  // namespace bench
