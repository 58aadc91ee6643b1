// A cache of keys and values for decoding. Sequences grow by one or many tokens at a time, each independently.
//
// Storage. Each head of a sequence is a run of tiles of 64 keys. Tiles are allocated as the sequence grows, and are
// recycled. kernel/tile/cached.hpp describes the layout of a tile, kernel/tile/key_bounds.hpp what is known of its keys
// without reading them. append() rounds keys and values to the scalar of the cache, once.
//
// Sequences that fork() or reorder() made from one share tiles. A tile has a count of its owners, and an owner that is
// not the only one copies it before writing. This concerns the last tile of a sequence alone, because full tiles do not
// change. Caches share no tiles with each other.
//
// Old keys leave in whole tiles, always the oldest of a head, before append() writes. After that, every query at a
// position p >= p* still finds all keys that it needs. Here p* = length - 1 - rollback, with the length before the
// append: the appended tokens, all later ones, and `rollback` tokens before them. There are two rules.
//
// Window w: key j leaves when p - j >= w for every such p, that is when p* - j >= w. No query can see such a key.
//
// Eviction: keys 0, …, J leave when together they have at most the tolerance of the softmax mass of such a query. This
// holds for any query with |q| <= Q, where Q is Eviction::query_norm. Let c be the centre of the keys of the head, let
// R >= |k_j - c| for all j <= J, including the keys that left earlier, and let r = |k_{p*} - c|. Query p sees key p*,
// so keys 0, …, J have at most the share
//
//   Σ_{j <= J} e^{τ q·k_j - m (p - j)} / e^{τ q·k_{p*} - m (p - p*)}
//        =  Σ_{j <= J} e^{τ q·(k_j - k_{p*}) - m (p* - j)}
//       <=  e^{|τ| Q (R + r) - m (p* - J)} · (1 - e^{-m (J + 1)}) / (1 - e^{-m})     Cauchy-Schwarz, geometric series
//
// of its softmax. The bound holds for every p, because p has cancelled. It covers all keys that were ever evicted, so
// that nothing accumulates over time. It falls as m grows. Of the query heads that share a kv head, the smallest slope
// therefore decides; if that is not above 0, every key stays. A window does not weaken the bound, because it hides keys
// 0, …, J before it hides p*. Both exponents are rounded up by 2^-10 of themselves, and 10^-3 is added, so that slopes,
// scale and norms may be off by 2^-12 of themselves: attention has them as floats.
//
// Sinks, the first keys if KvCacheConfig::sinks asks for them, never leave. They are whole tiles too. A window with
// sinks shows them at any distance. The bound above still holds, because a window hides all other evicted keys before
// it hides p*.
//
// Outlier keys (attention sinks, often the first tokens in real models) keep their tile and all later tiles until the
// distance compensates their radius. A key that is not finite keeps them for ever. Only a window removes such tiles.
//
// The cache does not compute attention (cached_attention.hpp does) and does not support several writers at a time.
// Const functions may run concurrently.
//
// Errors: std::invalid_argument that names the argument, and std::bad_alloc. The cache is unchanged then.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
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
struct CacheFile;

/// The tiles that leave a head.
struct Leaving {
  Index tiles = 0;       // how many, from the first on
  bool evicted = false;  // whether one of them leaves by eviction
};

/// Where an append() goes: to one sequence, or to all, of which some tokens are real.
struct AppendTo {
  std::optional<Index> sequence;
  TokenRanges real;
};

}  // namespace detail

/// A cache of the keys and values of a batch of sequences, for attention(q, cache, slopes). S is the scalar that keys
/// and values are stored as: float, double, Eigen::bfloat16 or Eigen::half.
template <class S>
class KvCache {
  static_assert(std::is_same_v<S, float> || std::is_same_v<S, double> || std::is_same_v<S, Eigen::bfloat16> ||
                    std::is_same_v<S, Eigen::half>,
                "alibi: a KvCache stores float, double, Eigen::bfloat16 or Eigen::half.");

 public:
  using Scalar = S;                                     ///< the scalar of the stored keys and values
  using Accumulate = typename detail::CacheHead<S>::T;  ///< the scalar of the sums of attention over the cache

  /// An empty cache. Throws std::invalid_argument for sizes, a window, a rollback or an eviction out of range.
  explicit KvCache(KvCacheConfig config);

  /// Moves the contents. The cache that was moved from may only be assigned to or destroyed.
  KvCache(KvCache&&) noexcept = default;
  /// Moves the contents. The cache that was moved from may only be assigned to or destroyed.
  KvCache& operator=(KvCache&&) noexcept = default;
  KvCache(const KvCache&) = delete;  // a copy costs as much memory again, so it is explicit: clone()
  KvCache& operator=(const KvCache&) = delete;

  /// A cache with the same contents in memory of its own. Its sequences share tiles as those of this cache do.
  KvCache clone() const;

  /// Appends tokens to every sequence: k [batch, kv_heads, tokens, head_dim], v [batch, kv_heads, tokens, value_dim],
  /// arrays as in view.hpp, each of S or of float (for a cache of double: of double). The cost of a token does not
  /// depend on the length of its sequence. Throws std::invalid_argument for shapes that do not fit and for tokens
  /// beyond the capacity, and std::bad_alloc; the cache is unchanged then.
  template <class K, class V>
  void append(const K& k, const V& v) {
    append_arrays(detail::view_of(k, "k"), detail::view_of(v, "v"), {});
  }
  /// Appends prompts of unequal length. Sequence b appends its real tokens only: the first counts[b], or those of
  /// ranges[b] (for padding on the left); without entries, all tokens. Options::queries takes the same counts or ranges
  /// for the queries. A sequence without real tokens does not change. Throws as append(k, v) does, and for counts or
  /// ranges that do not fit.
  template <class K, class V>
  void append(const K& k, const V& v, const TokenRanges& real) {
    append_arrays(detail::view_of(k, "k"), detail::view_of(v, "v"), {std::nullopt, real});
  }
  /// Appends tokens to one sequence: k [1, kv_heads, tokens, head_dim], v [1, kv_heads, tokens, value_dim]. The cost
  /// does not depend on the batch. Throws as append(k, v) does, and for a sequence out of range.
  template <class K, class V>
  void append(Index sequence, const K& k, const V& v) {
    append_arrays(detail::view_of(k, "k"), detail::view_of(v, "v"), {sequence, {}});
  }

  /// Removes the tokens after the first `length` of every sequence. 0 empties the sequences; any other length must be
  /// at least min_length() of each. Costs O(tiles) at most. Throws std::invalid_argument for a length out of range, and
  /// std::bad_alloc where the tile that becomes the last is shared and so has to be copied; the cache is unchanged
  /// then.
  void truncate(Index length);
  /// Removes the tokens after the first `length` of one sequence; otherwise as truncate(length).
  void truncate(Index sequence, Index length);
  /// Empties a sequence: truncate(sequence, 0). The next append() to it starts a new one in its place.
  void clear(Index sequence) { truncate(sequence, 0); }

  /// Makes sequence `to` a copy of sequence `from`; what `to` held is released. The two share their tiles, so that no
  /// key is copied: a prompt needs its memory once, however many sequences continue it. Costs O(tiles). Afterwards each
  /// grows and shrinks by itself. Throws std::invalid_argument for a sequence out of range, and std::bad_alloc; the
  /// cache is unchanged then.
  void fork(Index from, Index to);
  /// Makes every sequence b what sequence indices[b] was, all at once, as a step of beam search does. indices is
  /// [batch], each 0 to batch - 1; they may repeat. The first sequence that continues another takes over its tiles in
  /// O(1), further ones share them as after fork(). Throws std::invalid_argument for indices that do not fit, and
  /// std::bad_alloc; the cache is unchanged then.
  void reorder(std::span<const Index> indices);

  /// The tokens of a sequence, including those that have left. The next token has this position.
  Index length(Index sequence = 0) const { return sequence_at(sequence).length; }
  /// The first key that the cache still holds, sinks excepted; a multiple of 64.
  Index first_key(Index sequence, Index kv_head) const {
    return head_at(sequence, kv_head).store.key_bounds().first() * kTile;
  }
  /// The smallest length above 0 that truncate() allows; 0 if no key has left. Queries at positions min_length() - 1
  /// and later find all keys that they need.
  Index min_length(Index sequence = 0) const;
  /// An upper bound of the share of a row's softmax mass that evicted keys have: 0 if no key was evicted, else
  /// Eviction::tolerance.
  double evicted_tolerance(Index sequence, Index kv_head) const {
    return head_at(sequence, kv_head).evicted ? *config_.eviction->tolerance : 0;
  }

  /// Bytes of memory held: tiles, the tables of their addresses, key tile bounds, and recycled tiles, at most one for
  /// each head. A tile counts once, however many sequences share it.
  std::size_t bytes() const;
  /// Bytes of memory that one head uses, without recycled tiles. A shared tile counts in every head that shares it, so
  /// that the sum over all heads is what the cache would hold if nothing were shared.
  std::size_t bytes(Index sequence, Index kv_head) const { return head_at(sequence, kv_head).store.bytes(); }

  /// The config as given, with the defaults of value_dim and of the eviction's scale and tolerance filled in.
  const KvCacheConfig& config() const { return config_; }

 private:
  friend struct detail::CacheAccess;
  friend struct detail::CacheFile;

  /// A head as kernels read it. Valid until the cache is changed, moved from or destroyed.
  kernel::Cached<S, Accumulate> head(Index sequence, Index kv_head) const {
    return head_at(sequence, kv_head).store.view(length(sequence));
  }

  static constexpr Index kTile = kernel::kTile;

  struct SequenceState {
    Index length = 0;
    Index considered = 0;  // the number of full tiles at the last decision which tiles leave
  };
  struct Head {
    detail::CacheHead<S> store;
    Index min_length = 0;
    bool evicted = false;
    detail::Leaving leaving = {};  // by the current append()
  };
  /// The tiles that an append() changes, of all heads together.
  struct Plan {
    Index opening = 0;  // new ones, and copies of shared ones
    Index leaving = 0;
    Index freed = 0;  // those that leave and are not shared
  };

  void check_sequence(Index sequence, const char* name) const {
    detail::require(0 <= sequence && sequence < config_.batch, name, " is ", sequence, "; expected 0 to ",
                    config_.batch - 1);
  }
  const SequenceState& sequence_at(Index sequence) const {
    check_sequence(sequence, "sequence");
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
  Index max_spare() const { return Index(heads_.size()); }

  template <class X, class Y>
  void append_arrays(const View<const X>& k, const View<const Y>& v, const detail::AppendTo& to) {
    static_assert((std::is_same_v<X, S> || std::is_same_v<X, Accumulate>) &&
                      (std::is_same_v<Y, S> || std::is_same_v<Y, Accumulate>),
                  "alibi: k and v must hold the cache's own scalar, or float (double for a cache of double).");
    append_views(k, v, to);
  }
  template <class X>
  void check_array(const View<const X>& x, const char* name, Index head_dim, const char* head_dim_name,
                   bool one_sequence) const;
  void check_real(Index tokens, const detail::AppendTo& to) const;
  template <class X, class Y>
  void append_views(const View<const X>& k, const View<const Y>& v, const detail::AppendTo& to);
  void plan(Index sequence, Index tokens, Plan& all);
  void provide(Index opening, Index freed);
  detail::Leaving leaving_of(const detail::CacheHead<S>& head, double slope, Index length) const;
  void remove_leaving(Head& head, Index length, Index max_spare_tiles);
  void check_truncation(Index sequence, Index length) const;
  void truncate_range(Index first, Index end, Index length);
  void shorten(Index sequence, Index length);
  void add_forks(Index sequence, std::vector<Head>& forks) const;
  /// Puts `heads` in the place of those of a sequence. Allocates nothing.
  void replace(Index sequence, const SequenceState& state, std::vector<Head>& heads) {
    for (std::size_t h = 0; h < heads.size(); h++) {
      Head& head = heads_of(sequence)[h];
      head.store.clear(spare_, max_spare());
      head = std::move(heads[h]);
    }
    sequences_[std::size_t(sequence)] = state;
  }

  KvCacheConfig config_;
  std::vector<SequenceState> sequences_;
  std::vector<Head> heads_;      // [batch][kv_heads]
  std::vector<double> slopes_;   // [kv_heads], the smallest slope of each group; 0: no eviction
  detail::SpareTiles<S> spare_;  // between calls at most one for each head: what one step of all heads frees and reuses
};

namespace detail {

/// Gives kernels the tiles of a cache, and the compiled library its private functions.
struct CacheAccess {
  template <class S>
  static kernel::Cached<S, typename KvCache<S>::Accumulate> head(const KvCache<S>& cache, Index sequence,
                                                                 Index kv_head) {
    return cache.head(sequence, kv_head);
  }
  template <class S, class K, class V>
  static void append(KvCache<S>& cache, const View<const K>& k, const View<const V>& v, const AppendTo& to) {
    cache.append_views(k, v, to);
  }
};

}  // namespace detail
}  // namespace ALIBI_ABI
}  // namespace alibi

#if !defined(ALIBI_COMPILED)
#include "alibi/detail/kv_cache/definitions.hpp"
#endif
