// Times decoding: one query for each head against a long cache, limited by the speed of reading memory. README.md in
// this folder defines every unit.
#include <Eigen/Core>
#include <algorithm>
#include <alibi/cached_attention.hpp>
#include <alibi/kv_cache.hpp>
#include <alibi/slopes.hpp>
#include <array>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unsupported/Eigen/CXX11/ThreadPool>
#include <utility>
#include <vector>

#include "common.hpp"

namespace {

using bench::Index;
using bench::RowMatrix;
using bench::Vector;

struct Case {
  Index heads = 8, kv_heads = 8, keys = 65536, head_dim = 64;
  int threads = 1;
};

template <class Storage>
std::string name_of(const char* method, const Case& c) {
  using bench::field;
  return std::string(method) + '/' + bench::type_name<Storage>() + field("heads", c.heads) +
         (c.heads == c.kv_heads ? "" : field("kv_heads", c.kv_heads)) + field("keys", c.keys) +
         field("head_dim", c.head_dim) + (c.threads == 1 ? "" : field("threads", c.threads));
}

template <class T>
auto view(T* data, Index heads, Index tokens, Index head_dim) {
  return alibi::view(data, {1, heads, tokens, head_dim}, {heads * tokens * head_dim, tokens * head_dim, head_dim, 1});
}

/// A full cache and its contents. The plain read reads as many bytes of the contents; the check uses the keys and
/// values.
template <class Storage>
struct Filled {
  RowMatrix<Storage> k, v;  // [kv_heads x keys, head_dim]
  alibi::KvCache<Storage> cache;

  explicit Filled(const Case& c)
      : cache({.batch = 1, .kv_heads = c.kv_heads, .head_dim = c.head_dim, .capacity = c.keys}) {
    bench::Random random(3);
    k = random.matrix<Storage>(c.kv_heads * c.keys, c.head_dim);
    v = random.matrix<Storage>(c.kv_heads * c.keys, c.head_dim);
    v.col(0).array() += Storage(1.0F);
    cache.append(view(k.data(), c.kv_heads, c.keys, c.head_dim), view(v.data(), c.kv_heads, c.keys, c.head_dim));
  }
};

/// The caches. Filling a cache takes longer than timing it, so each is filled once, when the first case needs it. All
/// caches together hold 4 GB.
template <class Storage>
Filled<Storage>& filled(const Case& c) {
  static std::map<std::array<Index, 3>, std::unique_ptr<Filled<Storage>>> all;
  auto& found = all[{c.kv_heads, c.keys, c.head_dim}];
  if (!found) found = std::make_unique<Filled<Storage>>(c);
  return *found;
}

/// Checks three heads against the definition, on the keys and values as they are stored.
template <class Storage>
void check(const std::string& name, const Case& c, const Filled<Storage>& x, const RowMatrix<float>& q,
           const RowMatrix<float>& output, const Vector<float>& slopes) {
  for (const Index head : {Index(0), c.heads / 2, c.heads - 1}) {
    const Index first = head / (c.heads / c.kv_heads) * c.keys;
    const RowMatrix<float> query = q.row(head), k = x.k.middleRows(first, c.keys).template cast<float>(),
                           v = x.v.middleRows(first, c.keys).template cast<float>();
    const auto expected = alibi::reference::attention(query, k, v, slopes[head]);
    bench::check_row(name, "head " + std::to_string(head), output.row(head).data(), expected.output.data(), c.head_dim);
  }
}

/// The bytes of K and V that a call reads. The heads of a group share one read, that of the head with the most tiles.
double bytes_read(const Case& c, const std::vector<alibi::PruningStats>& heads, std::size_t size) {
  const Index group = c.heads / c.kv_heads;
  Index tiles = 0;
  for (auto first = heads.begin(); first != heads.end(); first += group)
    tiles += std::max_element(first, first + group, [](const alibi::PruningStats& a, const alibi::PruningStats& b) {
               return a.tiles_computed < b.tiles_computed;
             })->tiles_computed;
  return double(std::min(tiles * alibi::kernel::kTile, c.kv_heads * c.keys)) * double(2 * c.head_dim) * double(size);
}

/// The executor of all calls of a repetition: the calling thread or a pool.
struct Threads {
  std::optional<Eigen::ThreadPool> pool;
  alibi::Executor executor;
  explicit Threads(int count) {
    if (count > 1) executor = alibi::Executor(pool.emplace(count));
  }
};

/// Reads as many bytes, half from the keys and half from the values that were put into the cache.
template <class Storage>
void plain_read(const Filled<Storage>& x, double bytes, const alibi::Executor& executor) {
  for (const auto* memory : {&x.k, &x.v})
    benchmark::DoNotOptimize(bench::plain_read(memory->data(), std::size_t(bytes / 2), executor));
}

template <class Storage>
void add_decode(const char* method, const Case& c, std::optional<double> tolerance) {
  const std::string name = name_of<Storage>(method, c);
  bench::add(name, [=](benchmark::State& state) {
    const Filled<Storage>& x = filled<Storage>(c);
    const auto q = bench::Random(4).matrix<float>(c.heads, c.head_dim);
    const auto slopes = alibi::slopes<float>(c.heads);
    RowMatrix<float> output = RowMatrix<float>::Zero(c.heads, c.head_dim);
    alibi::Workspace workspace;
    const Threads threads(c.threads);
    std::vector<alibi::PruningStats> pruning(std::size_t(c.heads));
    const alibi::Options options{
        .tolerance = tolerance, .executor = threads.executor, .pruning_stats = pruning, .workspace = &workspace};
    const auto attend = [&] {
      alibi::attention_into(view(output.data(), c.heads, 1, c.head_dim), view(q.data(), c.heads, 1, c.head_dim),
                            x.cache, slopes, options);
    };
    attend();

    // The limit is measured right before the call that it is compared with, because the speed of memory drifts. Median
    // of five.
    const double bytes = bytes_read(c, pruning, sizeof(Storage));
    const double limit = bench::median(5, [&] { plain_read(x, bytes, threads.executor); });
    bench::time(state, name, attend, [&] { check(name, c, x, q, output, slopes); });
    state.counters["tokens/s"] = bench::per_second(1);
    state.counters["bytes"] = bytes;
    state.counters["GB/s"] = bench::per_second(1e-9 * bytes);
    state.counters["of_read"] = bench::per_second(limit);
    if (tolerance == 0) {
      // Scores and values: two multiply-adds for each dim of each key and query, in float.
      const double work = 4e-9 * double(c.heads * c.keys * c.head_dim);
      const double arithmetic = work / (bench::core_peak<float>() * c.threads);
      state.counters["of_roofline"] = bench::per_second(std::max(limit, arithmetic));
    }
  });
}

void add_plain_read(const Case& c) {
  bench::add(name_of<float>("plain_read", c), [=](benchmark::State& state) {
    const Filled<float>& x = filled<float>(c);
    const double bytes = 2.0 * sizeof(float) * double(x.k.size());
    const Threads threads(c.threads);
    for (auto _ : state) plain_read(x, bytes, threads.executor);
    state.counters["bytes"] = bytes;
    state.counters["GB/s"] = bench::per_second(1e-9 * bytes);
  });
}

template <class Storage>
void add_all(Index head_dim) {
  for (const auto& [heads, kv_heads] : {std::pair(8, 8), std::pair(64, 8), std::pair(8, 1)}) {
    const Case c{.heads = heads, .kv_heads = kv_heads, .head_dim = head_dim};
    Case two_threads = c;
    two_threads.threads = 2;
    add_decode<Storage>("dense", c, 0);
    add_decode<Storage>("dense", two_threads, 0);
    if (kv_heads == 8) add_decode<Storage>("pruned", c, std::nullopt);
  }
  for (const Index heads : {16, 32}) add_decode<Storage>("dense", {.heads = heads, .head_dim = head_dim}, 0);
  add_decode<Storage>("dense", {.keys = 4096, .head_dim = head_dim}, 0);
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index head_dim : {64, 128}) {
    for (const int threads : {1, 2}) add_plain_read({.head_dim = head_dim, .threads = threads});
    add_all<float>(head_dim);
    add_all<Eigen::bfloat16>(head_dim);
    add_all<Eigen::half>(head_dim);
  }
  return bench::main(argc, argv,
                     {{"speedup", "pruned/", "dense/"},
                      {"over_float", "/bf16/", "/float/"},
                      {"over_float", "/half/", "/float/"},
                      {"over_1_thr", "/threads:2", ""}});
}
