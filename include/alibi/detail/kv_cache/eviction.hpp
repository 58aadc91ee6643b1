// The checks of a KvCacheConfig, and the bound on the mass of evicted keys. Internal.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "alibi/error.hpp"
#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kv_cache_config.hpp"

namespace alibi::inline ALIBI_ABI::detail {

inline constexpr Index kMaxTokens = Index(1) << 37;  // tiles are counted in 32 bits (kernel::KeyTileBounds)

/// The config with its defaults filled in; `tolerance` is the default of Eviction::tolerance. Throws
/// std::invalid_argument for values out of range.
inline KvCacheConfig checked_config(KvCacheConfig config, double tolerance) {
  const auto at_least_1 = [](Index size, const char* name) {
    require(1 <= size && size <= Index(1) << 31, name, " is ", size, "; expected 1 to 2^31");
  };
  if (config.value_dim == 0) config.value_dim = config.head_dim;
  at_least_1(config.batch, "batch");
  at_least_1(config.kv_heads, "kv_heads");
  at_least_1(config.head_dim, "head_dim");
  at_least_1(config.value_dim, "value_dim");
  checked_product({config.batch, config.kv_heads, config.head_dim + config.value_dim, kernel::kTile},
                  "one tile of every head of the cache");
  require(0 <= config.capacity && config.capacity <= kMaxTokens, "capacity is ", config.capacity,
          "; expected 0 to 2^37");
  require(config.capacity > 0 || config.window || config.eviction,
          "capacity is 0; expected at least 1, the tokens of a sequence, or a window or an eviction");
  require(!config.window || *config.window >= 1, "window is ", config.window.value_or(0),
          "; expected at least 1, the query's own position");
  require(config.rollback >= 0, "rollback is ", config.rollback, "; expected 0 or more");
  require(0 <= config.sinks && config.sinks <= kMaxTokens, "sinks is ", config.sinks, "; expected 0 to 2^37");
  if (config.eviction) {
    Eviction& eviction = *config.eviction;
    require(std::isfinite(eviction.query_norm) && eviction.query_norm > 0, "eviction.query_norm is ",
            eviction.query_norm,
            "; expected a finite number above 0, an upper bound of the norm of every future query");
    const Index heads = Index(eviction.slopes.size());
    require(heads > 0 && heads % config.kv_heads == 0, "eviction.slopes has ", heads,
            " entries; expected a positive multiple of ", config.kv_heads, ", the kv_heads");
    for (Index h = 0; h < heads; h++) {
      const double slope = eviction.slopes[std::size_t(h)];
      require(std::isfinite(slope), "eviction.slopes[", h, "] is ", slope, "; expected a finite number");
    }
    if (!eviction.scale) eviction.scale = 1 / std::sqrt(double(config.head_dim));
    require(std::isfinite(*eviction.scale), "eviction.scale is ", *eviction.scale, "; expected a finite number");
    if (!eviction.tolerance) eviction.tolerance = tolerance;
    require(*eviction.tolerance > 0 && *eviction.tolerance < 1, "eviction.tolerance is ", *eviction.tolerance,
            "; expected above 0 and below 1");
  }
  return config;
}

/// [kv_heads]: the smallest slope of the query heads that share a kv head; 0 if no key may be evicted.
inline std::vector<double> smallest_slopes(const KvCacheConfig& config) {
  std::vector<double> smallest(std::size_t(config.kv_heads), 0);
  if (!config.eviction) return smallest;
  auto first = config.eviction->slopes.begin();
  const auto group = Index(config.eviction->slopes.size()) / config.kv_heads;
  for (double& slope : smallest) {
    slope = std::max(*std::min_element(first, first + group), 0.);
    first += group;
  }
  return smallest;
}

/// The logarithm of the bound on the mass of evicted keys 0, …, `last` (kv_cache.hpp has the formula), rounded up as
/// stated there. score_bound = |τ| Q (R + r), newest = p*.
inline double log_evicted(double slope, double score_bound, Index last, Index newest) {
  const double tail = std::log(-std::expm1(-slope * double(last + 1))) - std::log(-std::expm1(-slope));
  return score_bound * (1 + 0x1p-10) - slope * double(newest - last) * (1 - 0x1p-10) + tail + 1e-3;
}

}  // namespace alibi::inline ALIBI_ABI::detail
