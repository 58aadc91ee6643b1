// Which keys a query sees.
//
// Query i stands at position p_i = i + query_offset among the keys. It sees key j, 0 <= j < keys, if
//
//   causal (default)   j <= p_i,         with a window w also p_i - j < w
//   bidirectional      every j,          with a window w only |p_i - j| < w
//
// The default offset, keys - queries, puts the last query on the last key: a whole sequence, a chunk of a prefill and
// a single decoded token are then all written the same way.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <optional>

#include "alibi/error.hpp"
#include "alibi/kernel/simd/isa.hpp"

namespace alibi {

struct Mask {
  bool causal = true;                                ///< a query sees no key after its own position
  std::optional<Index> window = std::nullopt;        ///< the number of recent keys seen, its own included; none: all
  std::optional<Index> query_offset = std::nullopt;  ///< position of query 0 among the keys; none: keys - queries
};

inline namespace ALIBI_ABI {

/// Keys begin, begin + 1, …, end - 1.
struct KeyRange {
  Index begin, end;
};

/// A Mask with its defaults filled in for a number of queries and keys.
struct ResolvedMask {
  Index keys;       ///< number of keys
  Index offset;     ///< position of query 0
  Index left;       ///< how far back a query sees
  Index right;      ///< how far ahead a query sees; 0 if causal
  Index first = 0;  ///< keys before this one are not there

  Index position(Index query) const { return query + offset; }

  /// The position, or the key next to it where it is before the first or behind the last.
  Index nearest_key(Index query) const { return std::clamp<Index>(position(query), 0, std::max<Index>(keys - 1, 0)); }

  /// The keys that a query sees; empty where begin >= end. Both ends grow with the query.
  KeyRange visible(Index query) const {
    const Index p = position(query);
    return {std::max(p - left, first), std::min(p + right, keys - 1) + 1};
  }

  /// How far the farthest of them is from nearest_key().
  Index farthest(Index query) const {
    const KeyRange keys_seen = visible(query);
    const Index c = nearest_key(query);
    return std::max<Index>({0, c - keys_seen.begin, keys_seen.end - 1 - c});
  }

  /// The distance that all keys of a query have in common, for a bias of this slope: that of the key where it is
  /// largest.
  Index common_distance(Index query, double slope) const {
    return std::abs(position(query) - nearest_key(query)) + (slope >= 0 ? 0 : farthest(query));
  }
};

/// Fills in the defaults. Throws std::invalid_argument for a window below 1 or an offset beyond ±2^61.
inline ResolvedMask resolve(const Mask& mask, Index queries, Index keys) {
  constexpr Index kFar = Index(1) << 61;  // beyond every sequence; sums of a few of them do not overflow
  detail::require(!mask.window || *mask.window >= 1, "mask.window is ", mask.window.value_or(0),
                  "; expected at least 1, the query's own position");
  const Index offset = mask.query_offset.value_or(keys - queries);
  detail::require(-kFar <= offset && offset <= kFar, "mask.query_offset is ", offset, "; expected within ±2^61");
  const Index reach = std::min(mask.window.value_or(2 * kFar), 2 * kFar) - 1;
  return {keys, offset, reach, mask.causal ? 0 : reach};
}

}  // namespace ALIBI_ABI
}  // namespace alibi
