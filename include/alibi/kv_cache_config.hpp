// The configuration of a KvCache (kv_cache.hpp).
#pragma once

#include <optional>
#include <vector>

#include "alibi/kernel/simd/isa.hpp"

namespace alibi {

/// Which keys no future query can reach; the proof is above. A promise: it is checked by attention over the cache.
struct Eviction {
  double query_norm = 0;                       ///< an upper bound of |q| of every future query; required, above 0
  std::vector<double> slopes = {};             ///< [heads], those of the query heads
  std::optional<double> scale = std::nullopt;  ///< τ; none: 1 / sqrt(head_dim)
  /// Share of a row's softmax mass that all evicted keys have together, at most; none: a quarter of an ulp, half of
  /// what attention may leave out by default: 2^-25, or 2^-54 for a cache of double.
  std::optional<double> tolerance = std::nullopt;
};

struct KvCacheConfig {
  Index batch = 1;      ///< sequences
  Index kv_heads = 1;   ///< of each
  Index head_dim = 0;   ///< of keys
  Index value_dim = 0;  ///< of values; 0: head_dim
  Index capacity = 0;   ///< tokens of a sequence; 0: no end, for a cache with a window or eviction
  std::optional<Index> window = std::nullopt;       ///< keys that no query with this window can see leave the cache
  std::optional<Eviction> eviction = std::nullopt;  ///< keys that no query can reach leave the cache
  Index rollback = 64;  ///< where keys have left, truncate() takes back the last append and so many tokens before it
};

}  // namespace alibi
