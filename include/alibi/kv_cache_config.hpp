// The configuration of a KvCache (kv_cache.hpp).
#pragma once

#include <optional>
#include <vector>

#include "alibi/kernel/simd/isa.hpp"

namespace alibi {

/// The preconditions of future queries, from which a KvCache decides which keys no query can reach (kv_cache.hpp has
/// the proof). Attention over the cache checks them.
struct Eviction {
  double query_norm = 0;                       ///< an upper bound of |q| of every future query; required, above 0
  std::vector<double> slopes = {};             ///< [heads], lower bounds of the slopes of the query heads; required
  std::optional<double> scale = std::nullopt;  ///< an upper bound of |τ|; none: 1 / sqrt(head_dim)
  /// An upper bound of the share of a row's softmax mass that all evicted keys have together, in (0, 1). None: a
  /// quarter of an ulp, which is half of Options::tolerance by default: 2^-25, or 2^-54 for a cache of double.
  std::optional<double> tolerance = std::nullopt;
};

/// The configuration of a KvCache. Sizes are counts, positions and lengths are in tokens.
struct KvCacheConfig {
  Index batch = 1;      ///< the number of sequences
  Index kv_heads = 1;   ///< the number of kv heads of each sequence
  Index head_dim = 0;   ///< the size of a key; required
  Index value_dim = 0;  ///< the size of a value; 0: head_dim
  Index capacity = 0;   ///< the largest length of a sequence; 0: no limit, for a cache with a window or eviction
  std::optional<Index> window = std::nullopt;       ///< keys that no query with this window can see leave the cache
  std::optional<Eviction> eviction = std::nullopt;  ///< keys that no query can reach leave the cache
  Index rollback = 64;  ///< if keys have left: the tokens before the last append that truncate() can still remove
  Index sinks = 0;      ///< the first keys that never leave, for a window with sinks; mask.sinks defaults to it
};

}  // namespace alibi
