// The allocations of attention: none after the first call with a workspace, whose size hardly grows with the tokens.
#include "common.hpp"

namespace {

using heap::allocations_of;
using test::Index;

TEST(Allocation, IsCounted) {
  EXPECT_EQ(allocations_of([] { ::operator delete(::operator new(4)); }), 1u);
  EXPECT_EQ(allocations_of([] { ::operator delete[](::operator new[](4)); }), 1u);
  EXPECT_EQ(allocations_of([] {
              alibi::Workspace workspace;
              alibi::detail::scratch_memory(workspace, 100);
            }),
            1u);
  EXPECT_THROW(allocations_of([] { Eigen::VectorXf x(100); }), std::logic_error);
  Eigen::internal::set_is_malloc_allowed(true);
}

// One head of `queries` and `keys`, with queries, keys and values of `head_dim`. The test owns the memory.
template <class T>
struct Call {
  test::RowMatrix<T> q, k, v, output;
  std::vector<T> lse;
  T slope = T(0.5);

  Call(Index queries, Index keys, Index head_dim)
      : q(test::RowMatrix<T>::Ones(queries, head_dim)),
        k(test::RowMatrix<T>::Ones(keys, head_dim)),
        v(test::RowMatrix<T>::Ones(keys, head_dim)),
        output(queries, head_dim),
        lse(std::size_t(queries)) {}
  void run(alibi::Workspace& workspace, const alibi::Mask& mask = {}) {
    alibi::attention_with_lse_into(output, lse, q, k, v, slope, {.mask = mask, .workspace = &workspace});
    alibi::attention_into(output, q, k, v, slope, {.mask = mask, .workspace = &workspace});
  }
};

template <class T>
class Allocation : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(Allocation, Scalars);

TYPED_TEST(Allocation, NoneAfterTheFirstCall) {
  for (const alibi::Mask& mask : {alibi::Mask{}, {.causal = false}, {.window = 30}}) {
    Call<TypeParam> call(200, 300, 40), smaller(3, 70, 40);
    alibi::Workspace workspace;
    EXPECT_GE(allocations_of([&] { call.run(workspace, mask); }), 1u) << "the first call warms it";
    EXPECT_EQ(allocations_of([&] { call.run(workspace, mask); }), 0u);
    EXPECT_EQ(allocations_of([&] { smaller.run(workspace, mask); }), 0u);
  }
}

// A table over a cache, by splits of the keys and by blocks of queries; and sequences of one token.
TYPED_TEST(Allocation, NoneOverACacheAndForOneToken) {
  using T = TypeParam;
  const test::RowMatrix<T> table = test::RowMatrix<T>::Ones(1, 50);
  alibi::KvCache<T> cache({.head_dim = 40, .capacity = 300});
  Call<T> few(3, 300, 40), many(200, 300, 40);
  cache.append(few.k, few.v);
  const std::vector<Index> cu_seqlens = {0, 1, 2, 3};
  const auto view = [](test::RowMatrix<T>& x) { return alibi::view(x.data(), {1, 1, 3, 40}, {0, 0, 40, 1}); };
  alibi::Workspace workspace;
  const auto run = [&] {
    for (Call<T>* call : {&few, &many})
      alibi::attention_into(call->output, call->q, cache, alibi::relative_bias(table), {.workspace = &workspace});
    alibi::attention_varlen_into(view(few.output), view(few.q), view(few.q), view(few.q), few.slope, {cu_seqlens},
                                 {.workspace = &workspace});
  };
  EXPECT_GE(allocations_of(run), 1u) << "the first call warms it";
  EXPECT_EQ(allocations_of(run), 0u);
}

// One head whose tolerance is so small that its keys are measured. The window keeps the call cheap.
template <class T>
std::size_t workspace_size(Index queries, Index keys, Index head_dim) {
  alibi::Workspace workspace;
  Call<T>(queries, keys, head_dim).run(workspace, {.window = 100});
  return workspace.size();
}

// Besides the scratch of its tasks, the workspace holds a few numbers for each tile of keys and a list entry for each
// task.
TYPED_TEST(Allocation, TheWorkspaceHardlyGrowsWithTheTokens) {
  const auto kilobytes = [](Index n) { return double(workspace_size<TypeParam>(n, n, 64)) / 1000; };
  const double small = kilobytes(20'000), large = kilobytes(80'000);
  EXPECT_LE(large - small, 80) << "about 1.1 bytes a token with the smallest blocks of queries";
  EXPECT_LE(workspace_size<TypeParam>(1, 20'000, 64), workspace_size<TypeParam>(20'000, 20'000, 64));
}

TYPED_TEST(Allocation, TheWorkspaceIsAtMostOneMebibyte) {
  for (const Index head_dim : {64, 128, 256}) {
    const std::size_t bytes = workspace_size<TypeParam>(20'000, 20'000, head_dim);
    std::cout << "head_dim " << head_dim << ": " << bytes << " bytes\n";
    EXPECT_LE(bytes, std::size_t(1) << 20) << "head_dim " << head_dim;
  }
}

TEST(Workspace, IsEmptyAfterAMove) {
  alibi::Workspace a;
  alibi::detail::scratch_memory(a, 100);
  alibi::Workspace b = std::move(a);
  EXPECT_EQ(b.size(), 100u);
  EXPECT_EQ(a.size(), 0u);  // NOLINT(bugprone-use-after-move): its state is specified
  EXPECT_NE(alibi::detail::scratch_memory(a, 50), nullptr);
  b = alibi::Workspace();
  EXPECT_EQ(b.size(), 0u);
}

}  // namespace
