// Times the slopes and the forms of the bias. README.md in this folder defines every unit.
#include <Eigen/Core>
#include <alibi/bias.hpp>
#include <alibi/slopes.hpp>
#include <unsupported/Eigen/CXX11/Tensor>

#include "common.hpp"

namespace {

using bench::Index;
using bench::RowMatrix;
using Tensor3 = Eigen::Tensor<float, 3, Eigen::RowMajor>;

void expect(const std::string& name, double actual, double expected, double bound) {
  const bool same = actual == expected;  // also for infinities
  if (same || std::abs(actual - expected) <= bound) return;
  bench::fail(name, "is " + std::to_string(actual) + "; expected " + std::to_string(expected));
}

/// The causal bias by the paper's formula.
double bias_of(double slope, Index query, Index key) {
  return key <= query ? -slope * double(query - key) : -std::numeric_limits<double>::infinity();
}

void add_slopes(Index heads) {
  const std::string name = "slopes/heads:" + std::to_string(heads);
  bench::add(name, [=](benchmark::State& state) {
    const auto first = alibi::slopes(heads);
    const auto power_of_two = double(Index(1) << Index(std::log2(heads)));
    if (bench::first_run(name)) expect(name, double(first[0]), std::exp2(-8 / power_of_two), 1e-7);
    for (auto _ : state) benchmark::DoNotOptimize(alibi::slopes(heads).data());
    state.counters["ns/entry"] = bench::inverse(1e-9 * double(heads));
  });
}

/// Writes the lazy bias into one row after another: the cost for a caller who adds it to other scores.
void add_lazy_rows(Index tokens) {
  const std::string name = "bias_expression/rows/tokens:" + std::to_string(tokens);
  bench::add(name, [=](benchmark::State& state) {
    const auto bias = alibi::bias_expression(0.5F, tokens, tokens);
    Eigen::RowVectorXf row(tokens);
    if (bench::first_run(name))
      for (const Index query : {Index(0), tokens / 2, tokens - 1}) {
        row = bias.row(query);
        for (Index key = 0; key < tokens; key++) expect(name, double(row[key]), bias_of(0.5, query, key), 0);
      }
    for (auto _ : state)
      for (Index query = 0; query < tokens; query++) {
        row = bias.row(query);
        benchmark::DoNotOptimize(row.data());
        benchmark::ClobberMemory();
      }
    state.counters["ns/entry"] = bench::inverse(1e-9 * double(tokens) * double(tokens));
  });
}

/// Sums the lazy bias without storing it. Bidirectional, because a causal bias sums to -inf.
void add_lazy_sum(Index tokens) {
  const std::string name = "bias_expression/sum/tokens:" + std::to_string(tokens);
  bench::add(name, [=](benchmark::State& state) {
    const auto bias = alibi::bias_expression(0.5, tokens, tokens, {.causal = false});
    const auto n = double(tokens);
    if (bench::first_run(name)) expect(name, bias.sum(), -0.5 * n * (n - 1) * (n + 1) / 3, 1e-9 * n * n * n);
    for (auto _ : state) benchmark::DoNotOptimize(bias.sum());
    state.counters["ns/entry"] = bench::inverse(1e-9 * n * n);
  });
}

void report_bytes(benchmark::State& state, Index entries) {
  state.counters["ns/entry"] = bench::inverse(1e-9 * double(entries));
  state.counters["GB/s"] = bench::per_second(1e-9 * double(entries) * sizeof(float));
}

void add_matrix(Index heads, Index tokens) {
  const std::string shape = "/heads:" + std::to_string(heads) + "/tokens:" + std::to_string(tokens);
  const std::string name = "bias_matrix" + shape;
  bench::add(name, [=](benchmark::State& state) {
    const Eigen::VectorXf slopes = alibi::slopes(heads);
    if (bench::first_run(name)) {
      const Tensor3 bias = alibi::bias_matrix(slopes, tokens, tokens);
      bench::Random random(1);
      for (int sample = 0; sample < 4096; sample++) {
        const Index h = random.below(heads), i = random.below(tokens), j = random.below(tokens);
        expect(name, double(bias(h, i, j)), bias_of(double(slopes[h]), i, j), 1e-7 * double(tokens));
      }
    }
    for (auto _ : state) {
      const Tensor3 bias = alibi::bias_matrix(slopes, tokens, tokens);
      benchmark::DoNotOptimize(bias.data());
      benchmark::ClobberMemory();
    }
    report_bytes(state, heads * tokens * tokens);
  });
  // The limit: as many bytes, allocated in the same way, each entry set to the same number.
  bench::add("plain_fill" + shape, [=](benchmark::State& state) {
    for (auto _ : state) {
      Tensor3 bias(heads, tokens, tokens);
      std::fill_n(bias.data(), bias.size(), 1.0F);
      benchmark::DoNotOptimize(bias.data());
      benchmark::ClobberMemory();
    }
    report_bytes(state, heads * tokens * tokens);
  });
}

void add_key_bias(Index heads, Index tokens) {
  const std::string name = "key_bias/heads:" + std::to_string(heads) + "/tokens:" + std::to_string(tokens);
  bench::add(name, [=](benchmark::State& state) {
    const Eigen::VectorXf slopes = alibi::slopes(heads);
    if (bench::first_run(name)) {
      const RowMatrix<float> bias = alibi::key_bias(slopes, tokens);
      for (Index h = 0; h < heads; h++)
        for (Index j = 0; j < tokens; j += 97)
          expect(name, double(bias(h, j)), double(slopes[h]) * double(j), 1e-7 * double(tokens));
    }
    for (auto _ : state) {
      const RowMatrix<float> bias = alibi::key_bias(slopes, tokens);
      benchmark::DoNotOptimize(bias.data());
      benchmark::ClobberMemory();
    }
    report_bytes(state, heads * tokens);
  });
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index heads : {8, 32, 112}) add_slopes(heads);
  for (const Index tokens : {1024, 4096}) add_lazy_rows(tokens);
  for (const Index tokens : {1024, 4096}) add_lazy_sum(tokens);
  for (const Index tokens : {256, 1024, 2048}) add_matrix(8, tokens);
  add_key_bias(8, 65536);
  return bench::main(argc, argv);
}
