// Times the gradients of causal self-attention, and compares with plain Eigen. README.md in this folder defines every
// unit.
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
#include <alibi/backward.hpp>
#include <alibi/position/t5_bias.hpp>
#include <alibi/reference.hpp>
#include <alibi/relative_bias.hpp>
#include <alibi/slopes.hpp>
#include <functional>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <type_traits>
#include <unsupported/Eigen/CXX11/ThreadPool>
#include <utility>
#include <vector>

#include "baselines.hpp"
#include "common.hpp"
#include "gradients.hpp"

namespace {

using bench::Index;

enum class Bias { slopes, t5 };
enum class Pass { forward, backward };

struct Case {
  Index heads = 1, tokens = 4096, head_dim = 64;
  int threads = 1;
  Bias bias = Bias::slopes;
  Pass pass = Pass::backward;
  std::optional<double> tolerance = 0;  // nullopt: the default
};

template <class T>
std::string name_of(const char* method, const Case& c) {
  using bench::field;
  return std::string(method) + '/' + bench::type_name<T>() + field("heads", c.heads) + field("tokens", c.tokens) +
         field("head_dim", c.head_dim) + (c.threads == 1 ? "" : field("threads", c.threads));
}

/// The inputs and outputs of a backward pass. The output and lse come from one forward at the same tolerance.
template <class T>
struct Problem {
  using A = bench::Accumulate<T>;

  bench::Arrays<T> x;
  bench::RowMatrix<A> table;                                           // empty: slopes
  bench::RowMatrix<A> grad_output, grad_q, grad_k, grad_v, grad_bias;  // grad_bias: one row for each head
  bench::Vector<A> lse;
  alibi::Workspace workspace;

  explicit Problem(const Case& c)
      : x(c.heads, c.tokens, c.head_dim, c.head_dim), grad_q(x.q.rows(), c.head_dim), grad_k(grad_q), grad_v(grad_q) {
    bench::Random random(3);
    grad_output = random.matrix<A>(x.q.rows(), c.head_dim);
    lse.resize(x.q.rows());
    if (c.bias == Bias::t5) table = alibi::t5_table(random.matrix<A>(c.heads, alibi::T5Buckets().buckets));
    grad_bias.resize(c.heads, std::max<Index>(table.cols(), 1));
    const alibi::Options options{.tolerance = c.tolerance};
    with_bias([&](const auto& bias) { forward(bias, options); });
    workspace = alibi::Workspace();  // from here on it is the workspace of the timed pass
  }

  template <class Body>
  void with_bias(const Body& body) const {
    table.size() > 0 ? body(alibi::relative_bias(table, alibi::t5_first_distance())) : body(x.slopes);
  }
  template <class OfBias>
  void forward(const OfBias& bias, alibi::Options options) {
    options.workspace = &workspace;
    alibi::attention_with_lse_into(x.view(x.output), lse, x.view(x.q), x.view(x.k), x.view(x.v), bias, options);
  }
  template <class OfBias>
  void backward(const OfBias& bias, alibi::Options options) {
    options.workspace = &workspace;
    const std::span<A> to_bias(grad_bias.data(), std::size_t(grad_bias.size()));
    alibi::attention_backward_into({x.view(grad_q), x.view(grad_k), x.view(grad_v), to_bias}, x.view(grad_output),
                                   x.view(x.q), x.view(x.k), x.view(x.v), bias, {x.view(x.output), lse}, options);
  }
};

/// The bound of the error of a gradient's entry, relative to the largest entry. With bfloat16 the output of the forward
/// was rounded to it, and the gradient uses its mean of each row.
template <class T>
constexpr double gradient_bound() {
  if constexpr (std::is_same_v<T, Eigen::bfloat16>) return 1e-2;
  return std::is_same_v<T, float> ? 1e-5 : 1e-13;
}

/// Checks the last row of a random head, and 15 random rows of random heads.
template <class T>
void check_output(const std::string& name, const Problem<T>& p) {
  using bench::part;
  using bench::widened;
  const auto& x = p.x;
  bench::Random random(1);
  p.with_bias([&](const auto& bias) {
    for (int sample = 0; sample < 16; sample++) {
      const Index head = random.below(x.heads), row = sample == 0 ? x.tokens - 1 : random.below(x.tokens);
      const auto expected = alibi::reference::attention(
          widened<T>(part<T>(x.view(x.q), head, row, 1)), widened<T>(part<T>(x.view(x.k), head, 0, x.tokens)),
          widened<T>(part<T>(x.view(x.v), head, 0, x.tokens)), bench::of_head(bias, head), {.query_offset = row});
      bench::check_row(name, "head " + std::to_string(head) + ", query " + std::to_string(row),
                       part<T>(x.view(x.output), head, row, 1).data, expected.output.data(), x.output.cols());
    }
  });
}

/// The rows of the output's gradient that the check keeps: all rows of a small problem, else the last row of a head and
/// 15 random rows.
template <class T>
std::set<Index> sampled_rows(const Problem<T>& p) {
  const Index rows = p.x.q.rows();
  std::set<Index> sample = {rows - 1};
  bench::Random random(1);
  if (rows <= 1024)
    for (Index row = 0; row < rows; row++) sample.insert(row);
  while (std::ssize(sample) < 16) sample.insert(random.below(rows));
  return sample;
}

/// The gradients by definition if the output's gradient is zero except in the sampled rows. A row costs the reference
/// tokens x head_dim.
template <class T>
alibi::reference::Gradients expected_gradients(const Problem<T>& p, const std::set<Index>& sample) {
  using alibi::reference::Matrix;
  using bench::part;
  using bench::widened;
  const auto& x = p.x;
  const Index n = x.tokens;
  const auto view = [&](const auto& array) { return x.view(array); };
  alibi::reference::Gradients sum{Matrix::Zero(x.q.rows(), x.q.cols()), Matrix::Zero(x.k.rows(), x.k.cols()),
                                  Matrix::Zero(x.v.rows(), x.v.cols()),
                                  Matrix::Zero(p.grad_bias.rows(), p.grad_bias.cols())};
  p.with_bias([&](const auto& bias) {
    for (const Index row : sample) {
      const Index head = row / n, query = row % n;
      const auto of_row = alibi::reference::attention_backward(
          part<typename Problem<T>::A>(view(p.grad_output), head, query, 1),
          widened<T>(part<T>(view(x.q), head, query, 1)), widened<T>(part<T>(view(x.k), head, 0, n)),
          widened<T>(part<T>(view(x.v), head, 0, n)), bench::of_head(bias, head), {.query_offset = query});
      sum.q.row(row) += of_row.q;
      sum.k.middleRows(head * n, n) += of_row.k;
      sum.v.middleRows(head * n, n) += of_row.v;
      sum.bias.row(head) += of_row.bias;
    }
  });
  return sum;
}

/// Runs `call` with an output's gradient that is zero except in the sampled rows, and compares every entry of every
/// gradient with the definition. Then runs it with the whole gradient, which must give the same gradients of the
/// sampled queries.
template <class T>
void check(const std::string& name, Problem<T>& p, const std::function<void()>& call) {
  const auto sample = sampled_rows(p);
  const auto expected = expected_gradients(p, sample);
  const auto whole = p.grad_output;
  for (Index row = 0; row < whole.rows(); row++)
    if (!sample.contains(row)) p.grad_output.row(row).setZero();
  call();
  const double bound = gradient_bound<T>();
  bench::check_gradient(name, "q", p.grad_q, expected.q, bound);
  bench::check_gradient(name, "k", p.grad_k, expected.k, bound);
  bench::check_gradient(name, "v", p.grad_v, expected.v, bound);
  bench::check_gradient(name, "the bias", p.grad_bias, expected.bias,
                        5 * bound);  // the terms of this gradient nearly cancel

  p.grad_output = whole;
  call();
  for (Index row = 0; row < whole.rows(); row++)
    if (!sample.contains(row)) p.grad_q.row(row).setZero();
  bench::check_gradient(name, "q", p.grad_q, expected.q, bound);
}

/// The work is five products of queries and keys, two for the forward, of 2 head_dim operations for each visible pair.
/// A call that prunes has no rate of work.
template <class T>
void report(benchmark::State& state, const Case& c, std::size_t scratch) {
  state.counters["scratch"] = double(scratch);
  if (!c.tolerance) return;
  const double visible = double(c.heads) * double(c.tokens) * double(c.tokens + 1) / 2;
  const double work = (c.pass == Pass::backward ? 10e-9 : 4e-9) * double(c.head_dim) * visible;
  state.counters["GFLOP/s"] = bench::per_second(work);
  state.counters["of_peak"] = bench::per_second(work / (bench::core_peak<bench::Accumulate<T>>() * c.threads));
}

/// A call of the library for `c` over `p`, which has its shape.
template <class T>
std::function<void()> call_of(const Case& c, Problem<T>& p, const alibi::Executor& executor) {
  const alibi::Options options{.tolerance = c.tolerance, .executor = executor};
  return [&p, options, pass = c.pass] {
    p.with_bias(
        [&](const auto& bias) { pass == Pass::backward ? p.backward(bias, options) : p.forward(bias, options); });
  };
}

/// Runs `call` once, and checks its result if the case runs for the first time.
template <class T>
void check_pass(const std::string& name, const Case& c, Problem<T>& p, const std::function<void()>& call) {
  const bool first = bench::first_run(name);
  if (first && c.pass == Pass::backward) return check(name, p, call);
  call();
  if (first) check_output(name, p);
}

/// `method` names the case. With a rival, the two calls alternate and `ratio` names the column.
template <class T>
void add_alibi(const char* method, const Case& c, int repetitions = 0, const char* ratio = nullptr,
               const Case& rival = {}) {
  const std::string name = name_of<T>(method, c);
  const auto body = [=](benchmark::State& state) {
    Problem<T> problem(c);
    std::optional<Eigen::ThreadPool> pool;
    const auto call = call_of(c, problem, c.threads > 1 ? alibi::Executor(pool.emplace(c.threads)) : alibi::Executor());
    check_pass(name, c, problem, call);
    if (ratio) {
      Problem<T> other(rival);
      const auto their_call = call_of(rival, other, {});
      check_pass(name + ", its rival", rival, other, their_call);
      state.counters[ratio] = bench::time_in_turn(state, call, their_call);
    } else {
      for (auto _ : state) call();
    }
    report<T>(state, c, problem.workspace.size());
  };
  bench::add(name, body, repetitions);
}

template <class T>
void add_eigen_blocked(const Case& c) {
  const std::string name = name_of<T>("eigen_blocked", c);
  bench::add(name, [=](benchmark::State& state) {
    Problem<T> p(c);
    const auto& x = p.x;
    bench::EigenBlockedBackward<T> backward(c.tokens, c.head_dim);
    const auto call = [&] {
      p.grad_bias(0, 0) =
          backward(p.grad_output, x.q, x.k, x.v, x.slopes[0], x.output, p.lse.data(), p.grad_q, p.grad_k, p.grad_v);
    };
    check_pass<T>(name, c, p, call);
    for (auto _ : state) call();
    report<T>(state, c, backward.scratch_bytes());
  });
}

void add_all() {
  for (const Index head_dim : {64, 128}) {
    for (const Index tokens : {512, 1024, 4096, 16384}) {
      const Case c{.tokens = tokens, .head_dim = head_dim};
      add_alibi<float>("alibi", c, tokens < 16384 ? 0 : 3);
      if (tokens == 512 || tokens == 4096) add_eigen_blocked<float>(c);
    }
    // Measures the scratch at the default tolerance, which needs more, and where a call takes a second.
    add_alibi<float>("pruned", {.tokens = 65536, .head_dim = head_dim, .tolerance = std::nullopt}, 1);
    add_alibi<double>("alibi", {.head_dim = head_dim});
    add_alibi<Eigen::bfloat16>("alibi", {.head_dim = head_dim});
  }
  for (const Index tokens : {512, 16384}) {
    const Case c{.heads = 8, .tokens = tokens};
    Case pruned = c;
    pruned.tolerance = std::nullopt;
    add_alibi<float>("pruned", pruned, tokens == 512 ? 0 : 3, "speedup", c);
  }
  for (const Index heads : {1, 8}) {
    const Case c{.heads = heads};
    Case two = c;
    two.threads = 2;
    add_alibi<float>("alibi", two, 0, "over_1_thr", c);
  }
  for (const Index tokens : {512, 4096}) {
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      const Case slopes{.tokens = tokens, .pass = pass};
      Case t5 = slopes;
      t5.bias = Bias::t5;
      add_alibi<float>(pass == Pass::forward ? "t5_forward" : "t5_backward", t5, 0, "over_alibi", slopes);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  Eigen::setNbThreads(1);  // the baseline uses one core, even if Eigen was built with OpenMP
  add_all();
  return bench::main(argc, argv,
                     {{"over_eigen", "alibi/", "eigen_blocked/"}, {"over_float", "alibi/bf16/", "alibi/float/"}});
}
