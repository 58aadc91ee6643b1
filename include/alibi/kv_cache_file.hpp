// Saving a sequence of a KvCache, such as a prompt that many requests begin with, and loading it again.
//
//     std::ofstream out("prompt.kv", std::ios::binary);
//     alibi::save(out, cache, 0);
//     std::ifstream in("prompt.kv", std::ios::binary);
//     alibi::load(in, cache, 3);
//
// Attention over the loaded sequence gives the same bits as before, because all that pruning and eviction know of the
// keys is saved too. No other header includes this one.
//
// A saved sequence is a run of numbers as they lie in memory, without padding: CacheFile::Header and a checksum; a
// CacheFile::HeadHeader for each kv head and a checksum; then for each kv head its tiles (kernel/tile/cached.hpp), the
// newest first, and what is known of their keys (CacheKeyBounds::transfer()), and a checksum. A machine of another byte
// order refuses it. load() reads no byte after the end, so that a stream may hold several.
//
// Another cache takes the sequence if it stores the same scalar in as many kv heads of the same sizes, and its capacity
// is sufficient. Window, eviction, rollback and sinks may differ as long as no key has left the sequence. After that
// the cache must have as many sinks. Keys that have left by a window require one whose window is not wider. Keys that
// were evicted require one that has an eviction whose queries are not longer, slopes not smaller, scale and tolerance
// as usual: then the bound of kv_cache.hpp covers them.
//
// Errors, after which the cache is unchanged: std::invalid_argument if the sequence does not fit the cache, or if it is
// of another version or byte order; std::runtime_error if it is truncated or corrupt, or a stream refuses a write; and
// std::bad_alloc. A checksum detects accidents, not intent: load only files that you trust.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <istream>
#include <ostream>
#include <type_traits>
#include <vector>

#include "alibi/detail/kv_cache/eviction.hpp"
#include "alibi/detail/kv_cache/stream.hpp"
#include "alibi/error.hpp"
#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/rows.hpp"
#include "alibi/kv_cache.hpp"
#include "alibi/kv_cache_config.hpp"

namespace alibi::inline ALIBI_ABI {
namespace detail {

struct CacheFile {
  // All members have 8 bytes, so that there is no padding.
  struct Header {
    Index scalar = 0;  // of kScalars
    Index kv_heads = 0, head_dim = 0, value_dim = 0;
    Index length = 0, considered = 0;
    Index window = 0, sinks = 0;                      // window 0: none
    double query_norm = 0, scale = 0, tolerance = 0;  // of the eviction; query_norm 0: none
  };
  struct HeadHeader {
    Index first = 0, min_length = 0, evicted = 0;
    double slope = 0;  // the smallest of the query heads; 0: no eviction
  };

  static constexpr std::uint64_t kMagic = 0x766b2d6962696c61, kSwapped = 0x616c6962692d6b76;  // "alibi-kv"
  static constexpr std::uint64_t kVersion = 1;
  static constexpr const char* kScalars[] = {"float", "double", "bfloat16", "half"};
  template <class S>
  static constexpr Index kScalar = std::is_same_v<S, float>             ? 0
                                   : std::is_same_v<S, double>          ? 1
                                   : std::is_same_v<S, Eigen::bfloat16> ? 2
                                                                        : 3;

  template <class S>
  static void save(std::ostream& to, const KvCache<S>& cache, Index sequence) {
    const KvCacheConfig& config = cache.config();
    const auto [length, considered] = cache.sequence_at(sequence);
    Header header{.scalar = kScalar<S>,
                  .kv_heads = config.kv_heads,
                  .head_dim = config.head_dim,
                  .value_dim = config.value_dim,
                  .length = length,
                  .considered = considered,
                  .window = config.window.value_or(0),
                  .sinks = config.sinks};
    if (config.eviction) {
      header.query_norm = config.eviction->query_norm;
      header.scale = std::abs(*config.eviction->scale);
      header.tolerance = *config.eviction->tolerance;
    }
    CacheWriter file(to);
    file.number(kMagic);
    file.number(kVersion);
    file.number(header);
    file.end();
    for (Index h = 0; h < config.kv_heads; h++) {
      const auto& head = cache.head_at(sequence, h);
      file.number(
          HeadHeader{head.store.key_bounds().first(), head.min_length, head.evicted, cache.slopes_[std::size_t(h)]});
    }
    file.end();
    for (Index h = 0; h < config.kv_heads; h++) cache.head_at(sequence, h).store.write(file);
    file.end();
    file.flush();
  }

  template <class S>
  static void load(std::istream& from, KvCache<S>& cache, Index sequence) {
    const KvCacheConfig& config = cache.config();
    cache.check_sequence(sequence, "sequence");
    CacheReader file(from);
    read_kind(file);
    Header header;
    file.number(header);
    file.end();
    check_fit(header, config, kScalar<S>);
    const Index tiles = kernel::ceil_div(header.length, kernel::kTile);
    std::vector<HeadHeader> of_heads;
    file.list(of_heads, config.kv_heads);
    file.end();
    for (Index h = 0; h < config.kv_heads; h++) {
      const HeadHeader& head = of_heads[std::size_t(h)];
      const bool left = header.window > 0 || head.evicted;
      file.check(0 <= head.first && head.first <= (left ? std::max<Index>(tiles - 1, 0) : 0) && 0 <= head.min_length &&
                 head.min_length <= header.length && (head.first > 0 || (!head.evicted && head.min_length == 0)));
      check_left(header, head, config, cache.slopes_[std::size_t(h)], h);
    }
    std::vector<typename KvCache<S>::Head> heads;
    for (const HeadHeader& head : of_heads) {
      heads.push_back({CacheHead<S>(config.head_dim, config.value_dim, kernel::ceil_div(config.sinks, kernel::kTile)),
                       head.min_length, head.evicted != 0});
      heads.back().store.read(file, head.first, tiles - head.first);
    }
    file.end();
    cache.replace(sequence, {header.length, header.considered}, heads);
  }

 private:
  static void read_kind(CacheReader& file) {
    std::uint64_t magic = 0, version = 0;
    file.number(magic);
    require(magic != kSwapped, "the saved sequence has the other byte order; expected that of this machine");
    require(magic == kMagic, "the stream does not begin with a saved sequence; expected what save() wrote");
    file.number(version);
    require(version == kVersion, "the saved sequence has version ", version, "; expected ", kVersion);
  }
  static void check_fit(const Header& header, const KvCacheConfig& config, Index scalar) {
    const auto check = [](Index is, Index expected, const char* name) {
      require(is == expected, "the saved sequence has ", name, ' ', is, "; expected ", expected, ", the ", name,
              " of the cache");
    };
    require(header.scalar == scalar, "the saved sequence has scalar ",
            0 <= header.scalar && header.scalar < 4 ? kScalars[header.scalar] : "unknown", "; expected ",
            kScalars[scalar], ", that of the cache");
    check(header.kv_heads, config.kv_heads, "kv_heads");
    check(header.head_dim, config.head_dim, "head_dim");
    check(header.value_dim, config.value_dim, "value_dim");
    const Index capacity = config.capacity > 0 ? config.capacity : kMaxTokens;
    require(0 <= header.length && header.length <= capacity, "the saved sequence has length ", header.length,
            "; expected at most ", capacity, ", the capacity of the cache");
  }
  /// Whether a head from which keys have left still has all keys that queries of the cache need. `slope` is that of the
  /// cache.
  static void check_left(const Header& header, const HeadHeader& head, const KvCacheConfig& config, double slope,
                         Index kv_head) {
    if (head.first == 0) return;
    require(header.window == 0 || (config.window && *config.window <= header.window),
            "keys have left the saved sequence by its window of ", header.window,
            "; expected a cache with a window of at most that");
    require(config.sinks == header.sinks, "keys have left the saved sequence with sinks of ", header.sinks,
            "; expected a cache with as many, not ", config.sinks);
    if (!head.evicted) return;
    require(config.eviction.has_value(),
            "keys have left the saved sequence by eviction; expected a cache with an eviction");
    const Eviction& eviction = *config.eviction;
    const auto at_most = [](double is, double most, const char* name) {
      require(is <= most, "eviction.", name, " of the cache is ", is, "; expected at most ", most,
              ", by which keys have left the saved sequence");
    };
    at_most(eviction.query_norm, header.query_norm, "query_norm");
    at_most(std::abs(*eviction.scale), header.scale, "scale");
    require(*eviction.tolerance >= header.tolerance, "eviction.tolerance of the cache is ", *eviction.tolerance,
            "; expected at least ", header.tolerance, ", by which keys have left the saved sequence");
    require(slope >= head.slope, "the smallest of eviction.slopes of kv_head ", kv_head, " of the cache is ", slope,
            "; expected at least ", head.slope, ", by which keys have left the saved sequence");
  }
};

}  // namespace detail

/// Writes a sequence of a cache to a binary stream: its keys and values in whole tiles of 64, and what the cache knows
/// of them. Throws std::invalid_argument for a sequence out of range, and std::runtime_error if the stream refuses a
/// write.
template <class S>
void save(std::ostream& to, const KvCache<S>& cache, Index sequence = 0) {
  detail::CacheFile::save(to, cache, sequence);
}

/// Replaces a sequence of a cache by one that save() wrote, perhaps of another cache. Throws std::invalid_argument for
/// a sequence out of range, and for what does not fit the cache, std::runtime_error for what is truncated or corrupt,
/// and std::bad_alloc; the cache is unchanged then.
template <class S>
void load(std::istream& from, KvCache<S>& cache, Index sequence = 0) {
  detail::CacheFile::load(from, cache, sequence);
}

}  // namespace alibi::inline ALIBI_ABI
