// Times the forward of causal self-attention, and compares with plain Eigen. README.md in this folder defines every
// unit.
//
// g++ 12 reports the undefined operand of its own AVX-512 intrinsics as uninitialised where Eigen's product inlines
// them. The pragma takes effect only above the first include.
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

struct Case {
  Index heads = 1, tokens = 4096, head_dim = 64;
  Index value_dim = head_dim;
  bool bias = true;          // false: slopes of zero
  bool token_major = false;  // [tokens, heads, head_dim] in memory, or [heads, tokens, head_dim]
  int threads = 1;
};

template <class T>
std::string name_of(const char* method, const Case& c) {
  using bench::field;
  return std::string(method) + '/' + bench::type_name<T>() + field("heads", c.heads) + field("tokens", c.tokens) +
         field("head_dim", c.head_dim) + (c.value_dim == c.head_dim ? "" : field("value_dim", c.value_dim)) +
         (c.bias ? "" : "/zero_slopes") + (c.token_major ? "/bnhd" : "") +
         (c.threads == 1 ? "" : field("threads", c.threads));
}

template <class T>
bench::Arrays<T> arrays(const Case& c) {
  bench::Arrays<T> x(c.heads, c.tokens, c.head_dim, c.value_dim);
  x.token_major = c.token_major;
  if (!c.bias) x.slopes.setZero();
  return x;
}

/// Pairs of a query and a key, including masked ones. A call of 2^28 takes a fifth of a second or more.
Index pairs(const Case& c) { return c.heads * c.tokens * c.tokens; }

/// Checks the first result of `call`, then times it.
template <class T>
void measure(benchmark::State& state, const std::string& name, const Case& c, const bench::Arrays<T>& x,
             const std::function<void()>& call) {
  bench::time(state, name, call, [&] { bench::check(name, x); }, pairs(c) >= 1 << 28);
  const double visible = double(c.heads) * double(c.tokens) * double(c.tokens + 1) / 2;
  const double work = 2e-9 * double(c.head_dim + c.value_dim) * visible;
  state.counters["GFLOP/s"] = bench::per_second(work);
  state.counters["of_peak"] = bench::per_second(work / (bench::core_peak<bench::Accumulate<T>>() * c.threads));
  if constexpr (std::is_same_v<T, Eigen::bfloat16> && alibi::kernel::kDotsPairs)
    state.counters["of_dot_peak"] = bench::per_second(work / (bench::core_dot_peak() * c.threads));
}

void report_scratch(benchmark::State& state, std::size_t bytes) { state.counters["scratch"] = double(bytes); }

/// The tolerance is 0, so every key is read. pruning.cpp times pruning.
template <class T>
void add_alibi(const Case& c, const char* method = "alibi", bool bf16_dot = false) {
  const std::string name = name_of<T>(method, c);
  const auto body = [=](benchmark::State& state) {
    auto x = arrays<T>(c);
    alibi::Workspace workspace;
    std::optional<Eigen::ThreadPool> pool;
    alibi::Options options{.tolerance = 0, .bf16_dot = bf16_dot, .workspace = &workspace};
    if (c.threads > 1) options.executor = alibi::Executor(pool.emplace(c.threads));
    measure<T>(state, name, c, x, [&] {
      alibi::attention_into(x.view(x.output), x.view(x.q), x.view(x.k), x.view(x.v), x.slopes, options);
    });
    report_scratch(state, workspace.size());
  };
  bench::add(name, body, pairs(c) < Index(1) << 32 ? 0 : 3);
}

/// Times arrays [tokens, heads, head_dim] in turn with [heads, tokens, head_dim].
void add_layouts(const Case& c) {
  Case token_major = c;
  token_major.token_major = true;
  const std::string name = name_of<float>("in_turn", token_major);
  bench::add(name, [=](benchmark::State& state) {
    auto x = arrays<float>(token_major), other = arrays<float>(c);
    alibi::Workspace workspace;
    const alibi::Options options{.tolerance = 0, .workspace = &workspace};
    const auto call = [&options](bench::Arrays<float>& a) {
      alibi::attention_into(a.view(a.output), a.view(a.q), a.view(a.k), a.view(a.v), a.slopes, options);
    };
    call(x);
    if (bench::first_run(name)) bench::check(name, x);
    call(other);
    state.counters["over_bhnd"] = 1 / bench::time_in_turn(state, [&] { call(x); }, [&] { call(other); });
  });
}

/// make(case) returns a baseline of baselines.hpp.
template <class T, class Make>
void add_baseline(const char* method, const Case& c, Make make) {
  const std::string name = name_of<T>(method, c);
  bench::add(name, [=](benchmark::State& state) {
    auto x = arrays<T>(c);
    auto attend = make(c);
    measure<T>(state, name, c, x, [&] { attend(x.q, x.k, x.v, x.slopes[0], x.output); });
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
    add_layouts({.heads = 8, .tokens = 2048, .head_dim = head_dim});
    add_layouts({.heads = 32, .tokens = 2048, .head_dim = head_dim});
    add_alibi<float>({.heads = 8, .head_dim = head_dim, .threads = 2});
    add_alibi<float>({.heads = 32, .tokens = 1024, .head_dim = head_dim});
  }
  for (const Index head_dim : {64, 128}) {
    add_alibi<double>({.tokens = 1024, .head_dim = head_dim});
    add_alibi<double>({.head_dim = head_dim});
    add_eigen_blocked<double>({.head_dim = head_dim});
  }
  for (const Index head_dim : {64, 128}) {
    for (const Index tokens : {256, 1024, 4096, 16384}) {
      const Case c{.tokens = tokens, .head_dim = head_dim};
      add_alibi<Eigen::half>(c);
      add_alibi<Eigen::bfloat16>(c);
      if (alibi::kernel::kDotsPairs) add_alibi<Eigen::bfloat16>(c, "alibi_dot", true);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  Eigen::setNbThreads(1);  // the baselines use one core, even if Eigen was built with OpenMP
  add_all();
  return bench::main(argc, argv,
                     {{"over_float", "alibi/bf16/", "alibi/float/"},
                      {"over_float", "alibi_dot/bf16/", "alibi/float/"},
                      {"over_float", "alibi/half/", "alibi/float/"}});
}
