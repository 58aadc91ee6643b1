// Gradients of varlen and padded batches. Every sequence gives the same bits as a call of its own. The gradients of
// padding are 0, and its memory is never read.
#include <alibi/varlen.hpp>

#include "backward_case.hpp"

namespace {

using alibi::KeyRange, alibi::Options;
using test::Case;
using test::Index;
using test::RowMatrix;
using test::same;
using test::Tensor3;
using test::Tensor4;

// Tokens [begin, end) of entry b of the batch.
template <class T>
Tensor4<T> tokens_of(const Tensor4<T>& x, Index b, const KeyRange& range) {
  Tensor4<T> part(1, x.dimension(1), range.end - range.begin, x.dimension(3));
  for (Index h = 0; h < x.dimension(1) && range.begin < range.end; h++)
    std::copy_n(&x(b, h, range.begin, 0), part.dimension(2) * x.dimension(3), &part(0, h, 0, 0));
  return part;
}

template <class T>
class BackwardVarlen : public testing::Test {
 protected:
  test::Random random_{35};
  const std::vector<Index> offsets_ = {0, 3, 5, -10, 60, 0, -400}, prefixes_ = {60, 0, 2, 30, 200, 90, 0};
  const std::vector<Options> options_ = {
      {},
      {.mask = {.causal = false}},
      {.mask = {.window = 20}, .tolerance = 0},
      {.mask = {.query_offset = 3}},
      {.mask = {.window = 20, .prefix = 90, .sinks = 7}},
      {.mask = {.window = 40, .sinks = 3}, .query_offsets = offsets_, .prefixes = prefixes_}};

  // [tokens, heads, dim]
  static Tensor3<T> varlen_tensor(const std::vector<Tensor4<T>>& sequences) {
    Index tokens = 0;
    for (const auto& x : sequences) tokens += x.dimension(2);
    Tensor3<T> all(tokens, sequences[0].dimension(1), sequences[0].dimension(3));
    Index at = 0;
    for (const auto& x : sequences)
      for (Index i = 0; i < x.dimension(2); i++, at++)
        for (Index h = 0; h < x.dimension(1); h++) std::copy_n(&x(0, h, i, 0), x.dimension(3), &all(at, h, 0));
    return all;
  }

  // The options of a call for one sequence.
  static Options of_sequence(Options options, std::size_t s) {
    if (!options.query_offsets.empty()) options.mask.query_offset = options.query_offsets[s];
    if (!options.prefixes.empty()) options.mask.prefix = options.prefixes[s];
    options.query_offsets = options.prefixes = {};
    return options;
  }

  // An array [batch, heads, tokens, dim] that is NaN outside the ranges.
  Tensor4<T> padded(Index heads, Index tokens, Index dim, const std::vector<KeyRange>& ranges) {
    Tensor4<T> x(Index(ranges.size()), heads, tokens, dim);
    x.setConstant(std::numeric_limits<T>::quiet_NaN());
    for (Index b = 0; b < x.dimension(0); b++)
      for (Index h = 0; h < heads; h++)
        for (Index i = ranges[std::size_t(b)].begin; i < ranges[std::size_t(b)].end; i++)
          for (Index d = 0; d < dim; d++) x(b, h, i, d) = T(random_.normal());
    return x;
  }

  // Expects that entry b of x is `part` in the range and 0 outside it.
  static void expect_part(const Tensor4<T>& x, Index b, const KeyRange& range, const Tensor4<T>& part,
                          const char* name) {
    Index different = 0;
    for (Index h = 0; h < x.dimension(1); h++)
      for (Index i = 0; i < x.dimension(2); i++)
        for (Index d = 0; d < x.dimension(3); d++) {
          const bool in = range.begin <= i && i < range.end;
          different += !(x(b, h, i, d) == (in ? part(0, h, i - range.begin, d) : T(0)));
        }
    EXPECT_EQ(different, 0) << name << " of entry " << b;
  }
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(BackwardVarlen, Scalars);

TYPED_TEST(BackwardVarlen, SequencesAreCallsOfTheirOwn) {
  using T = TypeParam;
  const std::vector<Index> lengths = {70, 0, 1, 64, 300, 65, 0};
  std::vector<Index> cu_seqlens = {0};
  std::vector<Case<T>> cases;
  std::vector<Tensor4<T>> q, k, v, grad_output;
  for (const Index length : lengths) {
    cu_seqlens.push_back(cu_seqlens.back() + length);
    const Case<T>& one = cases.emplace_back(this->random_, 1, 2, 2, length, 24, 20);
    q.push_back(one.q), k.push_back(one.k), v.push_back(one.v), grad_output.push_back(one.grad_output);
  }
  const auto all_q = this->varlen_tensor(q), all_k = this->varlen_tensor(k), all_v = this->varlen_tensor(v);
  RowMatrix<T> m = this->random_.template matrix<T>(Index(lengths.size()), 4, 0.3).cwiseAbs();
  m.row(4) *= -1;  // its lse is so large that it is recomputed
  for (const Options& options : this->options_) {
    const auto forward = alibi::attention_varlen_with_lse(all_q, all_k, all_v, m, {cu_seqlens}, options);
    test::Tensor2<T> grad_lse(4, all_q.dimension(0));  // [heads, tokens]
    this->random_.fill(grad_lse);
    const auto grad = alibi::attention_varlen_backward(alibi::ForwardResult{this->varlen_tensor(grad_output), grad_lse},
                                                       all_q, all_k, all_v, m, {cu_seqlens}, forward, options);
    std::vector<Tensor4<T>> grad_q, grad_k, grad_v;
    for (std::size_t s = 0; s < lengths.size(); s++) {
      std::vector<T> own_lse;
      for (Index h = 0; h < 4; h++)
        for (Index i = cu_seqlens[s]; i < cu_seqlens[s + 1]; i++) own_lse.push_back(grad_lse(h, i));
      const auto own = cases[s].backward(test::Vector<T>(m.row(Index(s))), this->of_sequence(options, s), own_lse);
      grad_q.push_back(own.q), grad_k.push_back(own.k), grad_v.push_back(own.v);
      for (Index h = 0; h < 4; h++) EXPECT_EQ(grad.slopes(Index(s), h), own.slopes[h]) << "sequence " << s;
    }
    EXPECT_TRUE(same(grad.q, this->varlen_tensor(grad_q)));
    EXPECT_TRUE(same(grad.k, this->varlen_tensor(grad_k)));
    EXPECT_TRUE(same(grad.v, this->varlen_tensor(grad_v)));
  }
}

TYPED_TEST(BackwardVarlen, PaddedBatchesAreCallsOfTheirOwn) {
  using T = TypeParam;
  constexpr Index kTokens = 260;
  const std::vector<KeyRange> ranges = {{10, 250}, {63, 65}, {260, 260}, {0, 100}, {61, 260}, {0, 260}};
  const auto q = this->padded(4, kTokens, 24, ranges), k = this->padded(2, kTokens, 24, ranges),
             v = this->padded(2, kTokens, 20, ranges), grad_output = this->padded(4, kTokens, 20, ranges);
  RowMatrix<T> m = this->random_.template matrix<T>(Index(ranges.size()), 4, 0.3).cwiseAbs();
  m.row(4) *= -1;
  for (const Options& options : this->options_) {
    Options padded = options;
    padded.queries = padded.keys = ranges;
    if (!options.prefixes.empty()) padded.query_offsets = padded.query_offsets.first(ranges.size());
    if (!options.prefixes.empty()) padded.prefixes = padded.prefixes.first(ranges.size());
    Tensor3<T> grad_lse(Index(ranges.size()), 4, kTokens);
    this->random_.fill(grad_lse);
    const auto forward = alibi::attention_with_lse(q, k, v, m, padded);
    const auto grad =
        alibi::attention_backward(alibi::ForwardResult{grad_output, grad_lse}, q, k, v, m, forward, padded);
    for (Index b = 0; b < Index(ranges.size()); b++) {
      const KeyRange range = ranges[std::size_t(b)];
      Case<T> one(this->random_, 1, 2, 2, 0, 24, 20);
      one.q = tokens_of(q, b, range), one.k = tokens_of(k, b, range), one.v = tokens_of(v, b, range);
      one.grad_output = tokens_of(grad_output, b, range);
      std::vector<T> own_lse;
      for (Index h = 0; h < 4; h++)
        for (Index i = range.begin; i < range.end; i++) own_lse.push_back(grad_lse(b, h, i));
      const auto own = one.backward(test::Vector<T>(m.row(b)), this->of_sequence(options, std::size_t(b)), own_lse);
      this->expect_part(grad.q, b, range, own.q, "dq");
      this->expect_part(grad.k, b, range, own.k, "dk");
      this->expect_part(grad.v, b, range, own.v, "dv");
      for (Index h = 0; h < 4; h++) EXPECT_EQ(grad.slopes(b, h), own.slopes[h]) << "entry " << b;
    }
  }
}

}  // namespace
