// Gradients against finite differences of the definition and against the reference gradients, over random calls of
// every kind. ALIBI_TEST_CASES in the environment sets the number of calls of each. A failure prints the seed, which
// determines the call.
#include <iostream>
#include <numeric>

#include "backward_case.hpp"

namespace {

using test::Arrays, test::Index;
using test::BackwardCall, test::BackwardErrors, test::Exact, test::Gradients;
constexpr std::size_t kArrays = BackwardErrors::kNames.size();

int cases(int usual) {
  const char* text = std::getenv("ALIBI_TEST_CASES");
  return text ? std::atoi(text) : usual;
}

/// Runs calls from seeds 1, 2, … until five have failed, and prints the worst errors.
class Runs {
 public:
  explicit Runs(double bound) : bound_(bound) {}
  ~Runs() {
    std::cout << "bound " << bound_ << '\n';
    for (std::size_t a = 0; a < kArrays; a++)
      std::cout << "  worst d" << BackwardErrors::kNames[a] << ' ' << worst_.of_magnitude[a] << " of its terms ("
                << worst_.of_gradient[a] << " of itself): " << where_[a] << '\n';
  }
  Runs(const Runs&) = delete;
  Runs& operator=(const Runs&) = delete;

  bool failing() const { return failures_ >= 5; }
  void see(const BackwardErrors& errors, const std::string& description) {
    for (std::size_t a = 0; a < kArrays; a++) {
      EXPECT_LE(errors.of_magnitude[a], bound_) << 'd' << BackwardErrors::kNames[a] << ": " << description;
      if (errors.of_magnitude[a] > worst_.of_magnitude[a]) where_[a] = description;
      worst_.of_magnitude[a] = std::max(worst_.of_magnitude[a], errors.of_magnitude[a]);
      worst_.of_gradient[a] = std::max(worst_.of_gradient[a], errors.of_gradient[a]);
    }
    failures_ += errors.worst() > bound_;
  }

 private:
  double bound_;
  int failures_ = 0;
  BackwardErrors worst_;
  std::array<std::string, kArrays> where_;
};

test::Shape small_shape(test::Random& random) {
  return {random.integer(1, 2), random.integer(1, 2), random.integer(1, 2), random.integer(0, 8),
          random.integer(0, 8), random.integer(1, 5), random.integer(1, 5)};
}

/// f = Σ dO∘o + Σ dlse lse along lines through the inputs, in double.
class Lines {
 public:
  explicit Lines(const Exact& at) : at_(at), magnitudes_(at.magnitudes()) {}

  /// The largest error of gradients `is` along one random direction and three coordinates of every array.
  BackwardErrors errors(test::Random& random, const Arrays& is) {
    BackwardErrors errors;
    for (std::size_t a = 0; a < kArrays; a++) {
      const std::vector<double>& gradient = is[a];
      EXPECT_EQ(Index(gradient.size()), size(a));
      for (int line = 0; line < 4 && !gradient.empty(); line++) {
        std::vector<double> u(gradient.size());
        if (line == 0)
          random.fill(u);
        else
          u[std::size_t(random.integer(0, Index(u.size()) - 1))] = 1;
        double along = 0, length = 0;
        for (std::size_t n = 0; n < u.size(); n++) along += gradient[n] * u[n], length += std::abs(u[n]);
        const double rounding = 0x1p-47 * (1 + std::abs(f())) / step(a, u);  // of the difference of two f
        const double difference = std::abs(derivative(a, u) - along);
        if (difference <= rounding) continue;
        const double share = difference / (length * test::largest(*test::arrays(magnitudes_)[a]));
        errors.of_magnitude[a] = std::max(errors.of_magnitude[a], std::isnan(share) ? test::kInfinity : share);
      }
    }
    return errors;
  }

 private:
  double* data(std::size_t a) {
    test::Bias<double>& bias = at_.bias;
    return std::array{at_.q.data(),      at_.k.data(),     at_.v.data(),       bias.numbers.data(),
                      bias.after.data(), bias.keys.data(), bias.queries.data()}[a];
  }
  Index size(std::size_t a) const {
    const test::Bias<double>& bias = at_.bias;
    const bool shared = bias.kind == test::Bias<double>::Kind::kSharedPositions;
    return std::array<Index, kArrays>{at_.q.size(),
                                      at_.k.size(),
                                      at_.v.size(),
                                      bias.numbers.size(),
                                      shared ? 0 : bias.after.size(),
                                      bias.keys.size(),
                                      shared ? 0 : bias.queries.size()}[a];
  }
  double f() const {
    const auto [output, lse] = at_.forward();
    double value = std::inner_product(output.data(), output.data() + output.size(), at_.grad_output.data(), 0.);
    for (std::size_t row = 0; row < at_.grad_lse.size(); row++)
      if (std::isfinite(lse[Index(row)])) value += at_.grad_lse[row] * lse[Index(row)];
    return value;
  }
  double f(std::size_t a, const std::vector<double>& u, double t) {
    const std::vector<double> before(data(a), data(a) + u.size());
    for (std::size_t n = 0; n < u.size(); n++) data(a)[n] += t * u[n];
    const double value = f();
    std::copy(before.begin(), before.end(), data(a));
    return value;
  }

  /// The largest change of a logit along u. f is linear in v.
  double move(std::size_t a, const std::vector<double>& u) const {
    using test::largest;
    const double product = std::abs(at_.scale) * double(at_.q.dimension(3)) * largest(u);
    const bool table = at_.bias.kind == test::Bias<double>::Kind::kTable;
    if (a >= 3 && at_.bias.keys.size() > 0) {
      const auto [nearest, farthest] = distances();
      if (a <= 4) return largest(u) * farthest;
      const double slope = std::max(largest(at_.bias.numbers), largest(at_.bias.after));
      return largest(u) * std::max(2 * slope, 0x1p-5 / nearest);  // no key moves past a query
    }
    return std::array{product * largest(at_.k), product * largest(at_.q), 1.,
                      largest(u) * (table ? 1 : double(at_.k.dimension(2)))}[std::min<std::size_t>(a, 3)];
  }
  /// The least and the largest |c_i - c_j|. A token does not move past itself.
  std::pair<double, double> distances() const {
    const test::Bias<double>& bias = at_.bias;
    const Index queries = at_.q.dimension(2), keys = at_.k.dimension(2);
    const bool shared = bias.kind == test::Bias<double>::Kind::kSharedPositions;
    double nearest = 1, farthest = 1;
    const auto at = [](const test::Tensor3<double>& x, Index b, Index h, Index i) {
      return x(x.dimension(0) > 1 ? b : 0, x.dimension(1) > 1 ? h : 0, i);
    };
    for (Index b = 0; b < at_.q.dimension(0); b++)
      for (Index h = 0; h < at_.q.dimension(1); h++)
        for (Index i = 0; i < queries; i++)
          for (Index j = 0; j < keys; j++) {
            if (shared && i == j) continue;
            const double d = std::abs(at(shared ? bias.keys : bias.queries, b, h, i) - at(bias.keys, b, h, j));
            nearest = std::min(nearest, d), farthest = std::max(farthest, d);
          }
    return {nearest, farthest};
  }

  /// Central differences of fourth order, f' + O(t^4 f'''''). The logits change by 2^-9, so the remainder is about
  /// 1e-11 of f, and the rounding error of the difference about 1e-13.
  double step(std::size_t a, const std::vector<double>& u) const { return 0x1p-9 / std::max(move(a, u), 1e-3); }
  double derivative(std::size_t a, const std::vector<double>& u) {
    const double t = step(a, u);
    return (8 * (f(a, u, t) - f(a, u, -t)) - (f(a, u, 2 * t) - f(a, u, -2 * t))) / (12 * t);
  }

  Exact at_;
  Gradients magnitudes_;
};

Arrays flat(const Gradients& grad) {
  Arrays all;
  for (std::size_t a = 0; a < kArrays; a++) {
    const auto& x = *test::arrays(grad)[a];
    all[a].assign(x.data(), x.data() + x.size());
  }
  return all;
}

constexpr double kDifferences = 1e-6;

/// Moves the positions apart: the gradient has a jump where a key passes a query.
template <class T>
void separate(test::Random& random, test::Bias<T>& bias) {
  for (auto* x : {&bias.keys, &bias.queries}) {
    const double start = random.uniform(0, 1);
    const Index tokens = x->dimension(2);
    for (Index i = 0; i < x->size(); i++) {
      double& c = x->data()[i];
      c = (std::abs(c) < 1e3 ? c : 0) + start + double(i % std::max<Index>(tokens, 1)) * 1.0625 +
          0.01 * double(i / std::max<Index>(tokens, 1));
    }
    if (!bias.any_order)
      for (Index row = 0; row < x->dimension(0) * x->dimension(1); row++)
        std::sort(x->data() + row * tokens, x->data() + (row + 1) * tokens);
  }
  if (bias.kind == test::Bias<T>::Kind::kSharedPositions) bias.queries = bias.keys;
}

/// A random call. If its positions are so large that the lse loses its digits to them, the loss does not depend on it.
BackwardCall<double> small_call(test::Random& random) {
  BackwardCall<double> call(random, small_shape(random));
  separate(random, call.bias);
  // Where one side has no weight at all, its gradient would be compared with the rounding of the differences.
  if (call.bias.after.size() > 0 || call.bias.keys.size() > 0)
    for (auto* x : {&call.bias.numbers, &call.bias.after})
      for (Index i = 0; i < x->size(); i++)
        if (std::isfinite(x->data()[i])) x->data()[i] = std::fmod(x->data()[i], 2.0);
  const bool steep = call.bias.keys.size() > 0 && test::largest(call.bias.numbers) > 1;
  if (steep || std::abs(call.options.mask.query_offset.value_or(0)) > 1000) call.grad_lse.clear();
  return call;
}

TEST(BackwardDifferences, OfTheDefinition) {
  Runs runs(kDifferences);
  for (int seed = 1; seed <= cases(250) && !runs.failing(); seed++) {
    test::Random random{std::uint64_t(seed)};
    const BackwardCall<double> call = small_call(random);
    const Exact exact = call.exact();
    runs.see(Lines(exact).errors(random, flat(exact.backward())),
             "seed " + std::to_string(seed) + ": " + call.description());
  }
}

TEST(BackwardDifferences, OfTheKernels) {
  Runs runs(kDifferences);
  for (int seed = 1; seed <= cases(250) && !runs.failing(); seed++) {
    test::Random random{std::uint64_t(seed)};
    BackwardCall<double> call = small_call(random);
    runs.see(Lines(call.exact()).errors(random, call.run()),
             "seed " + std::to_string(seed) + ": " + call.description());
  }
}

template <class T>
class BackwardReference : public testing::Test {
 protected:
  static void run(std::optional<double> tolerance) {
    Runs runs(test::kBound<T>);
    for (int seed = 1; seed <= cases(250) && !runs.failing(); seed++) {
      test::Random random{std::uint64_t(seed)};
      BackwardCall<T> call(random, test::random_shape(random));
      call.options.tolerance = tolerance;
      const Exact exact = call.exact();
      runs.see(test::errors(call.run(), exact.backward(), exact.magnitudes()),
               "seed " + std::to_string(seed) + ": " + call.description());
    }
  }
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(BackwardReference, Scalars);

TYPED_TEST(BackwardReference, RandomCalls) { this->run(0); }
TYPED_TEST(BackwardReference, RandomCallsWithTheDefaultTolerance) { this->run(std::nullopt); }

// Several chunks of queries and keys, dims with fewer tiles in a chunk, and keys so distant that the lse is recomputed.
TYPED_TEST(BackwardReference, Chunks) {
  struct Large {
    test::Shape shape;
    alibi::Mask mask;
  };
  const Large calls[] = {{{1, 1, 1, 700, 700, 256, 256}, {.query_offset = 5000}},
                         {{1, 1, 1, 600, 600, 64, 512}, {}},
                         {{1, 2, 2, 1400, 1400, 8, 8}, {}},
                         {{1, 1, 2, 1300, 1100, 12, 5}, {.causal = false}},
                         {{1, 1, 1, 1300, 1300, 12, 5}, {.causal = false, .window = 200}},
                         {{1, 1, 1, 200, 1500, 16, 16}, {.query_offset = 700}},
                         {{1, 1, 2, 1100, 1100, 12, 5}, {.window = 200, .prefix = 500, .sinks = 300}},
                         {{1, 1, 1, 900, 700, 12, 5}, {.window = 50, .query_offset = 0, .sinks = 100}}};
  Runs runs(test::kBound<TypeParam>);
  for (int seed = 1; const Large& large : calls)
    for (const std::optional<double>& tolerance : {std::optional<double>(0), std::optional<double>()}) {
      test::Random random{std::uint64_t(seed++)};
      BackwardCall<TypeParam> call(random, large.shape);
      call.options.mask = large.mask;
      call.options.query_offsets = call.options.prefixes = {};
      call.options.tolerance = tolerance;
      const Exact exact = call.exact();
      runs.see(test::errors(call.run(), exact.backward(), exact.magnitudes()), call.description());
    }
}

// Checks that the comparison detects an error: the largest entry of one gradient is wrong by 1e-4 of itself.
TEST(BackwardComparison, DetectsASmallError) {
  int seen = 0;
  for (int seed = 1; seed <= 100; seed++) {
    test::Random random{std::uint64_t(seed)};
    const BackwardCall<double> call(random, test::random_shape(random));
    const Exact exact = call.exact();
    const Gradients should = exact.backward(), magnitudes = exact.magnitudes();
    for (std::size_t a = 0; a < kArrays; a++) {
      Arrays is = flat(should);
      EXPECT_EQ(test::errors(is, should, magnitudes).worst(), 0);
      const auto largest =
          std::max_element(is[a].begin(), is[a].end(), [](double x, double y) { return std::abs(x) < std::abs(y); });
      if (largest == is[a].end() || std::abs(*largest) <= 0.1 * test::largest(*test::arrays(magnitudes)[a])) continue;
      *largest *= 1 + 1e-4;
      EXPECT_GE(test::errors(is, should, magnitudes).of_magnitude[a], test::kBound<float>)
          << "d" << BackwardErrors::kNames[a];
      seen++;
    }
  }
  EXPECT_GE(seen, 50);
}

}  // namespace
