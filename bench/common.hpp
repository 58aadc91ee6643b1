// What the benchmarks share: inputs, the check before timing, the peak of a core, and the table printed at the end.
#pragma once

#include <benchmark/benchmark.h>

#include <Eigen/Core>
#include <algorithm>
#include <alibi/kernel/simd.hpp>
#include <alibi/reference.hpp>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace bench {

using alibi::Index;
template <class T>
using RowMatrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using Vector = Eigen::Matrix<T, Eigen::Dynamic, 1>;

/// Random numbers from a fixed seed (splitmix64), fast because every repetition makes its inputs anew.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t bits() {
    std::uint64_t x = state_ += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }
  Index below(Index end) { return Index(bits() % std::uint64_t(end)); }

  /// Mean 0, variance 1, and near enough to normal: the sum of four uniform numbers of 16 bits.
  double normal() {
    const std::uint64_t x = bits();
    const auto sum = double((x & 0xffff) + (x >> 16 & 0xffff) + (x >> 32 & 0xffff) + (x >> 48));
    return (sum - 2 * 65535.0) / (65536 / std::sqrt(3.0));
  }

  template <class T>
  RowMatrix<T> matrix(Index rows, Index cols) {
    RowMatrix<T> x(rows, cols);
    for (Index i = 0; i < x.size(); i++) x.data()[i] = T(normal());
    return x;
  }

 private:
  std::uint64_t state_;
};

[[noreturn]] inline void fail(const std::string& name, const std::string& why) {
  std::fprintf(stderr, "\nWRONG RESULT, nothing more is measured: %s: %s\n", name.c_str(), why.c_str());
  std::exit(1);
}

/// True once for every case: its result is checked the first time it runs, before any of its repetitions is timed.
inline bool first_run(const std::string& name) {
  static std::set<std::string> seen;
  return seen.insert(name).second;
}

/// The rows [first, first + rows) of one head of x.
template <class T>
alibi::View<const T> part(alibi::View<const T> x, Index head, Index first, Index rows) {
  x.data += head * x.head_stride + first * x.token_stride;
  x.batch = x.heads = 1;
  x.tokens = rows;
  return x;
}

/// Compares the output of causal self-attention of one batch with the definition in double: the last row of a random
/// head, which sees every key, and 15 random rows of random heads. A row costs the reference tokens x head_dim.
template <class T>
void check(const std::string& name, const alibi::View<const T>& q, const alibi::View<const T>& k,
           const alibi::View<const T>& v, const alibi::View<const T>& output, const Vector<T>& slopes) {
  constexpr double kBound = sizeof(T) == 4 ? 4e-6 : 1e-13;
  Random random(1);
  for (int sample = 0; sample < 16; sample++) {
    const Index head = random.below(q.heads), row = sample == 0 ? q.tokens - 1 : random.below(q.tokens);
    const auto expected = alibi::reference::attention(part(q, head, row, 1), part(k, head, 0, k.tokens),
                                                      part(v, head, 0, v.tokens), slopes[head], {.query_offset = row});
    const auto actual = part(output, head, row, 1);
    for (Index d = 0; d < actual.head_dim; d++) {
      const double error = std::abs(double(actual.data[d]) - expected.output(0, d));
      if (error <= kBound) continue;  // and not: error > kBound, which lets NaN through
      fail(name, "head " + std::to_string(head) + ", query " + std::to_string(row) + ", dim " + std::to_string(d) +
                     " is off by " + std::to_string(error / kBound) + " times the bound");
    }
  }
}

/// The multiply-adds of a round are as many as there are sums: at least 8, to keep two units with a latency of four
/// busy, and few enough that none leaves the registers.
inline constexpr int kPeakSums = alibi::kernel::kManyRegisters ? 16 : 10;

/// Nothing but multiply-adds, in registers: each sum grows by the factor times its neighbour, which no compiler can
/// fold or take out of the loop, and which suits both forms of the instruction. A function of its own, so that nothing
/// else asks for registers.
template <class T>
[[gnu::noinline]] T multiply_adds(int rounds, T factor) {
  namespace kernel = alibi::kernel;
  const auto scale = kernel::splat<T>(factor);
  kernel::Pack<T> sum[kPeakSums];
#pragma GCC unroll 16
  for (int i = 0; i < kPeakSums; i++) sum[i] = kernel::splat<T>(T(i) * factor);
  for (int round = 0; round < rounds; round++)
#pragma GCC unroll 16
    for (int i = 0; i < kPeakSums; i++) sum[i] = kernel::fma(scale, sum[(i + 1) % kPeakSums], sum[i]);
#pragma GCC unroll 16
  for (int i = 1; i < kPeakSums; i++) sum[0] = kernel::add(sum[0], sum[i]);
  T lanes[kernel::kLanes<T>];
  kernel::store<T>(lanes, sum[0]);
  return lanes[0];
}

/// GFLOP/s of multiply_adds() on one core: the best of many short runs, measured once in a process, when it is first
/// asked for.
template <class T>
double core_peak() {
  static const double peak = [] {
    constexpr int kRounds = 1 << 20, kRuns = 100;
    double best = 0;
    for (int run = 0; run < kRuns; run++) {
      const auto start = std::chrono::steady_clock::now();
      benchmark::DoNotOptimize(multiply_adds<T>(kRounds, T(1e-9)));
      const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
      best = std::max(best, 2e-9 * kPeakSums * alibi::kernel::kLanes<T> * kRounds / time.count());
    }
    return best;
  }();
  return peak;
}

/// An amount of work an iteration, reported per second of wall clock; `inverse` reports seconds per unit instead.
inline benchmark::Counter per_second(double amount) { return {amount, benchmark::Counter::kIsIterationInvariantRate}; }
inline benchmark::Counter inverse(double amount) {
  using benchmark::Counter;
  return {amount, Counter::Flags(Counter::kIsIterationInvariantRate | Counter::kInvert)};
}

/// One line a case, in the order of registration however the repetitions were shuffled: the median, its spread (cv, the
/// standard deviation over the mean, of time) and the counters of the median.
class Table : public benchmark::BenchmarkReporter {
 public:
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
        for (const auto& [name, counter] : run.counters) line.counters[name] = counter.value;
        for (const auto& [name, counter] : run.counters) columns_.insert(name);
      }
    }
  }

  void Finalize() override {
    if (lines_.empty()) return;
    std::size_t width = 4;
    for (const auto& [index, line] : lines_) width = std::max(width, line.name.size());
    std::printf("%-*s %12s %6s", int(width), "case", "median", "cv");
    for (const auto& column : columns_) std::printf(" %10s", column.c_str());
    std::printf("\n");
    for (const auto& [index, line] : lines_) {
      const auto [time, unit] = readable(line.seconds);
      std::printf("%-*s %9.4g %s %5.1f%%", int(width), line.name.c_str(), time, unit, 100 * line.spread);
      for (const auto& column : columns_) {
        const auto found = line.counters.find(column);
        const double value = found == line.counters.end() ? std::nan("") : found->second;
        std::isnan(value) ? std::printf(" %10s", "-") : std::printf(value < 1e4 ? " %10.4g" : " %10.0f", value);
      }
      std::printf("\n");
    }
  }

 private:
  struct Line {
    std::string name;
    double seconds = 0, spread = 0;
    std::map<std::string, double> counters;
  };

  static std::pair<double, const char*> readable(double seconds) {
    if (seconds < 1e-6) return {1e9 * seconds, "ns"};
    if (seconds < 1e-3) return {1e6 * seconds, "us"};
    return seconds < 1 ? std::pair(1e3 * seconds, "ms") : std::pair(seconds, "s ");
  }

  std::map<Index, Line> lines_;
  std::set<std::string> columns_;
};

/// Names a case and registers it: wall clock, and at least a tenth of a second a repetition.
template <class Body>
void add(const std::string& name, Body body) {
  benchmark::RegisterBenchmark(name.c_str(), std::move(body))->UseRealTime()->MinTime(0.1);
}

/// The main of a benchmark, once its cases are registered. Flags of the command line come after these defaults and win.
inline int main(int argc, char** argv) {
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
  Table table;
  benchmark::RunSpecifiedBenchmarks(own_format ? nullptr : &table);
  return 0;  // even if a filter left nothing: it may be meant for the other program
}

}  // namespace bench
