// Times attention of a model that was trained at 1,024 tokens and is evaluated at up to 65,536, for every position
// method of the paper's figure 2. The biases are also materialised, as other libraries need them. README.md in this
// folder defines every unit and method; pictures.sh draws the results.
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
#include <alibi/position/rotary.hpp>
#include <alibi/position/t5_bias.hpp>
#include <alibi/reference.hpp>
#include <alibi/relative_bias.hpp>
#include <alibi/slopes.hpp>
#include <array>
#include <cmath>
#include <cstdio>
#include <optional>
#include <span>
#include <string>

#include "common.hpp"
#include "gradients.hpp"

namespace {

using bench::Index;
using Matrix = bench::RowMatrix<float>;
using Vector = bench::Vector<float>;

constexpr Index kHeads = 8, kHeadDim = 64;
constexpr Index kLongestBackward = 8192;
/// The limit in bytes of the bias of all heads and the scores of one head.
constexpr double kMemory = 0x1p32;

enum class Method { alibi, alibi_dense, alibi_materialised, none, rotary, t5_materialised, t5_fused };
constexpr std::array kMethods = {Method::alibi,   Method::alibi_dense, Method::alibi_materialised,
                                 Method::none,    Method::rotary,      Method::t5_materialised,
                                 Method::t5_fused};

struct Case {
  Method method;
  Index tokens;
  bool backward;

  const char* method_name() const {
    constexpr const char* kNames[] = {"alibi",           "alibi_dense", "alibi_materialised", "none", "rotary",
                                      "t5_materialised", "t5_fused"};
    return kNames[int(method)];
  }
  bool materialised() const { return method == Method::alibi_materialised || method == Method::t5_materialised; }
  bool t5() const { return method == Method::t5_fused || method == Method::t5_materialised; }
  /// The number of heads in the call. If every key is read, all heads cost the same, so one head stands for all where a
  /// call would take 20 s.
  Index heads() const { return tokens > 32768 && method != Method::alibi ? 1 : kHeads; }
  double bytes() const {
    const auto n = double(tokens);
    return materialised() ? 4 * n * n * double(kHeads + (backward ? 2 : 1)) : 0;
  }
  std::string name() const {
    return std::string(method_name()) + (backward ? "/forward_backward" : "/forward") +
           "/heads:" + (heads() == kHeads ? "8" : "1x8") + bench::field("tokens", tokens);
  }
};

/// q, k, v, the output and the other arrays of a backward pass, for some heads.
struct Problem {
  bench::Arrays<float> x;
  Matrix grad_output, grad_q, grad_k, grad_v;
  Vector lse;

  explicit Problem(const Case& c)
      : x(c.heads(), c.tokens, kHeadDim, kHeadDim),
        grad_output(bench::Random(3).matrix<float>(c.backward ? x.q.rows() : 0, kHeadDim)),
        grad_q(Matrix::Zero(grad_output.rows(), kHeadDim)),
        grad_k(grad_q),
        grad_v(grad_q),
        lse(grad_output.rows()) {}
};

/// Attention over whole matrices: stores the bias, [heads, n, n], and all scores of one head at a time. It has three
/// advantages over the implementations that it stands for. The softmax of a row skips the masked keys. No weight is a
/// denormal number, which would make the products take up to twice as long. The weights of a head are used by its
/// backward pass at once, so those of the other heads need not be kept.
class Materialised {
 public:
  /// bias(h, distance) is the bias of head h.
  template <class Bias>
  Materialised(const Case& c, const Bias& bias)
      : n_(c.tokens),
        bias_(c.heads() * n_, n_),
        weights_(Matrix::Zero(n_, n_)),  // touches the memory now, because a slow call has no warm-up call
        grad_scores_(Matrix::Zero(c.backward ? n_ : 0, n_)),
        queries_(n_, kHeadDim) {
    Eigen::RowVectorXf line(2 * n_ - 1);  // n - 1 keys before the query, and n - 1 after it, which are masked
    for (Index h = 0; h < c.heads(); h++) {
      for (Index x = 0; x < line.size(); x++) line[x] = bias(h, std::max<Index>(n_ - 1 - x, 0));
      for (Index i = 0; i < n_; i++) bias_.row(h * n_ + i) = line.segment(n_ - 1 - i, n_);
    }
  }
  double bias_bytes() const { return double(bias_.size()) * sizeof(float); }
  double scratch_bytes() const {
    return double(weights_.size() + grad_scores_.size() + queries_.size()) * sizeof(float);
  }

  void forward(Problem& p, Index head) {
    queries_ = p.x.q.middleRows(head * n_, n_) / std::sqrt(float(kHeadDim));
    weights_.noalias() = queries_ * p.x.k.middleRows(head * n_, n_).transpose();
    for (Index i = 0; i < n_; i++) {
      auto row = weights_.row(i).head(i + 1).array();
      row += bias_.row(head * n_ + i).head(i + 1).array();
      row = (row - row.maxCoeff()).max(-80.F).exp();
      row /= row.sum();
      weights_.row(i).tail(n_ - 1 - i).setZero();
    }
    p.x.output.middleRows(head * n_, n_).noalias() = weights_ * p.x.v.middleRows(head * n_, n_);
  }

  /// Must follow forward() of the same head.
  void backward(Problem& p, Index head) {
    const auto of_head = [&](auto& x) { return x.middleRows(head * n_, n_); };
    const auto grad_output = of_head(p.grad_output);
    grad_scores_.noalias() = grad_output * of_head(p.x.v).transpose();
    for (Index i = 0; i < n_; i++) {
      const float mean = grad_output.row(i).dot(p.x.output.row(head * n_ + i));
      auto row = grad_scores_.row(i).array();
      row = weights_.row(i).array() * (row - mean);
    }
    of_head(p.grad_v).noalias() = weights_.transpose() * grad_output;
    of_head(p.grad_k).noalias() = grad_scores_.transpose() * queries_;
    of_head(p.grad_q).noalias() = grad_scores_ * of_head(p.x.k);
    of_head(p.grad_q) /= std::sqrt(float(kHeadDim));
  }

  /// The gradient of the scores, summed by distance, n - 1 … 0, of the head of the last backward().
  Eigen::RowVectorXd by_distance() const {
    Eigen::RowVectorXd sums = Eigen::RowVectorXd::Zero(n_);
    for (Index i = 0; i < n_; i++) sums.tail(i + 1) += grad_scores_.row(i).head(i + 1).cast<double>();
    return sums;
  }

 private:
  Index n_;
  Matrix bias_, weights_, grad_scores_, queries_;
};

/// One method at one length.
class Attention {
 public:
  explicit Attention(const Case& c) : case_(c), problem_(c), rotary_(kHeadDim) {
    const alibi::T5Buckets buckets;
    weights_ = bench::Random(4).matrix<float>(c.heads(), buckets.buckets);
    grad_weights_.resizeLike(weights_);
    table_ = alibi::t5_table(weights_);
    grad_table_.resizeLike(table_);
    if (c.materialised())
      materialised_.emplace(c, [&](Index h, Index distance) {
        return c.t5() ? weights_(h, alibi::t5_bucket(-distance)) : -problem_.x.slopes[h] * float(distance);
      });
  }

  void operator()() {
    if (materialised_) return whole_matrices();
    if (case_.method == Method::rotary) {
      rotary_.rotate(view(problem_.x.q));
      rotary_.rotate(view(problem_.x.k));
      rotations_++;
    }
    with_bias([&](const auto& bias) { fused(bias); });
    if (case_.method == Method::rotary && case_.backward) {
      rotary_.rotate_gradient(view(problem_.grad_q));
      rotary_.rotate_gradient(view(problem_.grad_k));
    }
    if (case_.t5() && case_.backward) grad_weights_ = alibi::t5_weights_gradient(grad_table_);
  }

  void report(benchmark::State& state) const {
    state.counters["ns/token"] = bench::inverse(1e-9 * double(case_.tokens * case_.heads()) / kHeads);
    state.counters["bias"] = bias_bytes();
    state.counters["scratch"] = materialised_ ? materialised_->scratch_bytes() : double(workspace_.size());
  }

  void check(const std::string& name) const {
    with_bias([&](const auto& bias) {
      check_output(name, bias);
      if (!case_.backward) return;
      // Checks all gradients of a short sequence. Of a long one, checks the last queries, which give the last keys all
      // their gradient.
      const Index n = case_.tokens;
      for (Index head = 0; head < case_.heads(); head++) check_gradients(name, bias, head, n <= 512 ? 0 : n - kSample);
    });
    if (case_.method == Method::rotary) check_rotation(name);
  }

 private:
  static constexpr Index kSample = 16;
  static constexpr double kBound = 1e-5;  // of a gradient's entry, relative to the largest

  alibi::View<float> view(Matrix& x) const { return problem_.x.view(x); }
  alibi::View<const float> view(const Matrix& x) const { return problem_.x.view(x); }
  double bias_bytes() const {
    if (materialised_) return materialised_->bias_bytes();
    if (case_.t5()) return double(table_.size()) * sizeof(float);
    const bool biased = case_.method == Method::alibi || case_.method == Method::alibi_dense;
    return biased ? double(problem_.x.slopes.size()) * sizeof(float) : 0;
  }

  /// Calls body() with the slopes, with the bias of a table, or with no_bias.
  template <class Body>
  void with_bias(const Body& body) const {
    if (case_.t5()) return body(alibi::relative_bias(table_));
    if (case_.method == Method::none || case_.method == Method::rotary) return body(alibi::no_bias);
    body(problem_.x.slopes);
  }

  /// The weights of T5 are learned and have a gradient. Slopes are fixed and have none.
  template <class Bias>
  void fused(const Bias& bias) {
    Problem& p = problem_;
    const auto q = view(p.x.q), k = view(p.x.k), v = view(p.x.v), output = view(p.x.output);
    alibi::Options options{.workspace = &workspace_};
    if (case_.method == Method::alibi_dense) options.tolerance = 0;
    if (!case_.backward) return alibi::attention_into(output, q, k, v, bias, options);
    const std::span<float> grad_table(grad_table_.data(), case_.t5() ? std::size_t(grad_table_.size()) : 0);
    alibi::attention_with_lse_into(output, p.lse, q, k, v, bias, options);
    alibi::attention_backward_into({view(p.grad_q), view(p.grad_k), view(p.grad_v), grad_table}, view(p.grad_output), q,
                                   k, v, bias, {output, p.lse}, options);
  }

  void whole_matrices() {
    grad_weights_.setZero();
    for (Index head = 0; head < case_.heads(); head++) {
      materialised_->forward(problem_, head);
      if (!case_.backward) continue;
      materialised_->backward(problem_, head);
      if (!case_.t5()) continue;
      const Eigen::RowVectorXd sums = materialised_->by_distance();
      for (Index x = 0; x < sums.size(); x++)
        grad_weights_(head, alibi::t5_bucket(x + 1 - sums.size())) += float(sums[x]);
    }
  }

  /// The rows [first, first + count) of a head.
  alibi::View<const float> rows(const Matrix& x, Index head, Index first, Index count) const {
    return bench::part<float>(view(x), head, first, count);
  }

  /// Checks the last row of a random head, and 15 random rows of random heads.
  template <class Bias>
  void check_output(const std::string& name, const Bias& bias) const {
    const auto& x = problem_.x;
    bench::Random random(1);
    for (Index sample = 0; sample < kSample; sample++) {
      const Index head = random.below(x.heads), row = sample == 0 ? x.tokens - 1 : random.below(x.tokens);
      const auto expected =
          alibi::reference::attention(rows(x.q, head, row, 1), rows(x.k, head, 0, x.tokens),
                                      rows(x.v, head, 0, x.tokens), bench::of_head(bias, head), {.query_offset = row});
      bench::check_row(name, "head " + std::to_string(head) + ", query " + std::to_string(row),
                       rows(x.output, head, row, 1).data, expected.output.data(), kHeadDim);
    }
  }

  /// Checks the gradients of the queries and keys of one head from `first` on, and of its bias if that is all of them.
  template <class Bias>
  void check_gradients(const std::string& name, const Bias& bias, Index head, Index first) const {
    const Problem& p = problem_;
    const Index n = case_.tokens, count = n - first;
    const auto queries = [&](const Matrix& x) { return rows(x, head, first, count); };
    const auto keys = [&](const Matrix& x) { return rows(x, head, 0, n); };
    auto expected =
        alibi::reference::attention_backward(queries(p.grad_output), queries(p.x.q), keys(p.x.k), keys(p.x.v),
                                             bench::of_head(bias, head), {.query_offset = first});
    alibi::reference::Matrix of_keys = expected.k.bottomRows(count);
    if (case_.method == Method::rotary) {
      rotary_.rotate_gradient(expected.q, first);
      rotary_.rotate_gradient(of_keys, first);
    }
    const auto actual = [&](const Matrix& x) { return x.middleRows(head * n + first, count); };
    bench::check_gradient(name, "q", actual(p.grad_q), expected.q, kBound);
    bench::check_gradient(name, "k", actual(p.grad_k), of_keys, kBound);
    bench::check_gradient(name, "v", actual(p.grad_v), expected.v.bottomRows(count), kBound);
    if (case_.t5() && first == 0)
      bench::check_gradient(name, "the weights", grad_weights_.row(head), alibi::t5_weights_gradient(expected.bias),
                            kBound);
  }

  /// Checks the queries of head 0, which every call rotates, against the same random numbers and the formula.
  void check_rotation(const std::string& name) const {
    const bench::Arrays<float> before(case_.heads(), case_.tokens, kHeadDim, kHeadDim);
    bench::Random random(5);
    for (Index sample = 0; sample < kSample; sample++) {
      const Index position = random.below(case_.tokens), i = random.below(kHeadDim / 2);
      const double theta = std::pow(10000., -2 * double(i) / kHeadDim);
      const double angle = double(rotations_) * double(position) * theta;
      const auto x = double(before.q(position, 2 * i)), y = double(before.q(position, 2 * i + 1));
      const double expected = x * std::cos(angle) - y * std::sin(angle), actual = double(problem_.x.q(position, 2 * i));
      if (std::abs(actual - expected) <= 4e-6) continue;
      bench::fail(name,
                  "query " + std::to_string(position) + ", pair " + std::to_string(i) + " is not rotated correctly");
    }
  }

  Case case_;
  Problem problem_;
  alibi::Rotary rotary_;
  Index rotations_ = 0;
  Matrix weights_, grad_weights_, table_, grad_table_;  // of T5
  std::optional<Materialised> materialised_;
  alibi::Workspace workspace_;
};

/// The approximate time of a call: 0.65 ns for each pair of query and key of a head, including masked ones, if every
/// key is read.
double expected_seconds(const Case& c) {
  const auto n = double(c.tokens);
  const double pairs = double(c.heads()) * n * (c.method == Method::alibi ? std::min(n, 3000.) : n);
  return 0.65e-9 * pairs * (c.materialised() ? 5 : 1) * (c.backward ? 4 : 1);
}

void add(const Case& c) {
  const double call = expected_seconds(c);
  const auto body = [=, name = c.name()](benchmark::State& state) {
    Attention attend(c);
    bench::time(state, name, [&] { attend(); }, [&] { attend.check(name); }, call > 0.2);
    attend.report(state);
  };
  bench::add(c.name(), body, call < 0.1 ? 0 : call < 2 ? 3 : 1);
}

void add_all() {
  for (const bool backward : {false, true})
    for (const Method method : kMethods)
      for (Index tokens = 512; tokens <= (backward ? kLongestBackward : 65536); tokens *= 2) {
        const Case c{method, tokens, backward};
        if (c.bytes() <= kMemory) {
          add(c);
          continue;
        }
        std::fprintf(stderr, "%s ends here: %s would hold %.1f GiB of bias and scores, limit %.0f GiB\n",
                     c.method_name(), c.name().c_str(), c.bytes() / 0x1p30, kMemory / 0x1p30);
        break;
      }
}

}  // namespace

int main(int argc, char** argv) {
  Eigen::setNbThreads(1);  // whole matrices use one core, even if Eigen was built with OpenMP
  add_all();
  return bench::main(argc, argv);
}
