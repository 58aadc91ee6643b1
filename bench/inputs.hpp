// The inputs of the benchmarks, and the check of a result before it is timed.
#pragma once

#include <Eigen/Core>
#include <alibi/reference.hpp>
#include <alibi/slopes.hpp>
#include <alibi/view.hpp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>
#include <type_traits>

namespace bench {

using alibi::Index;
template <class T>
using RowMatrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using Vector = Eigen::Matrix<T, Eigen::Dynamic, 1>;

/// The scalar of the sums of attention over T, and of slopes and lse.
template <class T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
constexpr const char* type_name() {
  if constexpr (std::is_same_v<T, double>) return "double";
  if constexpr (std::is_same_v<T, Eigen::bfloat16>) return "bf16";
  if constexpr (std::is_same_v<T, Eigen::half>) return "half";
  return "float";
}

/// A part of the name of a case: "/tokens:4096".
inline std::string field(const char* name, Index value) {
  return std::string("/") + name + ":" + std::to_string(value);
}

/// Random numbers from a fixed seed (splitmix64). They must be fast, because every repetition generates its inputs.
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

  /// Mean 0, variance 1, approximately normal: the sum of four uniform numbers of 16 bits.
  double normal() {
    const std::uint64_t x = bits();
    const auto sum = double((x & 0xffff) + (x >> 16 & 0xffff) + (x >> 32 & 0xffff) + (x >> 48));
    return (sum - 2 * 65535.0) / (65536 / std::sqrt(3.0));
  }

  template <class T>
  RowMatrix<T> matrix(Index rows, Index cols) {
    RowMatrix<T> x(rows, cols);
    for (Index i = 0; i < x.size(); i++) x.data()[i] = T(Accumulate<T>(normal()));
    return x;
  }

 private:
  std::uint64_t state_;
};

/// Inputs and output of causal self-attention, one batch. A single head has slope 1/256, the flattest of eight. The
/// first column of values has mean 1 instead of 0, so that its sums do not cancel and the check detects their drift.
template <class T>
struct Arrays {
  Index heads, tokens;
  bool token_major = false;      // [tokens, heads, head_dim] in memory, or [heads, tokens, head_dim]
  RowMatrix<T> q, k, v, output;  // [heads x tokens, head_dim], or [tokens x heads, head_dim]
  Vector<Accumulate<T>> slopes;

  Arrays(Index head_count, Index token_count, Index head_dim, Index value_dim)
      : heads(head_count),
        tokens(token_count),
        output(RowMatrix<T>::Zero(heads * tokens, value_dim)),
        slopes(alibi::slopes<Accumulate<T>>(heads)) {
    Random random(2);
    q = random.matrix<T>(heads * tokens, head_dim);
    k = random.matrix<T>(heads * tokens, head_dim);
    v = random.matrix<T>(heads * tokens, value_dim);
    v.col(0).array() += T(1);
  }

  template <class Matrix>
  auto view(Matrix& x) const {
    const Index h = heads, n = tokens, d = x.cols();
    return token_major ? alibi::view(x.data(), {1, h, n, d}, {n * h * d, d, h * d, 1})
                       : alibi::view(x.data(), {1, h, n, d}, {n * h * d, n * d, d, 1});
  }
};

[[noreturn]] inline void fail(const std::string& name, const std::string& why) {
  std::fprintf(stderr, "\nWRONG RESULT, nothing more is measured: %s: %s\n", name.c_str(), why.c_str());
  std::exit(1);
}

/// True the first time that it is called for a case, when its result is checked.
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

/// One head in a form for the reference: unchanged, or a copy in float, which is exact.
template <class T>
auto widened(const alibi::View<const T>& x) {
  if constexpr (std::is_same_v<T, Accumulate<T>>)
    return x;
  else {
    const Eigen::Map<const RowMatrix<T>, 0, Eigen::OuterStride<>> rows(x.data, x.tokens, x.head_dim, {x.token_stride});
    return RowMatrix<float>(rows.template cast<float>());
  }
}

/// The bound of the error of an output near `expected`: the rounding of the sums, and of the output to its type.
/// bfloat16 also rounds the weights.
template <class T>
double error_bound(double expected) {
  if constexpr (std::is_same_v<T, Eigen::bfloat16>) return 2e-3 + std::abs(expected) / 256;
  if constexpr (std::is_same_v<T, Eigen::half>) return 4e-6 + std::abs(expected) / 2048;
  return std::is_same_v<T, float> ? 4e-6 : 1e-13;
}

/// Fails unless the row at `actual` is near the row at `expected`. `what` names the row. `slack` widens the bound.
template <class T>
void check_row(const std::string& name, const std::string& what, const T* actual, const double* expected,
               Index head_dim, double slack = 1) {
  for (Index d = 0; d < head_dim; d++) {
    const double error = std::abs(double(actual[d]) - expected[d]), bound = slack * error_bound<T>(expected[d]);
    if (error <= bound) continue;  // not the negation of error > bound, which would accept NaN
    fail(name,
         what + ", dim " + std::to_string(d) + " is off by " + std::to_string(error / bound) + " times the bound");
  }
}

/// Compares the output of causal self-attention of one batch with the definition in double: the last row of a random
/// head, which sees every key, and 15 random rows of random heads. A row costs the reference tokens x head_dim.
template <class T>
void check(const std::string& name, const alibi::View<const T>& q, const alibi::View<const T>& k,
           const alibi::View<const T>& v, const alibi::View<const T>& output, const Vector<Accumulate<T>>& slopes,
           double slack = 1) {
  Random random(1);
  for (int sample = 0; sample < 16; sample++) {
    const Index head = random.below(q.heads), row = sample == 0 ? q.tokens - 1 : random.below(q.tokens);
    const auto expected =
        alibi::reference::attention(widened<T>(part(q, head, row, 1)), widened<T>(part(k, head, 0, k.tokens)),
                                    widened<T>(part(v, head, 0, v.tokens)), slopes[head], {.query_offset = row});
    check_row(name, "head " + std::to_string(head) + ", query " + std::to_string(row), part(output, head, row, 1).data,
              expected.output.data(), output.head_dim, slack);
  }
}
template <class T>
void check(const std::string& name, const Arrays<T>& x, double slack = 1) {
  check<T>(name, x.view(x.q), x.view(x.k), x.view(x.v), x.view(x.output), x.slopes, slack);
}

}  // namespace bench
