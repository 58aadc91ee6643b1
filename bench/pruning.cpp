// Times what pruning saves: causal self-attention at the default tolerance, at tolerance 0, and in plain Eigen.
// README.md in this folder defines every unit; pictures.sh draws the results.
//
// g++ 12 reports the undefined operand of its own AVX-512 intrinsics as uninitialised where Eigen's product inlines
// them. The pragma takes effect only above the first include.
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
  Index mean = 0;           // added to every number of every key, in standard deviations
  Index sink = 1;           // the length of the first key relative to the others, as in trained models
  const char* slopes = "";  // replaces the authors' slopes: "0" or "2^-20", with which no key is distant
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

/// Logits that are 10 times as large have 10 times the rounding error.
void check(const std::string& name, const Case& c, const Arrays& x) {
  bench::check(name, x, double(std::max(c.mean, c.sink)));
}

double operations(const Case& c) {
  return 4 * double(kHeadDim) * double(c.heads) * double(c.tokens) * double(c.tokens + 1) / 2;
}
/// Whether a call without pruning takes seconds.
bool slow(const Case& c) { return operations(c) > 2e11; }

/// A call of attention over x, into x.output.
std::function<void()> call(Arrays& x, alibi::Workspace& workspace, alibi::Options options) {
  options.workspace = &workspace;
  return [&x, options] {
    alibi::attention_into(x.view(x.output), x.view(x.q), x.view(x.k), x.view(x.v), x.slopes, options);
  };
}

/// Reports the share of tiles that were computed, of all heads and of each of eight, and the bound of the pruned mass.
void report(benchmark::State& state, const std::vector<alibi::PruningStats>& heads) {
  double computed = 0, total = 0, bound = 0;
  for (std::size_t h = 0; h < heads.size(); h++) {
    const auto of_head = double(heads[h].tiles_computed), all = double(heads[h].tiles_total);
    computed += of_head;
    total += all;
    bound = std::max(bound, heads[h].mass_bound);
    if (heads.size() == 8) state.counters["head_" + std::to_string(h + 1)] = of_head / all;
  }
  state.counters["computed"] = computed / total;
  state.counters["bound"] = bound;
}

void add_alibi(const char* method, const Case& c, std::optional<double> tolerance, int repetitions = 0) {
  const std::string name = name_of(method, c);
  const auto body = [=](benchmark::State& state) {
    Arrays x = arrays(c);
    alibi::Workspace workspace;
    std::vector<alibi::PruningStats> stats(std::size_t(c.heads));
    const auto attend = call(x, workspace, {.tolerance = tolerance, .pruning_stats = stats});
    bench::time(state, name, attend, [&] { check(name, c, x); }, slow(c));
    report(state, stats);
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

/// Runs the heads one after another, each with its own slope. All use the same q, k and v, which costs the same.
void add_eigen_blocked(const Case& c) {
  const std::string name = name_of("eigen_blocked", c);
  const auto body = [=](benchmark::State& state) {
    Arrays x = arrays({.heads = 1, .tokens = c.tokens});
    const auto slopes = alibi::slopes<float>(c.heads);
    bench::EigenBlocked<float> attend(c.tokens, kHeadDim);
    const auto all_heads = [&] {
      for (Index head = 0; head < c.heads; head++) attend(x.q, x.k, x.v, slopes[head], x.output);
    };
    x.slopes = slopes.tail(1);  // of the last head, whose output remains
    bench::time(state, name, all_heads, [&] { bench::check(name, x); }, slow(c));
  };
  bench::add(name, body, slow(c) ? 3 : 0);
}

/// Times pruning in turn with reading every key, where little is saved.
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

    const double speedup = bench::time_in_turn(state, pruned, dense);
    state.counters["cost"] = 1 / speedup;
    state.counters["speedup"] = speedup;
  };
  bench::add(name, body)->MinTime(1);
}

void add_all() {
  for (const Index heads : {8, 32}) {
    for (const Index tokens : {512, 2048, 4096, 16384, 65536, 131072}) {
      const Case c{.heads = heads, .tokens = tokens};
      add_pruned(c);
      // Larger calls would take minutes. In plain Eigen the cost of a head does not depend on the number of heads.
      if (operations(c) < 5e12) add_dense(c);
      if (heads == 8 && tokens <= 16384) add_eigen_blocked(c);
    }
  }
  for (const Case& c : {Case{.tokens = 16384, .mean = 10}, Case{.tokens = 16384, .sink = 10}}) {
    add_pruned(c);
    add_dense(c);
  }
  for (const Index tokens : {512, 2048}) add_in_turn({.tokens = tokens});
  for (const char* slopes : {"0", "2^-20"}) add_in_turn({.slopes = slopes});
}

}  // namespace

int main(int argc, char** argv) {
  Eigen::setNbThreads(1);  // the baseline uses one core, even if Eigen was built with OpenMP
  add_all();
  return bench::main(argc, argv, {{"speedup", "pruned/", "dense/"}, {"over_eigen", "pruned/", "eigen_blocked/"}});
}
