// Speed of the forward, causal self-attention, beside plain Eigen. README.md in this folder defines every unit.
// g++ 12 calls the undefined operand of its own AVX-512 intrinsics uninitialised where Eigen's product inlines them;
// it obeys only from above the first include.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <Eigen/Core>
#include <alibi/attention.hpp>
#include <alibi/slopes.hpp>
#include <functional>
#include <optional>
#include <type_traits>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "baselines.hpp"
#include "common.hpp"

namespace {

using bench::Index;
using bench::RowMatrix;
using bench::Vector;

struct Case {
  Index heads = 1, tokens = 4096, head_dim = 64;
  Index value_dim = head_dim;
  bool bias = true;          // or slopes of zero
  bool token_major = false;  // [tokens, heads, head_dim] in memory, or [heads, tokens, head_dim]
  int threads = 1;
};

template <class T>
std::string name_of(const char* method, const Case& c) {
  const auto field = [](const char* name, Index value) {
    return std::string("/") + name + ":" + std::to_string(value);
  };
  return std::string(method) + (std::is_same_v<T, float> ? "/float" : "/double") + field("heads", c.heads) +
         field("tokens", c.tokens) + field("head_dim", c.head_dim) +
         (c.value_dim == c.head_dim ? "" : field("value_dim", c.value_dim)) + (c.bias ? "" : "/zero_slopes") +
         (c.token_major ? "/bnhd" : "") + (c.threads == 1 ? "" : field("threads", c.threads));
}

/// Inputs and output of a case. One head has slope 1/256, the flattest of eight, so that every key counts. The first
/// column of values has mean 1, not 0: its sums do not cancel, so that the check sees them drift.
template <class T>
struct Arrays {
  const Case c;
  RowMatrix<T> q, k, v, output;  // [heads x tokens, head_dim], or [tokens x heads, head_dim]
  Vector<T> slopes;

  explicit Arrays(const Case& shape)
      : c(shape), output(RowMatrix<T>::Zero(c.heads * c.tokens, c.value_dim)), slopes(alibi::slopes<T>(c.heads)) {
    bench::Random random(2);
    q = random.matrix<T>(c.heads * c.tokens, c.head_dim);
    k = random.matrix<T>(c.heads * c.tokens, c.head_dim);
    v = random.matrix<T>(c.heads * c.tokens, c.value_dim);
    v.col(0).array() += T(1);
    if (!c.bias) slopes.setZero();
  }

  template <class Matrix>
  auto view(Matrix& x) const {
    const Index h = c.heads, n = c.tokens, d = x.cols();
    return c.token_major ? alibi::view(x.data(), {1, h, n, d}, {n * h * d, d, h * d, 1})
                         : alibi::view(x.data(), {1, h, n, d}, {n * h * d, n * d, d, 1});
  }
};

/// Checks the first result of `call`, then times it.
template <class T>
void measure(benchmark::State& state, const std::string& name, const Arrays<T>& x, const std::function<void()>& call) {
  call();
  if (bench::first_run(name)) bench::check<T>(name, x.view(x.q), x.view(x.k), x.view(x.v), x.view(x.output), x.slopes);
  for (auto _ : state) {
    call();
    benchmark::ClobberMemory();
  }
  const Case& c = x.c;
  const double pairs = double(c.heads) * double(c.tokens) * double(c.tokens + 1) / 2;
  const double work = 2e-9 * double(c.head_dim + c.value_dim) * pairs;
  state.counters["GFLOP/s"] = bench::per_second(work);
  state.counters["of_peak"] = bench::per_second(work / (bench::core_peak<T>() * c.threads));
}

void report_scratch(benchmark::State& state, std::size_t bytes) { state.counters["scratch"] = double(bytes); }

template <class T>
void add_alibi(const Case& c) {
  const std::string name = name_of<T>("alibi", c);
  bench::add(name, [=](benchmark::State& state) {
    Arrays<T> x(c);
    alibi::Workspace workspace;
    std::optional<Eigen::ThreadPool> pool;
    alibi::Options options;
    if (c.threads > 1) options.executor = alibi::Executor(pool.emplace(c.threads));
    measure<T>(state, name, x, [&] {
      alibi::attention_into(x.view(x.output), x.view(x.q), x.view(x.k), x.view(x.v), x.slopes, options, workspace);
    });
    report_scratch(state, workspace.size());
  });
}

/// `Method` is one of baselines.hpp, made by make(case).
template <class T, class Make>
void add_baseline(const char* method, const Case& c, Make make) {
  const std::string name = name_of<T>(method, c);
  bench::add(name, [=](benchmark::State& state) {
    Arrays<T> x(c);
    auto attend = make(c);
    measure<T>(state, name, x, [&] { attend(x.q, x.k, x.v, x.slopes[0], x.output); });
    report_scratch(state, attend.scratch_bytes());
  });
}

template <class T>
void add_eigen_naive(const Case& c) {
  add_baseline<T>("eigen_naive", c, [](const Case& of) { return bench::EigenNaive<T>(of.tokens); });
}
template <class T>
void add_eigen_blocked(const Case& c) {
  add_baseline<T>("eigen_blocked", c, [](const Case& of) { return bench::EigenBlocked<T>(of.tokens, of.head_dim); });
}

void add_all() {
  for (const Index head_dim : {64, 128}) {
    for (const Index tokens : {256, 1024, 4096, 16384, 65536}) {
      const Case c{.tokens = tokens, .head_dim = head_dim};
      add_alibi<float>(c);
      if (tokens <= 16384) add_eigen_blocked<float>(c);
      if (tokens <= 4096) add_eigen_naive<float>(c);
    }
  }
  for (const Index head_dim : {40, 80, 96, 256}) add_alibi<float>({.head_dim = head_dim});
  add_alibi<float>({.head_dim = 192, .value_dim = 128});
  for (const Index head_dim : {64, 128}) add_alibi<float>({.head_dim = head_dim, .bias = false});
  for (const Index head_dim : {64, 128}) {
    add_alibi<float>({.heads = 8, .head_dim = head_dim});
    add_alibi<float>({.heads = 8, .head_dim = head_dim, .token_major = true});
    add_alibi<float>({.heads = 8, .head_dim = head_dim, .threads = 2});
    add_alibi<float>({.heads = 32, .tokens = 1024, .head_dim = head_dim});
  }
  for (const Index head_dim : {64, 128}) {
    add_alibi<double>({.tokens = 1024, .head_dim = head_dim});
    add_alibi<double>({.head_dim = head_dim});
    add_eigen_blocked<double>({.head_dim = head_dim});
  }
}

}  // namespace

int main(int argc, char** argv) {
  Eigen::setNbThreads(1);  // the baselines on one core, should Eigen have been built with OpenMP
  add_all();
  return bench::main(argc, argv);
}
