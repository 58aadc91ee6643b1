// ResolvedMask against the predicate in the first comment of mask.hpp, key by key.
#include <alibi/mask.hpp>

#include "common.hpp"

namespace {

using alibi::Mask;
using alibi::ResolvedMask;
using test::Index;

bool sees(bool causal, std::optional<Index> window, Index position, Index key) {
  if (causal && key > position) return false;
  return !window || std::abs(position - key) < *window;
}

TEST(Mask, VisibleKeysAreThoseOfThePredicate) {
  const std::vector<std::optional<Index>> windows = {{}, 1, 2, 5, 9, 10, 1000};
  for (const bool causal : {true, false})
    for (const auto& window : windows)
      for (const Index queries : {0, 1, 2, 7, 12})
        for (const Index keys : {0, 1, 3, 9})
          for (Index offset = -15; offset <= 15; offset++) {
            const ResolvedMask mask = alibi::resolve({causal, window, offset}, queries, keys);
            for (Index i = 0; i < queries; i++) {
              const auto [begin, end] = mask.visible(i);
              ASSERT_EQ(mask.position(i), i + offset);
              for (Index j = 0; j < keys; j++)
                ASSERT_EQ(begin <= j && j < end, sees(causal, window, i + offset, j))
                    << "causal " << causal << ", window " << window.value_or(0) << ", query " << i << ", offset "
                    << offset << ", key " << j << ", keys " << keys;
              ASSERT_TRUE(begin >= end || (begin >= 0 && end <= keys)) << "a range within the keys, or empty";
            }
          }
}

TEST(Mask, BothEndsGrowWithTheQuery) {
  for (const bool causal : {true, false})
    for (const Index offset : {-20, 0, 20}) {
      const ResolvedMask mask = alibi::resolve({causal, 4, offset}, 30, 10);
      for (Index i = 1; i < 30; i++) {
        EXPECT_GE(mask.visible(i).begin, mask.visible(i - 1).begin);
        EXPECT_GE(mask.visible(i).end, mask.visible(i - 1).end);
      }
    }
}

TEST(Mask, DefaultPutsTheLastQueryOnTheLastKey) {
  for (const Index queries : {1, 4, 9})
    for (const Index keys : {1, 4, 9}) {
      const ResolvedMask mask = alibi::resolve({}, queries, keys);
      EXPECT_EQ(mask.position(queries - 1), keys - 1);
      EXPECT_EQ(mask.visible(queries - 1).begin, 0);
      EXPECT_EQ(mask.visible(queries - 1).end, keys);
    }
  EXPECT_TRUE(Mask().causal);
}

TEST(Mask, NearestKey) {
  const ResolvedMask mask = alibi::resolve({.query_offset = -2}, 9, 5);
  const std::vector<Index> expected = {0, 0, 0, 1, 2, 3, 4, 4, 4};
  for (Index i = 0; i < 9; i++) EXPECT_EQ(mask.nearest_key(i), expected[std::size_t(i)]);
  EXPECT_EQ(alibi::resolve({.query_offset = 7}, 1, 0).nearest_key(0), 0);
}

// At the limits of the offsets nothing overflows, and a mask without a window still shows every key.
TEST(Mask, FarthestOffsets) {
  const Index far = Index(1) << 61;
  const std::vector<std::optional<Index>> windows = {{}, 5, std::numeric_limits<Index>::max()};
  for (const auto& window : windows)
    for (const bool causal : {true, false})
      for (const Index offset : {-far, far}) {
        const ResolvedMask mask = alibi::resolve({causal, window, offset}, 3, 10);
        const bool nothing = window == 5 || (causal && offset < 0);
        for (Index i = 0; i < 3; i++) {
          const auto [begin, end] = mask.visible(i);
          EXPECT_EQ(std::max<Index>(end - begin, 0), nothing ? 0 : 10)
              << "causal " << causal << ", window " << window.value_or(0) << ", offset " << offset << ", query " << i;
        }
      }
}

std::string message(const Mask& mask) {
  try {
    alibi::resolve(mask, 4, 8);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

TEST(Mask, Errors) {
  EXPECT_EQ(message({.window = 0}), "alibi: mask.window is 0; expected at least 1, the query's own position");
  EXPECT_EQ(message({.window = -7}), "alibi: mask.window is -7; expected at least 1, the query's own position");
  EXPECT_EQ(message({.query_offset = (Index(1) << 61) + 1}),
            "alibi: mask.query_offset is 2305843009213693953; expected within ±2^61");
  EXPECT_EQ(message({.query_offset = std::numeric_limits<Index>::min()}),
            "alibi: mask.query_offset is -9223372036854775808; expected within ±2^61");
  EXPECT_EQ(message({.window = 1, .query_offset = -(Index(1) << 61)}), "no error");
}

}  // namespace
