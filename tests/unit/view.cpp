// All kinds of arrays that attention accepts. They hold the same numbers, so the results must have the same bits.
#include <span>

#include "common.hpp"

namespace {

using test::Index;
using test::RowMatrix;
using test::Tensor4;

constexpr Index kBatch = 2, kHeads = 4, kKvHeads = 2, kTokens = 37, kDim = 24, kValueDim = 20;

// Copies [b, h, n, d] to [b, n, h, d], which attention reads through a view.
template <class T>
Tensor4<T> swap_heads_and_tokens(const Tensor4<T>& x) {
  Tensor4<T> y(x.dimension(0), x.dimension(2), x.dimension(1), x.dimension(3));
  T* out = y.data();
  for (Index b = 0; b < y.dimension(0); b++)
    for (Index n = 0; n < y.dimension(1); n++)
      for (Index h = 0; h < y.dimension(2); h++)
        for (Index d = 0; d < y.dimension(3); d++) *out++ = x(b, h, n, d);
  return y;
}

// A view [b, h, n, d] of a contiguous array [b, n, h, d].
template <class T>
alibi::View<const T> view_tokens_first(const Tensor4<T>& x) {
  const Index b = x.dimension(0), n = x.dimension(1), h = x.dimension(2), d = x.dimension(3);
  return alibi::view(x.data(), {b, h, n, d}, {n * h * d, d, h * d, 1});
}

template <class T>
class View : public testing::Test {
 protected:
  test::Random random_{1};
  Tensor4<T> q_ = random_.tensor<T>(kBatch, kHeads, kTokens, kDim),
             k_ = random_.tensor<T>(kBatch, kKvHeads, kTokens, kDim),
             v_ = random_.tensor<T>(kBatch, kKvHeads, kTokens, kValueDim);
  test::Vector<T> m_ = alibi::slopes<T>(kHeads);
  alibi::ForwardResult<Tensor4<T>, test::Tensor3<T>> expected_ = alibi::attention_with_lse(q_, k_, v_, m_);

  template <class Result>
  void expect(const Result& result) {
    EXPECT_TRUE(test::same(result.output, expected_.output));
    EXPECT_TRUE(test::same(result.lse, expected_.lse));
  }

  // Head (0, 0) of x, [tokens, head_dim].
  static RowMatrix<T> head(const Tensor4<T>& x) {
    return Eigen::Map<const RowMatrix<T>>(x.data(), x.dimension(2), x.dimension(3));
  }
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(View, Scalars);

TYPED_TEST(View, TensorsAndMaps) {
  using T = TypeParam;
  auto &q = this->q_, &k = this->k_, &v = this->v_;
  const Tensor4<T> const_q = q;
  const Eigen::TensorMap<Tensor4<T>> map_k(k.data(), k.dimensions());
  const Eigen::TensorMap<const Tensor4<T>> const_map_v(v.data(), v.dimensions());
  this->expect(alibi::attention_with_lse(const_q, map_k, const_map_v, this->m_));

  Tensor4<T> output(kBatch, kHeads, kTokens, kValueDim);
  Eigen::TensorMap<Tensor4<T>> map(output.data(), output.dimensions());
  alibi::attention_into(map, q, k, v, this->m_);
  EXPECT_TRUE(test::same(output, this->expected_.output));
  output.setZero();
  alibi::attention_into(Eigen::TensorMap<Tensor4<T>>(output.data(), output.dimensions()), q, k, v, this->m_);
  EXPECT_TRUE(test::same(output, this->expected_.output)) << "a temporary map";
}

TYPED_TEST(View, ColumnMajorTensorsAreMirrored) {
  using T = TypeParam;
  using Mirrored = Eigen::Tensor<T, 4>;
  const auto mirrored = [](const Tensor4<T>& x) -> Mirrored { return x.swap_layout(); };
  const Mirrored q = mirrored(this->q_), k = mirrored(this->k_), v = mirrored(this->v_);
  ASSERT_EQ(q.dimension(0), kDim);
  const auto result = alibi::attention_with_lse(q, k, v, this->m_);
  this->expect(result);
  EXPECT_EQ(result.output.dimension(0), kValueDim);
  EXPECT_EQ(result.output.dimension(3), kBatch);
  EXPECT_EQ(result.lse.dimension(0), kTokens);
}

TYPED_TEST(View, TokensBeforeHeads) {
  using T = TypeParam;
  const auto q = swap_heads_and_tokens(this->q_), k = swap_heads_and_tokens(this->k_),
             v = swap_heads_and_tokens(this->v_);
  Tensor4<T> output(kBatch, kTokens, kHeads, kValueDim);
  test::Tensor3<T> lse(kBatch, kHeads, kTokens);
  const auto into = alibi::view(output.data(), {kBatch, kHeads, kTokens, kValueDim},
                                {kTokens * kHeads * kValueDim, kValueDim, kHeads * kValueDim, 1});
  alibi::attention_with_lse_into(into, lse, view_tokens_first(q), view_tokens_first(k), view_tokens_first(v), this->m_);
  EXPECT_TRUE(test::same(swap_heads_and_tokens(output), this->expected_.output));
  EXPECT_TRUE(test::same(lse, this->expected_.lse));
}

// One array [batch, tokens, row]. The row of a token is its queries, keys and values, one after another.
TYPED_TEST(View, FusedQkv) {
  using T = TypeParam;
  const auto q = swap_heads_and_tokens(this->q_), k = swap_heads_and_tokens(this->k_),
             v = swap_heads_and_tokens(this->v_);
  constexpr Index kQ = kHeads * kDim, kK = kKvHeads * kDim, kV = kKvHeads * kValueDim, kRow = kQ + kK + kV;
  std::vector<T> qkv;
  for (Index token = 0; token < kBatch * kTokens; token++) {
    qkv.insert(qkv.end(), q.data() + token * kQ, q.data() + (token + 1) * kQ);
    qkv.insert(qkv.end(), k.data() + token * kK, k.data() + (token + 1) * kK);
    qkv.insert(qkv.end(), v.data() + token * kV, v.data() + (token + 1) * kV);
  }
  const T* row = qkv.data();
  const auto part = [&](Index begin, Index heads, Index dim) {
    return alibi::view(row + begin, {kBatch, heads, kTokens, dim}, {kTokens * kRow, dim, kRow, 1});
  };
  Tensor4<T> output(kBatch, kHeads, kTokens, kValueDim);
  alibi::attention_into(output, part(0, kHeads, kDim), part(kQ, kKvHeads, kDim), part(kQ + kK, kKvHeads, kValueDim),
                        this->m_);
  EXPECT_TRUE(test::same(output, this->expected_.output));
}

TYPED_TEST(View, MatricesOfOneHead) {
  using T = TypeParam;
  using Matrix = RowMatrix<T>;
  const T slope = this->m_[0];
  Matrix q = this->head(this->q_), k = this->head(this->k_), v = this->head(this->v_);
  const Matrix expected = this->head(this->expected_.output);
  const auto [output, lse] = alibi::attention_with_lse(q, k, v, slope);
  EXPECT_TRUE(test::same(output, expected));
  EXPECT_TRUE(std::equal(lse.data(), lse.data() + lse.size(), this->expected_.lse.data()));

  const Eigen::Map<const Matrix> map(q.data(), q.rows(), q.cols());
  const Eigen::Ref<const Matrix> ref(k);
  EXPECT_TRUE(test::same(alibi::attention(map, ref, v, slope), expected)) << "Map and Ref";

  Matrix wide = Matrix::Constant(kTokens + 3, 2 * kDim + kValueDim + 5, T(7));
  wide.block(2, 1, kTokens, kDim) = k;
  wide.block(2, 1 + kDim, kTokens, kValueDim) = v;
  EXPECT_TRUE(test::same(
      alibi::attention(q, wide.block(2, 1, kTokens, kDim), wide.block(2, 1 + kDim, kTokens, kValueDim), slope),
      expected))
      << "blocks of a wider matrix";

  const Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic> columns = q.transpose();  // [head_dim, tokens], column-major
  EXPECT_TRUE(test::same(alibi::attention(columns.transpose(), k, v, slope), expected))
      << "a transposed column-major matrix";

  Matrix into = Matrix::Constant(kTokens + 2, kValueDim + 3, T(7));
  alibi::attention_into(into.block(1, 2, kTokens, kValueDim), q, k, v, slope);
  EXPECT_TRUE(test::same(Matrix(into.block(1, 2, kTokens, kValueDim)), expected)) << "a block as output";
  into.block(1, 2, kTokens, kValueDim).setConstant(T(7));
  EXPECT_TRUE(test::same(into, Matrix(Matrix::Constant(kTokens + 2, kValueDim + 3, T(7))))) << "and nothing around it";
}

TYPED_TEST(View, SlopesOfEveryKind) {
  using T = TypeParam;
  auto &q = this->q_, &k = this->k_, &v = this->v_;
  const auto& m = this->m_;
  const auto expect = [&](const auto& slopes) { this->expect(alibi::attention_with_lse(q, k, v, slopes)); };
  const std::vector<T> list(m.data(), m.data() + m.size());
  expect(list);
  expect(Eigen::Matrix<T, 1, Eigen::Dynamic>(m.transpose()));
  expect(Eigen::Map<const test::Vector<T>>(list.data(), kHeads));
  expect(Eigen::Array<T, int(kHeads), 1>(m.array()));

  test::Vector<T> all = test::Vector<T>::Constant(2 * kHeads, T(7));
  Eigen::Map<test::Vector<T>, 0, Eigen::InnerStride<>> every_second(all.data(), kHeads, Eigen::InnerStride<>(2));
  every_second = m;
  expect(every_second);
  all.segment(3, kHeads) = m;
  expect(all.segment(3, kHeads));

  RowMatrix<T> rows(kBatch, kHeads);  // [batch, heads]
  rows << m.transpose(), m.transpose();
  expect(rows);
  expect(Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>(rows));

  Eigen::Tensor<T, 1> rank_1(kHeads);
  Eigen::Tensor<T, 2, Eigen::RowMajor> rank_2(kBatch, kHeads);
  for (Index h = 0; h < kHeads; h++) rank_1(h) = rank_2(0, h) = rank_2(1, h) = m[h];
  expect(rank_1);
  expect(rank_2);
  expect(Eigen::Tensor<T, 2>(rank_2.swap_layout()));
  expect(Eigen::TensorMap<const Eigen::Tensor<T, 1>>(list.data(), kHeads));
}

TYPED_TEST(View, LseOfEveryKind) {
  using T = TypeParam;
  const auto expect = [&](auto&& lse) {
    Tensor4<T> output(kBatch, kHeads, kTokens, kValueDim);
    std::fill_n(lse.data(), lse.size(), T(7));
    alibi::attention_with_lse_into(output, lse, this->q_, this->k_, this->v_, this->m_);
    EXPECT_TRUE(test::same(output, this->expected_.output));
    EXPECT_TRUE(test::same(lse, this->expected_.lse));
  };
  constexpr Index kRows = kBatch * kHeads;
  std::vector<T> list(std::size_t(kRows * kTokens));
  expect(list);
  expect(std::span<T>(list));
  expect(test::Vector<T>(kRows * kTokens));
  expect(Eigen::Matrix<T, 1, Eigen::Dynamic>(kRows * kTokens));
  expect(Eigen::Map<test::Vector<T>>(list.data(), kRows * kTokens));
  expect(RowMatrix<T>(kRows, kTokens));
  expect(RowMatrix<T>(kRows + 3, kTokens).middleRows(2, kRows));
  expect(test::Tensor3<T>(kBatch, kHeads, kTokens));
  expect(Eigen::Tensor<T, 3>(kTokens, kHeads, kBatch));
  expect(Eigen::TensorMap<Eigen::Tensor<T, 3>>(list.data(), kTokens, kHeads, kBatch));
}

TYPED_TEST(View, SlopesPerBatch) {
  using T = TypeParam;
  RowMatrix<T> slopes(kBatch, kHeads);
  slopes << this->m_.transpose(), T(2) * this->m_.transpose();
  const auto both = alibi::attention(this->q_, this->k_, this->v_, slopes);
  const auto second = alibi::attention(this->q_, this->k_, this->v_, test::Vector<T>(slopes.row(1)));
  const Index half = both.size() / 2;
  EXPECT_TRUE(std::equal(both.data(), both.data() + half, this->expected_.output.data()));
  EXPECT_TRUE(std::equal(both.data() + half, both.data() + 2 * half, second.data() + half));
}

// Slopes of any scalar, for any scalar of q. The result equals that of the same numbers in the widest scalar.
TYPED_TEST(View, SlopesOfAnyScalar) {
  const Eigen::VectorXd m = alibi::slopes<double>(kHeads);  // powers of two, which every scalar represents exactly
  const auto expected = alibi::attention(this->q_, this->k_, this->v_, m);
  const auto expect_same = [&](const auto& slopes) {
    EXPECT_TRUE(test::same(alibi::attention(this->q_, this->k_, this->v_, slopes), expected));
    alibi::KvCache<TypeParam> cache({.batch = this->k_.dimension(0),
                                     .kv_heads = this->k_.dimension(1),
                                     .head_dim = this->k_.dimension(3),
                                     .value_dim = this->v_.dimension(3),
                                     .capacity = this->k_.dimension(2)});
    cache.append(this->k_, this->v_);
    EXPECT_TRUE(test::same(alibi::attention(this->q_, cache, slopes), alibi::attention(this->q_, cache, m)));
  };
  expect_same(m.template cast<float>().eval());
  expect_same(m.template cast<Eigen::bfloat16>().eval());
  expect_same(m.template cast<Eigen::half>().eval());
  expect_same(std::vector<double>(m.begin(), m.end()));
  EXPECT_EQ(alibi::slope_view(m).scalar, alibi::SlopeScalar::float64);

  // If a narrow scalar rounds the slopes, the rounded slopes are used.
  const Eigen::Matrix<Eigen::bfloat16, Eigen::Dynamic, 1> rounded =
      Eigen::VectorXf::Constant(kHeads, 0.3f).cast<Eigen::bfloat16>();
  EXPECT_TRUE(test::same(alibi::attention(this->q_, this->k_, this->v_, rounded),
                         alibi::attention(this->q_, this->k_, this->v_, rounded.template cast<double>().eval())));
}

TEST(Views, SizesThatOverflow) {
  float x = 0;
  constexpr Index kLong = Index(1) << 32;
  EXPECT_THROW(alibi::view(&x, {kLong, kLong, 1, 1}, {0, 0, 0, 1}), std::invalid_argument);
}

}  // namespace
