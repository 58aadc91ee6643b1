// The storage of a cache: what kernels find there after any history, which keys leave and that no visible key does, its
// memory, and its errors.
#include <alibi/kv_cache.hpp>
#include <array>
#include <functional>
#include <new>

#include "cache_state.hpp"
#include "common.hpp"
#include "counted_heap.hpp"

namespace {

using alibi::KvCache;
using alibi::KvCacheConfig;
using heap::allocations;
using heap::allocations_left;
using test::head_of;
using test::Index;
using test::state;
using test::Tensor4;

constexpr Index kTile = alibi::kernel::kTile;

using Real = long double;

// The tokens that are appended to a cache, which determine what each of its sequences should hold.
template <class S, class X>
class Script {
 public:
  Script(test::Random& random, const KvCacheConfig& config, Index tokens)
      : k(random.tensor<X>(config.batch, config.kv_heads, tokens, config.head_dim)),
        v(random.tensor<X>(config.batch, config.kv_heads, tokens,
                           config.value_dim ? config.value_dim : config.head_dim)) {}

  // Tokens [begin, end) of every sequence.
  alibi::View<const X> keys(Index begin, Index end) const { return part(k, begin, end); }
  alibi::View<const X> values(Index begin, Index end) const { return part(v, begin, end); }

  // Expects that a head holds tokens [first_key(), length()), that zeros follow them, and that its key tile bounds
  // hold.
  void expect_in(const KvCache<S>& cache, Index b, Index h) const {
    const auto head = head_of(cache, b, h);
    const Index head_dim = k.dimension(3), value_dim = v.dimension(3);
    ASSERT_EQ(head.length, cache.length(b));
    ASSERT_EQ(head.begin, cache.first_key(b, h));
    ASSERT_EQ(head.begin, head.first_tile * kTile);
    ASSERT_EQ(head.value_offset, head_dim * kTile);
    ASSERT_EQ(head.key_bounds.first, head.first_tile);
    ASSERT_EQ(head.first_tile + head.key_bounds.tiles, (head.length + kTile - 1) / kTile);
    using Bytes = std::array<std::byte, sizeof(S)>;
    Index wrong = 0;
    for (Index t = 0; t < head.key_bounds.tiles; t++) {
      const S* tile = head.tile(head.first_tile + t);
      ASSERT_EQ(reinterpret_cast<std::uintptr_t>(tile) % 64, 0u);
      for (Index slot = 0; slot < kTile; slot++) {
        const Index j = head.begin + t * kTile + slot;
        const auto same = [&](S stored, const Tensor4<X>& x, Index d) {
          const S expected = j < head.length ? S(x(b, h, j, d)) : S(0);
          return std::bit_cast<Bytes>(stored) == std::bit_cast<Bytes>(expected);
        };
        for (Index d = 0; d < head_dim; d++) wrong += !same(tile[d * kTile + slot], k, d);
        for (Index d = 0; d < value_dim; d++) wrong += !same(tile[head.value_offset + slot * value_dim + d], v, d);
      }
    }
    for (Index t = 0; t < head.key_bounds.tiles; t++)
      for (Index i = 0; i < Index(64 / sizeof(S)); i++)
        wrong += !(head.tile(head.first_tile + t)[head.value_offset + kTile * value_dim + i] ==
                   S(0));  // kernels may read these too
    EXPECT_EQ(wrong, 0) << "wrong numbers in head " << h << " of sequence " << b;
    expect_key_bounds(head, head_dim);
  }
  void expect_in(const KvCache<S>& cache) const {
    for (Index b = 0; b < k.dimension(0); b++)
      for (Index h = 0; h < k.dimension(1); h++) expect_in(cache, b, h);
  }

  Tensor4<X> k, v;

 private:
  static alibi::View<const X> part(const Tensor4<X>& x, Index begin, Index end) {
    const Index heads = x.dimension(1), tokens = x.dimension(2), dim = x.dimension(3);
    return alibi::view(x.data() + begin * dim, {x.dimension(0), heads, end - begin, dim},
                       {heads * tokens * dim, tokens * dim, dim, 1});
  }

  template <class Cached>
  static void expect_key_bounds(const Cached& head, Index head_dim) {
    const auto& key_bounds = head.key_bounds;
    const auto norm = [&](auto of) {
      Real square = 0;
      for (Index d = 0; d < head_dim; d++) square += of(d) * of(d);
      return std::sqrt(square);
    };
    EXPECT_GE(Real(key_bounds.center_norm), norm([&](Index d) { return Real(key_bounds.center[d]); }));
    EXPECT_EQ(key_bounds.suffix_max, nullptr);
    EXPECT_EQ(key_bounds.log_mass, nullptr);
    for (Index d = 0; d < head_dim; d++) {
      const double c = double(key_bounds.center[d]);
      EXPECT_EQ(c, double(S(key_bounds.center[d]))) << "kernels multiply with it";
      EXPECT_TRUE(std::isfinite(c));
    }
    double largest = 0;
    Index next_outlier = 0;
    for (Index t = 0; t < key_bounds.tiles; t++) {
      const Index keys = std::min(kTile, head.length - head.begin - t * kTile);
      for (Index slot = 0; slot < keys; slot++) {
        const Real distance = norm([&](Index d) {
          return Real(head.tile(head.first_tile + t)[d * kTile + slot]) - Real(key_bounds.center[d]);
        });
        if (std::isfinite(distance)) {
          EXPECT_GE(Real(key_bounds.radius[t]), distance);
          EXPECT_LE(Real(key_bounds.radius[t]), key_bounds.largest);
        } else {
          EXPECT_EQ(double(key_bounds.radius[t]), test::kInfinity);
        }
      }
      const Index tile = head.first_tile + t;
      if (next_outlier < key_bounds.outlier_count && key_bounds.outliers[next_outlier] == tile)
        next_outlier++;
      else
        largest = std::max(largest, double(key_bounds.radius[t]));
      EXPECT_EQ(double(key_bounds.prefix_max[t]), largest) << "tile " << tile;
      if (tile == 0) {
        EXPECT_EQ(next_outlier, 1) << "the first tile is an outlier";
      }
    }
    EXPECT_EQ(next_outlier, key_bounds.outlier_count) << "outlier tiles are held, in ascending order";
  }
};

template <class S>
using Accumulate = typename KvCache<S>::Accumulate;

// Appends tokens [begin, end) in chunks of random size.
template <class S, class X>
void append_in_chunks(KvCache<S>& cache, const Script<S, X>& script, Index begin, Index end, test::Random& random) {
  while (begin < end) {
    const Index next = std::min(end, begin + random.integer(1, random.chance(0.5) ? 3 : 150));
    cache.append(script.keys(begin, next), script.values(begin, next));
    begin = next;
  }
}

constexpr Index kTokens = 300;
const KvCacheConfig kConfig{.batch = 2, .kv_heads = 3, .head_dim = 5, .value_dim = 7, .capacity = kTokens};

template <class S>
class Storage : public testing::Test {
 protected:
  test::Random random_{1};
  Script<S, Accumulate<S>> script_{random_, kConfig, kTokens};
};
using Stored = testing::Types<float, double, Eigen::bfloat16, Eigen::half>;
TYPED_TEST_SUITE(Storage, Stored);

TYPED_TEST(Storage, HoldsWhatWasAppended) {
  KvCache<TypeParam> cache(kConfig);
  EXPECT_EQ(cache.length(), 0);
  EXPECT_EQ(cache.config().value_dim, 7);
  this->script_.expect_in(cache);
  for (const Index end : {1, 2, 63, 64, 65, 128, 200, 300}) {
    cache.append(this->script_.keys(cache.length(), end), this->script_.values(cache.length(), end));
    EXPECT_EQ(cache.length(0), end);
    EXPECT_EQ(cache.length(1), end);
    EXPECT_EQ(cache.min_length(), 0);
    this->script_.expect_in(cache);
  }
}

// The contents of the cache, including its key tile bounds, do not depend on the chunks.
TYPED_TEST(Storage, SingleAppendsEqualOneAppend) {
  KvCache<TypeParam> whole(kConfig), single(kConfig), chunked(kConfig);
  for (Index i = 0; i < kTokens; i++) {
    single.append(this->script_.keys(i, i + 1), this->script_.values(i, i + 1));
    if (i == 40) {
      KvCache<TypeParam> some(kConfig);
      some.append(this->script_.keys(0, 41), this->script_.values(0, 41));
      EXPECT_TRUE(state(some) == state(single));
    }
  }
  append_in_chunks(chunked, this->script_, 0, kTokens, this->random_);
  whole.append(this->script_.k, this->script_.v);
  EXPECT_TRUE(state(single) == state(whole));
  EXPECT_TRUE(state(chunked) == state(whole));
}

TYPED_TEST(Storage, TruncateEqualsNeverAppended) {
  KvCache<TypeParam> cache(kConfig);
  for (int i = 0; i < 40; i++) {
    append_in_chunks(cache, this->script_, cache.length(), this->random_.integer(cache.length(), kTokens),
                     this->random_);
    const Index length = this->random_.integer(0, cache.length());
    cache.truncate(length);
    this->script_.expect_in(cache);
    KvCache<TypeParam> fresh(kConfig);
    fresh.append(this->script_.keys(0, length), this->script_.values(0, length));
    EXPECT_TRUE(state(cache) == state(fresh)) << "of length " << length;
  }
}

// Tiles of radius 1, 1, 1.4, 1.7: only the first tile is an outlier. With 1.6 instead of 1.4, that tile is an outlier
// too.
TYPED_TEST(Storage, TruncateForgetsOutlierTiles) {
  const KvCacheConfig config{.head_dim = 1, .capacity = kTokens};
  Script<TypeParam, Accumulate<TypeParam>> first(this->random_, config, kTokens), second = first;
  const auto fill = [](auto& script, double third) {
    const std::array radius{1., 1., third, 1.7, 1.};
    for (Index i = 0; i < kTokens; i++)
      script.k(0, 0, i, 0) = Accumulate<TypeParam>(radius[std::size_t(i / kTile)] * (i % 2 ? 1 : -1));
  };
  fill(first, 1.4);
  fill(second, 1.6);
  KvCache<TypeParam> cache(config), fresh(config);
  cache.append(first.k, first.v);
  EXPECT_EQ(head_of(cache, 0, 0).key_bounds.outlier_count, 1);
  cache.truncate(2 * kTile);
  for (KvCache<TypeParam>* each : {&fresh, &cache})
    each->append(second.keys(each->length(), kTokens), first.values(each->length(), kTokens));
  EXPECT_TRUE(state(cache) == state(fresh));
  ASSERT_GE(head_of(cache, 0, 0).key_bounds.outlier_count, 2);
  EXPECT_EQ(head_of(cache, 0, 0).key_bounds.outliers[1], 2);
}

TYPED_TEST(Storage, SequencesOfDifferentLengths) {
  KvCache<TypeParam> cache(kConfig);
  const std::vector<std::array<Index, 2>> steps{{0, 70}, {64, 0}, {1, 1}, {0, 0}, {100, 3}};
  Script<TypeParam, Accumulate<TypeParam>> expected = this->script_;
  std::array<Index, 2> length{};
  for (const auto& counts : steps) {
    // The sequences have different lengths, so the next tokens of each are copied to the front.
    auto given = this->script_;
    for (Index b = 0; b < 2; b++)
      for (Index h = 0; h < 3; h++)
        for (Index i = 0; i < counts[std::size_t(b)]; i++) {
          const Index at = length[std::size_t(b)] + i;
          for (Index d = 0; d < 5; d++) given.k(b, h, i, d) = this->script_.k(b, h, at, d);
          for (Index d = 0; d < 7; d++) given.v(b, h, i, d) = this->script_.v(b, h, at, d);
        }
    cache.append(given.keys(0, 120), given.values(0, 120), counts);
    for (std::size_t b = 0; b < 2; b++) {
      length[b] += counts[b];
      EXPECT_EQ(cache.length(Index(b)), length[b]);
    }
    expected.expect_in(cache);
  }
  cache.truncate(1, 0);
  EXPECT_EQ(cache.length(0), 165);
  EXPECT_EQ(cache.length(1), 0);
  expected.expect_in(cache);
  cache.truncate(0, 100);
  EXPECT_EQ(cache.length(0), 100);
  expected.expect_in(cache);
}

// Outliers, a mean that all keys share, keys whose differences are below their rounding, and huge keys.
TYPED_TEST(Storage, KeyTileBoundsAreUpperBounds) {
  for (const double mean : {0., 10., 1e4})
    for (const double outlier : {1., 100., 1e30}) {
      auto script = this->script_;
      for (Index b = 0; b < 2; b++)
        for (Index h = 0; h < 3; h++)
          for (Index i = 0; i < kTokens; i++)
            for (Index d = 0; d < 5; d++) {
              auto& x = script.k(b, h, i, d);
              x = Accumulate<TypeParam>(double(x) * (i % 97 == 3 * h ? outlier : 1) + mean);
            }
      KvCache<TypeParam> cache(kConfig);
      append_in_chunks(cache, script, 0, kTokens, this->random_);
      script.expect_in(cache);
      cache.truncate(170);
      script.expect_in(cache);
    }
}

TYPED_TEST(Storage, NonFiniteKeys) {
  for (const double x : {test::kInfinity, -test::kInfinity, std::nan("")})
    for (const Index at : {0, 50, 100}) {
      auto script = this->script_;
      script.k(0, 1, at, 2) = Accumulate<TypeParam>(x);
      KvCache<TypeParam> cache(kConfig);
      append_in_chunks(cache, script, 0, kTokens, this->random_);
      script.expect_in(cache);
      const auto key_bounds = head_of(cache, 0, 1).key_bounds;
      EXPECT_EQ(double(key_bounds.largest), test::kInfinity);
      EXPECT_EQ(double(key_bounds.radius[at / kTile]), test::kInfinity);
      EXPECT_LT(double(key_bounds.radius[2]), 10);
      EXPECT_LT(double(key_bounds.prefix_max[4]), 10) << "such a tile is an outlier";
      cache.truncate(at);
      script.expect_in(cache);
      EXPECT_LT(double(head_of(cache, 0, 1).key_bounds.largest), 10) << "the key was removed";
    }
}

TYPED_TEST(Storage, EveryKindOfArray) {
  using T = Accumulate<TypeParam>;
  const auto& script = this->script_;
  KvCache<TypeParam> expected(kConfig);
  expected.append(script.k, script.v);

  KvCache<TypeParam> stored(kConfig), mixed(kConfig), tokens_first(kConfig);
  Tensor4<TypeParam> k(2, 3, kTokens, 5), v(2, 3, kTokens, 7);
  std::transform(script.k.data(), script.k.data() + k.size(), k.data(), [](T x) { return TypeParam(x); });
  std::transform(script.v.data(), script.v.data() + v.size(), v.data(), [](T x) { return TypeParam(x); });
  stored.append(k, v);
  EXPECT_TRUE(state(stored) == state(expected));
  mixed.append(script.k, Eigen::TensorMap<Tensor4<TypeParam>>(v.data(), v.dimensions()));
  EXPECT_TRUE(state(mixed) == state(expected));

  std::vector<T> swapped(std::size_t(script.k.size()));
  const auto swapped_view =
      alibi::view(swapped.data(), {2, 3, kTokens, 5}, {kTokens * 15, 5, 15, 1});  // [batch, tokens, heads, head_dim]
  for (Index b = 0; b < 2; b++)
    for (Index h = 0; h < 3; h++)
      for (Index i = 0; i < kTokens; i++)
        for (Index d = 0; d < 5; d++)
          swapped[std::size_t(b * kTokens * 15 + i * 15 + h * 5 + d)] = script.k(b, h, i, d);
  tokens_first.append(swapped_view, script.v);
  EXPECT_TRUE(state(tokens_first) == state(expected));

  const KvCacheConfig one{.head_dim = 5, .capacity = kTokens};
  KvCache<TypeParam> matrix(one), tensor(one);
  const test::RowMatrix<T> keys = this->random_.template matrix<T>(90, 5), values = keys * T(2);
  matrix.append(keys, values);
  matrix.append(keys.topRows(7), values.bottomRows(7));
  const Tensor4<T> first = Eigen::TensorMap<const Tensor4<T>>(keys.data(), 1, 1, 90, 5);
  tensor.append(first, alibi::view(values.data(), {1, 1, 90, 5}, {0, 0, 5, 1}));
  tensor.append(alibi::view(keys.data(), {1, 1, 7, 5}, {0, 0, 5, 1}),
                alibi::view(values.data() + 83 * 5, {1, 1, 7, 5}, {0, 0, 5, 1}));
  EXPECT_TRUE(state(matrix) == state(tensor));
}

TYPED_TEST(Storage, NoTokens) {
  KvCache<TypeParam> cache(kConfig);
  cache.append(this->script_.keys(0, 70), this->script_.values(0, 70));
  const auto before = state(cache);
  cache.append(this->script_.keys(0, 0), this->script_.values(0, 0));
  cache.append(Tensor4<TypeParam>(2, 3, 0, 5), Tensor4<TypeParam>(2, 3, 0, 7));
  cache.append(this->script_.k, this->script_.v, std::vector<Index>{0, 0});
  cache.truncate(70);
  EXPECT_TRUE(state(cache) == before);
}

TYPED_TEST(Storage, CloneIsIndependent) {
  KvCache<TypeParam> cache(kConfig);
  cache.append(this->script_.keys(0, 200), this->script_.values(0, 200));
  const auto before = state(cache);
  KvCache<TypeParam> copy = cache.clone();
  EXPECT_TRUE(state(copy) == before);
  copy.truncate(90);
  copy.append(this->script_.keys(0, 30), this->script_.values(0, 30));
  EXPECT_TRUE(state(cache) == before);
  const auto after = state(copy);
  cache.truncate(0);
  EXPECT_TRUE(state(copy) == after);
}

TYPED_TEST(Storage, Moves) {
  static_assert(!std::is_copy_constructible_v<KvCache<TypeParam>> && !std::is_copy_assignable_v<KvCache<TypeParam>>);
  static_assert(std::is_nothrow_move_constructible_v<KvCache<TypeParam>> &&
                std::is_nothrow_move_assignable_v<KvCache<TypeParam>>);
  KvCache<TypeParam> cache(kConfig), other({.head_dim = 2, .capacity = 1});
  cache.append(this->script_.keys(0, 200), this->script_.values(0, 200));
  cache.truncate(100);
  const auto before = state(cache);
  KvCache<TypeParam> moved = std::move(cache);
  EXPECT_TRUE(state(moved) == before);
  other = std::move(moved);
  EXPECT_TRUE(state(other) == before);
  other.append(this->script_.keys(100, 300), this->script_.values(100, 300));
  this->script_.expect_in(other);
}

// Memory

TEST(Bytes, AreThoseOfTilesAndTables) {
  const Index tile = (5 + 7) * kTile * Index(sizeof(float)) + 64;
  test::Random random(2);
  const Script<float, float> script(random, kConfig, kTokens);
  KvCache<float> cache(kConfig);
  EXPECT_LT(cache.bytes(), 1000u);
  cache.append(script.k, script.v);
  const auto tables = [&](Index b, Index h) { return Index(cache.bytes(b, h)) - 5 * tile; };
  Index sum = 0;
  for (Index b = 0; b < 2; b++)
    for (Index h = 0; h < 3; h++) {
      EXPECT_GE(tables(b, h), 5 * Index(sizeof(float) * 2 + sizeof(void*)));
      EXPECT_LE(tables(b, h), 1000);
      sum += Index(cache.bytes(b, h));
    }
  EXPECT_GE(Index(cache.bytes()), sum);
  EXPECT_LE(Index(cache.bytes()), sum + 1000) << "no spare tile";
  cache.truncate(0);
  EXPECT_LE(Index(cache.bytes()), 6 * (tile + 1000)) << "one tile a head";
}

TEST(Bytes, NoAllocationInASteadyState) {
  const KvCacheConfig config{.kv_heads = 4, .head_dim = 8, .window = 100, .rollback = 10};
  test::Random random(3);
  const Script<float, float> script(random, config, 1);
  KvCache<float> cache(config);
  for (int i = 0; i < 1000; i++) cache.append(script.k, script.v);
  const std::size_t before = allocations, bytes = cache.bytes();
  for (int i = 0; i < 1000; i++) {
    cache.append(script.k, script.v);
    if (i % 3 == 0) cache.truncate(cache.length() - 1);
  }
  EXPECT_EQ(allocations, before);
  EXPECT_LE(cache.bytes(), bytes + 4 * 16 * kTile * sizeof(float));
}

// Makes every allocation of an append fail in turn.
TEST(Bytes, OutOfMemoryChangesNothing) {
  KvCacheConfig config = kConfig;
  config.window = 20;
  config.rollback = 3;
  test::Random random(4);
  const Script<float, float> script(random, config, kTokens);
  KvCache<float> cache(config);
  cache.append(script.keys(0, 120), script.values(0, 120));
  const auto before = state(cache);
  std::size_t failures = 0;
  for (bool done = false; !done; failures++) {
    allocations_left = failures;
    try {
      cache.append(script.keys(120, 290), script.values(120, 290));
      done = true;
    } catch (const std::bad_alloc&) {
    }
    allocations_left = std::numeric_limits<std::size_t>::max();
    if (!done) {
      EXPECT_TRUE(state(cache) == before);
      const std::size_t size = 12 * kTile * sizeof(float) + 64;
      EXPECT_LE(cache.bytes(), 6 * (2 * size + 1000)) << "new tiles have been released";
    }
  }
  EXPECT_GE(failures, 12u);
  EXPECT_EQ(cache.length(), 290);
  EXPECT_EQ(cache.first_key(0, 0), 64);
  script.expect_in(cache);
  allocations_left = 20;
  EXPECT_THROW(cache.clone(), std::bad_alloc);
  allocations_left = std::numeric_limits<std::size_t>::max();
}

// Windows

// After any appends and truncations, every query that is still allowed finds every key that it sees.
TEST(Window, VisibleKeysStay) {
  for (std::uint64_t seed = 0; seed < 200; seed++) {
    test::Random random(seed);
    const Index window = random.integer(1, random.chance(0.5) ? 20 : 300), rollback = random.integer(0, 100);
    const KvCacheConfig config{.head_dim = 2, .window = window, .rollback = rollback};
    const Script<float, float> script(random, config, 1000);
    KvCache<float> cache(config);
    while (cache.length() < 950) {
      const Index before = cache.length(),
                  most = random.chance(0.5)   ? 2
                         : random.chance(0.5) ? 64
                                              : 300,
                  tokens = random.integer(1, std::min(most, 1000 - before)), shortest = cache.min_length();
      cache.append(script.keys(before, before + tokens), script.values(before, before + tokens));
      const Index first = cache.first_key(0, 0);
      EXPECT_GE(cache.min_length(), shortest);
      EXPECT_LE(cache.min_length(), std::max(shortest, before - rollback)) << "the last append can be truncated";
      for (Index p = std::max<Index>(cache.min_length() - 1, 0); p < cache.length() + 70; p++) {
        const auto seen = alibi::resolve({.window = window, .query_offset = p}, 1, p + 1).visible(0);
        ASSERT_LE(first, std::min(seen.begin, cache.length())) << "position " << p;
      }
      EXPECT_GT(first + window + rollback + 2 * kTile, before - kTile) << "keys that can leave have left";
      if (random.chance(0.3)) cache.truncate(random.integer(std::max<Index>(cache.min_length(), 1), cache.length()));
      if (random.chance(0.1)) script.expect_in(cache);
      if (random.chance(0.02)) cache.truncate(0);
    }
    script.expect_in(cache);
  }
}

TEST(Window, BytesStopGrowing) {
  const KvCacheConfig config{.kv_heads = 2, .head_dim = 4, .window = 500};
  test::Random random(5);
  const Script<float, float> script(random, config, 1);
  KvCache<float> cache(config);
  std::size_t most = 0;
  for (Index i = 0; i < 20000; i++) {
    cache.append(script.k, script.v);
    if (i < 1000)
      most = std::max(most, cache.bytes());
    else
      ASSERT_LE(cache.bytes(), most) << "at token " << i;
  }
  EXPECT_EQ(cache.length(), 20000);
  EXPECT_EQ(cache.first_key(0, 0), (19968 - 1 - 64 - 500 + 1) / kTile * kTile) << "19,968 tokens fill tiles";
  EXPECT_EQ(cache.min_length(), 19968 - 64);
  EXPECT_EQ(cache.evicted_tolerance(0, 0), 0);
  EXPECT_LE(most, 2u * (12 * 8 * kTile * 4 + 1000));
}

// The cache holds a whole prompt until its queries have been computed; the next append lets its keys leave.
// The tiles of the sinks, and those of the window, in a steady state without allocations.
TEST(Window, SinksStay) {
  test::Random random(6);
  for (const Index sinks : {1, 64, 65, 300}) {
    const KvCacheConfig config{.kv_heads = 2, .head_dim = 4, .window = 500, .sinks = sinks};
    const Script<float, float> script(random, config, 1);
    KvCache<float> cache(config);
    std::size_t most = 0;
    for (Index i = 0; i < 5000; i++) {
      cache.append(script.k, script.v);
      if (i < 1500)
        most = std::max(most, cache.bytes());
      else
        ASSERT_LE(cache.bytes(), most) << "at token " << i;
    }
    EXPECT_EQ(cache.first_key(0, 0), (4992 - 1 - 64 - 500 + 1) / kTile * kTile) << "4,992 tokens fill tiles";
    EXPECT_LE(most, 2u * std::size_t((12 + (sinks + 63) / 64) * 8 * kTile * 4 + 1600));
    cache.truncate(0);
    EXPECT_LE(cache.bytes(), 2u * (1 * 8 * kTile * 4 + 1600)) << "sinks leave with their sequence";
  }
}

TEST(Window, LongPrompt) {
  const KvCacheConfig config{.head_dim = 4, .window = 100, .rollback = 0};
  test::Random random(6);
  const Script<float, float> script(random, config, 5001);
  KvCache<float> cache(config);
  cache.append(script.keys(0, 5000), script.values(0, 5000));
  EXPECT_EQ(cache.first_key(0, 0), 0);
  cache.append(script.keys(5000, 5001), script.values(5000, 5001));
  EXPECT_EQ(cache.first_key(0, 0), (5000 - 1 - 100 + 1) / kTile * kTile);
  EXPECT_EQ(cache.min_length(), 5000);
  EXPECT_LE(cache.bytes(), 4u * 8 * kTile * 4 + 5000) << "tables keep their size";
  script.expect_in(cache);
}

// Eviction

TEST(Evicted, BytesStopGrowing) {
  const KvCacheConfig config{
      .kv_heads = 2, .head_dim = 16, .eviction = alibi::Eviction{.query_norm = 6, .slopes = {0.5, 0.5, 0.5, 0x1p-12}}};
  test::Random random(7);
  const Script<float, float> script(random, config, 500);
  KvCache<float> cache(config);
  std::size_t most = 0;
  for (Index i = 0; i < 20000; i++) {
    const Index at = random.integer(0, 499);
    cache.append(script.keys(at, at + 1), script.values(at, at + 1));
    if (i < 1000)
      most = std::max(most, cache.bytes(0, 0));
    else
      ASSERT_LE(cache.bytes(0, 0), most) << "at token " << i;
  }
  EXPECT_EQ(cache.evicted_tolerance(0, 0), 0x1p-25);
  EXPECT_EQ(cache.config().eviction->query_norm, 6);
  EXPECT_EQ(cache.config().eviction->scale, 0.25);
  // The scores need at most 6/4 (R + r) < 30 nats, the tail 1, the tolerance 17.4: with a slope of 1/2 less than 100
  // tokens.
  EXPECT_LE(cache.length() - cache.first_key(0, 0), 64 + 100 + 2 * kTile);
  EXPECT_EQ(cache.first_key(0, 1), 0) << "this head has a slope of 2^-12, which sees more than 20,000 tokens";
  EXPECT_EQ(cache.evicted_tolerance(0, 1), 0);
  EXPECT_GE(cache.min_length(), 20000 - 64 - 3 * kTile);
}

// cloud: random keys. two_sided: distant keys on one side and close keys on the other, the worst case of
// Cauchy-Schwarz. alone: as two_sided, but the close keys other than p* lie so far out that they have no weight.
enum class Kind { cloud, two_sided, alone };

// Queries of random and of the worst directions, at every allowed position, against all keys that were ever appended.
TEST(Evicted, NeverMoreThanTheTolerance) {
  Real worst = 0;
  Index evictions = 0;
  for (std::uint64_t seed = 0; seed < 3000; seed++) {
    test::Random random(seed);
    const Index dim = random.integer(1, 4), rollback = random.integer(0, 40);
    const double slope = std::exp2(random.uniform(-6, 1)), tolerance = std::exp2(random.uniform(-25, -1)),
                 norm = random.chance(0.1) ? 0x1p-1000 : random.uniform(0, 4), spread = random.uniform(0, 3),
                 scale = random.uniform(-1, 1);
    const Kind kind = Kind(random.integer(0, 2));
    const KvCacheConfig config{
        .head_dim = dim,
        .window = random.chance(0.2) ? std::optional<Index>(random.integer(1, 600)) : std::nullopt,
        .eviction = alibi::Eviction{.query_norm = norm,
                                    .slopes = {slope, slope * random.uniform(1, 2)},
                                    .scale = scale,
                                    .tolerance = tolerance},
        .rollback = rollback};
    Script<float, float> script(random, config, 700);
    const Index side = random.integer(64, 400);
    for (Index i = 0; i < 700; i++)
      for (Index d = 0; d < dim; d++) {
        float& x = script.k(0, 0, i, d);
        // If keys are appended one by one, eviction is considered at the end of a tile.
        const bool alone = kind == Kind::alone && i % kTile != (2 * kTile - 1 - rollback) % kTile;
        x = float(spread * (kind == Kind::cloud ? double(x) : d > 0 ? 0 : i < side ? 1 : alone ? -10 : -1));
      }
    KvCache<float> cache(config);
    while (cache.length() < 650 && !testing::Test::HasFailure()) {
      const Index most = kind == Kind::alone || random.chance(0.5) ? 1 : 100, begin = cache.length(),
                  end = std::min<Index>(begin + random.integer(1, most), 700);
      const Index first = cache.first_key(0, 0);
      cache.append(script.keys(begin, end), script.values(begin, end));
      if (most > 1 && random.chance(0.2))
        cache.truncate(std::max(cache.min_length(), random.integer(1, cache.length())));
      if (cache.first_key(0, 0) == first || cache.evicted_tolerance(0, 0) == 0) continue;
      EXPECT_EQ(cache.evicted_tolerance(0, 0), tolerance);
      evictions++;

      for (int query = 0; query < 6; query++) {
        const Index p = query % 2 ? cache.min_length() - 1 : random.integer(cache.min_length() - 1, cache.length() - 1);
        const Index j = random.integer(0, cache.first_key(0, 0) - 1);
        std::vector<Real> q(std::size_t(dim), 0);
        Real length = 0;
        for (Index d = 0; d < dim; d++) {
          Real& x = q[std::size_t(d)];
          x = query < 4
                  ? std::copysign(Real(1), Real(scale)) * (Real(script.k(0, 0, j, d)) - Real(script.k(0, 0, p, d)))
                  : Real(random.normal());
          length += x * x;
        }
        for (Real& x : q) x = length > 0 ? x * Real(norm) / std::sqrt(length) : 0;
        Real evicted_mass = 0, all = 0;
        for (Index i = 0; i <= p; i++) {
          if (config.window && p - i >= *config.window) continue;
          Real s = -Real(slope) * Real(p - i);
          for (Index d = 0; d < dim; d++) s += Real(scale) * q[std::size_t(d)] * Real(script.k(0, 0, i, d));
          all += std::exp(s);
          if (i < cache.first_key(0, 0)) evicted_mass += std::exp(s);
        }
        ASSERT_LE(evicted_mass, Real(tolerance) * all) << "position " << p << " of " << cache.length();
        worst = std::max(worst, evicted_mass / (Real(tolerance) * all));
      }
    }
    if (cache.first_key(0, 0) > 0) script.expect_in(cache);
  }
  EXPECT_GE(evictions, 3000);
  EXPECT_GE(worst, 0.5) << "the cases are hard enough";
}

TEST(Evicted, NotWithSlopesOfZeroOrBelow) {
  for (const double slope : {0., -0.5}) {
    const KvCacheConfig config{.head_dim = 4, .eviction = alibi::Eviction{.query_norm = 1, .slopes = {1, slope}}};
    test::Random random(8);
    const Script<float, float> script(random, config, 2000);
    KvCache<float> cache(config);
    append_in_chunks(cache, script, 0, 2000, random);
    EXPECT_EQ(cache.first_key(0, 0), 0);
  }
}

TEST(Evicted, NonFiniteKeysStay) {
  for (const double x : {test::kInfinity, std::nan("")})
    for (const Index at : {0, 130}) {
      const KvCacheConfig config{.head_dim = 4, .eviction = alibi::Eviction{.query_norm = 0x1p-1000, .slopes = {1}}};
      test::Random random(9);
      Script<float, float> script(random, config, 2000);
      script.k(0, 0, at, 1) = float(x);
      KvCache<float> cache(config);
      append_in_chunks(cache, script, 0, 2000, random);
      EXPECT_EQ(cache.first_key(0, 0), at / kTile * kTile);
      script.expect_in(cache);
    }
}

TEST(Evicted, AnOutlierKeyStaysUntilTheDistanceCompensates) {
  const KvCacheConfig config{
      .head_dim = 1, .eviction = alibi::Eviction{.query_norm = 1, .slopes = {0.5}, .scale = 1}, .rollback = 0};
  test::Random random(10);
  Script<float, float> script(random, config, 2000);
  script.k.setConstant(1);
  script.k(0, 0, 0, 0) = 401;
  KvCache<float> cache(config);
  Index first_eviction = 0;
  for (Index i = 0; i < 2000; i++) {
    cache.append(script.keys(i, i + 1), script.values(i, i + 1));
    if (first_eviction == 0 && cache.first_key(0, 0) > 0) first_eviction = i;
  }
  // R is 400 - 400/64 and r is 400/64. Half the distance must exceed their sum and the logarithm of the tolerance.
  EXPECT_GE(first_eviction, 63 + 2 * 400);
  EXPECT_LE(first_eviction, 63 + 2 * 400 + 2 * 20 + 3 * kTile);
  EXPECT_GE(cache.length() - cache.first_key(0, 0), 800) << "the tiles after it leave no earlier";
  script.expect_in(cache);
}

TEST(Evicted, WithAWindow) {
  const KvCacheConfig config{.kv_heads = 3,
                             .head_dim = 4,
                             .window = 300,
                             .eviction = alibi::Eviction{.query_norm = 1, .slopes = {1, 0.001, 0.2}},
                             .rollback = 0};
  test::Random random(11);
  Script<float, float> script(random, config, 1000);
  for (Index d = 0; d < 4; d++) script.k(0, 2, 20, d) = std::nanf("");
  KvCache<float> cache(config);
  append_in_chunks(cache, script, 0, 961, random);
  EXPECT_GE(cache.first_key(0, 0), 640) << "by eviction";
  EXPECT_EQ(cache.evicted_tolerance(0, 0), 0x1p-25);
  for (const Index head : {1, 2}) {
    EXPECT_LE(cache.first_key(0, head), 640);
    EXPECT_GE(cache.first_key(0, head), 400) << "by the window";
    EXPECT_EQ(cache.evicted_tolerance(0, head), 0);
  }
  cache.truncate(0);
  EXPECT_EQ(cache.evicted_tolerance(0, 0), 0);
  EXPECT_EQ(cache.first_key(0, 0), 0);
  EXPECT_EQ(cache.min_length(), 0);
  cache.append(script.keys(0, 10), script.values(0, 10));
  script.expect_in(cache);
}

// Errors: the whole message, and that nothing has changed.

std::string thrown(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

std::string config_error(const KvCacheConfig& config) {
  return thrown([&] { const KvCache<float> cache(config); });
}

TEST(KvCacheConfigErrors, Sizes) {
  EXPECT_EQ(config_error({.head_dim = 4, .capacity = 1}), "no error");
  EXPECT_EQ(config_error({.batch = 0, .head_dim = 4, .capacity = 1}), "alibi: batch is 0; expected 1 to 2^31");
  EXPECT_EQ(config_error({.kv_heads = -1, .head_dim = 4, .capacity = 1}), "alibi: kv_heads is -1; expected 1 to 2^31");
  EXPECT_EQ(config_error({.capacity = 1}), "alibi: head_dim is 0; expected 1 to 2^31");
  EXPECT_EQ(config_error({.head_dim = 4, .value_dim = -2, .capacity = 1}),
            "alibi: value_dim is -2; expected 1 to 2^31");
  EXPECT_EQ(config_error({.head_dim = Index(1) << 40, .capacity = 1}),
            "alibi: head_dim is 1099511627776; expected 1 to 2^31");
  EXPECT_EQ(config_error({.head_dim = 4}),
            "alibi: capacity is 0; expected at least 1, the tokens of a sequence, or a window or an eviction");
  EXPECT_EQ(config_error({.head_dim = 4, .capacity = -1}), "alibi: capacity is -1; expected 0 to 2^37");
  EXPECT_EQ(config_error({.head_dim = 4, .capacity = Index(1) << 38}),
            "alibi: capacity is 274877906944; expected 0 to 2^37");
  EXPECT_EQ(config_error({.head_dim = 4, .window = 1}), "no error");
  EXPECT_EQ(config_error({.head_dim = 4, .window = 0}),
            "alibi: window is 0; expected at least 1, the query's own position");
  EXPECT_EQ(config_error({.head_dim = 4, .capacity = 1, .rollback = -1}), "alibi: rollback is -1; expected 0 or more");
  EXPECT_EQ(config_error({.head_dim = 4, .capacity = 1, .sinks = -1}), "alibi: sinks is -1; expected 0 to 2^37");
}

TEST(KvCacheConfigErrors, Eviction) {
  const auto error = [](const alibi::Eviction& eviction) {
    return config_error({.kv_heads = 2, .head_dim = 4, .eviction = eviction});
  };
  const std::string norm = "; expected a finite number above 0, an upper bound of the norm of every future query";
  EXPECT_EQ(error({.query_norm = 1, .slopes = {1, 1}}), "no error");
  const KvCacheConfig plain{.head_dim = 4, .eviction = alibi::Eviction{.query_norm = 1, .slopes = {1}}};
  EXPECT_EQ(KvCache<Eigen::half>(plain).config().eviction->tolerance, 0x1p-25);
  EXPECT_EQ(KvCache<double>(plain).config().eviction->tolerance, 0x1p-54);
  EXPECT_EQ(error({.slopes = {1, 1}}), "alibi: eviction.query_norm is 0" + norm);
  EXPECT_EQ(error({.query_norm = -1, .slopes = {1, 1}}), "alibi: eviction.query_norm is -1" + norm);
  EXPECT_EQ(error({.query_norm = test::kInfinity, .slopes = {1, 1}}), "alibi: eviction.query_norm is inf" + norm);
  const std::string slopes = " entries; expected a positive multiple of 2, the kv_heads";
  EXPECT_EQ(error({.query_norm = 1}), "alibi: eviction.slopes has 0" + slopes);
  EXPECT_EQ(error({.query_norm = 1, .slopes = {1, 1, 1}}), "alibi: eviction.slopes has 3" + slopes);
  EXPECT_EQ(error({.query_norm = 1, .slopes = {1, -test::kInfinity}}),
            "alibi: eviction.slopes[1] is -inf; expected a finite number");
  EXPECT_EQ(error({.query_norm = 1, .slopes = {1, 1}, .scale = std::nan("")}),
            "alibi: eviction.scale is nan; expected a finite number");
  EXPECT_EQ(error({.query_norm = 1, .slopes = {1, 1}, .tolerance = 0}),
            "alibi: eviction.tolerance is 0; expected above 0 and below 1");
  EXPECT_EQ(error({.query_norm = 1, .slopes = {1, 1}, .tolerance = 1}),
            "alibi: eviction.tolerance is 1; expected above 0 and below 1");
}

// A cache of two sequences, 60 and 500 tokens long, with a window. Each test makes one invalid call.
class KvCacheErrors : public testing::Test {
 protected:
  KvCacheErrors() { cache_.append(k(500), v(500), std::vector<Index>{60, 500}); }
  static Tensor4<float> k(Index tokens, Index batch = 2, Index heads = 3, Index dim = 5) {
    Tensor4<float> x(batch, heads, tokens, dim);
    x.setConstant(0.5f);
    return x;
  }
  static Tensor4<float> v(Index tokens, Index batch = 2, Index heads = 3, Index dim = 7) {
    return k(tokens, batch, heads, dim);
  }
  template <class Call>
  std::string message_of(Call call) {
    const auto before = state(cache_);
    const std::size_t bytes = cache_.bytes();
    std::string message = thrown(call);
    EXPECT_TRUE(state(cache_) == before) << message;
    EXPECT_EQ(cache_.bytes(), bytes) << message;
    return message;
  }
  template <class K, class V>
  std::string append(const K& keys, const V& values) {
    return message_of([&] { cache_.append(keys, values); });
  }
  std::string append(Index tokens, const std::vector<Index>& counts) {
    return message_of([&] { cache_.append(k(tokens), v(tokens), counts); });
  }
  static alibi::View<const float> null(Index tokens, Index dim) {
    return alibi::view<const float>(nullptr, {2, 3, tokens, dim}, {0, 0, 0, 1});
  }

  KvCache<float> cache_{
      {.batch = 2, .kv_heads = 3, .head_dim = 5, .value_dim = 7, .capacity = 512, .window = 30, .rollback = 20}};
};

TEST_F(KvCacheErrors, Shapes) {
  EXPECT_EQ(append(k(1, 3), v(1)), "alibi: k has batch 3; expected 2, the batch of the cache");
  EXPECT_EQ(append(k(1, 2, 4), v(1)), "alibi: k has heads 4; expected 3, the kv_heads of the cache");
  EXPECT_EQ(append(k(1, 2, 3, 6), v(1)), "alibi: k has head_dim 6; expected 5, the head_dim of the cache");
  EXPECT_EQ(append(k(1), v(1, 1)), "alibi: v has batch 1; expected 2, the batch of the cache");
  EXPECT_EQ(append(k(1), v(1, 2, 1)), "alibi: v has heads 1; expected 3, the kv_heads of the cache");
  EXPECT_EQ(append(k(1), v(1, 2, 3, 5)), "alibi: v has head_dim 5; expected 7, the value_dim of the cache");
  EXPECT_EQ(append(k(2), v(3)), "alibi: v has tokens 3; expected 2, the tokens of k");
  EXPECT_EQ(append(null(2, 5), v(2)), "alibi: k is null; expected 12 tokens of 5");
  EXPECT_EQ(append(k(2), null(2, 7)), "alibi: v is null; expected 12 tokens of 7");
  EXPECT_EQ(append(null(0, 5), null(0, 7)), "no error");
}

TEST_F(KvCacheErrors, Capacity) {
  EXPECT_EQ(append(k(20), v(20)),
            "alibi: k has tokens 20; expected at most 12, what is left of sequence 1's capacity 512");
  EXPECT_EQ(append(k(500), v(500)),
            "alibi: k has tokens 500; expected at most 452, what is left of sequence 0's capacity 512");
  EXPECT_EQ(append(20, {20, 13}),
            "alibi: counts[1] is 13; expected at most 12, what is left of sequence 1's capacity 512");
  cache_.append(k(20), v(20), std::vector<Index>{20, 12});
  EXPECT_EQ(cache_.length(1), 512);
  EXPECT_EQ(append(k(1), v(1)), "alibi: k has tokens 1; expected at most 0, what is left of sequence 1's capacity 512");
}

TEST_F(KvCacheErrors, Counts) {
  EXPECT_EQ(append(2, {1}), "alibi: counts has 1 entries; expected 2, the batch of the cache");
  EXPECT_EQ(append(2, {1, 1, 1}), "alibi: counts has 3 entries; expected 2, the batch of the cache");
  EXPECT_EQ(append(2, {1, 3}), "alibi: counts[1] is 3; expected 0 to 2, the tokens of k");
  EXPECT_EQ(append(2, {-1, 2}), "alibi: counts[0] is -1; expected 0 to 2, the tokens of k");
}

TEST_F(KvCacheErrors, Truncation) {
  const auto truncate = [&](auto... arguments) { return message_of([&] { cache_.truncate(arguments...); }); };
  EXPECT_EQ(truncate(-1), "alibi: length is -1; expected 0 to 60, the length of sequence 0");
  EXPECT_EQ(truncate(100), "alibi: length is 100; expected 0 to 60, the length of sequence 0");
  EXPECT_EQ(truncate(1, 501), "alibi: length is 501; expected 0 to 500, the length of sequence 1");
  EXPECT_EQ(truncate(2, 5), "alibi: sequence is 2; expected 0 to 1");
  EXPECT_EQ(truncate(-1, 5), "alibi: sequence is -1; expected 0 to 1");
  cache_.append(k(1), v(1));
  EXPECT_EQ(cache_.min_length(0), 0);
  EXPECT_EQ(cache_.min_length(1), 480);
  const std::string expected =
      "; expected at least 480: keys that a shorter sequence needs have left the cache (rollback is 20)";
  EXPECT_EQ(truncate(1, 479), "alibi: length is 479" + expected);
  EXPECT_EQ(truncate(10), "alibi: length is 10" + expected);
  cache_.truncate(1, 480);
  cache_.truncate(0);
  EXPECT_EQ(cache_.length(1), 0);
}

TEST_F(KvCacheErrors, Accessors) {
  EXPECT_EQ(message_of([&] { (void)cache_.length(2); }), "alibi: sequence is 2; expected 0 to 1");
  EXPECT_EQ(message_of([&] { (void)cache_.min_length(2); }), "alibi: sequence is 2; expected 0 to 1");
  EXPECT_EQ(message_of([&] { (void)cache_.first_key(-1, 0); }), "alibi: sequence is -1; expected 0 to 1");
  EXPECT_EQ(message_of([&] { (void)cache_.first_key(0, 3); }), "alibi: kv_head is 3; expected 0 to 2");
  EXPECT_EQ(message_of([&] { (void)cache_.bytes(0, -1); }), "alibi: kv_head is -1; expected 0 to 2");
  EXPECT_EQ(message_of([&] { (void)cache_.evicted_tolerance(1, 3); }), "alibi: kv_head is 3; expected 0 to 2");
  EXPECT_EQ(message_of([&] { (void)head_of(cache_, 2, 0); }), "alibi: sequence is 2; expected 0 to 1");
}

}  // namespace
