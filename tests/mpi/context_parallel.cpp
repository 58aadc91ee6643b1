// Attention over several ranks against one process. mpirun starts this program; every rank runs every test, and makes
// the same random calls from the same seeds. A failure on any rank fails the program on all.
#include <gtest/gtest.h>

#include <alibi/mpi.hpp>
#include <atomic>
#include <cstdlib>
#include <new>
#include <numeric>
#include <thread>

#include "common.hpp"

// An allocation of this rank that fails: the one after `allocations_left` others; below 0 none does.
namespace {
std::atomic<long> allocations_left = -1;
// Not inlined, because g++ would report the pair as mismatched.
[[gnu::noinline]] void* allocate(std::size_t size, std::size_t alignment) {
  if (allocations_left >= 0 && allocations_left-- == 0) throw std::bad_alloc();
  void* const memory = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (!memory) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void release(void* memory) noexcept { std::free(memory); }
}  // namespace
void* operator new(std::size_t size) { return allocate(std::max<std::size_t>(size, 1), 16); }
void* operator new[](std::size_t size) { return allocate(std::max<std::size_t>(size, 1), 16); }
void* operator new(std::size_t size, std::align_val_t alignment) { return allocate(size, std::size_t(alignment)); }
void* operator new[](std::size_t size, std::align_val_t alignment) { return allocate(size, std::size_t(alignment)); }
void operator delete(void* memory) noexcept { release(memory); }
void operator delete[](void* memory) noexcept { release(memory); }
void operator delete(void* memory, std::size_t) noexcept { release(memory); }
void operator delete[](void* memory, std::size_t) noexcept { release(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { release(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { release(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { release(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { release(memory); }

namespace {

using alibi::ContextParallel, alibi::Options;
using test::Index, test::Random, test::RowMatrix, test::Tensor4;

template <class T>
using Sum = alibi::detail::Sum<T>;
template <class T>
using Lse = Eigen::Tensor<Sum<T>, 3, Eigen::RowMajor>;

int rank_of_world() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}
int ranks_of_world() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

/// An array of rank 0, on all ranks.
template <class Array>
void broadcast(Array& x) {
  MPI_Bcast(x.data(), int(std::size_t(x.size()) * sizeof(*x.data())), MPI_BYTE, 0, MPI_COMM_WORLD);
}

template <class T>
Tensor4<T> tokens_of(const Tensor4<T>& x, Index begin, Index end) {
  return x.slice(Eigen::array<Index, 4>{0, 0, begin, 0},
                 Eigen::array<Index, 4>{x.dimension(0), x.dimension(1), end - begin, x.dimension(3)});
}

/// The starts of random pieces of a sequence; some pieces are empty.
std::vector<Index> pieces_of(Random& random, Index tokens, int ranks) {
  std::vector<Index> starts = {0, tokens};
  for (int r = 1; r < ranks; r++) starts.push_back(random.chance(0.15) ? starts.back() : random.integer(0, tokens));
  std::sort(starts.begin(), starts.end());
  return starts;
}

/// A random call; the whole sequence is on every rank.
template <class T>
struct Call {
  Tensor4<T> q, k, v, grad_output;
  RowMatrix<Sum<T>> slopes, table;  // [batch, heads]; [heads, entries]
  Options options;
  std::vector<Index> starts;

  Call(Random& random, int ranks) {
    const Index batch = random.integer(1, 2), kv_heads = random.integer(1, 2), heads = kv_heads * random.integer(1, 2);
    const Index n = random.integer(1, random.chance(0.3) ? 60 : 900), dim = random.integer(1, 20);
    const Index value_dim = random.chance(0.5) ? dim : random.integer(1, 20);
    q = random.tensor<T>(batch, heads, n, dim), k = random.tensor<T>(batch, kv_heads, n, dim);
    v = random.tensor<T>(batch, kv_heads, n, value_dim), grad_output = random.tensor<T>(batch, heads, n, value_dim);
    options.mask.causal = random.chance(0.6);
    if (random.chance(0.3)) options.mask.window = random.integer(1, n + 10);
    if (random.chance(0.3)) options.tolerance = random.chance(0.5) ? 0 : 1e-3;
    if (random.chance(0.3)) options.scale = random.uniform(-0.5, 0.5);
    if (random.chance(0.3))
      options.executor = alibi::Executor(2, [](Index count, alibi::Task task) {
        std::vector<std::jthread> threads;
        for (Index i = 0; i < count; i++) threads.emplace_back([=] { task(i); });
      });
    slopes.resize(batch, heads);
    for (Index i = 0; i < slopes.size(); i++)
      slopes.data()[i] = Sum<T>(std::exp2(-random.uniform(-1, 6)) * (random.chance(0.1) ? -0.1 : 1));
    if (random.chance(0.1)) slopes.setZero();
    table = random.matrix<Sum<T>>(heads, random.integer(1, 300));
    starts = pieces_of(random, n, ranks);
  }
  Index begin() const { return starts[std::size_t(rank_of_world())]; }
  Index end() const { return starts[std::size_t(rank_of_world()) + 1]; }
  Tensor4<T> mine(const Tensor4<T>& x) const { return tokens_of(x, begin(), end()); }
};

/// The largest difference of a piece from its part of a whole array, relative to the largest entry or to 1.
template <class T, class U>
double difference(const Tensor4<T>& piece, const Tensor4<U>& whole, Index begin) {
  double largest = 1, most = 0;
  for (Index i = 0; i < whole.size(); i++) largest = std::max(largest, std::abs(double(whole.data()[i])));
  const Tensor4<U> part = tokens_of(whole, begin, begin + piece.dimension(2));
  most = test::distance(piece, part);
  return most == 0 ? 0 : most / largest;
}
template <class T>
double lse_difference(const Lse<T>& piece, const Lse<T>& whole, Index begin) {
  double most = 0;
  for (Index b = 0; b < piece.dimension(0); b++)
    for (Index h = 0; h < piece.dimension(1); h++)
      for (Index i = 0; i < piece.dimension(2); i++) {
        const double is = double(piece(b, h, i)), should = double(whole(b, h, begin + i));
        if (is != should) most = std::max(most, std::abs(is - should) / std::max(1., std::abs(should)));
        if (std::isnan(is)) most = test::kInfinity;
      }
  return most;
}

template <class T>
class ContextParallelOf : public testing::Test {
 protected:
  // 16 bits are rounded once more for each rank that sends keys; a looser tolerance may differ by as much.
  static constexpr double kBound = std::is_same_v<T, double> ? 1e-12 : std::is_same_v<T, float> ? 8e-6 : 1.0 / 64;
  static double bound_of(const Options& options) { return kBound + 4 * options.tolerance.value_or(0); }

  template <class Bias>
  static void expect_forward(const Call<T>& call, const Bias& bias) {
    auto whole = alibi::attention_with_lse(call.q, call.k, call.v, bias, call.options);
    ContextParallel parallel(MPI_COMM_WORLD, {.tokens = call.end() - call.begin()});
    const auto q = call.mine(call.q), k = call.mine(call.k), v = call.mine(call.v);
    const auto piece = parallel.attention_with_lse(q, k, v, bias, call.options);
    EXPECT_LE(difference(piece.output, whole.output, call.begin()), bound_of(call.options));
    EXPECT_LE(lse_difference<T>(piece.lse, whole.lse, call.begin()),
              (sizeof(Sum<T>) == 4 ? 8e-6 : 1e-12) + 4 * call.options.tolerance.value_or(0));
    const auto again = parallel.attention(q, k, v, bias, call.options);
    EXPECT_TRUE(test::same(again, piece.output)) << "the same call";
    Options serial = call.options;
    serial.executor = {};
    EXPECT_TRUE(test::same(parallel.attention(q, k, v, bias, serial), piece.output)) << "on one thread";
  }

  template <class Bias>
  static void expect_backward(const Call<T>& call, const Bias& bias) {
    const auto forward = alibi::attention_with_lse(call.q, call.k, call.v, bias, call.options);
    const auto whole = alibi::attention_backward(call.grad_output, call.q, call.k, call.v, bias, forward, call.options);
    ContextParallel parallel(MPI_COMM_WORLD, {.tokens = call.end() - call.begin()});
    const auto q = call.mine(call.q), k = call.mine(call.k), v = call.mine(call.v), g = call.mine(call.grad_output);
    // With the output and lse of one process, so that only the gradients are compared.
    const Tensor4<T> output = call.mine(forward.output);
    const Lse<T> lse = forward.lse.slice(Eigen::array<Index, 3>{0, 0, call.begin()},
                                         Eigen::array<Index, 3>{q.dimension(0), q.dimension(1), q.dimension(2)});
    const auto grad = parallel.attention_backward(g, q, k, v, bias, {output, lse}, call.options);
    double largest = 0;
    for (Index i = 0; i < forward.lse.size(); i++)
      if (std::isfinite(forward.lse.data()[i])) largest = std::max(largest, std::abs(double(forward.lse.data()[i])));
    const double bound = (sizeof(Sum<T>) == 4 ? 5e-5 : 1e-11) + 8 * call.options.tolerance.value_or(0) +
                         4 * largest * double(std::numeric_limits<Sum<T>>::epsilon());
    EXPECT_LE(difference(grad.q, whole.q, call.begin()), bound) << "dq";
    EXPECT_LE(difference(grad.k, whole.k, call.begin()), bound) << "dk";
    EXPECT_LE(difference(grad.v, whole.v, call.begin()), bound) << "dv";
    // A loss of the lse too.
    const alibi::ForwardResult<Tensor4<T>, Lse<T>> losses{call.grad_output, forward.lse}, own_losses{g, lse};
    const auto whole_of_both = alibi::attention_backward(losses, call.q, call.k, call.v, bias, forward, call.options);
    const auto of_both = parallel.attention_backward(own_losses, q, k, v, bias, {output, lse}, call.options);
    EXPECT_LE(difference(of_both.q, whole_of_both.q, call.begin()), bound * (1 + largest)) << "dq of the lse";
    EXPECT_LE(difference(of_both.k, whole_of_both.k, call.begin()), bound * (1 + largest)) << "dk of the lse";
    const auto again = parallel.attention_backward(g, q, k, v, bias, {output, lse}, call.options);
    EXPECT_TRUE(test::same(again.q, grad.q) && test::same(again.k, grad.k) && test::same(again.v, grad.v));
    Options serial = call.options;
    serial.executor = {};
    const auto on_one_thread = parallel.attention_backward(g, q, k, v, bias, {output, lse}, serial);
    const auto of_bias = [](const auto& x) -> const auto& {
      if constexpr (requires { x.slopes; })
        return x.slopes;
      else
        return x.table;
    };
    EXPECT_TRUE(test::same(of_bias(again), of_bias(grad)) && test::same(of_bias(on_one_thread), of_bias(grad)))
        << "the gradient of the bias has the same bits";
    // The rounding of the output counts times the distance of keys (tests/backward/parts.cpp).
    double sum = 0;
    for (Index i = 0; i < forward.output.size(); i++)
      sum += std::abs(double(forward.output.data()[i]) * double(call.grad_output.data()[i]));
    const double rounding = 4 * sum * double(call.q.dimension(2)) * double(std::numeric_limits<T>::epsilon());
    EXPECT_LE(test::distance(of_bias(grad), of_bias(whole)), bound * (1 + double(call.q.dimension(2)) * sum) + rounding)
        << "the gradient of the bias";
  }
};
using Scalars = testing::Types<float, double, Eigen::bfloat16>;
TYPED_TEST_SUITE(ContextParallelOf, Scalars);

int cases_of(int few) { return rank_of_world() >= 0 ? few : 0; }

TYPED_TEST(ContextParallelOf, Forward) {
  for (int seed = 1; seed <= cases_of(sizeof(TypeParam) >= 4 ? 16 : 6); seed++) {
    Random random{std::uint64_t(seed)};
    Call<TypeParam> call(random, ranks_of_world());
    if (seed % 4 == 0)
      this->expect_forward(call, alibi::relative_bias(call.table, random.integer(-50, 10)));
    else
      this->expect_forward(call, call.slopes);
  }
}

TYPED_TEST(ContextParallelOf, Backward) {
  for (int seed = 1; seed <= cases_of(sizeof(TypeParam) >= 4 ? 12 : 4); seed++) {
    Random random{std::uint64_t(100 + seed)};
    Call<TypeParam> call(random, ranks_of_world());
    if (seed % 4 == 0)
      this->expect_backward(call, alibi::relative_bias(call.table, random.integer(-50, 10)));
    else
      this->expect_backward(call, call.slopes);
  }
}

// Shared slopes, none, and the gradients from the ranks' own forward.
TEST(Context, SlopesOfAllSequencesAndNone) {
  Random random(5);
  Call<float> call(random, ranks_of_world());
  call.options = {};
  ContextParallel parallel(MPI_COMM_WORLD, {.tokens = call.end() - call.begin()});
  const auto q = call.mine(call.q), k = call.mine(call.k), v = call.mine(call.v), g = call.mine(call.grad_output);
  const Eigen::VectorXf slopes = alibi::slopes(call.q.dimension(1));
  const auto forward = parallel.attention_with_lse(q, k, v, slopes);
  const auto grad = parallel.attention_backward(g, q, k, v, slopes, forward);
  const auto whole_forward = alibi::attention_with_lse(call.q, call.k, call.v, slopes);
  const auto whole = alibi::attention_backward(call.grad_output, call.q, call.k, call.v, slopes, whole_forward);
  EXPECT_LE(difference(grad.k, whole.k, call.begin()), 5e-5);
  for (Index h = 0; h < slopes.size(); h++)
    EXPECT_NEAR(grad.slopes[h], whole.slopes[h], 1e-4 * std::max(100.f, std::abs(whole.slopes[h])));
  const auto none = parallel.attention(q, k, v, alibi::no_bias);
  EXPECT_LE(difference(none, alibi::attention(call.q, call.k, call.v, alibi::no_bias), call.begin()), 8e-6);
  const auto grad_none =
      parallel.attention_backward(g, q, k, v, alibi::no_bias, parallel.attention_with_lse(q, k, v, alibi::no_bias));
  EXPECT_EQ(grad_none.q.size(), q.size());
}

// Steep heads receive a few tiles, and heads without a bias no more than a ring would send.
TEST(Context, Bytes) {
  constexpr Index kTokens = 1024, kDim = 32;
  const int ranks = ranks_of_world();
  Random random(6);
  const auto q = random.tensor<float>(1, 2, kTokens, kDim), k = random.tensor<float>(1, 2, kTokens, kDim);
  ContextParallel parallel(MPI_COMM_WORLD, {.tokens = kTokens});
  const Index ring = (ranks - 1) * 2 * kTokens * 2 * kDim * Index(sizeof(float));
  const Index agreement = Index(sizeof(std::int64_t)) * 21 * (ranks - 1);
  parallel.attention(q, k, k, Eigen::Vector2f(0.5f, 0.25f));
  if (ranks > 1 && parallel.rank() > 0) {
    EXPECT_LE(parallel.statistics().tiles_fetched, 2 * 4);
    EXPECT_GE(parallel.statistics().tiles_fetched, 2);
    EXPECT_LE(parallel.statistics().bytes_received, ring / 4);
  }
  EXPECT_LE(parallel.statistics().ranks_asked, 1);
  parallel.attention(q, k, k, Eigen::Vector2f(0, 0), {.mask = {.causal = false}});
  const auto& all = parallel.statistics();
  EXPECT_EQ(all.tiles_fetched, (ranks - 1) * 2 * kTokens / 64);
  EXPECT_LE(all.bytes_received, ring + agreement + 64 * ranks);
  EXPECT_EQ(all.ranks_asked, ranks - 1);
}

// The caches of the ranks together hold what one cache holds.
template <class T>
void expect_cache(std::uint64_t seed) {
  Random random(seed);
  const int ranks = ranks_of_world();
  const Index batch = random.integer(1, 2), kv_heads = random.integer(1, 2), heads = kv_heads * random.integer(1, 2),
              n = random.integer(1, 3000), queries = random.integer(1, std::min<Index>(n, random.chance(0.2) ? 20 : 3));
  const auto k = random.tensor<T>(batch, kv_heads, n, 16), v = random.tensor<T>(batch, kv_heads, n, 24);
  const auto q = random.tensor<T>(batch, heads, queries, 16);
  Eigen::VectorXf slopes = alibi::slopes(heads);
  if (random.chance(0.3)) slopes[0] = 0;
  Options options;
  if (random.chance(0.3)) options.tolerance = 0;
  if (random.chance(0.3)) options.mask.window = random.integer(1, n);
  const std::vector<Index> starts = pieces_of(random, n, ranks);
  const alibi::KvCacheConfig config = {
      .batch = batch, .kv_heads = kv_heads, .head_dim = 16, .value_dim = 24, .capacity = n};
  alibi::KvCache<T> whole(config), part(config);
  whole.append(k, v);
  const Index begin = starts[std::size_t(rank_of_world())], end = starts[std::size_t(rank_of_world()) + 1];
  if (end > begin) part.append(tokens_of(k, begin, end), tokens_of(v, begin, end));
  ContextParallel parallel(MPI_COMM_WORLD);
  const auto expected = alibi::attention_with_lse(q, whole, slopes, options);
  const auto result = parallel.attention_with_lse(q, part, slopes, options);
  const double bound = sizeof(T) == 2 ? 1.0 / 64 : 8e-6;
  EXPECT_LE(difference(result.output, expected.output, 0), bound) << "seed " << seed;
  EXPECT_LE(lse_difference<T>(result.lse, expected.lse, 0), 8e-6) << "seed " << seed;
  EXPECT_TRUE(test::same(parallel.attention(q, part, slopes, options), result.output)) << "seed " << seed;
  const auto table = random.matrix<Sum<T>>(heads, 100);
  EXPECT_LE(difference(parallel.attention(q, part, alibi::relative_bias(table), options),
                       alibi::attention(q, whole, alibi::relative_bias(table), options), 0),
            bound)
      << "a table, seed " << seed;
}
TEST(Context, Caches) {
  for (std::uint64_t seed = 1; seed <= 12; seed++) expect_cache<float>(seed);
  for (std::uint64_t seed = 1; seed <= 4; seed++) expect_cache<Eigen::bfloat16>(20 + seed);
}

// With steep slopes only the rank of the newest keys attends, and the one before it if that has few keys.
TEST(Context, DistantCachesAreNotAsked) {
  Random random(9);
  alibi::KvCache<float> cache({.head_dim = 16, .capacity = 2048});
  const auto k = random.tensor<float>(1, 1, 2048, 16), q = random.tensor<float>(1, 1, 1, 16);
  cache.append(k, k);
  ContextParallel parallel(MPI_COMM_WORLD);
  parallel.attention(q, cache, 0.25f);
  EXPECT_EQ(parallel.statistics().ranks_asked, parallel.rank() == parallel.size() - 1 ? 0 : 1);
  parallel.attention(q, cache, 0.f);
  EXPECT_EQ(parallel.statistics().ranks_asked, parallel.size() - 1);
}

/// The message that a call throws on this rank; fails unless all ranks throw the same.
template <class Error, class Body>
std::string error_on_all(const Body& body) {
  std::array<char, 600> text{}, first{};
  std::string message = "nothing was thrown";
  try {
    body();
  } catch (const Error& error) {
    message = error.what();
  } catch (const std::exception& error) {
    message = std::string("another exception: ") + error.what();
  }
  std::snprintf(text.data(), text.size(), "%s", message.c_str());
  first = text;
  broadcast(first);
  EXPECT_STREQ(text.data(), first.data()) << "another message than rank 0 has";
  return message;
}

TEST(Context, Errors) {
  const int last = ranks_of_world() - 1;
  const bool is_last = rank_of_world() == last;
  const std::string prefix = "alibi: rank " + std::to_string(last) + ": ";
  using Invalid = std::invalid_argument;
  Random random(7);
  const auto x = random.tensor<float>(1, 2, 70, 8), wide = random.tensor<float>(1, 2, 70, 9),
             other = random.tensor<float>(1, 1, 70, 8), three = random.tensor<float>(1, 3, 70, 8);
  const Eigen::Vector2f m(0.5f, 0.25f);
  ContextParallel parallel(MPI_COMM_WORLD, {.tokens = 70});

  EXPECT_EQ(error_on_all<Invalid>([&] { ContextParallel(MPI_COMM_WORLD, {.tokens = is_last ? -1 : 5}); }),
            prefix + "config.tokens is -1; expected 0 or more");
  EXPECT_EQ(error_on_all<Invalid>([&] { parallel.attention(x, is_last ? wide : x, x, m); }),
            prefix + "k has head_dim 9; expected 8, the head_dim of q");
  EXPECT_EQ(error_on_all<Invalid>([&] { parallel.attention(x, is_last ? three : x, x, m); }),
            prefix + "v has heads 2; expected 3, the heads of k");
  EXPECT_EQ(error_on_all<Invalid>([&] { parallel.attention(tokens_of(x, 0, is_last ? 60 : 70), x, x, m); }),
            prefix + "q has tokens 60; expected 70, the tokens of this rank");
  EXPECT_EQ(error_on_all<Invalid>([&] {
              parallel.attention(x, x, x, m,
                                 {.mask = {.query_offset = is_last ? std::optional<Index>(3) : std::nullopt}});
            }),
            prefix + "mask.query_offset is 3 over several ranks; expected none: the pieces give the positions");
  EXPECT_EQ(error_on_all<Invalid>([&] { parallel.attention(x, x, x, m, {.mask = {.prefix = 2}}); }),
            "alibi: rank 0: mask.prefix is 2 over several ranks; expected 0");
  EXPECT_EQ(error_on_all<Invalid>([&] { parallel.attention(x, x, x, m, {.mask = {.window = 8, .sinks = 4}}); }),
            "alibi: rank 0: mask.sinks is 4 over several ranks; expected 0");
  const std::vector<Index> prefixes = {2};
  EXPECT_EQ(error_on_all<Invalid>([&] { parallel.attention(x, x, x, m, {.prefixes = prefixes}); }),
            "alibi: rank 0: options.prefixes is given over several ranks; expected none");
  std::vector<alibi::PruningStats> stats(2);
  EXPECT_EQ(error_on_all<Invalid>([&] { parallel.attention(x, x, x, m, {.pruning_stats = stats}); }),
            "alibi: rank 0: pruning_stats has 2 entries over several ranks; expected none: statistics() counts");
  const auto forward = parallel.attention_with_lse(x, x, x, m);
  EXPECT_EQ(
      error_on_all<Invalid>([&] { parallel.attention_backward(is_last ? other : x, x, x, x, m, forward); }),
      prefix + "grad_output is [1, 1, 70, 8]; expected [1, 2, 70, 8], batch, heads and tokens of q, head_dim of v");
  if (last > 0) {
    const auto& one_kv = is_last ? other : x;
    EXPECT_EQ(error_on_all<Invalid>([&] { parallel.attention(x, one_kv, one_kv, m); }),
              prefix + "k has heads 1; expected 2, as on rank 0");
    EXPECT_EQ(error_on_all<Invalid>([&] { parallel.attention(x, x, x, m, {.mask = {.causal = !is_last}}); }),
              prefix + "mask.causal is false; expected true, as on rank 0");
    EXPECT_EQ(error_on_all<Invalid>([&] { parallel.attention(x, x, x, m, {.tolerance = is_last ? 0.25 : 0}); }),
              prefix + "tolerance is 0.25; expected 0, as on rank 0");
    EXPECT_EQ(error_on_all<Invalid>([&] { parallel.attention(x, x, x, Eigen::Vector2f(is_last ? m * 2 : m)); }),
              prefix + "slopes are other than those of rank 0; expected the same on all ranks");
    EXPECT_EQ(error_on_all<Invalid>([&] {
                is_last ? void(parallel.attention_backward(x, x, x, x, m, forward))
                        : void(parallel.attention(x, x, x, m));
              }),
              prefix + "the call is attention_backward; expected attention, as on rank 0");
    alibi::KvCache<float> cache({.kv_heads = 2, .head_dim = 8, .capacity = 100});
    const Tensor4<float> q = is_last ? tokens_of(x, 0, 1) : tokens_of(x, 1, 2);
    EXPECT_EQ(error_on_all<Invalid>([&] { parallel.attention(q, cache, m); }),
              prefix + "the values of q are other than those of rank 0; expected the same on all ranks");
  }
  EXPECT_TRUE(test::same(parallel.attention(x, x, x, m), forward.output)) << "a call after errors";
}

// Each allocation of one rank fails in turn, until a call succeeds.
template <class Body>
void expect_no_hang(const Body& body) {
  const int last = ranks_of_world() - 1;
  bool succeeded = false;
  long count = 0;
  for (long at = 0; !succeeded; at += 1 + at / 16) {
    const std::string message = error_on_all<std::runtime_error>([&] {
      allocations_left = rank_of_world() == last ? at : -1;
      try {
        body();
      } catch (...) {
        allocations_left = -1;
        throw;
      }
      allocations_left = -1;
    });
    succeeded = message == "nothing was thrown";
    if (!succeeded) {
      EXPECT_EQ(message, "alibi: rank " + std::to_string(last) + ": out of memory") << at;
    }
    count++;
    ASSERT_LT(count, 2000);
  }
  EXPECT_GT(count, 3) << "no allocation failed";
}
TEST(Context, AFailedAllocationOnOneRankIsAnErrorOnAll) {
  Random random(8);
  const auto x = random.tensor<float>(1, 2, 300, 8);
  const Eigen::Vector2f m(0.125f, 0.0625f);
  ContextParallel parallel(MPI_COMM_WORLD, {.tokens = 300});
  const auto forward = parallel.attention_with_lse(x, x, x, m);
  expect_no_hang([&] { parallel.attention(x, x, x, m); });
  expect_no_hang([&] { parallel.attention_backward(x, x, x, x, m, forward); });
  alibi::KvCache<float> cache({.kv_heads = 2, .head_dim = 8, .capacity = 300});
  cache.append(x, x);
  const auto q = tokens_of(x, 0, 1);
  expect_no_hang([&] { parallel.attention(q, cache, m); });
  EXPECT_TRUE(test::same(parallel.attention(x, x, x, m), forward.output));
}

// An executor that fails on one rank.
TEST(Context, AnExceptionOnOneRankIsAnErrorOnAll) {
  Random random(8);
  const auto x = random.tensor<float>(1, 2, 300, 8);
  ContextParallel parallel(MPI_COMM_WORLD, {.tokens = 300});
  const alibi::Executor broken(2, [](Index, alibi::Task) { throw std::runtime_error("no threads"); });
  const Options options = {.executor = rank_of_world() == 0 ? broken : alibi::Executor()};
  EXPECT_EQ(error_on_all<std::runtime_error>([&] { parallel.attention(x, x, x, Eigen::Vector2f(1, 2), options); }),
            "alibi: rank 0: no threads");
}

}  // namespace

int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  testing::InitGoogleTest(&argc, argv);
  if (rank_of_world() != 0) {
    testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    class Failures : public testing::EmptyTestEventListener {
      void OnTestPartResult(const testing::TestPartResult& result) override {
        if (result.failed())
          std::fprintf(stderr, "rank %d: %s:%d\n%s\n", rank_of_world(), result.file_name() ? result.file_name() : "",
                       result.line_number(), result.message());
      }
    };
    listeners.Append(new Failures);
  }
  int failed = RUN_ALL_TESTS(), any = 0;
  MPI_Allreduce(&failed, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  if (any != 0 && failed == 0) std::fprintf(stderr, "rank %d: a test has failed on another rank\n", rank_of_world());
  MPI_Finalize();
  return any;
}
