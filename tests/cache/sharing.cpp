// Sequences that share tiles, that replace each other in their slots, and that are saved and loaded: each equals one
// that was alone in a cache of its own, bit for bit, after any history; their memory; and errors.
#include <alibi/kv_cache_file.hpp>
#include <array>
#include <functional>
#include <new>
#include <set>
#include <sstream>

#include "cache_state.hpp"
#include "common.hpp"
#include "counted_heap.hpp"

namespace {

using alibi::KvCache;
using alibi::KvCacheConfig;
using heap::allocations_left;
using test::head_of;
using test::Index;
using test::state;
using test::Tensor4;

constexpr Index kTile = alibi::kernel::kTile;
constexpr Index kDim = 3, kValueDim = 2, kHeads = 2;
constexpr std::size_t kUnlimited = std::numeric_limits<std::size_t>::max();

KvCacheConfig config_of(Index batch, Index capacity = 4000) {
  return {.batch = batch, .kv_heads = kHeads, .head_dim = kDim, .value_dim = kValueDim, .capacity = capacity};
}

// Keys and values that sequences take their tokens from: [1, kHeads, kTokens, dim].
template <class S>
class Pool {
 public:
  using T = typename KvCache<S>::Accumulate;
  static constexpr Index kTokens = 1000;

  explicit Pool(test::Random& random)
      : k_(random.tensor<T>(1, kHeads, kTokens, kDim)), v_(random.tensor<T>(1, kHeads, kTokens, kValueDim)) {
    for (Index h = 0; h < kHeads; h++)  // some keys lie far out
      for (Index i = 0; i < kTokens; i++)
        for (Index d = 0; d < kDim; d++) k_(0, h, i, d) *= T(i < 16 ? 9 : i / 16 % 11 == h ? 6 : 1);
  }

  alibi::View<const T> keys(Index begin, Index end) const { return part(k_, begin, end); }
  alibi::View<const T> values(Index begin, Index end) const { return part(v_, begin, end); }
  // Appends tokens to one sequence.
  void append(KvCache<S>& cache, Index sequence, Index begin, Index end) const {
    cache.append(sequence, keys(begin, end), values(begin, end));
  }

 private:
  static alibi::View<const T> part(const Tensor4<T>& x, Index begin, Index end) {
    const Index dim = x.dimension(3);
    return alibi::view(x.data() + begin * dim, {1, kHeads, end - begin, dim}, {0, kTokens * dim, dim, 1});
  }
  Tensor4<T> k_, v_;
};

// What happened to a sequence: appended tokens of the pool, or a truncation.
struct Event {
  Index begin, end, truncated = -1;
};
using Past = std::vector<Event>;

template <class S>
std::vector<std::uint64_t> state_after(const Past& past, KvCacheConfig config, const Pool<S>& pool) {
  config.batch = 1;
  KvCache<S> alone(std::move(config));
  for (const Event& event : past)
    if (event.truncated >= 0)
      alone.truncate(event.truncated);
    else
      alone.append(pool.keys(event.begin, event.end), pool.values(event.begin, event.end));
  return state(alone);
}

// Expects that bytes() is that of the tiles that exist, and returns their number.
template <class S>
std::size_t expect_bytes(const KvCache<S>& cache) {
  const KvCacheConfig& config = cache.config();
  const std::size_t tile = std::size_t(config.head_dim + config.value_dim) * kTile * sizeof(S) + 64 + 8;
  std::set<const void*> tiles;
  std::size_t sum = 0, held = 0;
  for (Index b = 0; b < config.batch; b++)
    for (Index h = 0; h < config.kv_heads; h++) {
      const auto head = head_of(cache, b, h);
      for (Index t = 0; t < head.key_bounds.tiles; t++) tiles.insert(head.tiles[t]);
      held += std::size_t(head.key_bounds.tiles);
      for (Index t = 0; t * kTile < std::min(config.sinks, head.begin); t++, held++) tiles.insert(head.sinks[t]);
      sum += cache.bytes(b, h);
    }
  const std::size_t least = sum - (held - tiles.size()) * tile, heads = std::size_t(config.batch * config.kv_heads);
  EXPECT_GE(cache.bytes(), least);
  EXPECT_LE(cache.bytes(), least + heads * tile + 1000) << "at most one spare tile a head";
  return tiles.size();
}

template <class S>
std::string saved(const KvCache<S>& cache, Index sequence) {
  std::ostringstream out;
  alibi::save(out, cache, sequence);
  return out.str();
}

// A cache, and the past of each of its sequences.
template <class S>
class Histories {
 public:
  Histories(const KvCacheConfig& config, const Pool<S>& pool)
      : cache_(config), pool_(pool), pasts_(std::size_t(config.batch)) {}

  void step(test::Random& random) {
    const Index batch = cache_.config().batch, a = random.integer(0, batch - 1), b = random.integer(0, batch - 1);
    const auto kind = random.integer(0, 10);
    if (kind <= 2) {
      append_to_all(random);
    } else if (kind <= 4) {
      const Event event = tokens(random);
      pool_.append(cache_, a, event.begin, event.end);
      past(a).push_back(event);
    } else if (kind == 5) {
      const Index length = random.integer(cache_.min_length(a), cache_.length(a));
      cache_.truncate(a, length);
      past(a).push_back({0, 0, length});
    } else if (kind == 6) {
      cache_.fork(a, b);
      past(b) = Past(past(a));
    } else if (kind == 7) {
      std::vector<Index> indices;
      for (Index i = 0; i < batch; i++) indices.push_back(random.chance(0.3) ? i : random.integer(0, batch - 1));
      cache_.reorder(indices);
      const std::vector<Past> before = pasts_;
      for (Index i = 0; i < batch; i++) past(i) = before[std::size_t(indices[std::size_t(i)])];
    } else if (kind == 8) {
      cache_.clear(a);
      past(a).clear();
    } else if (kind == 9) {
      cache_ = cache_.clone();
    } else {
      std::istringstream in(saved(cache_, a));
      alibi::load(in, cache_, b);
      past(b) = Past(past(a));
    }
  }
  void expect_as_alone() const {
    for (Index b = 0; b < cache_.config().batch; b++)
      EXPECT_TRUE(state(cache_, b) == state_after(pasts_[std::size_t(b)], cache_.config(), pool_)) << "sequence " << b;
    expect_bytes(cache_);
  }

 private:
  Past& past(Index b) { return pasts_[std::size_t(b)]; }
  static Event tokens(test::Random& random) {
    const Index count = random.chance(0.5) ? random.integer(0, 3) : random.integer(0, 150),
                begin = random.integer(0, Pool<S>::kTokens - count);
    return {begin, begin + count};
  }
  // Every sequence takes the tokens of one part of the pool from its own token on.
  void append_to_all(test::Random& random) {
    const Event all = tokens(random);
    std::vector<alibi::KeyRange> ranges;
    for (Past& past : pasts_) {
      const Index begin = random.integer(0, all.end - all.begin), end = random.integer(begin, all.end - all.begin);
      ranges.push_back({begin, end});
      past.push_back({all.begin + begin, all.begin + end});
    }
    auto k = pool_.keys(all.begin, all.end);
    auto v = pool_.values(all.begin, all.end);
    k.batch = v.batch = Index(pasts_.size());  // with a stride of 0
    cache_.append(k, v, ranges);
  }

  KvCache<S> cache_;
  const Pool<S>& pool_;
  std::vector<Past> pasts_;
};

template <class S>
class Sharing : public testing::Test {};
using Stored = testing::Types<float, double, Eigen::bfloat16, Eigen::half>;
TYPED_TEST_SUITE(Sharing, Stored);

TYPED_TEST(Sharing, AnyHistoryEqualsThatOfEachSequenceAlone) {
  for (std::uint64_t seed = 0; seed < 40; seed++) {
    test::Random random(seed);
    KvCacheConfig config = config_of(random.integer(1, 5), 100000);
    config.rollback = random.integer(0, 70);
    if (random.chance(0.4)) config.window = random.integer(1, 300);
    if (random.chance(0.4))
      config.eviction = alibi::Eviction{.query_norm = random.uniform(0.1, 2), .slopes = {1, random.uniform(0.05, 1)}};
    if (random.chance(0.4)) config.sinks = random.integer(1, 200);
    const Pool<TypeParam> pool(random);
    Histories<TypeParam> histories(config, pool);
    for (int step = 0; step < 40; step++) {
      histories.step(random);
      if (step % 3 == 0) histories.expect_as_alone();
    }
    histories.expect_as_alone();
    if (testing::Test::HasFailure()) return;
  }
}

// A fork has the tiles of the sequence, but for the last, which is copied by the first that writes.
TYPED_TEST(Sharing, AForkCopiesItsLastTileOnly) {
  test::Random random(1);
  const Pool<TypeParam> pool(random);
  KvCache<TypeParam> cache(config_of(3));
  pool.append(cache, 0, 0, 200);
  pool.append(cache, 1, 500, 700);
  EXPECT_EQ(expect_bytes(cache), 16u);
  cache.fork(0, 1);
  cache.fork(0, 2);
  EXPECT_EQ(expect_bytes(cache), 8u);
  const auto before = state(cache, 0);
  pool.append(cache, 1, 300, 301);
  EXPECT_EQ(expect_bytes(cache), 10u);
  cache.truncate(2, 199);
  EXPECT_EQ(expect_bytes(cache), 12u);
  EXPECT_TRUE(state(cache, 0) == before);
  cache.truncate(2, 128);
  cache.truncate(1, 128);
  EXPECT_EQ(expect_bytes(cache), 8u) << "a full tile is not written";
  for (Index h = 0; h < kHeads; h++)
    for (Index t = 0; t < 2; t++) {
      EXPECT_EQ(head_of(cache, 1, h).tile(t), head_of(cache, 0, h).tile(t));
      EXPECT_EQ(head_of(cache, 2, h).tile(t), head_of(cache, 0, h).tile(t));
    }
  cache.clear(0);
  EXPECT_EQ(expect_bytes(cache), 4u);
  EXPECT_TRUE(state(cache, 1) == state_after({{0, 128}}, config_of(1), pool));
  const KvCache<TypeParam> copy = cache.clone();
  EXPECT_EQ(expect_bytes(copy), 4u) << "a clone shares what the cache shares";
}

TEST(Reorder, IsForAllSequencesAtOnce) {
  test::Random random(2);
  const Pool<float> pool(random);
  KvCache<float> cache(config_of(4));
  for (Index b = 0; b < 4; b++) pool.append(cache, b, 100 * b, 100 * b + 70 + b);
  const std::vector<std::vector<std::uint64_t>> before = {state(cache, 0), state(cache, 1), state(cache, 2),
                                                          state(cache, 3)};
  cache.reorder(std::array<Index, 4>{3, 0, 0, 2});
  for (const auto& [is, was] : {std::pair{0, 3}, {1, 0}, {2, 0}, {3, 2}})
    EXPECT_TRUE(state(cache, is) == before[std::size_t(was)]) << is;
  EXPECT_EQ(expect_bytes(cache), 12u) << "sequence 1 is gone, and 0 is there twice";
  const auto* tile = head_of(cache, 1, 0).tile(0);
  cache.reorder(std::array<Index, 4>{1, 2, 3, 0});
  EXPECT_EQ(head_of(cache, 0, 0).tile(0), tile) << "a permutation moves tiles";
}

// A beam search of 4 beams over 600 tokens of prompt: the prompt is there once. Steps allocate nothing in the long run
// but the tables of forks.
TEST(Reorder, BeamsShareThePrompt) {
  test::Random random(3);
  const Pool<float> pool(random);
  KvCache<float> cache(config_of(4));
  pool.append(cache, 0, 0, 600);
  for (Index b = 1; b < 4; b++) cache.fork(0, b);
  for (int step = 0; step < 100; step++) {
    std::array<Index, 4> parents{};
    for (Index& parent : parents) parent = random.integer(0, 3);
    cache.reorder(parents);
    auto k = pool.keys(step, step + 1);
    auto v = pool.values(step, step + 1);
    k.batch = v.batch = 4;
    cache.append(k, v);
    EXPECT_LE(expect_bytes(cache), std::size_t(kHeads * (600 / kTile + 4 * 3)));
  }
}

// Continuous batching

TEST(Clear, TheNextSequenceStartsAsInANewCache) {
  test::Random random(4);
  const Pool<float> pool(random);
  KvCacheConfig config = config_of(2, 0);
  config.eviction = alibi::Eviction{.query_norm = 0.1, .slopes = {1, 1}};
  config.rollback = 0;
  KvCache<float> cache(config);
  const std::size_t empty = cache.bytes();
  for (Index i = 0; i < 500; i++) pool.append(cache, 1, i, i + 1);
  EXPECT_GT(cache.first_key(1, 0), 0);
  cache.clear(1);
  cache.clear(0);
  EXPECT_EQ(cache.length(1), 0);
  EXPECT_EQ(cache.first_key(1, 0), 0);
  EXPECT_EQ(cache.min_length(1), 0);
  EXPECT_EQ(cache.evicted_tolerance(1, 0), 0);
  EXPECT_LE(cache.bytes(), empty + 4 * (5 * kTile * sizeof(float) + 72 + 300)) << "spare tiles, one a head";
  pool.append(cache, 1, 0, 130);
  EXPECT_TRUE(state(cache, 1) == state_after({{0, 130}}, config, pool));
}

TEST(OneSequence, AppendEqualsThatOfAllWithCounts) {
  test::Random random(5);
  const Tensor4<float> k = random.tensor<float>(3, kHeads, 90, kDim),
                       v = random.tensor<float>(3, kHeads, 90, kValueDim);
  const auto of = [](const Tensor4<float>& x, Index b) {
    return Tensor4<float>(x.slice(Eigen::array<Index, 4>{b, 0, 0, 0},
                                  Eigen::array<Index, 4>{1, x.dimension(1), x.dimension(2), x.dimension(3)}));
  };
  KvCache<float> together(config_of(3)), single(config_of(3));
  together.append(k, v, {});  // no entries: all tokens
  for (Index b = 0; b < 3; b++) single.append(b, of(k, b), of(v, b));
  EXPECT_TRUE(state(single) == state(together));
  together.append(k, v, std::vector<Index>{0, 90, 0});
  single.append(1, of(k, 1), of(v, 1));
  EXPECT_TRUE(state(single) == state(together));
}

// Sequences without new tokens allocate nothing, and no tile is read for them.
TEST(OneSequence, OthersCostNothing) {
  test::Random random(6);
  const Pool<float> pool(random);
  KvCache<float> cache(config_of(3));
  for (Index b = 0; b < 3; b++) pool.append(cache, b, 0, 200);
  const auto q = random.tensor<float>(3, kHeads, 1, kDim);
  Tensor4<float> output(3, kHeads, 1, kValueDim);
  const auto m = alibi::slopes(kHeads);
  const std::vector<Index> counts = {0, 1, 0};
  std::vector<alibi::PruningStats> stats(3 * kHeads);
  alibi::Workspace workspace;
  const alibi::Options options{.pruning_stats = stats, .queries = counts, .workspace = &workspace};
  alibi::attention_into(output, q, cache, m, options);
  const std::size_t before = heap::allocations;
  pool.append(cache, 1, 200, 201);
  auto k = pool.keys(0, 1);
  auto v = pool.values(0, 1);
  k.batch = v.batch = 3;
  cache.append(k, v, counts);
  alibi::attention_into(output, q, cache, m, options);
  EXPECT_EQ(heap::allocations, before);
  for (Index h = 0; h < kHeads; h++) {
    EXPECT_EQ(stats[std::size_t(h)].tiles_total, 0);
    EXPECT_GT(stats[std::size_t(kHeads + h)].tiles_computed, 0);
    EXPECT_EQ(stats[std::size_t(2 * kHeads + h)].tiles_computed, 0);
    for (Index d = 0; d < kValueDim; d++) EXPECT_EQ(output(0, h, 0, d), 0);
  }
}

// Memory: every allocation of every change of shared sequences fails in turn.

TEST(OutOfMemory, ChangesNothing) {
  test::Random random(7);
  const Pool<float> pool(random);
  KvCacheConfig config = config_of(4);
  config.window = 100;
  config.rollback = 2;
  KvCache<float> cache(config);
  pool.append(cache, 0, 0, 150);
  pool.append(cache, 3, 300, 400);
  cache.fork(0, 1);
  cache.fork(0, 2);
  const std::string file = saved(cache, 3);
  auto k = pool.keys(0, 200);
  auto v = pool.values(0, 200);
  k.batch = v.batch = 4;
  const std::vector<std::function<void(KvCache<float>&)>> changes = {
      [&](auto& of) { of.append(k, v); },
      [&](auto& of) { of.append(0, pool.keys(0, 1), pool.values(0, 1)); },
      [&](auto& of) { of.truncate(99); },
      [&](auto& of) { of.truncate(1, 149); },
      [&](auto& of) { of.fork(0, 3); },
      [&](auto& of) { of.reorder(std::array<Index, 4>{1, 3, 3, 0}); },
      [&](auto& of) {
        std::istringstream in(file);
        alibi::load(in, of, 1);
      },
      [&](auto& of) { of = of.clone(); }};
  for (std::size_t change = 0; change < changes.size(); change++) {
    KvCache<float> of = cache.clone();
    const auto before = state(of);
    const std::size_t tiles = expect_bytes(of);
    std::size_t failures = 0;
    for (bool done = false; !done; failures += !done) {
      allocations_left = failures;
      try {
        changes[change](of);
        done = true;
      } catch (const std::bad_alloc&) {
      }
      allocations_left = kUnlimited;
      if (done) break;
      EXPECT_TRUE(state(of) == before) << "change " << change;
      EXPECT_EQ(expect_bytes(of), tiles) << "change " << change;
    }
    EXPECT_GE(failures, 1u) << "change " << change;
    expect_bytes(of);
    of.clear(1);  // needs no memory
    expect_bytes(of);
  }
}

// Files

TYPED_TEST(Sharing, ALoadedSequenceAttendsWithTheSameBits) {
  test::Random random(8);
  const Pool<TypeParam> pool(random);
  const auto m = alibi::slopes(2 * kHeads);
  KvCacheConfig config = config_of(2);
  config.window = 400;
  config.eviction = alibi::Eviction{.query_norm = 2, .slopes = {m.begin(), m.end()}, .tolerance = 1e-3};
  for (const Index length : {0, 1, 64, 300, 900}) {
    KvCache<TypeParam> cache(config), other(config);
    for (Index i = 0; i < length; i += 60) pool.append(cache, 1, i, std::min(i + 60, length));
    pool.append(other, 0, 50, 250);
    std::istringstream in(saved(cache, 1) + saved(cache, 1) + "rest");
    alibi::load(in, other, 0);
    alibi::load(in, other, 1);
    EXPECT_EQ(in.tellg(), std::streampos(2 * std::streamoff(saved(cache, 1).size()))) << "nothing more was read";
    for (Index b = 0; b < 2; b++) EXPECT_TRUE(state(other, b) == state(cache, 1)) << "length " << length;
    EXPECT_EQ(saved(other, 0), saved(cache, 1));
    cache.fork(1, 0);
    for (int step = 0; step < 3; step++) {
      using T = typename Pool<TypeParam>::T;
      Tensor4<T> q = random.tensor<T>(2, 2 * kHeads, 1, kDim, 0.3);
      std::vector<alibi::PruningStats> stats(4 * kHeads), stats_loaded = stats;
      const auto expected = alibi::attention(q, cache, m, {.pruning_stats = stats});
      EXPECT_TRUE(test::same(alibi::attention(q, other, m, {.pruning_stats = stats_loaded}), expected));
      for (std::size_t i = 0; i < stats.size(); i++) EXPECT_EQ(stats[i].tiles_computed, stats_loaded[i].tiles_computed);
      for (KvCache<TypeParam>* each : {&cache, &other})
        for (Index b = 0; b < 2; b++) pool.append(*each, b, 100 * step + 20, 100 * step + 90);
      EXPECT_TRUE(state(cache) == state(other));
    }
    for (KvCache<TypeParam>* each : {&cache, &other})
      for (Index b = 0; b < 2; b++) each->truncate(b, each->min_length(b));
    EXPECT_TRUE(state(cache) == state(other)) << "what is known of keys that have left, length " << length;
  }
}

class Files : public testing::Test {
 protected:
  Files() { pool_.append(cache_, 1, 0, 70); }

  // The message of a load into sequence 0 of a cache with one sequence, which must not change.
  template <class S = float>
  std::string error(const std::string& file, KvCacheConfig config, Index sequence = 0) {
    config.batch = 1;
    KvCache<S> cache(config);
    const Pool<S> pool(random_);
    pool.append(cache, 0, 0, 5);
    const auto before = state(cache);
    const std::size_t bytes = cache.bytes();
    std::string message = "no error";
    std::istringstream in(file);
    try {
      alibi::load(in, cache, sequence);
      return message;
    } catch (const std::invalid_argument& thrown) {
      message = thrown.what();
    } catch (const std::runtime_error& thrown) {
      message = std::string("runtime ") + thrown.what();
    }
    EXPECT_TRUE(state(cache) == before) << message;
    EXPECT_EQ(cache.bytes(), bytes) << message;
    return message;
  }

  test::Random random_{9};
  Pool<float> pool_{random_};
  KvCache<float> cache_{config_of(2)};
};

TEST_F(Files, TruncatedAtAnyByte) {
  const std::string file = saved(cache_, 1);
  EXPECT_EQ(error(file, config_of(1)), "no error");
  EXPECT_EQ(error("", config_of(1)), "runtime alibi: the saved sequence ends after 0 bytes; expected at least 8 more");
  EXPECT_EQ(error(file.substr(0, file.size() - 1), config_of(1)), "runtime alibi: the saved sequence ends after " +
                                                                      std::to_string(file.size() - 1) +
                                                                      " bytes; expected at least 1 more");
  for (std::size_t size = 0; size < file.size(); size += size < 300 ? 1 : 97)
    EXPECT_TRUE(error(file.substr(0, size), config_of(1)).starts_with("runtime alibi: the saved sequence ends after "))
        << size;
}

TEST_F(Files, AChangedByteIsFound) {
  const std::string file = saved(cache_, 1);
  for (std::size_t at = 16; at < file.size(); at += at < 300 ? 1 : 89) {
    std::string changed = file;
    changed[at] = char(changed[at] ^ (1 << at % 8));
    EXPECT_TRUE(error(changed, config_of(1)).starts_with("runtime alibi: the saved sequence is corrupt: its checksum"))
        << at;
  }
  for (std::size_t at = file.size() / 2; at < file.size() / 2 + 8; at++) {  // the highest bits of two words, for one at
    std::string changed = file;
    for (const std::size_t byte : {at, at + 8}) changed[byte] = char(changed[byte] ^ 0x80);
    EXPECT_TRUE(error(changed, config_of(1)).starts_with("runtime alibi: the saved sequence is corrupt")) << at;
  }
}

TEST_F(Files, OfAnotherKind) {
  const std::string file = saved(cache_, 1);
  std::string other = file;
  std::reverse(other.begin(), other.begin() + 8);
  EXPECT_EQ(error(other, config_of(1)),
            "alibi: the saved sequence has the other byte order; expected that of this machine");
  other[0] = 'x';
  EXPECT_EQ(error(other, config_of(1)),
            "alibi: the stream does not begin with a saved sequence; expected what save() wrote");
  other = file;
  other[8] = 2;
  EXPECT_EQ(error(other, config_of(1)), "alibi: the saved sequence has version 2; expected 1");
}

TEST_F(Files, ThatDoNotFit) {
  const std::string file = saved(cache_, 1);
  KvCacheConfig config = config_of(1);
  EXPECT_EQ(error(file, config, 1), "alibi: sequence is 1; expected 0 to 0");
  EXPECT_EQ(error<Eigen::half>(file, config),
            "alibi: the saved sequence has scalar float; expected half, that of the cache");
  config.capacity = 69;
  EXPECT_EQ(error(file, config),
            "alibi: the saved sequence has length 70; expected at most 69, the capacity of the cache");
  config.capacity = 70;
  EXPECT_EQ(error(file, config), "no error");
  const auto with = [](Index kv_heads, Index head_dim, Index value_dim) {
    KvCacheConfig other{.batch = 1, .kv_heads = kv_heads, .head_dim = head_dim, .value_dim = value_dim, .capacity = 99};
    return other;
  };
  const auto message = [&](const KvCacheConfig& of) {
    KvCache<float> cache(of);
    std::istringstream in(file);
    return test::error_of([&] { alibi::load(in, cache, 0); });
  };
  EXPECT_EQ(message(with(1, 3, 2)), "alibi: the saved sequence has kv_heads 2; expected 1, the kv_heads of the cache");
  EXPECT_EQ(message(with(2, 4, 2)), "alibi: the saved sequence has head_dim 3; expected 4, the head_dim of the cache");
  EXPECT_EQ(message(with(2, 3, 3)),
            "alibi: the saved sequence has value_dim 2; expected 3, the value_dim of the cache");
}

TEST_F(Files, WhoseKeysHaveLeft) {
  KvCacheConfig config = config_of(1);
  config.window = 100;
  config.rollback = 0;
  KvCache<float> windowed(config);
  pool_.append(windowed, 0, 0, 300);
  config.window = 300;
  EXPECT_EQ(error(saved(windowed, 0), config), "no error") << "nothing has left yet";
  pool_.append(windowed, 0, 300, 301);
  const std::string left_window = saved(windowed, 0);
  const std::string window =
      "alibi: keys have left the saved sequence by its window of 100; expected a cache with a window of at most that";
  EXPECT_EQ(error(left_window, config), window);
  KvCacheConfig with_sinks = windowed.config();
  with_sinks.sinks = 4;
  EXPECT_EQ(error(left_window, with_sinks),
            "alibi: keys have left the saved sequence with sinks of 0; expected a cache with as many, not 4");
  EXPECT_EQ(error(left_window, config_of(1)), window);
  config.window = 50;
  EXPECT_EQ(error(left_window, config), "no error");

  config.window = std::nullopt;
  config.eviction = alibi::Eviction{.query_norm = 1, .slopes = {1, 1, 0.5, 0.5}, .scale = 0.5, .tolerance = 1e-3};
  KvCache<float> evicting(config);
  pool_.append(evicting, 0, 0, 300);
  pool_.append(evicting, 0, 300, 301);
  ASSERT_GT(evicting.evicted_tolerance(0, 1), 0);
  const std::string evicted = saved(evicting, 0);
  const std::string by = ", by which keys have left the saved sequence";
  const auto with = [&](const alibi::Eviction& eviction) {
    KvCacheConfig other = config;
    other.eviction = eviction;
    return error(evicted, other);
  };
  EXPECT_EQ(error(evicted, config_of(1)),
            "alibi: keys have left the saved sequence by eviction; expected a cache with an eviction");
  EXPECT_EQ(with({.query_norm = 0.9, .slopes = {1.5, 0.5}, .scale = -0.4, .tolerance = 1e-2}), "no error");
  EXPECT_EQ(with({.query_norm = 2, .slopes = {1, 0.5}, .scale = 0.5, .tolerance = 1e-3}),
            "alibi: eviction.query_norm of the cache is 2; expected at most 1" + by);
  EXPECT_EQ(with({.query_norm = 1, .slopes = {1, 0.5}, .scale = -0.75, .tolerance = 1e-3}),
            "alibi: eviction.scale of the cache is 0.75; expected at most 0.5" + by);
  EXPECT_EQ(with({.query_norm = 1, .slopes = {1, 0.5}, .scale = 0.5, .tolerance = 1e-4}),
            "alibi: eviction.tolerance of the cache is 0.0001; expected at least 0.001" + by);
  EXPECT_EQ(with({.query_norm = 1, .slopes = {1, 0.25}, .scale = 0.5, .tolerance = 1e-3}),
            "alibi: the smallest of eviction.slopes of kv_head 1 of the cache is 0.25; expected at least 0.5" + by);
}

TEST_F(Files, ThatCannotBeWritten) {
  std::ostringstream out;
  out.setstate(std::ios::badbit);
  EXPECT_EQ(test::error_of([&] { alibi::save(out, cache_, 2); }), "alibi: sequence is 2; expected 0 to 1");
  try {
    alibi::save(out, cache_, 1);
    ADD_FAILURE();
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "alibi: the stream that a sequence is saved to refused 8 bytes");
  }
}

// Errors

TEST(SharingErrors, AreNamed) {
  test::Random random(10);
  const Pool<float> pool(random);
  KvCache<float> cache(config_of(3, 100));
  pool.append(cache, 0, 0, 90);
  cache.fork(0, 1);
  const auto message = [&](const std::function<void()>& call) {
    const auto before = state(cache);
    const std::size_t tiles = expect_bytes(cache);
    std::string text = test::error_of(call);
    EXPECT_TRUE(state(cache) == before) << text;
    EXPECT_EQ(expect_bytes(cache), tiles) << text;
    return text;
  };
  EXPECT_EQ(message([&] { cache.fork(3, 0); }), "alibi: from is 3; expected 0 to 2");
  EXPECT_EQ(message([&] { cache.fork(0, -1); }), "alibi: to is -1; expected 0 to 2");
  EXPECT_EQ(message([&] { cache.fork(1, 1); }), "nothing was thrown");
  EXPECT_EQ(message([&] { cache.reorder(std::vector<Index>{0, 1}); }),
            "alibi: indices has 2 entries; expected 3, the batch of the cache");
  EXPECT_EQ(message([&] { cache.reorder(std::vector<Index>{0, 1, 3}); }), "alibi: indices[2] is 3; expected 0 to 2");
  EXPECT_EQ(message([&] { cache.reorder(std::vector<Index>{-1, 1, 3}); }), "alibi: indices[0] is -1; expected 0 to 2");
  EXPECT_EQ(message([&] { cache.reorder(std::vector<Index>{0, 1, 2}); }), "nothing was thrown");
  EXPECT_EQ(message([&] { cache.clear(3); }), "alibi: sequence is 3; expected 0 to 2");
  EXPECT_EQ(message([&] { pool.append(cache, 3, 0, 1); }), "alibi: sequence is 3; expected 0 to 2");
  EXPECT_EQ(message([&] { pool.append(cache, 1, 0, 11); }),
            "alibi: k has tokens 11; expected at most 10, what is left of sequence 1's capacity 100");
  auto k = pool.keys(0, 1);
  k.batch = 2;
  EXPECT_EQ(message([&] { cache.append(1, k, pool.values(0, 1)); }),
            "alibi: k has batch 2; expected 1, for one sequence");
  k = pool.keys(0, 1);
  auto v = pool.values(0, 1);
  v.batch = 0;
  EXPECT_EQ(message([&] { cache.append(1, k, v); }), "alibi: v has batch 0; expected 1, for one sequence");
  EXPECT_EQ(message([&] { cache.append(1, k, pool.values(0, 2)); }),
            "alibi: v has tokens 2; expected 1, the tokens of k");
  EXPECT_EQ(message([&] { cache.truncate(1, 91); }), "alibi: length is 91; expected 0 to 90, the length of sequence 1");
}

}  // namespace
