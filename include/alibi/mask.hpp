// Which keys a query sees.
//
// Query i has position p_i = i + query_offset among the keys. It sees key j, 0 <= j < keys, if
//
//   causal (default)   j <= p_i,         with a window w also p_i - j < w
//   bidirectional      every j,          with a window w only |p_i - j| < w
//
// The default offset, keys - queries, gives the last query the position of the last key. A whole sequence, a chunk of a
// prefill and a single decoded token therefore need no offset.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <optional>

#include "alibi/error.hpp"
#include "alibi/kernel/simd/isa.hpp"

namespace alibi {

/// Which keys a query sees, as the user states it. The head of mask.hpp has the formula.
struct Mask {
  bool causal = true;  ///< whether a query sees no key after its own position
  /// w: a query sees only keys at distances below w, its own position included; at least 1. None: all keys.
  std::optional<Index> window = std::nullopt;
  /// The position of query 0 among the keys, within ±2^61. None: keys - queries.
  std::optional<Index> query_offset = std::nullopt;
};

inline namespace ALIBI_ABI {

/// Keys begin, begin + 1, …, end - 1.
struct KeyRange {
  Index begin,  ///< the first key
      end;      ///< one after the last key
};

/// A Mask with its defaults filled in for a number of queries and keys.
struct ResolvedMask {
  Index keys;       ///< the number of keys
  Index offset;     ///< the position of query 0
  Index left;       ///< the largest distance of a visible key before the query
  Index right;      ///< the largest distance of a visible key after the query; 0 if causal
  Index first = 0;  ///< the first key that exists; a cache may have removed those before it

  /// The position p_i of query i.
  Index position(Index query) const { return query + offset; }

  /// The key nearest to the position of a query: the position, clamped to the keys.
  Index nearest_key(Index query) const { return std::clamp<Index>(position(query), 0, std::max<Index>(keys - 1, 0)); }

  /// The keys that a query sees; none if begin >= end. Both ends grow with the query.
  KeyRange visible(Index query) const {
    const Index p = position(query);
    return {std::max(p - left, first), std::min(p + right, keys - 1) + 1};
  }

  /// The largest distance of a visible key from nearest_key(); at least 0.
  Index farthest(Index query) const {
    const KeyRange keys_seen = visible(query);
    const Index c = nearest_key(query);
    return std::max<Index>({0, c - keys_seen.begin, keys_seen.end - 1 - c});
  }

  /// The distance that all keys of a query have in common, for a bias of this slope. It is the distance of the key
  /// whose bias is largest: the nearest key for slope >= 0, the farthest visible key for slope < 0.
  Index common_distance(Index query, double slope) const {
    return std::abs(position(query) - nearest_key(query)) + (slope >= 0 ? 0 : farthest(query));
  }
};

/// Fills in the defaults of a mask. Throws std::invalid_argument for a window below 1 or an offset beyond ±2^61.
inline ResolvedMask resolve(const Mask& mask, Index queries, Index keys) {
  constexpr Index kFar = Index(1) << 61;  // longer than every sequence; sums of a few do not overflow
  detail::require(!mask.window || *mask.window >= 1, "mask.window is ", mask.window.value_or(0),
                  "; expected at least 1, the query's own position");
  const Index offset = mask.query_offset.value_or(keys - queries);
  detail::require(-kFar <= offset && offset <= kFar, "mask.query_offset is ", offset, "; expected within ±2^61");
  const Index reach = std::min(mask.window.value_or(2 * kFar), 2 * kFar) - 1;
  return {keys, offset, reach, mask.causal ? 0 : reach};
}

}  // namespace ALIBI_ABI
}  // namespace alibi
