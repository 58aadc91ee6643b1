// The position methods against closed forms, implemented here independently and in long double, and against the
// properties that their papers state.
#include <alibi/position/rotary.hpp>
#include <alibi/position/sinusoidal.hpp>
#include <alibi/position/t5_bias.hpp>
#include <alibi/position/xpos.hpp>
#include <alibi/reference.hpp>
#include <complex>
#include <numeric>
#include <stdexcept>

#include "common.hpp"

namespace {

using alibi::Rotary;
using alibi::RotaryPairs;
using alibi::RotaryScaling;
using test::Index;
using Real = long double;
using Matrix = test::RowMatrix<double>;

double dot(const Matrix& a, const Matrix& b) { return std::inner_product(a.data(), a.data() + a.size(), b.data(), 0.); }

TEST(Sinusoidal, IsSineAndCosine) {
  for (const Index dim : {1, 2, 7, 64})
    for (const Index first : {0, 1000}) {
      const auto x = alibi::sinusoidal<double>(50, dim, first);
      const auto single = alibi::sinusoidal(50, dim, first);
      for (Index t = 0; t < 50; t++)
        for (Index d = 0; d < dim; d++) {
          // The cosine is the sine a quarter turn later, and 10000^-y is 10^-4y.
          const Real rate = std::pow(10.L, -4 * Real(d - d % 2) / Real(dim));
          const Real expected = std::sin(Real(first + t) * rate + (d % 2 ? std::numbers::pi_v<Real> / 2 : 0));
          ASSERT_NEAR(x(t, d), double(expected), 1e-12);
          ASSERT_EQ(single(t, d), float(x(t, d)));
        }
    }
}

TEST(Sinusoidal, BadInput) {
  EXPECT_EQ(test::error_of([] { alibi::sinusoidal(-1, 4); }), "alibi: tokens is -1; expected 0 or more");
  EXPECT_EQ(test::error_of([] { alibi::sinusoidal(1, -4); }), "alibi: dim is -4; expected 0 or more");
  EXPECT_EQ(test::error_of([] { alibi::sinusoidal(1, 4, 0, 0); }),
            "alibi: base is 0; expected a finite number above 0");
}

// x rotated by multiplication with e^{i p θ}. Dims from 2 |theta| on are unchanged.
Matrix rotated(const Matrix& x, const std::vector<Real>& theta, Index first, RotaryPairs pairs, Real magnitude = 1) {
  Matrix y = x;
  const auto half = Index(theta.size());
  for (Index t = 0; t < x.rows(); t++)
    for (Index i = 0; i < half; i++) {
      const bool adjacent = pairs == RotaryPairs::adjacent;
      const Index u = adjacent ? 2 * i : i, v = adjacent ? 2 * i + 1 : i + half;
      const auto z =
          std::complex<Real>(x(t, u), x(t, v)) * std::polar(magnitude, Real(first + t) * theta[std::size_t(i)]);
      y(t, u) = double(z.real());
      y(t, v) = double(z.imag());
    }
  return y;
}

std::vector<Real> thetas(Index dims, Real base) {
  std::vector<Real> theta;
  for (Index i = 0; i < dims / 2; i++) theta.push_back(std::exp(-std::log(base) * Real(2 * i) / Real(dims)));
  return theta;
}

TEST(Rotary, IsMultiplicationOfComplexNumbers) {
  test::Random random(1);
  for (const RotaryPairs pairs : {RotaryPairs::adjacent, RotaryPairs::halves})
    for (const Index dims : {0, 2, 10}) {
      const Matrix x = random.matrix<double>(40, 16);
      Matrix y = x;
      Rotary(16, {.dims = dims, .base = 500, .pairs = pairs}).rotate(y, 1000);
      const Matrix expected = rotated(x, thetas(dims == 0 ? 16 : dims, 500), 1000, pairs);
      EXPECT_LE(test::distance(y, expected), 1e-12) << "dims " << dims;
    }
}

TEST(Rotary, OfEveryScalarAndLayout) {
  test::Random random(2);
  auto q = random.tensor<float>(2, 3, 5, 8);
  const auto before = q;
  const Rotary rotary(8);
  rotary.rotate(q, 7);
  test::Tensor4<Eigen::half> halves = before.cast<Eigen::half>();
  rotary.rotate(halves, 7);
  for (Index b = 0; b < 2; b++)
    for (Index h = 0; h < 3; h++) {
      Matrix one(5, 8);
      for (Index t = 0; t < 5; t++)
        for (Index d = 0; d < 8; d++) one(t, d) = double(before(b, h, t, d));
      rotary.rotate(one, 7);
      for (Index t = 0; t < 5; t++)
        for (Index d = 0; d < 8; d++) {
          EXPECT_NEAR(double(q(b, h, t, d)), one(t, d), 1e-6);
          EXPECT_NEAR(double(halves(b, h, t, d)), one(t, d), 5e-3);
        }
    }
}

// "incorporates explicit relative position dependency": q·k depends only on p - j, at any positions.
TEST(Rotary, ProductsSeeTheDifferenceOfPositions) {
  test::Random random(3);
  for (const RotaryScaling scaling :
       {RotaryScaling::none, RotaryScaling::interpolation, RotaryScaling::ntk, RotaryScaling::yarn}) {
    const Rotary rotary(32, {.scaling = scaling, .factor = 4});
    const Matrix q = random.matrix<double>(1, 32), k = random.matrix<double>(1, 32);
    const auto product = [&](Index p, Index j) {
      Matrix x = q, y = k;
      rotary.rotate(x, p);
      rotary.rotate(y, j);
      return dot(x, y);
    };
    for (const Index apart : {0, 1, 100}) EXPECT_NEAR(product(apart, 0), product(5000 + apart, 5000), 1e-10);
    EXPECT_NEAR(product(9, 9), rotary.magnitude() * rotary.magnitude() * dot(q, k), 1e-12);
  }
}

// The rotation and its gradient are adjoint maps: <R x, g> = <x, R' g>.
TEST(Rotary, GradientsRotateBack) {
  test::Random random(4);
  const Rotary rotary(12, {.dims = 8, .scaling = RotaryScaling::yarn, .factor = 8, .trained_length = 64});
  const Matrix x = random.matrix<double>(30, 12), g = random.matrix<double>(30, 12);
  Matrix forward = x, backward = g;
  rotary.rotate(forward, 3);
  rotary.rotate_gradient(backward, 3);
  EXPECT_NEAR(dot(forward, g), dot(x, backward), 1e-11);
  EXPECT_GT(test::distance(forward, x), 0.1);
}

// With interpolation, position s p has the angles that position p has without it.
TEST(RotaryScaling, InterpolationShortensPositions) {
  const auto plain = Rotary(64).frequencies();
  const auto scaled = Rotary(64, {.scaling = RotaryScaling::interpolation, .factor = 4}).frequencies();
  ASSERT_EQ(scaled.size(), 32u);
  for (std::size_t i = 0; i < 32; i++) EXPECT_NEAR(scaled[i] * 4 / plain[i], 1, 1e-14);
}

// NTK scaling keeps the fastest pair and interpolates the slowest pair.
TEST(RotaryScaling, NtkSpreadsTheScalingOverThePairs) {
  const auto plain = Rotary(128).frequencies();
  const auto scaled = Rotary(128, {.scaling = RotaryScaling::ntk, .factor = 8}).frequencies();
  EXPECT_EQ(scaled.front(), plain.front());
  EXPECT_NEAR(scaled.back() * 8 / plain.back(), 1, 1e-12);
  for (std::size_t i = 0; i < 64; i++)  // base' = base s^(128/126), written out
    EXPECT_NEAR(scaled[i], std::exp(-(std::log(10000.) + std::log(8.) * 128 / 126) * double(i) / 64), 1e-14);
}

// Wavelengths below L / beta stay, and those above L / alpha are interpolated.
TEST(RotaryScaling, YarnByParts) {
  constexpr double kFactor = 16, kLength = 4096;
  const Rotary rotary(128, {.scaling = RotaryScaling::yarn, .factor = kFactor, .trained_length = 4096});
  int kept = 0, interpolated = 0, between = 0;
  for (std::size_t i = 0; i < 64; i++) {
    const double theta = std::pow(10000., -double(i) / 64), wavelength = 2 * std::numbers::pi / theta;
    const double ratio = rotary.frequencies()[i] / theta;
    if (wavelength < kLength / 32) {
      EXPECT_NEAR(ratio, 1, 1e-14) << i;
      kept++;
    } else if (wavelength > kLength) {
      EXPECT_NEAR(ratio, 1 / kFactor, 1e-14) << i;
      interpolated++;
    } else {
      const double gamma = (kLength / wavelength - 1) / 31;
      EXPECT_NEAR(ratio, 1 / kFactor + gamma * (1 - 1 / kFactor), 1e-14) << i;
      between++;
    }
  }
  EXPECT_EQ(kept, 21);          // 64 log(4096 / (32 2π)) / log 10000 = 20.9
  EXPECT_EQ(interpolated, 18);  // 64 log(4096 / 2π) / log 10000 = 45.03
  EXPECT_EQ(between, 25);
  EXPECT_NEAR(rotary.magnitude(), 1.2772588722239781, 1e-15);  // 1 + 0.1 ln 16
}

TEST(Rotary, BadInput) {
  EXPECT_EQ(test::error_of([] { Rotary(0); }), "alibi: head_dim is 0; expected at least 1");
  EXPECT_EQ(test::error_of([] { Rotary(7); }), "alibi: dims is 7; expected an even number up to 7, the head_dim");
  EXPECT_EQ(test::error_of([] { Rotary(8, {.dims = 10}); }),
            "alibi: dims is 10; expected an even number up to 8, the head_dim");
  EXPECT_EQ(test::error_of([] { Rotary(8, {.base = -1}); }), "alibi: base is -1; expected a finite number above 0");
  EXPECT_EQ(test::error_of([] { Rotary(8, {.scaling = RotaryScaling::ntk, .factor = 0.5}); }),
            "alibi: factor is 0.5; expected a finite number of at least 1");
  EXPECT_EQ(test::error_of([] { Rotary(2, {.scaling = RotaryScaling::ntk, .factor = 2}); }),
            "alibi: dims is 2; expected at least 4 for the ntk scaling");
  EXPECT_EQ(test::error_of([] { Rotary(8, {.scaling = RotaryScaling::yarn, .trained_length = 0}); }),
            "alibi: trained_length is 0; expected at least 1 for the yarn scaling");
  EXPECT_EQ(test::error_of([] { Rotary(8, {.scaling = RotaryScaling::yarn, .alpha = 3, .beta = 3}); }),
            "alibi: alpha is 3; expected less than 3, beta");
  Matrix x = Matrix::Zero(2, 6);
  EXPECT_EQ(test::error_of([&] { Rotary(8).rotate(x); }), "alibi: x has head_dim 6; expected 8, that of the rotation");
}

// ALiBi with rotary: rotate first, then attend with slopes.
TEST(Rotary, CombinesWithAlibi) {
  test::Random random(5);
  const Matrix q = random.matrix<double>(70, 16), k = random.matrix<double>(70, 16), v = random.matrix<double>(70, 8);
  const auto theta = thetas(16, 10000);
  const auto expected = alibi::reference::attention(rotated(q, theta, 0, RotaryPairs::adjacent),
                                                    rotated(k, theta, 0, RotaryPairs::adjacent), v, 0.25);
  for (const Index first : {0, 4096}) {  // positions may count from any number
    Matrix x = q, y = k;
    const Rotary rotary(16);
    rotary.rotate(x, first);
    rotary.rotate(y, first);
    const Matrix output = alibi::attention(x, y, v, 0.25);
    for (Index i = 0; i < 70; i++)
      for (Index d = 0; d < 8; d++) ASSERT_NEAR(output(i, d), expected.output(i, d), 1e-11);
  }
}

// The distances at which a bucket begins, for integers: the smallest x with (x / exact)^(n - exact) >= (max / exact)^b.
std::vector<Index> t5_starts(Index n, Index max_distance) {
  const Index exact = n / 2;
  std::vector<Index> bucket_starts;
  for (Index x = 0; x < exact; x++) bucket_starts.push_back(x);
  for (Index b = 0; b < n - exact; b++) {
    const Real power = Real(b) / Real(n - exact);
    Index x = exact;
    while (std::log2(Real(x) / Real(exact)) < power * std::log2(Real(max_distance) / Real(exact)) - 1e-15L) x++;
    bucket_starts.push_back(x);
  }
  return bucket_starts;
}

TEST(T5Bucket, Causal) {
  for (const auto& [buckets, most] : {std::pair(32, 128), std::pair(8, 20), std::pair(2, 2)}) {
    const auto bucket_starts = t5_starts(buckets, most);
    for (Index x = 0; x < 1000; x++) {
      const auto expected = std::upper_bound(bucket_starts.begin(), bucket_starts.end(), x) - bucket_starts.begin() - 1;
      ASSERT_EQ(alibi::t5_bucket(-x, {.buckets = buckets, .max_distance = most}), expected) << x;
      ASSERT_EQ(alibi::t5_bucket(x, {.buckets = buckets, .max_distance = most}), 0);
    }
  }
}

TEST(T5Bucket, Bidirectional) {
  for (const auto& [buckets, most] : {std::pair(32, 128), std::pair(12, 50)}) {
    const auto bucket_starts = t5_starts(buckets / 2, most);
    for (Index x = 0; x < 1000; x++) {
      const auto expected = std::upper_bound(bucket_starts.begin(), bucket_starts.end(), x) - bucket_starts.begin() - 1;
      const alibi::T5Buckets config{.buckets = buckets, .max_distance = most, .bidirectional = true};
      ASSERT_EQ(alibi::t5_bucket(-x, config), expected) << x;
      ASSERT_EQ(alibi::t5_bucket(x, config), x == 0 ? 0 : buckets / 2 + expected) << x;
    }
  }
}

// The buckets of the authors' code with its defaults: 8 buckets of one distance, then one from each of 8, 12, 16, 23,
// 32, 46, 64, 91.
TEST(T5Bucket, TheDefaultsOfT5) {
  const alibi::T5Buckets encoder{.bidirectional = true};
  const std::vector<Index> begins = {8, 12, 16, 23, 32, 46, 64, 91};
  for (std::size_t b = 0; b < begins.size(); b++) {
    EXPECT_EQ(alibi::t5_bucket(-begins[b], encoder), Index(8 + b));
    EXPECT_EQ(alibi::t5_bucket(-begins[b] + 1, encoder), Index(7 + b));
  }
  EXPECT_EQ(alibi::t5_bucket(std::numeric_limits<Index>::min() / 2, encoder), 15);
  EXPECT_EQ(alibi::t5_bucket(std::numeric_limits<Index>::max() / 2, encoder), 31);
}

TEST(T5Bucket, BadInput) {
  EXPECT_EQ(test::error_of([] { (void)alibi::t5_bucket(1, {.buckets = 7}); }),
            "alibi: buckets is 7; expected a positive multiple of 2");
  EXPECT_EQ(test::error_of([] { (void)alibi::t5_bucket(1, {.buckets = 6, .bidirectional = true}); }),
            "alibi: buckets is 6; expected a positive multiple of 4");
  EXPECT_EQ(test::error_of([] { (void)alibi::t5_bucket(1, {.buckets = 32, .max_distance = 16}); }),
            "alibi: max_distance is 16; expected more than 16, the distances with a bucket of their own");
}

// The scores are those of the rotation, with each pair's part multiplied by ζ^((p - j) / B), for any centre.
TEST(Xpos, IsRotaryWithADecayingPair) {
  test::Random random(1);
  constexpr Index kTokens = 40, kDim = 12;
  for (const RotaryPairs pairs : {RotaryPairs::adjacent, RotaryPairs::halves})
    for (const Index dims : {kDim, Index(8)})
      for (const Index center : {0, 20, -7}) {
        const alibi::Xpos xpos(kDim, {.rotary = {.dims = dims, .pairs = pairs}, .scale_base = 50, .center = center});
        Matrix q = random.matrix<double>(kTokens, kDim), k = random.matrix<double>(kTokens, kDim);
        const auto theta = thetas(dims, 10000);
        const Matrix rq = rotated(q, theta, 3, pairs), rk = rotated(k, theta, 0, pairs);
        xpos.embed_queries(q, 3);
        xpos.embed_keys(k);
        for (Index i = 0; i < kTokens; i++)
          for (Index j = 0; j < kTokens; j++) {
            Real expected = 0;
            for (Index d = 0; d < kDim; d++) {
              const Index pair = pairs == RotaryPairs::adjacent ? d / 2 : d % (dims / 2);
              const Real zeta = (Real(2 * pair) / Real(dims) + 0.4L) / 1.4L;
              expected += Real(rq(i, d)) * Real(rk(j, d)) * (d < dims ? std::pow(zeta, Real(3 + i - j) / 50) : 1);
            }
            ASSERT_NEAR(q.row(i).dot(k.row(j)), double(expected), 1e-12);
          }
      }
}

// The gradient is that of a linear map, as the inner product with any direction shows.
TEST(Xpos, GradientIsTheTranspose) {
  test::Random random(2);
  const alibi::Xpos xpos(6, {.scale_base = 30, .center = 10});
  for (const bool queries : {true, false}) {
    const Matrix x = random.matrix<double>(20, 6), g = random.matrix<double>(20, 6);
    Matrix y = x, back = g;
    queries ? xpos.embed_queries(y, 2) : xpos.embed_keys(y, 2);
    queries ? xpos.queries_gradient(back, 2) : xpos.keys_gradient(back, 2);
    EXPECT_NEAR(dot(y, g), dot(x, back), 1e-11);
  }
}

TEST(Xpos, BadInput) {
  EXPECT_EQ(test::error_of([] { alibi::Xpos(4, {.gamma = 0}); }),
            "alibi: gamma is 0; expected a finite number above 0");
  EXPECT_EQ(test::error_of([] { alibi::Xpos(4, {.scale_base = -1}); }),
            "alibi: scale_base is -1; expected a finite number above 0");
  EXPECT_EQ(test::error_of([] { alibi::Xpos(3); }), "alibi: dims is 3; expected an even number up to 3, the head_dim");
  const alibi::Xpos xpos(4);
  test::RowMatrix<float> x = test::RowMatrix<float>::Ones(2, 4), wide(2, 6);
  EXPECT_EQ(test::error_of([&] { xpos.embed_keys(wide); }),
            "alibi: x has head_dim 6; expected 4, that of the embedding");
  EXPECT_EQ(test::error_of([&] { xpos.embed_keys(x, 50000); }),
            "alibi: a position is 50001 tokens from the center; expected at most 34980, where factors are in range");
  EXPECT_EQ(x, (test::RowMatrix<float>::Ones(2, 4))) << "nothing was written";
  EXPECT_NO_THROW(xpos.embed_keys(x, 34970));
  EXPECT_TRUE(x.allFinite());
  test::RowMatrix<Eigen::half> narrow = test::RowMatrix<Eigen::half>::Ones(2, 4);
  EXPECT_EQ(test::error_of([&] { xpos.embed_queries(narrow, -6000); }),
            "alibi: a position is 6000 tokens from the center; expected at most 3886, where factors are in range");
}

}  // namespace
