// Invalid input of the backward pass and of tables: the whole text of each message, and that the gradients are
// unchanged.
#include <alibi/backward.hpp>
#include <alibi/relative_bias.hpp>

#include "common.hpp"

namespace {

using test::Index;
using Array = test::Tensor4<float>;
using Table = test::RowMatrix<float>;

constexpr float kUntouched = 42;

// A valid call. Each test makes one argument invalid.
class BackwardErrors : public testing::Test {
 protected:
  test::Random random_{1};
  Array q_ = random_.tensor<float>(2, 4, 5, 8), k_ = random_.tensor<float>(2, 2, 6, 8),
        v_ = random_.tensor<float>(2, 2, 6, 3), output_ = Array(2, 4, 5, 3),
        grad_output_ = random_.tensor<float>(2, 4, 5, 3);
  std::vector<float> lse_ = std::vector<float>(40);
  Eigen::VectorXf m_ = alibi::slopes(4), grad_m_ = Eigen::VectorXf(4);
  Table table_ = Table::Ones(4, 7), grad_table_ = Table(4, 7);
  Array grad_q_ = Array(2, 4, 5, 8), grad_k_ = Array(2, 2, 6, 8), grad_v_ = Array(2, 2, 6, 3);
  alibi::Options options_;

  BackwardErrors() { alibi::attention_with_lse_into(output_, lse_, q_, k_, v_, m_); }

  template <class Call>
  static std::string thrown(Call call) {
    try {
      call();
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "no error";
  }
  /// The message of a call with these arrays for the gradients, or "no error".
  template <class Q, class K, class V, class M, class GradOutput, class Output, class Lse, class Bias>
  std::string run(Q&& grad_q, K&& grad_k, V&& grad_v, M&& grad_bias, const GradOutput& grad_output,
                  const Output& output, const Lse& lse, const Bias& bias) {
    for (Array* x : {&grad_q_, &grad_k_, &grad_v_}) x->setConstant(kUntouched);
    grad_m_.setConstant(kUntouched);
    grad_table_.setConstant(kUntouched);
    std::string message = thrown([&] {
      alibi::attention_backward_into({grad_q, grad_k, grad_v, grad_bias}, grad_output, q_, k_, v_, bias, {output, lse},
                                     options_);
    });
    const auto untouched = [&](const auto& x) {
      for (Index i = 0; message != "no error" && i < Index(x.size()); i++)
        EXPECT_EQ(x.data()[i], kUntouched) << "written before: " << message;
    };
    untouched(grad_q_), untouched(grad_k_), untouched(grad_v_), untouched(grad_m_), untouched(grad_table_);
    return message;
  }
  std::string run() { return run(grad_q_, grad_k_, grad_v_, grad_m_, grad_output_, output_, lse_, m_); }
  template <class GradOutput>
  std::string with_grad_output(const GradOutput& x) {
    return run(grad_q_, grad_k_, grad_v_, grad_m_, x, output_, lse_, m_);
  }
  template <class Output>
  std::string with_output(const Output& x) {
    return run(grad_q_, grad_k_, grad_v_, grad_m_, grad_output_, x, lse_, m_);
  }
  template <class Lse>
  std::string with_lse(const Lse& x) {
    return run(grad_q_, grad_k_, grad_v_, grad_m_, grad_output_, output_, x, m_);
  }
  template <class X>
  std::string with_grad_q(X&& x) {
    return run(x, grad_k_, grad_v_, grad_m_, grad_output_, output_, lse_, m_);
  }
  template <class X>
  std::string with_grad_k(X&& x) {
    return run(grad_q_, x, grad_v_, grad_m_, grad_output_, output_, lse_, m_);
  }
  template <class X>
  std::string with_grad_v(X&& x) {
    return run(grad_q_, grad_k_, x, grad_m_, grad_output_, output_, lse_, m_);
  }
  template <class X>
  std::string with_grad_bias(X&& x) {
    return run(grad_q_, grad_k_, grad_v_, x, grad_output_, output_, lse_, m_);
  }
  template <class Bias, class X>
  std::string with_bias(const Bias& bias, X&& grad) {
    return run(grad_q_, grad_k_, grad_v_, grad, grad_output_, output_, lse_, bias);
  }
  static alibi::View<float> at(float* p, Index batch, Index heads, Index tokens, Index dim) {
    return alibi::view(p, {batch, heads, tokens, dim}, {heads * tokens * dim, tokens * dim, dim, 1});
  }
};

TEST_F(BackwardErrors, ValidCall) {
  EXPECT_EQ(run(), "no error");
  EXPECT_EQ(with_bias(alibi::relative_bias(table_, -3), grad_table_), "no error");
  EXPECT_EQ(thrown([&] {
              alibi::attention_backward_into({grad_q_, grad_k_, grad_v_}, grad_output_, q_, k_, v_, alibi::no_bias,
                                             {output_, lse_});
            }),
            "no error");
}

TEST_F(BackwardErrors, Shapes) {
  const std::string like_output = "; expected [2, 4, 5, 3], batch, heads and tokens of q, head_dim of v";
  EXPECT_EQ(with_grad_output(Array(2, 4, 5, 8)), "alibi: grad_output is [2, 4, 5, 8]" + like_output);
  EXPECT_EQ(with_grad_output(Array(2, 2, 5, 3)), "alibi: grad_output is [2, 2, 5, 3]" + like_output);
  EXPECT_EQ(with_output(Array(2, 4, 6, 3)), "alibi: output is [2, 4, 6, 3]" + like_output);
  EXPECT_EQ(with_lse(std::vector<float>(39)), "alibi: lse has 39 entries; expected 40, batch x heads x tokens of q");
  const auto with_grad_lse = [&](const auto& x) { return with_grad_output(alibi::ForwardResult{grad_output_, x}); };
  EXPECT_EQ(with_grad_lse(std::vector<float>(40)), "no error");
  EXPECT_EQ(with_grad_lse(std::vector<float>(39)),
            "alibi: grad_lse has 39 entries; expected 40, batch x heads x tokens of q");
  EXPECT_EQ(with_grad_lse(std::vector<float>()),
            "alibi: grad_lse has 0 entries; expected 40, batch x heads x tokens of q");
  EXPECT_EQ(with_grad_output(alibi::ForwardResult{Array(2, 4, 5, 8), lse_}),
            "alibi: grad_output is [2, 4, 5, 8]" + like_output);
  const Table wide = Table::Zero(8, 9);
  EXPECT_EQ(with_grad_output(alibi::ForwardResult{grad_output_, wide.leftCols(5)}),
            "alibi: grad_lse has gaps between its entries; expected them side by side");
  EXPECT_EQ(with_grad_q(Array(2, 4, 5, 3)), "alibi: grad_q is [2, 4, 5, 3]; expected [2, 4, 5, 8], the sizes of q");
  EXPECT_EQ(with_grad_k(Array(2, 4, 6, 8)), "alibi: grad_k is [2, 4, 6, 8]; expected [2, 2, 6, 8], the sizes of k");
  EXPECT_EQ(with_grad_v(Array(1, 2, 6, 3)), "alibi: grad_v is [1, 2, 6, 3]; expected [2, 2, 6, 3], the sizes of v");
}

TEST_F(BackwardErrors, GradientsOfTheBias) {
  const std::string slopes = "expected [1, 4], the sizes of slopes";
  EXPECT_EQ(with_grad_bias(std::vector<float>(3)), "alibi: the gradient of the bias is [1, 3]; " + slopes);
  EXPECT_EQ(with_grad_bias(std::vector<float>(8)), "alibi: the gradient of the bias is [1, 8]; " + slopes);
  const Table per_batch = Table::Ones(2, 4);
  EXPECT_EQ(with_bias(per_batch, grad_m_),
            "alibi: the gradient of the bias is [1, 4]; expected [2, 4], the sizes of slopes");
  Table transposed(4, 2);
  EXPECT_EQ(with_bias(per_batch, transposed),
            "alibi: the gradient of the bias is [4, 2]; expected [2, 4], the sizes of slopes");
  EXPECT_EQ(with_bias(alibi::relative_bias(table_), grad_m_),
            "alibi: the gradient of the bias is [1, 4]; expected [4, 7], the sizes of the table");
  Eigen::Tensor<float, 2> column_major(7, 4);  // in mirrored order its sizes would fit
  EXPECT_EQ(with_bias(alibi::relative_bias(table_), column_major),
            "alibi: the gradient of the table is column-major; expected row-major");
  Table wide(4, 9);
  EXPECT_EQ(with_bias(alibi::relative_bias(table_), wide.leftCols(7)),
            "alibi: the gradient of the bias has gaps between its entries; expected them side by side");
}

TEST_F(BackwardErrors, ThoseOfAttention) {
  options_ = {.tolerance = -1};
  EXPECT_EQ(run(), "alibi: tolerance is -1; expected at least 0 and below 1");
  options_ = {.scale = std::nan("")};
  EXPECT_EQ(run(), "alibi: scale is nan; expected a finite number");
  options_ = {.mask = {.window = 0}};
  EXPECT_EQ(run(), "alibi: mask.window is 0; expected at least 1, the query's own position");
  options_ = {};
  EXPECT_EQ(with_bias(alibi::slopes(2), grad_m_), "alibi: slopes has heads 2; expected 4, the heads of q");
  k_ = Array(3, 2, 6, 8);
  EXPECT_EQ(run(), "alibi: k has batch 3; expected 2, the batch of q");
}

TEST_F(BackwardErrors, NullData) {
  EXPECT_EQ(with_grad_output(at(nullptr, 2, 4, 5, 3)), "alibi: grad_output is null; expected 40 tokens of 3");
  EXPECT_EQ(with_output(at(nullptr, 2, 4, 5, 3)), "alibi: output is null; expected 40 tokens of 3");
  EXPECT_EQ(with_grad_q(at(nullptr, 2, 4, 5, 8)), "alibi: grad_q is null; expected 40 tokens of 8");
  EXPECT_EQ(with_grad_k(at(nullptr, 2, 2, 6, 8)), "alibi: grad_k is null; expected 24 tokens of 8");
  EXPECT_EQ(with_grad_v(at(nullptr, 2, 2, 6, 3)), "alibi: grad_v is null; expected 24 tokens of 3");
  EXPECT_EQ(with_lse(Eigen::Map<Eigen::VectorXf>(nullptr, 40)), "alibi: lse is null; expected 40 entries");
  EXPECT_EQ(
      with_grad_output(alibi::ForwardResult{grad_output_, std::span<const float>(static_cast<float*>(nullptr), 40)}),
      "alibi: grad_lse is null; expected 40 entries");
}

TEST_F(BackwardErrors, Overlaps) {
  const std::string own = "; expected memory of its own";
  EXPECT_EQ(with_grad_q(at(q_.data(), 2, 4, 5, 8)), "alibi: grad_q overlaps q" + own);
  EXPECT_EQ(with_grad_k(at(k_.data(), 2, 2, 6, 8)), "alibi: grad_k overlaps k" + own);
  EXPECT_EQ(with_grad_v(at(v_.data(), 2, 2, 6, 3)), "alibi: grad_v overlaps v" + own);
  EXPECT_EQ(with_grad_v(at(output_.data(), 2, 2, 6, 3)), "alibi: grad_v overlaps output" + own);
  EXPECT_EQ(with_grad_v(at(grad_output_.data(), 2, 2, 6, 3)), "alibi: grad_v overlaps grad_output" + own);
  EXPECT_EQ(with_grad_k(at(grad_q_.data(), 2, 2, 6, 8)), "alibi: grad_k overlaps grad_q" + own);
  EXPECT_EQ(with_grad_v(at(grad_k_.data(), 2, 2, 6, 3)), "alibi: grad_v overlaps grad_k" + own);
  EXPECT_EQ(with_grad_bias(Eigen::Map<Eigen::VectorXf>(m_.data(), 4)),
            "alibi: the gradient of the bias overlaps slopes" + own);
  EXPECT_EQ(with_grad_bias(std::span(lse_.data() + 36, 4)), "alibi: the gradient of the bias overlaps lse" + own);
  const std::span<const float> in_grad_v(grad_v_.data() + 10, 40);
  EXPECT_EQ(with_grad_output(alibi::ForwardResult{grad_output_, in_grad_v}), "alibi: grad_v overlaps grad_lse" + own);
  EXPECT_EQ(with_grad_bias(std::span(grad_q_.data(), 4)), "alibi: grad_q overlaps the gradient of the bias" + own);
  EXPECT_EQ(with_bias(alibi::relative_bias(table_), table_),
            "alibi: the gradient of the bias overlaps the table" + own);
}

// The rows of the gradients of a fused [tokens, (q k v), dim] array alternate in memory and do not overlap.
TEST_F(BackwardErrors, SlicesOfOneArrayDoNotOverlap) {
  std::vector<float> qkv(std::size_t(5 * 24), kUntouched);
  const auto part = [&](Index at) { return alibi::view(qkv.data() + 8 * at, {1, 1, 5, 8}, {0, 0, 24, 1}); };
  const Table q = random_.matrix<float>(5, 8), k = random_.matrix<float>(5, 8), v = random_.matrix<float>(5, 8),
              grad_output = random_.matrix<float>(5, 8);
  const auto forward = alibi::attention_with_lse(q, k, v, 0.5f);
  const auto expected = alibi::attention_backward(grad_output, q, k, v, 0.5f, forward);
  EXPECT_EQ(
      thrown([&] { alibi::attention_backward_into({part(0), part(1), part(2)}, grad_output, q, k, v, 0.5f, forward); }),
      "no error");
  for (Index i = 0; i < 5; i++)
    for (Index d = 0; d < 8; d++) {
      EXPECT_EQ(qkv[std::size_t(24 * i + d)], expected.q(i, d));
      EXPECT_EQ(qkv[std::size_t(24 * i + 8 + d)], expected.k(i, d));
      EXPECT_EQ(qkv[std::size_t(24 * i + 16 + d)], expected.v(i, d));
    }
  EXPECT_EQ(thrown([&] {
              const auto shifted = alibi::view(qkv.data() + 7, {1, 1, 5, 8}, {0, 0, 24, 1});
              alibi::attention_backward_into({part(0), shifted, part(2)}, grad_output, q, k, v, 0.5f, forward);
            }),
            "alibi: grad_k overlaps grad_q; expected memory of its own");
}

TEST_F(BackwardErrors, GradientsThatOverlapThemselves) {
  EXPECT_EQ(with_grad_q(alibi::view(grad_q_.data(), {2, 4, 5, 8}, {160, 40, 7, 1})),
            "alibi: grad_q has strides 160, 40, 7 of batch, heads and tokens; expected rows that do not overlap");
  EXPECT_EQ(with_grad_v(alibi::view(grad_v_.data(), {2, 2, 6, 3}, {0, 18, 3, 1})),
            "alibi: grad_v has strides 0, 18, 3 of batch, heads and tokens; expected rows that do not overlap");
}

TEST_F(BackwardErrors, Tables) {
  const auto forward = [&](const alibi::RelativeBias<float>& table) {
    return thrown([&] { alibi::attention(q_, k_, v_, table); });
  };
  EXPECT_EQ(forward(alibi::relative_bias(table_)), "no error");
  const auto expect = [&](const alibi::RelativeBias<float>& table, const std::string& message) {
    EXPECT_EQ(forward(table), message);
    EXPECT_EQ(with_bias(table, std::vector<float>(std::size_t(table.heads * table.entries))), message);
  };
  const Table few = Table::Ones(2, 7);
  expect(alibi::relative_bias(few), "alibi: the table has heads 2; expected 4, the heads of q");
  expect({table_.data(), 4, 0, 7, 0}, "alibi: the table has 0 entries; expected at least 1");
  expect({nullptr, 4, 7, 7, 0}, "alibi: the table is null; expected 4 heads of 7 entries");
  expect(alibi::relative_bias(table_, Index(1) << 62),
         "alibi: the table's first distance is 4611686018427387904; expected within ±2^61");
  table_(3, 2) = std::numeric_limits<float>::quiet_NaN();
  expect(alibi::relative_bias(table_), "alibi: entry 2 of head 3 of the table is nan; expected a finite number");
  table_(1, 6) = -std::numeric_limits<float>::infinity();
  expect(alibi::relative_bias(table_), "alibi: entry 6 of head 1 of the table is -inf; expected a finite number");
}

TEST(RelativeBias, IsAView) {
  const Table table = Table::Ones(4, 7);
  const auto whole = alibi::relative_bias(table, -3);
  EXPECT_EQ(whole.data, table.data());
  EXPECT_EQ(whole.heads, 4);
  EXPECT_EQ(whole.entries, 7);
  EXPECT_EQ(whole.head_stride, 7);
  EXPECT_EQ(whole.first, -3);
  const auto part = alibi::relative_bias(table.rightCols(2));
  EXPECT_EQ(part.data, table.data() + 5);
  EXPECT_EQ(part.entries, 2);
  EXPECT_EQ(part.head_stride, 7);
  const Eigen::RowVectorXf one_head = Eigen::RowVectorXf::Ones(9);
  EXPECT_EQ(alibi::relative_bias(one_head).heads, 1);
  EXPECT_EQ(alibi::relative_bias(one_head).entries, 9);
  const Eigen::Tensor<float, 2, Eigen::RowMajor> tensor(3, 5);
  const Eigen::TensorMap<const Eigen::Tensor<float, 2, Eigen::RowMajor>> map(tensor.data(), 3, 5);
  for (const auto& view : {alibi::relative_bias(tensor), alibi::relative_bias(map)}) {
    static_assert(std::is_same_v<std::remove_cvref_t<decltype(view)>, alibi::RelativeBias<float>>);
    EXPECT_EQ(view.data, tensor.data());
    EXPECT_EQ(view.heads, 3);
    EXPECT_EQ(view.entries, 5);
    EXPECT_EQ(view.head_stride, 5);
  }
}

TEST(RelativeBias, Errors) {
  const auto message = [](const auto& table) {
    try {
      alibi::relative_bias(table);
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(message(Table(4, 0)), "alibi: the table has 0 entries; expected at least 1");
  std::vector<float> memory(40);
  const Eigen::Map<Table, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>> gaps(
      memory.data(), 4, 5, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>(10, 2));
  EXPECT_EQ(message(gaps),
            "alibi: the table is a matrix of inner stride 2; expected 1, the entries of a head side by side");
}

}  // namespace
