// Invalid input: the whole text of each message, and that the output is unchanged.
#include "common.hpp"

namespace {

using test::Index;
using Array = test::Tensor4<float>;

constexpr float kUntouched = 42;

// A valid call. Each test makes one argument invalid.
class Errors : public testing::Test {
 protected:
  test::Random random_{1};
  Array q_ = random_.tensor<float>(2, 4, 5, 8), k_ = random_.tensor<float>(2, 2, 6, 8),
        v_ = random_.tensor<float>(2, 2, 6, 3), output_ = Array(2, 4, 5, 3);
  std::vector<float> lse_ = std::vector<float>(40, kUntouched);
  Eigen::VectorXf m_ = alibi::slopes(4);
  alibi::Options options_;

  template <class Call>
  static std::string thrown(Call call) {
    try {
      call();
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "no error";
  }
  template <class Output, class Q, class K, class V, class Slopes>
  std::string into(Output&& output, const Q& q, const K& k, const V& v, const Slopes& m) {
    output_.setConstant(kUntouched);
    std::fill(lse_.begin(), lse_.end(), kUntouched);
    std::string message = thrown([&] { alibi::attention_with_lse_into(output, lse_, q, k, v, m, options_); });
    if (message != "no error") {
      for (Index i = 0; i < output_.size(); i++)
        EXPECT_EQ(output_.data()[i], kUntouched) << "written before: " << message;
      for (const float x : lse_) EXPECT_EQ(x, kUntouched) << "written before: " << message;
    }
    return message;
  }
  std::string with(const Array& q, const Array& k, const Array& v) { return into(output_, q, k, v, m_); }
  template <class Slopes>
  std::string with_slopes(const Slopes& m) {
    return into(output_, q_, k_, v_, m);
  }
  template <class Output>
  std::string with_output(Output&& output) {
    return into(output, q_, k_, v_, m_);
  }
  template <class Lse>
  std::string with_lse(Lse&& lse) {
    return thrown([&] { alibi::attention_with_lse_into(output_, lse, q_, k_, v_, m_, options_); });
  }
  std::string with_options(const alibi::Options& options) {
    options_ = options;
    return into(output_, q_, k_, v_, m_);
  }
  alibi::View<float> null(Index batch, Index heads, Index tokens, Index dim) {
    return alibi::view<float>(nullptr, {batch, heads, tokens, dim}, {heads * tokens * dim, tokens * dim, dim, 1});
  }
};

TEST_F(Errors, ValidCall) { EXPECT_EQ(with(q_, k_, v_), "no error"); }

TEST_F(Errors, Batch) {
  EXPECT_EQ(with(q_, Array(3, 2, 6, 8), v_), "alibi: k has batch 3; expected 2, the batch of q");
  EXPECT_EQ(with(q_, k_, Array(1, 2, 6, 3)), "alibi: v has batch 1; expected 2, the batch of q");
}

TEST_F(Errors, Heads) {
  EXPECT_EQ(with(q_, Array(2, 3, 6, 8), Array(2, 3, 6, 3)),
            "alibi: q has heads 4; expected a multiple of 3, the heads of k and v");
  EXPECT_EQ(with(q_, Array(2, 8, 6, 8), Array(2, 8, 6, 3)),
            "alibi: q has heads 4; expected a multiple of 8, the heads of k and v");
  EXPECT_EQ(with(q_, Array(2, 0, 6, 8), Array(2, 0, 6, 3)), "alibi: k has heads 0; expected at least 1");
  EXPECT_EQ(with(q_, k_, Array(2, 4, 6, 3)), "alibi: v has heads 4; expected 2, the heads of k");
}

TEST_F(Errors, HeadDim) {
  EXPECT_EQ(with(q_, Array(2, 2, 6, 7), v_), "alibi: k has head_dim 7; expected 8, the head_dim of q");
  EXPECT_EQ(with(Array(2, 4, 5, 0), Array(2, 2, 6, 0), v_), "alibi: q has head_dim 0; expected at least 1");
  EXPECT_EQ(with(q_, k_, Array(2, 2, 6, 0)), "alibi: v has head_dim 0; expected at least 1");
}

TEST_F(Errors, Tokens) {
  EXPECT_EQ(with(q_, k_, Array(2, 2, 5, 3)), "alibi: v has tokens 5; expected 6, the tokens of k");
}

TEST_F(Errors, SlopesOfTheWrongLength) {
  EXPECT_EQ(with_slopes(alibi::slopes(2)), "alibi: slopes has heads 2; expected 4, the heads of q");
  EXPECT_EQ(with_slopes(0.5f), "alibi: slopes has heads 1; expected 4, the heads of q");
  EXPECT_EQ(with_slopes(test::RowMatrix<float>(test::RowMatrix<float>::Ones(3, 4))),
            "alibi: slopes has batch 3; expected 2, the batch of q, or a vector of heads");
}

TEST_F(Errors, SlopesThatAreNotFinite) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinite = std::numeric_limits<float>::infinity();
  EXPECT_EQ(with_slopes(Eigen::Vector4f(1, 1, nan, 1)),
            "alibi: the slope of head 2 in batch 0 is nan; expected a finite number");
  EXPECT_EQ(with_slopes(Eigen::Vector4f(1, 1, 1, infinite)),
            "alibi: the slope of head 3 in batch 0 is inf; expected a finite number");
  EXPECT_EQ(with_slopes(Eigen::Vector4f(-infinite, 1, 1, 1)),
            "alibi: the slope of head 0 in batch 0 is -inf; expected a finite number");
  test::RowMatrix<float> per_batch = test::RowMatrix<float>::Ones(2, 4);
  per_batch(1, 3) = nan;
  EXPECT_EQ(with_slopes(per_batch), "alibi: the slope of head 3 in batch 1 is nan; expected a finite number");
}

TEST_F(Errors, Options) {
  EXPECT_EQ(with_options({.mask = {.window = 0}}),
            "alibi: mask.window is 0; expected at least 1, the query's own position");
  EXPECT_EQ(with_options({.mask = {.window = -5}}),
            "alibi: mask.window is -5; expected at least 1, the query's own position");
  EXPECT_EQ(with_options({.mask = {.query_offset = Index(1) << 62}}),
            "alibi: mask.query_offset is 4611686018427387904; expected within ±2^61");
  EXPECT_EQ(with_options({.mask = {.prefix = -1}}), "alibi: mask.prefix is -1; expected 0 or more");
  EXPECT_EQ(with_options({.mask = {.causal = false, .prefix = 1}}),
            "alibi: mask.prefix is 1 of a bidirectional mask; expected 0, or a causal mask");
  EXPECT_EQ(with_options({.mask = {.sinks = -1}}), "alibi: mask.sinks is -1; expected 0 or more");
  EXPECT_EQ(with_options({.scale = std::nan("")}), "alibi: scale is nan; expected a finite number");
  EXPECT_EQ(with_options({.scale = -test::kInfinity}), "alibi: scale is -inf; expected a finite number");
  EXPECT_EQ(with_options({.scale = 1e39}), "alibi: scale is 1e+39; expected a finite number");
}

TEST_F(Errors, NullData) {
  EXPECT_EQ(into(output_, null(2, 4, 5, 8), k_, v_, m_), "alibi: q is null; expected 40 tokens of 8");
  EXPECT_EQ(into(output_, q_, null(2, 2, 6, 8), v_, m_), "alibi: k is null; expected 24 tokens of 8");
  EXPECT_EQ(into(output_, q_, k_, null(2, 2, 6, 3), m_), "alibi: v is null; expected 24 tokens of 3");
  EXPECT_EQ(with_output(null(2, 4, 5, 3)), "alibi: output is null; expected 40 tokens of 3");
  EXPECT_EQ(with_lse(Eigen::Map<Eigen::VectorXf>(nullptr, 40)), "alibi: lse is null; expected 40 entries");
  EXPECT_EQ(with_slopes(Eigen::Map<const Eigen::VectorXf>(nullptr, 4)), "alibi: slopes is null; expected 4 slopes");
}

TEST_F(Errors, NullIsFineWhereThereIsNothing) {
  EXPECT_EQ(into(output_, q_, null(2, 2, 0, 8), null(2, 2, 0, 3), m_), "no error");
}

// In one buffer: 500 unused numbers, 72 of v, 500 unused; the output has 120.
TEST_F(Errors, OverlappingOutput) {
  std::vector<float> buffer(1072);
  const auto v = alibi::view(buffer.data() + 500, {2, 2, 6, 3}, {36, 18, 3, 1});
  const auto at = [](float* p) { return alibi::view(p, {2, 4, 5, 3}, {60, 15, 3, 1}); };
  const auto message = [&](Index begin) { return into(at(buffer.data() + begin), q_, k_, v, m_); };
  EXPECT_EQ(message(380), "no error");
  EXPECT_EQ(message(381), "alibi: output overlaps v; expected memory of its own");
  EXPECT_EQ(message(571), "alibi: output overlaps v; expected memory of its own");
  EXPECT_EQ(message(572), "no error");
  EXPECT_EQ(with_output(at(q_.data())), "alibi: output overlaps q; expected memory of its own");
  EXPECT_EQ(into(output_, q_, alibi::view(output_.data() + 3, {2, 2, 6, 8}, {0, 0, 8, 1}), v_, m_),
            "alibi: output overlaps k; expected memory of its own");
}

TEST_F(Errors, OverlappingSlopes) {
  EXPECT_EQ(with_slopes(Eigen::Map<const Eigen::VectorXf>(output_.data() + 7, 4)),
            "alibi: output overlaps slopes; expected memory of its own");
  EXPECT_EQ(with_slopes(Eigen::Map<const Eigen::VectorXf>(lse_.data() + 36, 4)),
            "alibi: lse overlaps slopes; expected memory of its own");
}

TEST_F(Errors, OutputThatOverlapsItself) {
  const auto message = [&](Index begin, const std::array<Index, 4>& strides) {
    return with_output(alibi::view(output_.data() + begin, {2, 4, 5, 3}, strides));
  };
  const std::string expected = " of batch, heads and tokens; expected rows that do not overlap";
  EXPECT_EQ(message(0, {0, 0, 0, 1}), "alibi: output has strides 0, 0, 0" + expected);
  EXPECT_EQ(message(0, {60, 15, 2, 1}), "alibi: output has strides 60, 15, 2" + expected);
  EXPECT_EQ(message(0, {60, 15, -2, 1}), "alibi: output has strides 60, 15, -2" + expected);
  EXPECT_EQ(message(0, {60, 14, 3, 1}), "alibi: output has strides 60, 14, 3" + expected);
  EXPECT_EQ(message(0, {0, 15, 3, 1}), "alibi: output has strides 0, 15, 3" + expected);
  EXPECT_EQ(message(0, {60, 3, 11, 1}), "alibi: output has strides 60, 3, 11" + expected);
  EXPECT_EQ(message(0, {60, 3, 12, 1}), "no error") << "tokens before heads";
  EXPECT_EQ(message(12, {60, 15, -3, 1}), "no error") << "tokens backwards";
  const alibi::View<const float> q = alibi::view(q_.data(), {1, 1, 5, 8}, {0, 0, 8, 1});
  EXPECT_EQ(thrown([&] {
              alibi::attention_into(alibi::view(output_.data(), {1, 1, 5, 3}, {0, 0, 3, 1}), q,
                                    alibi::view(k_.data(), {1, 1, 6, 8}, {0, 0, 8, 1}),
                                    alibi::view(v_.data(), {1, 1, 6, 3}, {0, 0, 3, 1}), 0.5f);
            }),
            "no error")
      << "a single batch and head";
}

TEST_F(Errors, OverlappingLse) {
  const auto message = [&](float* lse) { return with_lse(std::span(lse, 40)); };
  EXPECT_EQ(message(q_.data()), "alibi: lse overlaps q; expected memory of its own");
  EXPECT_EQ(message(k_.data()), "alibi: lse overlaps k; expected memory of its own");
  EXPECT_EQ(message(v_.data()), "alibi: lse overlaps v; expected memory of its own");
  EXPECT_EQ(message(output_.data() + 80), "alibi: lse overlaps output; expected memory of its own");
}

TEST_F(Errors, OutputOfTheWrongShape) {
  const std::string expected = "; expected [2, 4, 5, 3], batch, heads and tokens of q, head_dim of v";
  EXPECT_EQ(with_output(Array(2, 4, 5, 8)), "alibi: output is [2, 4, 5, 8]" + expected);
  EXPECT_EQ(with_output(Array(2, 4, 6, 3)), "alibi: output is [2, 4, 6, 3]" + expected);
  EXPECT_EQ(with_output(Array(2, 2, 5, 3)), "alibi: output is [2, 2, 5, 3]" + expected);
  EXPECT_EQ(with_output(Array(1, 4, 5, 3)), "alibi: output is [1, 4, 5, 3]" + expected);
  lse_.resize(39);
  EXPECT_EQ(with(q_, k_, v_), "alibi: lse has 39 entries; expected 40, batch x heads x tokens of q");
}

TEST_F(Errors, LseWithGaps) {
  test::RowMatrix<float> wide(40, 2), table(8, 7);
  const std::string expected = "alibi: lse has gaps between its entries; expected them side by side";
  EXPECT_EQ(with_lse(wide.col(0)), expected);
  EXPECT_EQ(with_lse(table.leftCols(5)), expected);
}

TEST_F(Errors, View) {
  EXPECT_EQ(thrown([&] { alibi::view(q_.data(), {2, 4, 5, 8}, {160, 40, 1, 5}); }),
            "alibi: the view's stride of head_dim is 5; expected 1, each token's head_dim contiguous");
  EXPECT_EQ(thrown([&] { alibi::view(q_.data(), {2, 4, -5, 8}, {160, 40, 8, 1}); }),
            "alibi: a size of the view is -5; expected 0 or more");
}

TEST_F(Errors, MatrixWithGapsInATokensHeadDim) {
  using Matrix = test::RowMatrix<float>;
  const Eigen::Map<Matrix, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>> gaps(
      q_.data(), 5, 4, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>(8, 2));
  const Matrix k = Matrix::Ones(5, 4);
  EXPECT_EQ(thrown([&] { alibi::attention(gaps, k, k, 0.5f); }),
            "alibi: q is a matrix of inner stride 2; expected 1, each token's head_dim contiguous");
}

// Attention passes on what the executor's own code throws. (Tasks of attention throw nothing.)
TEST_F(Errors, ExceptionOfTheExecutor) {
  options_.executor =
      alibi::Executor(2, [](Index, const alibi::Task&) { throw std::invalid_argument("no thread left"); });
  EXPECT_EQ(with(test::Random(2).tensor<float>(2, 4, 5, 8), k_, v_), "no thread left");
  options_.executor = alibi::Executor(2, [](Index, const alibi::Task&) {});
  output_.setConstant(kUntouched);
  try {
    alibi::attention_into(output_, q_, k_, v_, m_, options_);
    ADD_FAILURE() << "an executor that runs nothing was not detected";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "alibi: the executor's run(count, task) returned before every task had been called");
  }
}

}  // namespace
