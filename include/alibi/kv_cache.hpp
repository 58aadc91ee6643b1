// A cache of keys and values, for decoding: sequences grow by one token or by many, each at its own pace.
//
// Storage. Each head of a sequence is a run of tiles of 64 keys, which are allocated as the sequence grows and recycled
// (kernel/cached.hpp says how a tile looks, kernel/radii.hpp what is known of its keys without reading them). Keys and
// values are rounded to the cache's scalar once, by append().
//
// Old keys leave by whole tiles, always the oldest of a head, by two rules. Both serve every query at position
// p >= p*, where p* = length - 1 - rollback, with the length from before the append() under way: the tokens of that
// append, the `rollback` tokens before them, and all to come.
//
//   window w     key j goes when p - j >= w for every such p, that is when p* - j >= w; nothing is lost.
//   eviction     keys 0, …, J go when together they have at most the tolerance of any such query's softmax mass,
//   whatever
//                the query, provided |q| <= Q (Eviction::query_norm). Let c be the centre of the head's keys, R a bound
//                of |k_j - c| over j <= J, evicted long ago or not, and r* = |k_{p*} - c|. Query p sees key p*, so the
//                share of keys 0, …, J in its softmax is at most
//
//                  Σ_{j <= J} e^{τ q·k_j - m (p - j)} / e^{τ q·k_{p*} - m (p - p*)}
//                    =  Σ_{j <= J} e^{τ q·(k_j - k_{p*}) - m (p* - j)}
//                   <=  e^{|τ| Q (R + r*) - m (p* - J)} · (1 - e^{-m (J + 1)}) / (1 - e^{-m})
//
//                (Cauchy and Schwarz; a geometric series). It holds for every p, since p is gone from it, and for all
//                keys that were ever evicted, so that nothing adds up over time. It grows as m falls: the smallest
//                slope of the query heads that share a kv head decides, and one that is not above 0 keeps every key.
//                A window hides keys 0, …, J before it hides p*; a query that does not see p* loses nothing.
//
//   Rounding: both exponents are taken for the worse by 2^-10 of themselves, and 10^-3 is added. So slopes, norms and a
//   scale that differ from the config's by 2^-12, being floats, are covered too.
//
// A sink stays: keys far out, often the first tokens of real models, keep their tile, and with it all behind it, until
// the distance has made up for their radius; a key that is not finite stays for ever. Only the window removes those.
//
// Not for: attention itself; caches shared by several writers. Const functions may run at the same time.
//
// Errors: std::invalid_argument that names the argument, and std::bad_alloc; the cache is then as it was.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <new>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "alibi/error.hpp"
#include "alibi/kernel/cached.hpp"
#include "alibi/kernel/radii.hpp"
#include "alibi/kernel/rows.hpp"
#include "alibi/kernel/simd.hpp"
#include "alibi/view.hpp"

namespace alibi {

/// Which keys no future query can reach; the proof is above. A promise: it is checked by attention over the cache.
struct Eviction {
  double query_norm = std::numeric_limits<double>::quiet_NaN();  ///< |q| of every future query is at most this
  std::vector<double> slopes = {};                               ///< [heads], those of the query heads
  std::optional<double> scale = std::nullopt;                    ///< τ; none: 1 / sqrt(head_dim)
  double tolerance = 0x1p-25;  ///< share of a row's softmax mass that all evicted keys have together, at most
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

/// Tiles that are owned here, their addresses side by side as kernels read them.
template <class S>
class CacheTiles {
 public:
  CacheTiles() = default;
  CacheTiles(CacheTiles&& other) noexcept : tiles_(std::exchange(other.tiles_, {})) {}
  CacheTiles& operator=(CacheTiles&& other) noexcept {
    tiles_.swap(other.tiles_);
    return *this;
  }
  CacheTiles(const CacheTiles&) = delete;
  CacheTiles& operator=(const CacheTiles&) = delete;
  ~CacheTiles() {
    while (size() > 0) release(take());
  }

  static S* allocate(Index elements) { return new (kLine) S[std::size_t(elements)]; }
  static void release(S* tile) { ::operator delete[](tile, kLine); }

  Index size() const { return Index(tiles_.size()); }
  S* operator[](Index i) const { return tiles_[std::size_t(i)]; }
  const S* const* data() const { return tiles_.data(); }
  std::size_t table_bytes() const { return tiles_.capacity() * sizeof(S*); }

  /// Room for so many; add() allocates nothing then.
  void reserve(Index size) { grow(tiles_, size); }
  void add(S* tile) { tiles_.push_back(tile); }
  S* take() {
    S* tile = tiles_.back();
    tiles_.pop_back();
    return tile;
  }
  void forget_first(Index count) { tiles_.erase(tiles_.begin(), tiles_.begin() + count); }

  /// Room for so many, and for more than that where it would soon be asked for.
  template <class X>
  static void grow(std::vector<X>& list, Index size) {
    if (std::size_t(size) > list.capacity()) list.reserve(std::max(std::size_t(size), 2 * list.capacity()));
  }

 private:
  static constexpr std::align_val_t kLine{64};
  std::vector<S*> tiles_;
};

/// What kernel::Radii tells of the tiles that a head holds, kept up to date as its last tile grows and its first ones
/// leave. A tile of its own keeps the class it had when the next one was opened.
template <class T>
class CacheRadii {
 public:
  explicit CacheRadii(Index head_dim) : center_(std::size_t(head_dim)) {}

  Index first() const { return first_; }
  Index tiles() const { return Index(radius_.size()); }
  T radius(Index tile) const { return radius_[std::size_t(tile - first_)]; }
  /// The largest radius of the tiles that have left.
  T left() const { return left_; }
  const std::vector<T>& center() const { return center_; }
  /// How many keys the centre is the mean of.
  Index centered() const { return centered_; }

  kernel::Radii<T> view() const {
    const T largest = radius_.empty() ? earlier_ : std::max(earlier_, radius_.back());
    return {center_.data(), center_norm_,   largest, first_,        tiles(),
            radius_.data(), before_.data(), nullptr, apart_.data(), Index(apart_.size())};
  }

  std::size_t bytes() const {
    return (center_.capacity() + radius_.capacity() + before_.capacity()) * sizeof(T) +
           apart_.capacity() * sizeof(apart_[0]);
  }

  void reserve(Index tiles) {
    for (auto* list : {&radius_, &before_}) CacheTiles<T>::grow(*list, tiles);
    CacheTiles<T>::grow(apart_, tiles);
  }

  /// The centre as the mean of the first `count` keys, [head_dim][kTile]; 0 where that is not finite.
  template <class S>
  void set_center(const S* keys, Index count) {
    bool finite = true;
    T square = 0;
    for (std::size_t d = 0; d < center_.size(); d++, keys += kernel::kTile) {
      double sum = 0;
      for (Index j = 0; j < count; j++) sum += double(keys[j]);
      center_[d] = T(sum / double(count));
      finite = finite && std::isfinite(center_[d]);
    }
    if (!finite) std::fill(center_.begin(), center_.end(), T(0));
    for (const T c : center_) square += c * c;
    center_norm_ = kernel::norm_above(square, Index(center_.size()));
    centered_ = count;
  }

  /// A tile without keys, behind the others.
  void open() {
    if (!radius_.empty()) settle(tiles() - 1);
    radius_.push_back(0);
    before_.push_back(0);
    set_last(0);
  }
  /// The radius of the last tile.
  void set_last(T radius) {
    const std::size_t last = radius_.size() - 1;
    const Index tile = first_ + Index(last);
    const bool apart = ordinary_.apart(tile, radius);
    if (!apart_.empty() && apart_.back() == tile) apart_.pop_back();
    if (apart) apart_.push_back(std::int32_t(tile));
    radius_[last] = radius;
    before_[last] = std::max(last == 0 ? T(0) : before_[last - 1], apart ? T(0) : radius);
  }
  void raise_last(T radius) { set_last(std::max(radius_.back(), radius)); }

  /// The first tiles leave. What they did to the prefix maxima ends where a tile that stays was larger.
  void drop_first(Index count) {
    for (Index i = 0; i < count; i++) left_ = std::max(left_, radius_[std::size_t(i)]);
    radius_.erase(radius_.begin(), radius_.begin() + count);
    before_.erase(before_.begin(), before_.begin() + count);
    first_ += count;
    apart_.erase(apart_.begin(), std::lower_bound(apart_.begin(), apart_.end(), first_));
    T largest = 0;
    auto apart = apart_.begin();
    for (std::size_t i = 0; i < radius_.size(); i++) {
      if (apart != apart_.end() && *apart == first_ + Index(i))
        apart++;
      else
        largest = std::max(largest, radius_[i]);
      if (before_[i] == largest) break;
      before_[i] = largest;
    }
  }

  /// Only the first `count` >= 1 of the tiles held stay; the last of them may change.
  void keep_first(Index count) {
    if (count == tiles()) return;
    radius_.resize(std::size_t(count));
    before_.resize(std::size_t(count));
    apart_.erase(std::lower_bound(apart_.begin(), apart_.end(), first_ + count), apart_.end());
    ordinary_ = {};
    earlier_ = left_;
    for (Index i = 0; i + 1 < count; i++) settle(i);
  }

  /// Nothing is held, and nothing ever was.
  void clear() {
    radius_.clear();
    before_.clear();
    apart_.clear();
    std::fill(center_.begin(), center_.end(), T(0));
    center_norm_ = left_ = earlier_ = 0;
    first_ = centered_ = 0;
    ordinary_ = {};
  }

 private:
  void settle(Index i) {
    ordinary_.add(first_ + i, radius_[std::size_t(i)]);
    earlier_ = std::max(earlier_, radius_[std::size_t(i)]);
  }

  std::vector<T> center_, radius_, before_;
  std::vector<std::int32_t> apart_;
  T center_norm_ = 0, left_ = 0, earlier_ = 0;  // largest radius of the tiles that left, of all but the last
  Index first_ = 0, centered_ = 0;
  kernel::Ordinary<T> ordinary_;  // of all but the last
};

/// The first tiles of a head that are to leave it, and whether one of them does by eviction.
struct Leaving {
  Index tiles = 0;
  bool evicted = false;
};

inline constexpr Index kMostTokens = Index(1) << 37;  // tiles are counted in 32 bits (kernel::Radii)

/// The config with its defaults filled in. Throws std::invalid_argument where it makes no sense.
inline KvCacheConfig checked(KvCacheConfig config) {
  const auto at_least_1 = [](Index size, const char* name) {
    require(1 <= size && size <= Index(1) << 31, name, " is ", size, "; expected 1 to 2^31");
  };
  if (config.value_dim == 0) config.value_dim = config.head_dim;
  at_least_1(config.batch, "batch");
  at_least_1(config.kv_heads, "kv_heads");
  at_least_1(config.head_dim, "head_dim");
  at_least_1(config.value_dim, "value_dim");
  require(0 <= config.capacity && config.capacity <= kMostTokens, "capacity is ", config.capacity,
          "; expected at most 2^37");
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
    require(eviction.tolerance > 0 && eviction.tolerance < 1, "eviction.tolerance is ", eviction.tolerance,
            "; expected above 0 and below 1");
  }
  return config;
}

/// [kv_heads]: of the query heads that share a kv head, the slope that is slowest to forget; at least 0.
inline std::vector<double> smallest_slopes(const KvCacheConfig& config) {
  const std::vector<double>& slopes = config.eviction->slopes;
  const auto group = std::ptrdiff_t(slopes.size()) / config.kv_heads;
  std::vector<double> smallest;
  for (auto first = slopes.begin(); first != slopes.end(); first += group)
    smallest.push_back(std::max(*std::min_element(first, first + group), 0.));
  return smallest;
}

/// The logarithm of the bound on what evicted keys 0, …, `last` can have, as at the top of this file, for the worse:
/// content = |τ| Q (R + r*), newest = p*.
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
  using Accumulate = std::conditional_t<std::is_same_v<S, double>, double, float>;

  /// Throws std::invalid_argument for sizes, a window, a rollback or an eviction that make no sense.
  explicit KvCache(KvCacheConfig config) : config_(detail::checked(std::move(config))) {
    sequences_.resize(std::size_t(config_.batch));
    heads_.reserve(std::size_t(config_.batch * config_.kv_heads));
    for (Index i = 0; i < config_.batch * config_.kv_heads; i++) heads_.emplace_back(config_.head_dim);
    if (config_.eviction) slopes_ = detail::smallest_slopes(config_);
  }

  KvCache(KvCache&&) noexcept = default;
  KvCache& operator=(KvCache&&) noexcept = default;
  KvCache(const KvCache&) = delete;  // a copy costs as much memory again: clone() makes it
  KvCache& operator=(const KvCache&) = delete;

  /// A cache of the same contents in memory of its own.
  KvCache clone() const;

  /// Appends tokens to every sequence: k [batch, kv_heads, tokens, head_dim], v [batch, kv_heads, tokens, value_dim],
  /// arrays as in view.hpp, each of S or of float (of double for double). With counts [batch], sequence b appends its
  /// first counts[b] tokens only. One token costs O(head_dim + value_dim), however long its sequence is.
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
  /// shortest(). Costs at most O(tiles).
  void truncate(Index length) {
    for (Index b = 0; b < config_.batch; b++) check_truncation(b, length);
    for (Index b = 0; b < config_.batch; b++) shorten(b, length);
  }
  void truncate(Index sequence, Index length) {
    check_truncation(sequence, length);
    shorten(sequence, length);
  }

  /// Tokens of a sequence: its next one has this position.
  Index length(Index sequence = 0) const { return sequence_at(sequence).length; }
  /// The first key that is still held; a multiple of 64.
  Index first(Index sequence, Index kv_head) const { return head_at(sequence, kv_head).radii.first() * kTile; }
  /// The least length but 0 that truncate() allows, 0 where nothing has left. Queries at positions from here - 1 on
  /// find all they need.
  Index shortest(Index sequence = 0) const {
    Index length = 0;
    for (Index h = 0; h < config_.kv_heads; h++) length = std::max(length, head_at(sequence, h).shortest);
    return length;
  }
  /// The share of softmax mass that evicted keys may have had: 0 where none were evicted, else Eviction::tolerance.
  double evicted_tolerance(Index sequence, Index kv_head) const {
    return head_at(sequence, kv_head).evicted ? config_.eviction->tolerance : 0;
  }

  /// Bytes of memory held: tiles, their tables and radii, and up to one tile a head that waits to be used again.
  std::size_t bytes() const {
    std::size_t sum = std::size_t(spare_.size()) * tile_bytes() + spare_.table_bytes();
    for (const Head& head : heads_) sum += bytes_of(head);
    return sum;
  }
  /// Those of a head's own tiles, their tables and radii.
  std::size_t bytes(Index sequence, Index kv_head) const { return bytes_of(head_at(sequence, kv_head)); }

  /// As given, with value_dim and eviction->scale filled in.
  const KvCacheConfig& config() const { return config_; }

  /// A head as kernels read it, until the cache is next changed or moved.
  kernel::Cached<S, Accumulate> head(Index sequence, Index kv_head) const {
    const Head& head = head_at(sequence, kv_head);
    const Index first = head.radii.first();
    return {head.tiles.data(), first, first * kTile, length(sequence), value_offset(), head.radii.view()};
  }

 private:
  using T = Accumulate;
  static constexpr Index kTile = kernel::kTile;

  struct Sequence {
    Index length = 0;
    Index considered = 0;  // full tiles when it was last considered which could leave
  };
  struct Head {
    explicit Head(Index head_dim) : radii(head_dim) {}
    detail::CacheTiles<S> tiles;
    detail::CacheRadii<T> radii;
    Index shortest = 0;
    bool evicted = false;
    detail::Leaving leaving = {};  // in the append under way
  };

  Index value_offset() const { return config_.head_dim * kTile; }
  Index tile_size() const { return (config_.head_dim + config_.value_dim) * kTile; }
  std::size_t tile_bytes() const { return std::size_t(tile_size()) * sizeof(S); }
  std::size_t bytes_of(const Head& head) const {
    return std::size_t(head.tiles.size()) * tile_bytes() + head.tiles.table_bytes() + head.radii.bytes();
  }

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

  using Counts = std::optional<std::span<const Index>>;
  template <class X, class Y>
  void append_views(const View<const X>& k, const View<const Y>& v, const Counts& counts);
  template <class X>
  void check_array(const View<const X>& x, const char* name, Index head_dim, const char* head_dim_name) const;
  void check_counts(Index tokens, const Counts& counts) const;
  void check_truncation(Index sequence, Index length) const;

  void prepare(Index sequence, Index tokens, Index& opening, Index& leaving);
  void provide(Index opening, Index leaving);
  void drop(Head& head, Index length, Index most_spare);
  template <class X, class Y>
  void extend(Head& head, Index length, kernel::Rows<const X> k, kernel::Rows<const Y> v, Index tokens);
  void shorten(Index sequence, Index length);
  void recycle(S* tile, Index most_spare);

  detail::Leaving leaving_of(const Head& head, Index kv_head, Index length) const;
  void clear_from(S* tile, Index slot) const;
  void measure(Head& head, Index begin, Index end) const;
  T radius_of(const Head& head, const S* tile, Index begin, Index end) const;

  KvCacheConfig config_;
  std::vector<Sequence> sequences_;
  std::vector<Head> heads_;      // [batch][kv_heads]
  std::vector<double> slopes_;   // [kv_heads], the smallest of each group; 0: evicts nothing
  detail::CacheTiles<S> spare_;  // at most one a head, which is what a step of all heads frees and needs again
};

template <class S>
KvCache<S> KvCache<S>::clone() const {
  KvCache copy(config_);
  copy.sequences_ = sequences_;
  for (std::size_t i = 0; i < heads_.size(); i++) {
    const Head& from = heads_[i];
    Head& to = copy.heads_[i];
    to.radii = from.radii;
    to.shortest = from.shortest;
    to.evicted = from.evicted;
    to.tiles.reserve(from.tiles.size());
    for (Index t = 0; t < from.tiles.size(); t++) {
      to.tiles.add(detail::CacheTiles<S>::allocate(tile_size()));
      std::copy_n(from.tiles[t], tile_size(), to.tiles[t]);
    }
  }
  return copy;
}

// append()

template <class S>
template <class X>
void KvCache<S>::check_array(const View<const X>& x, const char* name, Index head_dim,
                             const char* head_dim_name) const {
  static_assert(std::is_same_v<X, S> || std::is_same_v<X, T>,
                "alibi: k and v must hold the cache's own scalar or float (double for a cache of double).");
  const auto equal = [name](Index is, Index expected, const char* what, const char* of) {
    detail::require(is == expected, name, " has ", what, ' ', is, "; expected ", expected, ", the ", of,
                    " of the cache");
  };
  equal(x.batch, config_.batch, "batch", "batch");
  equal(x.heads, config_.kv_heads, "heads", "kv_heads");
  equal(x.head_dim, head_dim, "head_dim", head_dim_name);
  const Index rows = x.batch * x.heads * x.tokens;
  detail::require(x.data || rows == 0, name, " is null; expected ", rows, " tokens of ", x.head_dim);
}

template <class S>
void KvCache<S>::check_counts(Index tokens, const Counts& counts) const {
  if (counts)
    detail::require(Index(counts->size()) == config_.batch, "counts has ", counts->size(), " entries; expected ",
                    config_.batch, ", the batch of the cache");
  const Index most = config_.capacity > 0 ? config_.capacity : detail::kMostTokens;
  for (Index b = 0; b < config_.batch; b++) {
    const Index left = most - sequences_[std::size_t(b)].length;
    if (!counts) {
      detail::require(tokens <= left, "k has tokens ", tokens, "; expected at most ", left,
                      ", what is left of sequence ", b, "'s capacity ", most);
      continue;
    }
    const Index count = (*counts)[std::size_t(b)];
    detail::require(0 <= count && count <= tokens, "counts[", b, "] is ", count, "; expected 0 to ", tokens,
                    ", the tokens of k");
    detail::require(count <= left, "counts[", b, "] is ", count, "; expected at most ", left,
                    ", what is left of sequence ", b, "'s capacity ", most);
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
  for (Index b = 0; b < config_.batch; b++) prepare(b, tokens_of(b), opening, leaving);
  provide(opening, leaving);

  // From here on nothing fails. All heads let go before any takes a tile.
  for (Index b = 0; b < config_.batch && leaving > 0; b++)
    for (Head& head : heads_of(b))
      drop(head, sequences_[std::size_t(b)].length, std::max(opening, Index(heads_.size())));
  for (Index b = 0; b < config_.batch; b++) {
    Sequence& sequence = sequences_[std::size_t(b)];
    const Index tokens = tokens_of(b);
    if (tokens == 0) continue;
    for (Index h = 0; h < config_.kv_heads; h++) {
      const kernel::Rows<const X> keys{k.data + b * k.batch_stride + h * k.head_stride, k.token_stride};
      const kernel::Rows<const Y> values{v.data + b * v.batch_stride + h * v.head_stride, v.token_stride};
      extend(heads_of(b)[std::size_t(h)], sequence.length, keys, values, tokens);
    }
    sequence.considered = sequence.length / kTile;
    sequence.length += tokens;
  }
}

/// What appending `tokens` does to the tiles of a sequence: all memory but the tiles themselves is there afterwards.
template <class S>
void KvCache<S>::prepare(Index sequence, Index tokens, Index& opening, Index& leaving) {
  const auto [length, considered] = sequences_[std::size_t(sequence)];
  const Index opens = kernel::pieces(length + tokens, kTile) - kernel::pieces(length, kTile);
  // Once a tile: what leaves is a matter of whole tiles, and the bound of an eviction takes some time.
  const bool consider = tokens > 0 && length / kTile != considered;
  for (Index h = 0; h < config_.kv_heads; h++) {
    Head& head = heads_of(sequence)[std::size_t(h)];
    head.leaving = consider ? leaving_of(head, h, length) : detail::Leaving{};
    const Index tiles = head.tiles.size() - head.leaving.tiles + opens;
    head.tiles.reserve(tiles);
    head.radii.reserve(tiles);
    opening += opens;
    leaving += head.leaving.tiles;
  }
}

/// Sees to it that enough tiles are spare once those that leave have come to them.
template <class S>
void KvCache<S>::provide(Index opening, Index leaving) {
  if (opening == 0 && leaving == 0) return;
  spare_.reserve(std::max(opening, Index(heads_.size())));
  detail::CacheTiles<S> fresh;
  const Index count = std::max<Index>(opening - leaving - spare_.size(), 0);
  fresh.reserve(count);
  for (Index i = 0; i < count; i++) fresh.add(detail::CacheTiles<S>::allocate(tile_size()));
  while (fresh.size() > 0) spare_.add(fresh.take());
}

/// The first tiles of a head that no query from position p* = length - 1 - rollback on needs.
template <class S>
detail::Leaving KvCache<S>::leaving_of(const Head& head, Index kv_head, Index length) const {
  const detail::CacheRadii<T>& radii = head.radii;
  const Index newest = length - 1 - std::min(config_.rollback, detail::kMostTokens), first = radii.first();
  Index keep = first;  // the first tile that stays
  if (config_.window) keep = std::max(keep, (newest - std::min(*config_.window, detail::kMostTokens) + 1) / kTile);
  const Index seen = keep;
  if (config_.eviction && slopes_[std::size_t(kv_head)] > 0 && newest >= (keep + 1) * kTile) {
    const Eviction& eviction = *config_.eviction;
    const Index tile = newest / kTile - first, slot = newest % kTile;
    const double near = double(radius_of(head, head.tiles[tile], slot, slot + 1));
    double far = double(radii.left());
    for (Index t = first; t < keep; t++) far = std::max(far, double(radii.radius(t)));
    for (Index last; (last = (keep + 1) * kTile - 1) < newest; keep++) {
      far = std::max(far, double(radii.radius(keep)));
      const double content = std::abs(*eviction.scale) * eviction.query_norm * (far + near);
      const double lost = detail::log_evicted(slopes_[std::size_t(kv_head)], content, last, newest);
      if (!(lost <= std::log(eviction.tolerance))) break;  // NaN stays
    }
  }
  return {keep - first, keep > seen};
}

template <class S>
void KvCache<S>::drop(Head& head, Index length, Index most_spare) {
  const auto [count, evicted] = head.leaving;
  if (count == 0) return;
  for (Index t = 0; t < count; t++) recycle(head.tiles[t], most_spare);
  head.tiles.forget_first(count);
  head.radii.drop_first(count);
  head.shortest = std::max(head.shortest, length - config_.rollback);
  head.evicted = head.evicted || evicted;
}

template <class S>
void KvCache<S>::recycle(S* tile, Index most_spare) {
  if (spare_.size() < most_spare)
    spare_.add(tile);
  else
    detail::CacheTiles<S>::release(tile);
}

/// Keys and values behind a head's last ones.
template <class S>
template <class X, class Y>
void KvCache<S>::extend(Head& head, Index length, kernel::Rows<const X> k, kernel::Rows<const Y> v, Index tokens) {
  for (Index token = 0; token < tokens;) {
    const Index slot = (length + token) % kTile, n = std::min(kTile - slot, tokens - token);
    if (slot == 0) {
      head.tiles.add(spare_.take());
      head.radii.open();
    }
    S* const keys = head.tiles[head.tiles.size() - 1];
    S* const values = keys + value_offset();
    for (Index d = 0; d < config_.head_dim; d++)
      for (Index i = 0; i < n; i++) keys[d * kTile + slot + i] = S(k[token + i][d]);
    for (Index i = 0; i < n; i++)
      for (Index d = 0; d < config_.value_dim; d++) values[(slot + i) * config_.value_dim + d] = S(v[token + i][d]);
    if (slot == 0) clear_from(keys, n);
    measure(head, slot, slot + n);
    token += n;
  }
}

/// Zeros in the slots from `slot` on.
template <class S>
void KvCache<S>::clear_from(S* tile, Index slot) const {
  for (Index d = 0; d < config_.head_dim; d++) std::fill(tile + d * kTile + slot, tile + (d + 1) * kTile, S(0));
  std::fill(tile + value_offset() + slot * config_.value_dim, tile + tile_size(), S(0));
}

/// Brings the radii up to date after slots [begin, end) of the last tile have been written. The centre is the mean of
/// the first 1, 2, 4, …, 64 keys, as many as there are: what it is does not depend on how they were appended.
template <class S>
void KvCache<S>::measure(Head& head, Index begin, Index end) const {
  const S* tile = head.tiles[head.tiles.size() - 1];
  const Index keys = Index(std::bit_floor(std::uint64_t(end)));
  if (head.radii.first() + head.radii.tiles() == 1 && keys != head.radii.centered()) {
    head.radii.set_center(tile, keys);
    head.radii.set_last(radius_of(head, tile, 0, end));
  } else {
    head.radii.raise_last(radius_of(head, tile, begin, end));
  }
}

/// At least the largest |k - c| of slots [begin, end).
template <class S>
auto KvCache<S>::radius_of(const Head& head, const S* tile, Index begin, Index end) const -> T {
  T square[kTile] = {}, radius = 0;
  for (const T c : head.radii.center()) {
    for (Index j = begin; j < end; j++) {
      const T x = T(tile[j]) - c;
      square[j] += x * x;
    }
    tile += kTile;
  }
  for (Index j = begin; j < end; j++) radius = std::max(radius, kernel::norm_above(square[j], config_.head_dim));
  return radius;
}

// truncate()

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
  const Index before = std::exchange(sequences_[std::size_t(sequence)].length, length);
  if (length == before) return;
  if (length == 0) sequences_[std::size_t(sequence)] = {};
  for (Head& head : heads_of(sequence)) {
    const Index tiles = length == 0 ? 0 : kernel::pieces(length, kTile) - head.radii.first();
    while (head.tiles.size() > tiles) recycle(head.tiles.take(), Index(heads_.size()));
    if (length == 0) {
      head.radii.clear();
      head.shortest = 0;
      head.evicted = false;
      continue;
    }
    const Index end = (length - 1) % kTile + 1;
    clear_from(head.tiles[tiles - 1], end);
    head.radii.keep_first(tiles);
    head.radii.set_last(0);
    measure(head, 0, end);
  }
}

}  // namespace ALIBI_ISA
}  // namespace alibi
