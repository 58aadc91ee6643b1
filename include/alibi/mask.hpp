// Which keys a query sees.
//
// Query i has position p_i = i + query_offset among the keys. It sees key j, 0 <= j < keys, if
//
//   causal (default)   j <= p_i,                  with a window w also p_i - j < w
//   bidirectional      every j,                   with a window w only |p_i - j| < w
//   prefix p           j <= p_i or j < p,         with a window w also |p_i - j| < w
//   sinks s            with a window, the keys j < s at any distance too (causal: those with j <= p_i or j < p)
//
// A prefix makes a causal mask that of a prefix language model (Raffel et al., arXiv 1910.10683): the first p tokens
// see each other, later tokens see what is before them. Sinks are the first keys of StreamingLLM (Xiao et al., arXiv
// 2309.17453). Their bias is that of their true distance. Without a window every query sees them anyway. Neither is
// available with two_sided() slopes or positions().
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
  /// p: every query sees the keys before p, also those after its position; 0 or more. For causal masks only.
  Index prefix = 0;
  /// s: a window hides none of the keys before s; 0 or more. None: 0, or over a KvCache the sinks of the cache.
  std::optional<Index> sinks = std::nullopt;
};

inline namespace ALIBI_ABI {

/// Keys begin, begin + 1, …, end - 1.
struct KeyRange {
  Index begin,  ///< the first key
      end;      ///< one after the last key
};

/// A Mask with its defaults filled in for a number of queries and keys.
///
/// The keys that a query sees are two ranges: those of its window, visible(), and the sinks before its window,
/// visible_sinks(). They share no key. All four ends rise with the query.
struct ResolvedMask {
  Index keys;               ///< the number of keys
  Index offset;             ///< the position of query 0
  Index left;               ///< the largest distance of a key of the window before the query
  Index right;              ///< the largest distance of a key of the window after the query; 0 if causal
  Index first = 0;          ///< the first key that exists, except sinks; a cache may have removed those before it
  Index prefix = 0;         ///< the keys before it may be seen by queries before them, within `left`; at most `keys`
  Index sinks = 0;          ///< the number of sinks; at most `keys`
  bool only_sinks = false;  ///< whether visible() is visible_sinks()

  /// The position p_i of query i.
  Index position(Index query) const { return query + offset; }

  /// The key nearest to the position of a query: the position, clamped to the keys.
  Index nearest_key(Index query) const { return std::clamp<Index>(position(query), 0, std::max<Index>(keys - 1, 0)); }

  /// The keys that a query sees, except visible_sinks(); none if begin >= end.
  KeyRange visible(Index query) const {
    if (only_sinks) return visible_sinks(query);
    const Index p = position(query),
                ahead = std::max(std::min(p + right, keys - 1) + 1, std::min(prefix, p + left + 1));
    return {std::max(p - left, first), std::max(ahead, sinks_at(p))};
  }

  /// The sinks that a query sees before its window: keys [0, end).
  KeyRange visible_sinks(Index query) const {
    const Index p = position(query);
    return {0, std::min(sinks_at(p), std::max(p - left, first))};
  }

  /// Whether a query may see keys after its position. If it does not, no later query does.
  bool sees_ahead(Index query) const { return right > 0 || (left + sinks > 0 && position(query) + 1 < prefix); }

  /// The largest distance of a visible key from nearest_key(); at least 0.
  Index farthest(Index query) const {
    const KeyRange keys_seen = visible(query);
    const Index c = nearest_key(query);
    return std::max<Index>({0, visible_sinks(query).end > 0 ? c : c - keys_seen.begin, keys_seen.end - 1 - c});
  }

  /// The distance from nearest_key() of the visible key whose bias is largest, for a bias of this slope: of the
  /// farthest visible key for slope < 0, else of the nearest one. That is nearest_key() itself, unless the query sees
  /// only sinks.
  Index largest_bias(Index query, double slope) const {
    if (slope < 0) return farthest(query);
    const Index sink = visible_sinks(query).end - 1;
    if (sink < 0) return 0;
    const KeyRange keys_seen = visible(query);
    return keys_seen.begin < keys_seen.end ? 0 : nearest_key(query) - sink;
  }

  /// The distance that all keys of a query have in common, for a bias of this slope: that of the key whose bias is
  /// largest.
  Index common_distance(Index query, double slope) const {
    return std::abs(position(query) - nearest_key(query)) + largest_bias(query, slope);
  }

  /// Queries [begin, end), at most `queries`: all others see no key.
  KeyRange queries_that_see(Index queries) const {
    const Index ahead = prefix > 0 ? left : right;
    const bool sink_ahead = sinks > 0 && prefix > 0;
    return {sink_ahead ? 0 : std::max<Index>(-offset - ahead, 0),
            sinks > 0 ? queries : std::min(keys + left - offset, queries)};
  }

 private:
  /// The number of sinks that a query at position p sees, in its window or before it.
  Index sinks_at(Index p) const { return std::clamp<Index>(std::max(p + 1, prefix), 0, sinks); }
};

/// Fills in the defaults of a mask. Throws std::invalid_argument for a window below 1, an offset beyond ±2^61, a prefix
/// or sinks below 0, and a prefix of a bidirectional mask.
inline ResolvedMask resolve(const Mask& mask, Index queries, Index keys) {
  constexpr Index kFar = Index(1) << 61;  // longer than every sequence; sums of a few do not overflow
  detail::require(!mask.window || *mask.window >= 1, "mask.window is ", mask.window.value_or(0),
                  "; expected at least 1, the query's own position");
  const Index offset = mask.query_offset.value_or(keys - queries);
  detail::require(-kFar <= offset && offset <= kFar, "mask.query_offset is ", offset, "; expected within ±2^61");
  detail::require(mask.prefix >= 0, "mask.prefix is ", mask.prefix, "; expected 0 or more");
  detail::require(mask.prefix == 0 || mask.causal, "mask.prefix is ", mask.prefix,
                  " of a bidirectional mask; expected 0, or a causal mask");
  const Index sinks = mask.sinks.value_or(0);
  detail::require(sinks >= 0, "mask.sinks is ", sinks, "; expected 0 or more");
  const Index reach = std::min(mask.window.value_or(2 * kFar), 2 * kFar) - 1;
  return {.keys = keys,
          .offset = offset,
          .left = reach,
          .right = mask.causal ? 0 : reach,
          .prefix = mask.causal ? std::min(mask.prefix, keys) : keys,  // a bidirectional mask is a prefix of all keys
          .sinks = std::min(sinks, keys)};
}

}  // namespace ALIBI_ABI
}  // namespace alibi
