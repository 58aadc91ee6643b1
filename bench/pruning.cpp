// What pruning saves: causal self-attention at the default tolerance, at tolerance 0, and in plain Eigen. README.md in
// this folder defines every unit; pictures.sh draws what comes out.
// g++ 12 calls the undefined operand of its own AVX-512 intrinsics uninitialised where Eigen's product inlines them;
// it obeys only from above the first include.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <Eigen/Core>
#include <algorithm>
#include <alibi/attention.hpp>
#include <alibi/slopes.hpp>
#include <cmath>
#include <functional>
#include <optional>
#include <vector>

#include "baselines.hpp"
#include "common.hpp"

namespace {

using bench::Index;
using Arrays = bench::Arrays<float>;

constexpr Index kHeadDim = 64;

struct Case {
  Index heads = 8, tokens = 4096;
  Index mean = 0;           // added to every number of every key: so many standard deviations of theirs
  Index sink = 1;           // the first key is so many times as long as the others, as that of a trained model is
  const char* slopes = "";  // what is in place of the authors' slopes: "0" or "2^-20", where no key is far
};

std::string name_of(const char* method, const Case& c) {
  using bench::field;
  return method + field("heads", c.heads) + field("tokens", c.tokens) + (c.mean == 0 ? "" : field("mean", c.mean)) +
         (c.sink == 1 ? "" : field("sink", c.sink)) + (*c.slopes ? std::string("/slopes:") + c.slopes : "");
}

Arrays arrays(const Case& c) {
  Arrays x(c.heads, c.tokens, kHeadDim, kHeadDim);
  x.k.array() += float(c.mean);
  for (Index head = 0; head < c.heads; head++) x.k.row(head * c.tokens) *= float(c.sink);
  if (*c.slopes) x.slopes.setConstant(*c.slopes == '0' ? 0.0F : 0x1p-20F);
  return x;
}

/// Logits of 10 times the size are rounded to 10 times the error.
void check(const std::string& name, const Case& c, const Arrays& x) {
  bench::check(name, x, double(std::max(c.mean, c.sink)));
}

double operations(const Case& c) {
  return 4 * double(kHeadDim) * double(c.heads) * double(c.tokens) * double(c.tokens + 1) / 2;
}
/// Whether a call that saves nothing takes seconds.
bool slow(const Case& c) { return operations(c) > 2e11; }

/// A call of attention over x, into x.output.
std::function<void()> call(Arrays& x, alibi::Workspace& workspace, alibi::Options options) {
  options.workspace = &workspace;
  return [&x, options] {
    alibi::attention_into(x.view(x.output), x.view(x.q), x.view(x.k), x.view(x.v), x.slopes, options);
  };
}

/// Tiles visited of those that are visible, of all heads and of each of eight, and the bound on what was left out.
void report(benchmark::State& state, const std::vector<alibi::PruningStats>& heads) {
  double visited = 0, visible = 0, bound = 0;
  for (std::size_t h = 0; h < heads.size(); h++) {
    const auto of_head = double(heads[h].tiles_computed), all = double(heads[h].tiles_total);
    visited += of_head;
    visible += all;
    bound = std::max(bound, heads[h].mass_bound);
    if (heads.size() == 8) state.counters["head_" + std::to_string(h + 1)] = of_head / all;
  }
  state.counters["visited"] = visited / visible;
  state.counters["bound"] = bound;
}

void add_alibi(const char* method, const Case& c, std::optional<double> tolerance, int repetitions = 0) {
  const std::string name = name_of(method, c);
  const auto body = [=](benchmark::State& state) {
    Arrays x = arrays(c);
    alibi::Workspace workspace;
    std::vector<alibi::PruningStats> pruning(std::size_t(c.heads));
    const auto attend = call(x, workspace, {.tolerance = tolerance, .pruning_stats = pruning});
    bench::time(state, name, attend, [&] { check(name, c, x); }, slow(c));
    report(state, pruning);
  };
  bench::add(name, body, repetitions);
}

void add_pruned(const Case& c) {
  const Index rows = c.heads * c.tokens;
  add_alibi("pruned", c, std::nullopt, rows < 1 << 19 ? 0 : rows < 1 << 21 ? 3 : 1);
}
void add_dense(const Case& c) {
  const double work = operations(c);
  add_alibi("dense", c, 0, work < 2e11 ? 0 : work < 2e12 ? 3 : 1);
}

/// As many heads one after the other, each with its own slope; all over the same q, k and v, which costs the same.
void add_eigen_blocked(const Case& c) {
  const std::string name = name_of("eigen_blocked", c);
  const auto body = [=](benchmark::State& state) {
    Arrays x = arrays({.heads = 1, .tokens = c.tokens});
    const auto slopes = alibi::slopes<float>(c.heads);
    bench::EigenBlocked<float> attend(c.tokens, kHeadDim);
    const auto all_heads = [&] {
      for (Index head = 0; head < c.heads; head++) attend(x.q, x.k, x.v, slopes[head], x.output);
    };
    x.slopes = slopes.tail(1);  // of the last head, whose output stays
    bench::time(state, name, all_heads, [&] { bench::check(name, x); }, slow(c));
  };
  bench::add(name, body, slow(c) ? 3 : 0);
}

/// Where pruning cannot help: what does it cost?
void add_in_turn(const Case& c) {
  const std::string name = name_of("in_turn", c);
  const auto body = [=](benchmark::State& state) {
    Arrays x = arrays(c);
    alibi::Workspace workspace;
    const auto dense = call(x, workspace, {.tolerance = 0}), pruned = call(x, workspace, {});
    dense();
    if (bench::first_run(name)) check(name, c, x);
    pruned();
    if (bench::first_run(name + " pruned")) check(name, c, x);

    state.counters["cost"] = 1 / bench::time_in_turn(state, pruned, dense);
  };
  bench::add(name, body)->MinTime(1);
}

void add_all() {
  for (const Index heads : {8, 32}) {
    for (const Index tokens : {512, 2048, 4096, 16384, 65536, 131072}) {
      const Case c{.heads = heads, .tokens = tokens};
      add_pruned(c);
      // More would take minutes. With plain Eigen a head costs what it costs, however many there are.
      if (operations(c) < 5e12) add_dense(c);
      if (heads == 8 && tokens <= 16384) add_eigen_blocked(c);
    }
  }
  for (const Case& c : {Case{.tokens = 16384, .mean = 10}, Case{.tokens = 16384, .sink = 10}}) {
    add_pruned(c);
    add_dense(c);
  }
  add_in_turn({.tokens = 512});
  for (const char* slopes : {"0", "2^-20"}) add_in_turn({.slopes = slopes});
}

}  // namespace

int main(int argc, char** argv) {
  Eigen::setNbThreads(1);  // the baseline on one core, should Eigen have been built with OpenMP
  add_all();
  return bench::main(argc, argv, {{"speedup", "pruned/", "dense/"}, {"over_eigen", "pruned/", "eigen_blocked/"}});
}
