// Gradients over parts of the keys, as in ring attention, with split keys and on several machines. Given the output and
// the lse of all keys, dq and the gradient of the bias are sums over the parts, and dk and dv are concatenated. The
// loss may depend on the lse too. ALIBI_TEST_CASES in the environment sets the number of random calls. A failure prints
// the seed.
#include <cstdlib>

#include "common.hpp"

namespace {

using alibi::KeyRange, alibi::Options;
using test::Index, test::Random, test::RowMatrix, test::Tensor4, test::Vector;

template <class T>
using Sum = alibi::detail::Sum<T>;

int cases() {
  const char* text = std::getenv("ALIBI_TEST_CASES");
  return text ? std::atoi(text) : 150;
}

/// The ends of 2 to 16 parts of `keys` keys. Some parts are empty.
std::vector<Index> cuts_of(Random& random, Index keys) {
  std::vector<Index> cuts = {0, keys};
  for (Index part = random.integer(1, 15); part > 0; part--) cuts.push_back(random.integer(0, keys));
  std::sort(cuts.begin(), cuts.end());
  return cuts;
}

template <class T>
Tensor4<T> part_of(const Tensor4<T>& x, Index begin, Index end) {
  return x.slice(Eigen::array<Index, 4>{0, 0, begin, 0},
                 Eigen::array<Index, 4>{x.dimension(0), x.dimension(1), end - begin, x.dimension(3)});
}

/// The largest difference, relative to the largest entry or to `terms`.
template <class A, class B>
double relative_difference(const A& is, const B& should, double terms = 1e-3) {
  double largest = terms;
  for (Index i = 0; i < Index(should.size()); i++) largest = std::max(largest, std::abs(double(should.data()[i])));
  const double difference = test::distance(is, should);
  return difference == 0 ? 0 : difference / largest;
}

template <class T>
struct Call {
  Tensor4<T> q, k, v;
  alibi::ForwardResult<Tensor4<T>, std::vector<Sum<T>>> gradient;  // of the output, and of the lse: 0 in some calls
  RowMatrix<Sum<T>> bias;                                          // slopes [batch, heads], or a table [heads, entries]
  Index first_distance = 0;
  Options options;

  explicit Call(Random& random) {
    const Index batch = random.integer(1, 2), kv_heads = random.integer(1, 2), heads = kv_heads * random.integer(1, 3);
    const Index queries = random.integer(1, 150), keys = random.integer(1, 400), dim = random.integer(1, 40);
    q = random.tensor<T>(batch, heads, queries, dim), k = random.tensor<T>(batch, kv_heads, keys, dim);
    v = random.tensor<T>(batch, kv_heads, keys, 24), gradient.output = random.tensor<T>(batch, heads, queries, 24);
    gradient.lse.resize(std::size_t(batch * heads * queries));
    random.fill(gradient.lse, random.chance(0.5) ? 1 : 0);
    options.mask.causal = random.chance(0.5);
    if (random.chance(0.3)) options.mask.window = random.integer(1, keys + 10);
    if (random.chance(0.3)) options.mask.query_offset = random.integer(-20, keys + 400);
    if (options.mask.causal && random.chance(0.3)) options.mask.prefix = random.integer(0, keys);
    if (options.mask.window && random.chance(0.5)) options.mask.sinks = random.integer(1, keys);
    if (random.chance(0.5)) options.tolerance = 0;
    bias.resize(batch, heads);
    const double steepest = random.chance(0.3) ? 20 : 1;  // one steep head must not increase the errors of the others
    for (Index i = 0; i < bias.size(); i++)
      bias.data()[i] = Sum<T>(steepest * std::exp2(-random.uniform(0, 8)) * (random.chance(0.1) ? -0.1 : 1));
  }
  void use_table(Random& random) {
    first_distance = random.integer(-50, 10);
    bias = random.matrix<Sum<T>>(q.dimension(1), random.integer(1, 300));
  }
  Index offset() const { return options.mask.query_offset.value_or(k.dimension(2) - q.dimension(2)); }

  /// Gradients of q, k, v and the bias, summed over the parts.
  struct Gradients {
    Tensor4<Sum<T>> q, k, v;
    RowMatrix<double> bias, bias_terms;  // bias_terms: by absolute value, the scale of the rounding

    template <class Part>
    void add_bias(const Part& part) {
      bias += part.template cast<double>();
      bias_terms += part.template cast<double>().cwiseAbs();
    }
  };
  Gradients zeros() const {
    Gradients sums{Tensor4<Sum<T>>(q.dimensions()), Tensor4<Sum<T>>(k.dimensions()), Tensor4<Sum<T>>(v.dimensions()),
                   RowMatrix<double>::Zero(bias.rows(), bias.cols()),
                   RowMatrix<double>::Ones(bias.rows(), bias.cols())};
    sums.q.setZero(), sums.k.setZero(), sums.v.setZero();
    return sums;
  }
};

template <class T>
class BackwardParts : public testing::Test {
 protected:
  static constexpr double kBound = std::is_same_v<T, double> ? 1e-11 : 5e-5;

  /// A part uses the given lse, which is rounded. The probabilities of distant keys have this relative error.
  template <class Lse>
  static double lse_rounding(const Lse& lse) {
    double largest = 0;
    for (Index i = 0; i < lse.size(); i++)
      if (std::isfinite(lse.data()[i])) largest = std::max(largest, std::abs(double(lse.data()[i])));
    return largest * double(std::numeric_limits<Sum<T>>::epsilon());
  }

  static double farthest(const Call<T>& call) {
    return double(std::abs(call.offset()) + call.q.dimension(2) + call.k.dimension(2));
  }

  /// If a part lacks keys of a row, the sum of the row's dS has the rounding error of the row's output. It counts times
  /// the distance of the keys. So does the mass of the keys that it lacks, if that is less than the rounding of the
  /// lse.
  template <class Forward>
  static double output_rounding(const Call<T>& call, const Forward& forward) {
    double sum = 0;
    for (Index i = 0; i < forward.output.size(); i++)
      sum += std::abs(double(forward.output.data()[i]) * double(call.gradient.output.data()[i]));
    return sum * farthest(call) * (4 * double(std::numeric_limits<T>::epsilon()) + lse_rounding(forward.lse));
  }

  /// The terms of the gradient of a slope by the gradient of the lse; the rows of dS sum to it.
  static double terms_of_lse(const Call<T>& call) {
    double sum = 0;
    for (const Sum<T> x : call.gradient.lse) sum += std::abs(double(x));
    return sum * farthest(call);
  }

  template <class Forward, class Sums, class Whole, class Bias>
  static void expect_same(const Call<T>& call, const Forward& forward, const Sums& sums, const Whole& whole,
                          const Bias& of_bias) {
    const double rounding = 4 * lse_rounding(forward.lse), bound = kBound + rounding;
    EXPECT_LE(relative_difference(sums.q, whole.q), bound) << "dq";
    EXPECT_LE(relative_difference(sums.k, whole.k), bound) << "dk";
    EXPECT_LE(relative_difference(sums.v, whole.v), bound) << "dv";
    EXPECT_LE(test::distance(sums.bias, of_bias),
              bound * (sums.bias_terms.maxCoeff() + terms_of_lse(call)) + output_rounding(call, forward))
        << "the gradient of the bias";
  }

  template <class Bias, class GradientOfBias>
  static void run(const Call<T>& call, const std::vector<Index>& cuts, const Bias& bias,
                  const GradientOfBias& gradient_of_bias) {
    const auto forward = alibi::attention_with_lse(call.q, call.k, call.v, bias, call.options);
    const auto whole = alibi::attention_backward(call.gradient, call.q, call.k, call.v, bias, forward, call.options);
    auto sums = call.zeros();
    for (std::size_t p = 0; p + 1 < cuts.size(); p++) {
      Options options = call.options;
      options.mask.query_offset = call.offset() - cuts[p];
      options.mask.prefix = std::max<Index>(options.mask.prefix - cuts[p], 0);
      options.mask.sinks = std::max<Index>(options.mask.sinks.value_or(0) - cuts[p], 0);
      const auto grad = alibi::attention_backward(call.gradient, call.q, part_of(call.k, cuts[p], cuts[p + 1]),
                                                  part_of(call.v, cuts[p], cuts[p + 1]), bias, forward, options);
      sums.q += grad.q;
      sums.add_bias(gradient_of_bias(grad));
      for (auto [to, from] : {std::pair(&sums.k, &grad.k), std::pair(&sums.v, &grad.v)})
        if (from->size() > 0)  // Eigen hands the null pointer of an empty tensor to memcpy
          to->slice(Eigen::array<Index, 4>{0, 0, cuts[p], 0}, from->dimensions()) = *from;
    }
    expect_same(call, forward, sums, whole, gradient_of_bias(whole));
  }
};
using Scalars = testing::Types<float, double, Eigen::bfloat16, Eigen::half>;
TYPED_TEST_SUITE(BackwardParts, Scalars);

TYPED_TEST(BackwardParts, Slopes) {
  for (int seed = 1; seed <= cases() && !this->HasFailure(); seed++) {
    Random random{std::uint64_t(seed)};
    const Call<TypeParam> call(random);
    this->run(call, cuts_of(random, call.k.dimension(2)), call.bias, [](const auto& grad) { return grad.slopes; });
  }
}

TYPED_TEST(BackwardParts, Tables) {
  for (int seed = 1; seed <= cases() / 2 && !this->HasFailure(); seed++) {
    Random random{std::uint64_t(seed)};
    Call<TypeParam> call(random);
    call.use_table(random);
    this->run(call, cuts_of(random, call.k.dimension(2)), alibi::relative_bias(call.bias, call.first_distance),
              [](const auto& grad) { return grad.table; });
  }
}

// The parts are ranges of keys of a padded batch. The queries keep their positions.
TYPED_TEST(BackwardParts, Padded) {
  for (int seed = 1; seed <= cases() / 2 && !this->HasFailure(); seed++) {
    Random random{std::uint64_t(seed)};
    const Call<TypeParam> call(random);
    const auto forward = alibi::attention_with_lse(call.q, call.k, call.v, call.bias, call.options);
    const auto whole =
        alibi::attention_backward(call.gradient.output, call.q, call.k, call.v, call.bias, forward, call.options);
    const std::vector<Index> cuts = cuts_of(random, call.k.dimension(2));
    auto sums = call.zeros();
    for (std::size_t p = 0; p + 1 < cuts.size(); p++) {
      const std::vector<KeyRange> ranges(std::size_t(call.q.dimension(0)), {cuts[p], cuts[p + 1]});
      alibi::Options options = call.options;
      options.keys = ranges;
      const auto grad =
          alibi::attention_backward(call.gradient.output, call.q, call.k, call.v, call.bias, forward, options);
      sums.q += grad.q, sums.k += grad.k, sums.v += grad.v;
      sums.add_bias(grad.slopes);
    }
    this->expect_same(call, forward, sums, whole, whole.slopes);
  }
}

// Sequences of a varlen call, each in four calls over a quarter of its keys.
TYPED_TEST(BackwardParts, Varlen) {
  using T = TypeParam;
  using Tensor3 = test::Tensor3<T>;
  Random random(7);
  const std::vector<Index> cu_seqlens = {0, 70, 70, 200, 420};
  Tensor3 q(420, 2, 16), k(420, 2, 16), v(420, 2, 16), grad_output(420, 2, 16);
  for (Tensor3* x : {&q, &k, &v, &grad_output}) random.fill(*x);
  const auto m = alibi::slopes<Sum<T>>(2);
  const auto forward = alibi::attention_varlen_with_lse(q, k, v, m, {cu_seqlens});
  const auto whole = alibi::attention_varlen_backward(grad_output, q, k, v, m, {cu_seqlens}, forward);
  test::Tensor3<Sum<T>> sum_q(420, 2, 16), all_k(420, 2, 16), all_v(420, 2, 16);
  sum_q.setZero();
  Vector<double> sum_m = Vector<double>::Zero(2);
  // A varlen call has one offset for all sequences, so each sequence has its own calls.
  for (std::size_t s = 0; s + 1 < cu_seqlens.size(); s++) {
    const Index first = cu_seqlens[s], length = cu_seqlens[s + 1] - first;
    const auto rows = [&](const auto& x, Index begin, Index end) {
      return alibi::view(x.data() + begin * 32, {1, 2, end - begin, 16}, {0, 16, 32, 1});
    };
    std::vector<Sum<T>> lse(std::size_t(2 * length));
    for (Index h = 0; h < 2; h++)
      for (Index i = 0; i < length; i++) lse[std::size_t(h * length + i)] = forward.lse(h, first + i);
    for (Index part = 0; part < 4; part++) {
      const Index begin = first + part * length / 4, end = first + (part + 1) * length / 4;
      Tensor4<Sum<T>> grad_q(1, 2, length, 16), grad_k(1, 2, end - begin, 16), grad_v(1, 2, end - begin, 16);
      Vector<Sum<T>> grad_m(2);
      alibi::attention_backward_into({grad_q, grad_k, grad_v, grad_m}, rows(grad_output, first, first + length),
                                     rows(q, first, first + length), rows(k, begin, end), rows(v, begin, end), m,
                                     {rows(forward.output, first, first + length), lse},
                                     {.mask = {.query_offset = first - begin}});
      for (Index h = 0; h < 2; h++)
        for (Index i = 0; i < length; i++)
          for (Index d = 0; d < 16; d++) sum_q(first + i, h, d) += grad_q(0, h, i, d);
      for (Index h = 0; h < 2; h++)
        for (Index j = begin; j < end; j++)
          for (Index d = 0; d < 16; d++) {
            all_k(j, h, d) = grad_k(0, h, j - begin, d);
            all_v(j, h, d) = grad_v(0, h, j - begin, d);
          }
      sum_m += grad_m.template cast<double>();
    }
  }
  EXPECT_LE(relative_difference(sum_q, whole.q), this->kBound);
  EXPECT_LE(relative_difference(all_k, whole.k), this->kBound);
  EXPECT_LE(relative_difference(all_v, whole.v), this->kBound);
  EXPECT_LE(relative_difference(sum_m, whole.slopes), this->kBound);
}

// Rows for which a part has no visible key, and rows whose visible keys are all distant.
TYPED_TEST(BackwardParts, RowsWithoutKeys) {
  using T = TypeParam;
  Random random(8);
  const auto q = random.tensor<T>(1, 1, 100, 8), k = random.tensor<T>(1, 1, 100, 8), v = random.tensor<T>(1, 1, 100, 8),
             grad_output = random.tensor<T>(1, 1, 100, 8);
  const Vector<Sum<T>> m = Vector<Sum<T>>::Constant(1, Sum<T>(5));
  const auto forward = alibi::attention_with_lse(q, k, v, m);
  const auto grad = alibi::attention_backward(grad_output, q, part_of(k, 50, 100), part_of(v, 50, 100), m, forward,
                                              {.mask = {.query_offset = -50}});
  for (Index i = 0; i < 50; i++)
    for (Index d = 0; d < 8; d++) EXPECT_EQ(grad.q(0, 0, i, d), 0) << "row " << i;
  const auto far = alibi::attention_backward(grad_output, q, part_of(k, 0, 10), part_of(v, 0, 10), m, forward,
                                             {.mask = {.query_offset = 0}});
  for (Index i = 60; i < 100; i++)
    for (Index d = 0; d < 8; d++) EXPECT_LE(std::abs(far.q(0, 0, i, d)), 1e-25) << "row " << i;
}

}  // namespace
