// A cache of keys and values, for decoding: sequences grow by one token or by many, each at its own pace.
//
// Storage. Each head of a sequence is a run of tiles of 64 keys, allocated as the sequence grows, and recycled
// (kernel/cached.hpp says how a tile looks, kernel/radii.hpp what is known of its keys without reading them). Keys and
// values are rounded to the cache's scalar once, by append().
//
// Old keys leave by whole tiles, always the oldest of a head. append() sees to it before it writes. Every query at
// position p >= p* still finds all that it needs then, where p* = length - 1 - rollback with the length from before:
// all tokens appended, now and later, and `rollback` of those before. There are two rules.
//
// Window w: key j leaves when p - j >= w for every such p, that is when p* - j >= w. Nothing is lost.
//
// Eviction: keys 0, …, J leave when together they have at most the tolerance of such a query's softmax mass, whatever
// the query, provided |q| <= Q, Eviction::query_norm. Let c be the centre of the head's keys, R >= |k_j - c| for all
// j <= J, those that left long ago among them, and r = |k_{p*} - c|. Query p sees key p*, so keys 0, …, J have at most
// the share
//
//   Σ_{j <= J} e^{τ q·k_j - m (p - j)} / e^{τ q·k_{p*} - m (p - p*)}
//        =  Σ_{j <= J} e^{τ q·(k_j - k_{p*}) - m (p* - j)}
//       <=  e^{|τ| Q (R + r) - m (p* - J)} · (1 - e^{-m (J + 1)}) / (1 - e^{-m})     Cauchy-Schwarz, geometric series
//
// of its softmax. It holds for every p, since p has left it, and for all keys that were ever evicted, so that nothing
// adds up over time. It falls as m grows: of the query heads that share a kv head the smallest slope decides, and where
// that is not above 0 every key stays. (A window hides keys 0, …, J before it hides p*: no harm.) Both exponents are
// taken for the worse by 2^-10 of themselves, and 10^-3 is added, so that slopes, scale and norms may be off by 2^-12
// of themselves: attention has them as floats.
//
// A sink stays: keys far out, as the first tokens of real models often are, keep their tile and all behind it until the
// distance makes up for their radius, and a key that is not finite does so for ever. Only a window removes those.
//
// Not for: attention itself; several writers at a time. Const functions may run concurrently.
//
// Errors: std::invalid_argument that names the argument, and std::bad_alloc; the cache is then as it was.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <type_traits>
#include <vector>

#include "alibi/detail/adapt.hpp"
#include "alibi/detail/kv_cache/head.hpp"
#include "alibi/error.hpp"
#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/cached.hpp"
#include "alibi/kernel/tile/rows.hpp"
#include "alibi/kv_cache_config.hpp"
#include "alibi/token_ranges.hpp"
#include "alibi/view.hpp"

namespace alibi {

inline namespace ALIBI_ABI {

namespace detail {

struct CacheAccess;

/// The first tiles of a head that are to leave it, and whether one of them does by eviction.
struct Leaving {
  Index tiles = 0;
  bool evicted = false;
};

}  // namespace detail

/// S is what keys and values are stored as: float, double, Eigen::bfloat16 or Eigen::half.
template <class S>
class KvCache {
  static_assert(std::is_same_v<S, float> || std::is_same_v<S, double> || std::is_same_v<S, Eigen::bfloat16> ||
                    std::is_same_v<S, Eigen::half>,
                "alibi: a KvCache stores float, double, Eigen::bfloat16 or Eigen::half.");

 public:
  using Scalar = S;
  using Accumulate = typename detail::CacheHead<S>::T;  ///< what attention over it adds up in

  /// Throws std::invalid_argument for sizes, a window, a rollback or an eviction that make no sense.
  explicit KvCache(KvCacheConfig config);

  KvCache(KvCache&&) noexcept = default;  // what was moved from may be assigned to or destroyed, no more
  KvCache& operator=(KvCache&&) noexcept = default;
  KvCache(const KvCache&) = delete;  // a copy costs as much memory again: clone() makes it
  KvCache& operator=(const KvCache&) = delete;

  /// A cache of the same contents in memory of its own.
  KvCache clone() const;

  /// Appends tokens to every sequence: k [batch, kv_heads, tokens, head_dim], v [batch, kv_heads, tokens, value_dim],
  /// arrays as in view.hpp, each of S or of float (of double for double). Each token costs the same, however long its
  /// sequence is.
  template <class K, class V>
  void append(const K& k, const V& v) {
    append_arrays(detail::view_of(k, "k"), detail::view_of(v, "v"), std::nullopt);
  }
  /// Prompts of unequal length: sequence b appends its real tokens only, the first counts[b], or those of ranges[b]
  /// where they are padded on the left. Options::queries takes the same counts or ranges for the queries.
  template <class K, class V>
  void append(const K& k, const V& v, const TokenRanges& real) {
    append_arrays(detail::view_of(k, "k"), detail::view_of(v, "v"), real);
  }

  /// Takes back what is behind `length`, in all sequences or in one. 0 starts afresh; any other length must be at least
  /// min_length(). Costs O(tiles) at most.
  void truncate(Index length);
  void truncate(Index sequence, Index length);

  /// Tokens of a sequence, those that have left included: its next one has this position.
  Index length(Index sequence = 0) const { return sequence_at(sequence).length; }
  /// The first key that is still held; a multiple of 64.
  Index first_key(Index sequence, Index kv_head) const {
    return head_at(sequence, kv_head).store.key_bounds().first() * kTile;
  }
  /// The least length but 0 that truncate() allows; 0 where nothing has left. Queries at positions min_length() - 1 and
  /// later find all that they need.
  Index min_length(Index sequence = 0) const;
  /// The share of a row's softmax mass that evicted keys may have had: 0 where none were evicted, else
  /// Eviction::tolerance.
  double evicted_tolerance(Index sequence, Index kv_head) const {
    return head_at(sequence, kv_head).evicted ? *config_.eviction->tolerance : 0;
  }

  /// Bytes of memory held: tiles, their tables and radii, and at most one tile a head that waits to be used again.
  std::size_t bytes() const;
  /// A head's own share of them.
  std::size_t bytes(Index sequence, Index kv_head) const { return head_at(sequence, kv_head).store.bytes(); }

  /// As it was given, with value_dim and the eviction's scale and tolerance filled in.
  const KvCacheConfig& config() const { return config_; }

 private:
  friend struct detail::CacheAccess;

  /// A head as kernels read it, until the cache is changed, moved from or destroyed.
  kernel::Cached<S, Accumulate> head(Index sequence, Index kv_head) const {
    return head_at(sequence, kv_head).store.view(length(sequence));
  }

  static constexpr Index kTile = kernel::kTile;
  using Real = std::optional<TokenRanges>;

  struct SequenceState {
    Index length = 0;
    Index considered = 0;  // its full tiles when it was last considered what could leave
  };
  struct Head {
    detail::CacheHead<S> store;
    Index min_length = 0;
    bool evicted = false;
    detail::Leaving leaving = {};  // in the append() under way
  };

  const SequenceState& sequence_at(Index sequence) const {
    detail::require(0 <= sequence && sequence < config_.batch, "sequence is ", sequence, "; expected 0 to ",
                    config_.batch - 1);
    return sequences_[std::size_t(sequence)];
  }
  const Head& head_at(Index sequence, Index kv_head) const {
    sequence_at(sequence);
    detail::require(0 <= kv_head && kv_head < config_.kv_heads, "kv_head is ", kv_head, "; expected 0 to ",
                    config_.kv_heads - 1);
    return heads_[std::size_t(sequence * config_.kv_heads + kv_head)];
  }
  std::span<Head> heads_of(Index sequence) {
    return {heads_.data() + sequence * config_.kv_heads, std::size_t(config_.kv_heads)};
  }
  Index most_spare() const { return Index(heads_.size()); }

  template <class X, class Y>
  void append_arrays(const View<const X>& k, const View<const Y>& v, const Real& real) {
    static_assert((std::is_same_v<X, S> || std::is_same_v<X, Accumulate>) &&
                      (std::is_same_v<Y, S> || std::is_same_v<Y, Accumulate>),
                  "alibi: k and v must hold the cache's own scalar, or float (double for a cache of double).");
    append_views(k, v, real);
  }
  template <class X>
  void check_array(const View<const X>& x, const char* name, Index head_dim, const char* head_dim_name) const;
  void check_real(Index tokens, const Real& real) const;
  void check_truncation(Index sequence, Index length) const;
  template <class X, class Y>
  void append_views(const View<const X>& k, const View<const Y>& v, const Real& real);
  void plan(Index sequence, Index tokens, Index& opening, Index& leaving);
  void provide(Index opening, Index leaving);
  detail::Leaving leaving_of(const detail::CacheHead<S>& head, double slope, Index length) const;
  void drop(Head& head, Index length, Index most);
  void shorten(Index sequence, Index length);

  KvCacheConfig config_;
  std::vector<SequenceState> sequences_;
  std::vector<Head> heads_;      // [batch][kv_heads]
  std::vector<double> slopes_;   // [kv_heads], the smallest of each group; 0: evicts nothing
  detail::CacheTiles<S> spare_;  // between calls at most one a head: what one step of all heads frees and needs again
};

namespace detail {

/// Gives kernels the tiles of a cache.
struct CacheAccess {
  template <class S>
  static kernel::Cached<S, typename KvCache<S>::Accumulate> head(const KvCache<S>& cache, Index sequence,
                                                                 Index kv_head) {
    return cache.head(sequence, kv_head);
  }
};

}  // namespace detail
}  // namespace ALIBI_ABI
}  // namespace alibi

#if !defined(ALIBI_COMPILED)
#include "alibi/detail/kv_cache/definitions.hpp"
#endif
