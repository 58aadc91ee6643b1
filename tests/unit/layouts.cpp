// The named views: every element is where the layout says, and attention over the views equals attention over copies.
#include <alibi/layouts.hpp>

#include "common.hpp"

namespace {

using alibi::LayoutSizes;
using alibi::QkvViews;
using alibi::View;
using test::Index;

// The offset of element (b, h, t, d) of a view in the array.
Index place(const View<float>& x, const float* array, Index b, Index h, Index t, Index d) {
  return x.data + b * x.batch_stride + h * x.head_stride + t * x.token_stride + d - array;
}

constexpr Index kBatch = 2, kTokens = 5, kHeads = 6, kHeadDim = 3;

template <class Expected>
void expect_places(const View<float>& x, const float* array, Index heads, const Expected& expected) {
  EXPECT_EQ(x.heads, heads);
  EXPECT_EQ(x.tokens, kTokens);
  EXPECT_EQ(x.head_dim, kHeadDim);
  for (Index b = 0; b < x.batch; b++)
    for (Index h = 0; h < heads; h++)
      for (Index t = 0; t < kTokens; t++)
        for (Index d = 0; d < kHeadDim; d++) ASSERT_EQ(place(x, array, b, h, t, d), expected(b, h, t) * kHeadDim + d);
}

TEST(Layouts, Bshd) {
  std::vector<float> x(kBatch * kTokens * kHeads * kHeadDim);
  const auto view =
      alibi::view_bshd(x.data(), {.batch = kBatch, .tokens = kTokens, .heads = kHeads, .head_dim = kHeadDim});
  EXPECT_EQ(view.batch, kBatch);
  expect_places(view, x.data(), kHeads, [](Index b, Index h, Index t) { return (b * kTokens + t) * kHeads + h; });
}

TEST(Layouts, Bs3hd) {
  std::vector<float> x(kBatch * kTokens * 3 * kHeads * kHeadDim);
  for (const Index kv_heads : {kHeads, Index(2), Index(1)}) {
    const LayoutSizes sizes{
        .batch = kBatch, .tokens = kTokens, .heads = kHeads, .head_dim = kHeadDim, .kv_heads = kv_heads};
    const auto [q, k, v] = alibi::view_bs3hd(x.data(), sizes);
    const Index all = kHeads + 2 * kv_heads;
    const auto from = [all](Index first) {
      return [all, first](Index b, Index h, Index t) { return (b * kTokens + t) * all + first + h; };
    };
    expect_places(q, x.data(), kHeads, from(0));
    expect_places(k, x.data(), kv_heads, from(kHeads));
    expect_places(v, x.data(), kv_heads, from(kHeads + kv_heads));
  }
}

TEST(Layouts, Bsh3d) {
  std::vector<float> x(kBatch * kTokens * 3 * kHeads * kHeadDim);
  const LayoutSizes sizes{.batch = kBatch, .tokens = kTokens, .heads = kHeads, .head_dim = kHeadDim};
  const auto [q, k, v] = alibi::view_bsh3d(x.data(), sizes);
  const auto which = [](Index i) {
    return [i](Index b, Index h, Index t) { return ((b * kTokens + t) * kHeads + h) * 3 + i; };
  };
  expect_places(q, x.data(), kHeads, which(0));
  expect_places(k, x.data(), kHeads, which(1));
  expect_places(v, x.data(), kHeads, which(2));
}

TEST(Layouts, Bsh3dGrouped) {
  constexpr Index kKvHeads = 2, kGroup = kHeads / kKvHeads;
  std::vector<float> x(kBatch * kTokens * kKvHeads * (kGroup + 2) * kHeadDim);
  const LayoutSizes sizes{
      .batch = kBatch, .tokens = kTokens, .heads = kHeads, .head_dim = kHeadDim, .kv_heads = kKvHeads};
  for (Index entry = 0; entry < kBatch; entry++) {
    const auto [q, k, v] = alibi::view_bsh3d_grouped(x.data(), sizes, entry);
    EXPECT_EQ(q.batch, kKvHeads);
    const auto from = [entry](Index first) {
      return [entry, first](Index kv, Index h, Index t) {
        return ((entry * kTokens + t) * kKvHeads + kv) * (kGroup + 2) + first + h;
      };
    };
    expect_places(q, x.data(), kGroup, from(0));
    expect_places(k, x.data(), 1, from(kGroup));
    expect_places(v, x.data(), 1, from(kGroup + 1));
  }
}

// BLOOM's fused projection, read in place, against copies of its three parts.
TEST(Layouts, AttentionOverAFusedProjection) {
  test::Random random{1};
  const auto fused = random.tensor<float>(kBatch, 70, 4 * 3, 8);
  const LayoutSizes sizes{.batch = kBatch, .tokens = 70, .heads = 4, .head_dim = 8};
  const auto [q, k, v] = alibi::view_bsh3d(fused.data(), sizes);
  std::vector<float> output(std::size_t(kBatch * 70 * 4 * 8));
  alibi::attention_into(alibi::view_bshd(output.data(), sizes), q, k, v, alibi::slopes(4));
  const auto copy = [](const View<const float>& x) {
    test::Tensor4<float> y(x.batch, x.heads, x.tokens, x.head_dim);
    for (Index b = 0; b < x.batch; b++)
      for (Index h = 0; h < x.heads; h++)
        for (Index t = 0; t < x.tokens; t++)
          std::copy_n(x.data + b * x.batch_stride + h * x.head_stride + t * x.token_stride, x.head_dim, &y(b, h, t, 0));
    return y;
  };
  const test::Tensor4<float> expected = alibi::attention(copy(q), copy(k), copy(v), alibi::slopes(4));
  for (Index b = 0; b < kBatch; b++)
    for (Index h = 0; h < 4; h++)
      for (Index t = 0; t < 70; t++)
        for (Index d = 0; d < 8; d++)
          ASSERT_EQ(output[std::size_t(((b * 70 + t) * 4 + h) * 8 + d)], expected(b, h, t, d));
}

TEST(Layouts, Errors) {
  float x = 0;
  const auto error = [](const auto& call) -> std::string {
    try {
      call();
    } catch (const std::invalid_argument& thrown) {
      return thrown.what();
    }
    return "no error";
  };
  EXPECT_EQ(error([&] { alibi::view_bshd(&x, {.tokens = -1, .heads = 1, .head_dim = 1}); }),
            "alibi: the sizes of the layout are batch 1, tokens -1, heads 1, head_dim 1, kv_heads 1; expected none "
            "below 0");
  EXPECT_EQ(alibi::view_bs3hd<float>(nullptr, {.tokens = 1, .heads = 4, .head_dim = 8}).v.data, nullptr);
  EXPECT_THROW(alibi::view_bshd(&x, {.batch = Index(1) << 40, .tokens = Index(1) << 20, .heads = 4, .head_dim = 8}),
               std::invalid_argument)
      << "sizes whose product overflows";
  EXPECT_EQ(error([&] { alibi::view_bs3hd(&x, {.tokens = -1, .heads = 1, .head_dim = 1}); }),
            "alibi: the sizes of the layout are batch 1, tokens -1, heads 1, head_dim 1, kv_heads 1; expected none "
            "below 0");
  EXPECT_EQ(error([&] { alibi::view_bs3hd(&x, {.tokens = 1, .heads = 4, .head_dim = 1, .kv_heads = 3}); }),
            "alibi: heads is 4; expected a multiple of 3, the kv_heads");
  EXPECT_EQ(error([&] { alibi::view_bsh3d(&x, {.tokens = 1, .heads = 4, .head_dim = 1, .kv_heads = 2}); }),
            "alibi: kv_heads is 2; expected 4, the heads: for grouped heads use view_bsh3d_grouped()");
  EXPECT_EQ(error([&] { alibi::view_bsh3d_grouped(&x, {.tokens = 1, .heads = 4, .head_dim = 1, .kv_heads = 2}, 1); }),
            "alibi: entry is 1; expected 0 to 0");
}

}  // namespace
