// What kernels find in a cache, as bits, for comparisons of caches.
#pragma once

#include <algorithm>
#include <alibi/kv_cache.hpp>
#include <bit>
#include <cstdint>
#include <vector>

namespace test {

template <class S>
auto head_of(const alibi::KvCache<S>& cache, alibi::Index sequence, alibi::Index kv_head) {
  return alibi::detail::CacheAccess::head(cache, sequence, kv_head);
}

/// Everything that kernels can read of a sequence and that the cache reports of it, as bits, except the bytes it holds.
template <class S>
std::vector<std::uint64_t> state(const alibi::KvCache<S>& cache, alibi::Index b) {
  using alibi::Index;
  std::vector<std::uint64_t> bits;
  const auto add = [&bits](auto x) { bits.push_back(std::bit_cast<std::uint64_t>(double(x))); };
  const alibi::KvCacheConfig& config = cache.config();
  add(cache.length(b));
  add(cache.min_length(b));
  for (Index h = 0; h < config.kv_heads; h++) {
    const auto head = head_of(cache, b, h);
    const auto& key_bounds = head.key_bounds;
    for (const Index x : {cache.first_key(b, h), head.first_tile, head.begin, head.length, head.value_offset,
                          key_bounds.first, key_bounds.tiles, key_bounds.outlier_count})
      add(x);
    add(cache.evicted_tolerance(b, h));
    add(key_bounds.center_norm);
    add(key_bounds.largest);
    for (Index d = 0; d < config.head_dim; d++) add(key_bounds.center[d]);
    for (Index i = 0; i < key_bounds.outlier_count; i++) add(key_bounds.outliers[i]);
    for (Index t = 0; t * alibi::kernel::kTile < std::min(config.sinks, head.begin); t++)
      for (Index i = 0; i < (config.head_dim + config.value_dim) * alibi::kernel::kTile; i++)
        add(static_cast<const S*>(head.sinks[t])[i]);
    for (Index t = 0; t < key_bounds.tiles; t++) {
      add(key_bounds.radius[t]);
      add(key_bounds.prefix_max[t]);
      for (Index i = 0; i < (config.head_dim + config.value_dim) * alibi::kernel::kTile; i++)
        add(head.tile(head.first_tile + t)[i]);
    }
  }
  return bits;
}

/// The state of all sequences.
template <class S>
std::vector<std::uint64_t> state(const alibi::KvCache<S>& cache) {
  std::vector<std::uint64_t> bits;
  for (alibi::Index b = 0; b < cache.config().batch; b++) {
    const std::vector<std::uint64_t> of = state(cache, b);
    bits.insert(bits.end(), of.begin(), of.end());
  }
  return bits;
}

}  // namespace test
