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

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "alibi/cache_head.hpp"
#include "alibi/error.hpp"
#include "alibi/kernel/cached.hpp"
#include "alibi/kernel/rows.hpp"
#include "alibi/kernel/simd.hpp"
#include "alibi/view.hpp"

namespace alibi {

/// Which keys no future query can reach; the proof is above. A promise: it is checked by attention over the cache.
struct Eviction {
  double query_norm = std::numeric_limits<double>::quiet_NaN();  ///< |q| of every future query is at most this
  std::vector<double> slopes = {};                               ///< [heads], those of the query heads
  std::optional<double> scale = std::nullopt;                    ///< τ; none: 1 / sqrt(head_dim)
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

inline namespace ALIBI_ISA {

namespace detail {

/// The first tiles of a head that are to leave it, and whether one of them does by eviction.
struct Leaving {
  Index tiles = 0;
  bool evicted = false;
};

inline constexpr Index kMostTokens = Index(1) << 37;  // tiles are counted in 32 bits (kernel::Radii)

/// The config with its defaults filled in, `tolerance` that of an eviction. Throws std::invalid_argument where it makes
/// no sense.
inline KvCacheConfig checked_config(KvCacheConfig config, double tolerance) {
  const auto at_least_1 = [](Index size, const char* name) {
    require(1 <= size && size <= Index(1) << 31, name, " is ", size, "; expected 1 to 2^31");
  };
  if (config.value_dim == 0) config.value_dim = config.head_dim;
  at_least_1(config.batch, "batch");
  at_least_1(config.kv_heads, "kv_heads");
  at_least_1(config.head_dim, "head_dim");
  at_least_1(config.value_dim, "value_dim");
  require(0 <= config.capacity && config.capacity <= kMostTokens, "capacity is ", config.capacity,
          "; expected 0 to 2^37");
  require(config.capacity > 0 || config.window || config.eviction,
          "capacity is 0; expected at least 1, the tokens of a sequence, or a window or an eviction");
  require(!config.window || *config.window >= 1, "window is ", config.window.value_or(0),
          "; expected at least 1, the query's own position");
  require(config.rollback >= 0, "rollback is ", config.rollback, "; expected 0 or more");
  if (config.eviction) {
    Eviction& eviction = *config.eviction;
    require(std::isfinite(eviction.query_norm) && eviction.query_norm >= 0, "eviction.query_norm is ",
            eviction.query_norm, "; expected a finite number of at least 0, a bound on the norm of every future query");
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

/// [kv_heads]: the smallest slope of the query heads that share a kv head; 0 where nothing may be evicted.
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

/// The logarithm of the bound on what evicted keys 0, …, `last` can have, as at the top of this file, for the worse:
/// content = |τ| Q (R + r), newest = p*.
inline double log_evicted(double slope, double content, Index last, Index newest) {
  const double tail = std::log(-std::expm1(-slope * double(last + 1))) - std::log(-std::expm1(-slope));
  return content * (1 + 0x1p-10) - slope * double(newest - last) * (1 - 0x1p-10) + tail + 1e-3;
}

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
  /// arrays as in view.hpp, each of S or of float (of double for double). With counts [batch], sequence b appends its
  /// first counts[b] tokens only. Each token costs the same, however long its sequence is.
  template <class K, class V>
  void append(const K& k, const V& v) {
    append_views<typename Adapter<K>::Scalar, typename Adapter<V>::Scalar>(Adapter<K>::of(k, "k"),
                                                                           Adapter<V>::of(v, "v"), std::nullopt);
  }
  template <class K, class V>
  void append(const K& k, const V& v, std::span<const Index> counts) {
    append_views<typename Adapter<K>::Scalar, typename Adapter<V>::Scalar>(Adapter<K>::of(k, "k"),
                                                                           Adapter<V>::of(v, "v"), counts);
  }

  /// Takes back what is behind `length`, in all sequences or in one. 0 starts afresh; any other length must be at least
  /// shortest(). Costs O(tiles) at most.
  void truncate(Index length);
  void truncate(Index sequence, Index length);

  /// Tokens of a sequence, those that have left included: its next one has this position.
  Index length(Index sequence = 0) const { return sequence_at(sequence).length; }
  /// The first key that is still held; a multiple of 64.
  Index first(Index sequence, Index kv_head) const { return head_at(sequence, kv_head).store.radii().first() * kTile; }
  /// The least length but 0 that truncate() allows; 0 where nothing has left. Queries at positions shortest() - 1 and
  /// later find all that they need.
  Index shortest(Index sequence = 0) const;
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

  /// A head as kernels read it, until the cache is changed, moved from or destroyed.
  kernel::Cached<S, Accumulate> head(Index sequence, Index kv_head) const {
    return head_at(sequence, kv_head).store.view(length(sequence));
  }

 private:
  static constexpr Index kTile = kernel::kTile;
  using Counts = std::optional<std::span<const Index>>;

  struct Sequence {
    Index length = 0;
    Index considered = 0;  // its full tiles when it was last considered what could leave
  };
  struct Head {
    detail::CacheHead<S> store;
    Index shortest = 0;
    bool evicted = false;
    detail::Leaving leaving = {};  // in the append() under way
  };

  const Sequence& sequence_at(Index sequence) const {
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

  template <class X>
  void check_array(const View<const X>& x, const char* name, Index head_dim, const char* head_dim_name) const;
  void check_counts(Index tokens, const Counts& counts) const;
  void check_truncation(Index sequence, Index length) const;
  template <class X, class Y>
  void append_views(const View<const X>& k, const View<const Y>& v, const Counts& counts);
  void plan(Index sequence, Index tokens, Index& opening, Index& leaving);
  void provide(Index opening, Index leaving);
  detail::Leaving leaving_of(const detail::CacheHead<S>& head, double slope, Index length) const;
  void drop(Head& head, Index length, Index most);
  void shorten(Index sequence, Index length);

  KvCacheConfig config_;
  std::vector<Sequence> sequences_;
  std::vector<Head> heads_;      // [batch][kv_heads]
  std::vector<double> slopes_;   // [kv_heads], the smallest of each group; 0: evicts nothing
  detail::CacheTiles<S> spare_;  // between calls at most one a head: what one step of all heads frees and needs again
};

template <class S>
KvCache<S>::KvCache(KvCacheConfig config)
    : config_(detail::checked_config(std::move(config), double(std::numeric_limits<Accumulate>::epsilon()) / 4)),
      sequences_(std::size_t(config_.batch)),
      slopes_(detail::smallest_slopes(config_)) {
  heads_.reserve(std::size_t(config_.batch * config_.kv_heads));
  for (Index i = 0; i < config_.batch * config_.kv_heads; i++)
    heads_.push_back({detail::CacheHead<S>(config_.head_dim, config_.value_dim)});
  spare_.reserve(most_spare());
}

template <class S>
KvCache<S> KvCache<S>::clone() const {
  KvCache copy(config_);
  copy.sequences_ = sequences_;
  for (std::size_t i = 0; i < heads_.size(); i++) {
    const Head& head = heads_[i];
    copy.heads_[i] = {head.store.clone(), head.shortest, head.evicted};
  }
  return copy;
}

template <class S>
Index KvCache<S>::shortest(Index sequence) const {
  Index length = 0;
  for (Index h = 0; h < config_.kv_heads; h++) length = std::max(length, head_at(sequence, h).shortest);
  return length;
}

template <class S>
std::size_t KvCache<S>::bytes() const {
  const Index spare = spare_.size() * heads_.front().store.tile_size();
  std::size_t sum = std::size_t(spare) * sizeof(S) + spare_.table_bytes();
  for (const Head& head : heads_) sum += head.store.bytes();
  return sum;
}

// append()

template <class S>
template <class X>
void KvCache<S>::check_array(const View<const X>& x, const char* name, Index head_dim,
                             const char* head_dim_name) const {
  static_assert(std::is_same_v<X, S> || std::is_same_v<X, Accumulate>,
                "alibi: k and v must hold the cache's own scalar, or float (double for a cache of double).");
  const auto check = [name](Index is, Index expected, const char* what, const char* of) {
    detail::require(is == expected, name, " has ", what, ' ', is, "; expected ", expected, ", the ", of,
                    " of the cache");
  };
  check(x.batch, config_.batch, "batch", "batch");
  check(x.heads, config_.kv_heads, "heads", "kv_heads");
  check(x.head_dim, head_dim, "head_dim", head_dim_name);
  const Index tokens = x.batch * x.heads * x.tokens;
  detail::require(x.data || tokens == 0, name, " is null; expected ", tokens, " tokens of ", x.head_dim);
}

template <class S>
void KvCache<S>::check_counts(Index tokens, const Counts& counts) const {
  if (counts)
    detail::require(Index(counts->size()) == config_.batch, "counts has ", counts->size(), " entries; expected ",
                    config_.batch, ", the batch of the cache");
  const Index capacity = config_.capacity > 0 ? config_.capacity : detail::kMostTokens;
  for (Index b = 0; b < config_.batch; b++) {
    const Index left = capacity - sequences_[std::size_t(b)].length;
    const auto fits = [&](Index count, const auto&... name) {
      detail::require(count <= left, name..., count, "; expected at most ", left, ", what is left of sequence ", b,
                      "'s capacity ", capacity);
    };
    if (!counts) {
      fits(tokens, "k has tokens ");
      continue;
    }
    const Index count = (*counts)[std::size_t(b)];
    detail::require(0 <= count && count <= tokens, "counts[", b, "] is ", count, "; expected 0 to ", tokens,
                    ", the tokens of k");
    fits(count, "counts[", b, "] is ");
  }
}

template <class S>
template <class X, class Y>
void KvCache<S>::append_views(const View<const X>& k, const View<const Y>& v, const Counts& counts) {
  check_array(k, "k", config_.head_dim, "head_dim");
  check_array(v, "v", config_.value_dim, "value_dim");
  detail::require(v.tokens == k.tokens, "v has tokens ", v.tokens, "; expected ", k.tokens, ", the tokens of k");
  check_counts(k.tokens, counts);
  const auto tokens_of = [&](Index b) { return counts ? (*counts)[std::size_t(b)] : k.tokens; };

  Index opening = 0, leaving = 0;
  for (Index b = 0; b < config_.batch; b++) plan(b, tokens_of(b), opening, leaving);
  if (opening > 0) provide(opening, leaving);

  // From here on nothing fails. Every head lets go of its tiles before any takes one.
  for (Index b = 0; b < config_.batch && leaving > 0; b++)
    for (Head& head : heads_of(b)) drop(head, length(b), std::max(opening, most_spare()));
  for (Index b = 0; b < config_.batch; b++) {
    Sequence& sequence = sequences_[std::size_t(b)];
    const Index tokens = tokens_of(b);
    if (tokens == 0) continue;
    for (Index h = 0; h < config_.kv_heads; h++) {
      const kernel::Rows<const X> keys{k.data + b * k.batch_stride + h * k.head_stride, k.token_stride};
      const kernel::Rows<const Y> values{v.data + b * v.batch_stride + h * v.head_stride, v.token_stride};
      heads_of(b)[std::size_t(h)].store.extend(sequence.length, keys, values, tokens, spare_);
    }
    sequence.considered = sequence.length / kTile;
    sequence.length += tokens;
  }
}

/// How many tiles of a sequence come and go when it appends `tokens`; makes room for all that is kept of them.
template <class S>
void KvCache<S>::plan(Index sequence, Index tokens, Index& opening, Index& leaving) {
  const auto [length, considered] = sequences_[std::size_t(sequence)];
  const Index opens = kernel::pieces(length + tokens, kTile) - kernel::pieces(length, kTile);
  // Once a tile: only whole ones leave, and to weigh an eviction takes as long as to append a token.
  const bool consider = tokens > 0 && length / kTile != considered;
  for (Index h = 0; h < config_.kv_heads; h++) {
    Head& head = heads_of(sequence)[std::size_t(h)];
    head.leaving = consider ? leaving_of(head.store, slopes_[std::size_t(h)], length) : detail::Leaving{};
    head.store.reserve(head.store.tiles() - head.leaving.tiles + opens);
    opening += opens;
    leaving += head.leaving.tiles;
  }
}

/// Allocates what is missing of `opening` tiles once those that leave are spare.
template <class S>
void KvCache<S>::provide(Index opening, Index leaving) {
  spare_.reserve(std::max(opening, most_spare()));
  detail::CacheTiles<S> missing;
  const Index count = std::max<Index>(opening - leaving - spare_.size(), 0);
  missing.reserve(count);
  for (Index i = 0; i < count; i++) missing.add_new(heads_.front().store.tile_size());
  while (missing.size() > 0) spare_.add(missing.take_last());
}

/// The first tiles of a head, `length` tokens long, that no query from position p* on needs.
template <class S>
detail::Leaving KvCache<S>::leaving_of(const detail::CacheHead<S>& head, double slope, Index length) const {
  const Index first = head.radii().first();
  const Index newest = length - 1 - std::min(config_.rollback, detail::kMostTokens);  // p*
  Index stays = first;                                                                // the first tile that does
  if (config_.window) stays = std::max(stays, (newest - std::min(*config_.window, detail::kMostTokens) + 1) / kTile);
  const Index seen = stays;
  if (slope > 0 && newest >= (stays + 1) * kTile) {
    const Eviction& eviction = *config_.eviction;
    const double reach = std::abs(*eviction.scale) * eviction.query_norm, near = double(head.distance(newest));
    double far = double(head.radii().left());
    for (Index t = first; t < stays; t++) far = std::max(far, double(head.radii().radius(t)));
    for (; newest >= (stays + 1) * kTile; stays++) {
      far = std::max(far, double(head.radii().radius(stays)));
      const double lost = detail::log_evicted(slope, reach * (far + near), (stays + 1) * kTile - 1, newest);
      if (!(lost <= std::log(*eviction.tolerance))) break;  // nor if it is NaN
    }
  }
  return {stays - first, stays > seen};
}

template <class S>
void KvCache<S>::drop(Head& head, Index length, Index most) {
  if (head.leaving.tiles == 0) return;
  head.store.drop_first(head.leaving.tiles, spare_, most);
  head.shortest = std::max(head.shortest, length - config_.rollback);
  head.evicted = head.evicted || head.leaving.evicted;
}

// truncate()

template <class S>
void KvCache<S>::truncate(Index length) {
  for (Index b = 0; b < config_.batch; b++) check_truncation(b, length);
  for (Index b = 0; b < config_.batch; b++) shorten(b, length);
}

template <class S>
void KvCache<S>::truncate(Index sequence, Index length) {
  check_truncation(sequence, length);
  shorten(sequence, length);
}

template <class S>
void KvCache<S>::check_truncation(Index sequence, Index length) const {
  const Index is = sequence_at(sequence).length, least = shortest(sequence);
  detail::require(0 <= length && length <= is, "length is ", length, "; expected 0 to ", is,
                  ", the length of sequence ", sequence);
  detail::require(length == 0 || length >= least, "length is ", length, "; expected at least ", least,
                  ": keys that a shorter sequence needs have been dropped (rollback is ", config_.rollback, ")");
}

template <class S>
void KvCache<S>::shorten(Index sequence, Index length) {
  Sequence& of = sequences_[std::size_t(sequence)];
  if (length == of.length) return;
  of.length = length;
  for (Head& head : heads_of(sequence)) head.store.truncate(length, spare_, most_spare());
  if (length > 0) return;
  of.considered = 0;
  for (Head& head : heads_of(sequence)) {
    head.shortest = 0;
    head.evicted = false;
  }
}

}  // namespace ALIBI_ISA
}  // namespace alibi
