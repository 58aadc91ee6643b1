// ResolvedMask against the predicate in the first comment of mask.hpp, key by key.
#include <alibi/mask.hpp>

#include "common.hpp"

namespace {

using alibi::Mask;
using alibi::ResolvedMask;
using test::Index;

bool sees(const Mask& mask, Index position, Index key) {
  if (mask.causal && key > position && key >= mask.prefix) return false;
  return !mask.window || std::abs(position - key) < *mask.window || key < mask.sinks.value_or(0);
}

/// Calls body() with masks of every kind.
template <class Body>
void for_each_mask(const Body& body) {
  const std::vector<std::optional<Index>> windows = {{}, 1, 2, 5, 9, 1000}, all_sinks = {{}, 0, 1, 4, 30};
  for (const bool causal : {true, false})
    for (const auto& window : windows)
      for (const Index prefix : {0, 1, 4, 30})
        for (const auto& sinks : all_sinks)
          if (causal || prefix == 0) body(Mask{causal, window, {}, prefix, sinks});
}

TEST(Mask, VisibleKeysAreThoseOfThePredicate) {
  for_each_mask([](Mask of) {
    for (const Index queries : {0, 1, 7, 12})
      for (const Index keys : {0, 1, 3, 9})
        for (Index offset = -15; offset <= 15; offset++) {
          of.query_offset = offset;
          const ResolvedMask mask = alibi::resolve(of, queries, keys);
          for (Index i = 0; i < queries; i++) {
            const auto [begin, end] = mask.visible(i);
            const Index sinks = mask.visible_sinks(i).end;
            ASSERT_EQ(mask.position(i), i + offset);
            Index nearest = std::numeric_limits<Index>::max(), farthest = 0;
            for (Index j = 0; j < keys; j++) {
              const bool seen = sees(of, i + offset, j);
              ASSERT_EQ(begin <= j && j < end, seen && j >= sinks)
                  << "causal " << of.causal << ", window " << of.window.value_or(0) << ", prefix " << of.prefix
                  << ", sinks " << of.sinks.value_or(0) << ", query " << i << ", offset " << offset << ", key " << j
                  << ", keys " << keys;
              ASSERT_TRUE(seen || j >= sinks);
              if (seen) nearest = std::min(nearest, std::abs(i + offset - j));
              if (seen) farthest = std::max(farthest, std::abs(i + offset - j));
              ASSERT_TRUE(!seen || j <= i + offset || mask.sees_ahead(i));
            }
            ASSERT_TRUE(begin >= end || (begin >= 0 && end <= keys)) << "a range within the keys, or empty";
            ASSERT_TRUE(0 <= sinks && sinks <= keys && (begin >= end || sinks <= begin));
            const auto [first, last] = mask.queries_that_see(queries);
            ASSERT_TRUE(begin >= end || (first <= i && i < last));
            if (nearest == std::numeric_limits<Index>::max()) continue;
            ASSERT_TRUE(first <= i && i < last);
            ASSERT_EQ(mask.common_distance(i, 1), nearest);
            ASSERT_EQ(mask.common_distance(i, 0), nearest);
            ASSERT_EQ(mask.common_distance(i, -1), farthest);
          }
        }
  });
}

TEST(Mask, AllEndsGrowWithTheQuery) {
  for_each_mask([](Mask of) {
    for (const Index offset : {-20, 0, 20}) {
      of.query_offset = offset;
      const ResolvedMask mask = alibi::resolve(of, 30, 10);
      for (Index i = 1; i < 30; i++) {
        EXPECT_GE(mask.visible(i).begin, mask.visible(i - 1).begin);
        EXPECT_GE(mask.visible(i).end, mask.visible(i - 1).end);
        EXPECT_GE(mask.visible_sinks(i).end, mask.visible_sinks(i - 1).end);
        EXPECT_LE(mask.sees_ahead(i), mask.sees_ahead(i - 1));
      }
    }
  });
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
  EXPECT_EQ(message({.prefix = -1}), "alibi: mask.prefix is -1; expected 0 or more");
  EXPECT_EQ(message({.causal = false, .prefix = 3}),
            "alibi: mask.prefix is 3 of a bidirectional mask; expected 0, or a causal mask");
  EXPECT_EQ(message({.sinks = -4}), "alibi: mask.sinks is -4; expected 0 or more");
  constexpr Index kMost = std::numeric_limits<Index>::max();
  EXPECT_EQ(message({.window = kMost, .query_offset = -(Index(1) << 61), .prefix = kMost, .sinks = kMost}), "no error");
}

}  // namespace
