// The definitions of the functions of KvCache (kv_cache.hpp). Internal.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>

#include "alibi/detail/kv_cache/eviction.hpp"
#include "alibi/detail/kv_cache/head.hpp"
#include "alibi/detail/validate.hpp"
#include "alibi/error.hpp"
#include "alibi/kernel/tile/rows.hpp"
#include "alibi/kv_cache.hpp"
#include "alibi/token_ranges.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ABI {
template <class S>
KvCache<S>::KvCache(KvCacheConfig config)
    : config_(detail::checked_config(std::move(config), double(std::numeric_limits<Accumulate>::epsilon()) / 4)),
      sequences_(std::size_t(config_.batch)),
      slopes_(detail::smallest_slopes(config_)) {
  heads_.reserve(std::size_t(config_.batch * config_.kv_heads));
  for (Index i = 0; i < config_.batch * config_.kv_heads; i++)
    heads_.push_back({detail::CacheHead<S>(config_.head_dim, config_.value_dim)});
  spare_.reserve(max_spare());
}

template <class S>
KvCache<S> KvCache<S>::clone() const {
  KvCache copy(config_);
  copy.sequences_ = sequences_;
  for (std::size_t i = 0; i < heads_.size(); i++) {
    const Head& head = heads_[i];
    copy.heads_[i] = {head.store.clone(), head.min_length, head.evicted};
  }
  return copy;
}

template <class S>
Index KvCache<S>::min_length(Index sequence) const {
  Index length = 0;
  for (Index h = 0; h < config_.kv_heads; h++) length = std::max(length, head_at(sequence, h).min_length);
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
void KvCache<S>::check_real(Index tokens, const Real& real) const {
  const bool counted = real && real->counted();
  const char* const name = counted ? "counts" : "ranges";
  if (counted) {
    detail::require(real->size() == config_.batch, "counts has ", real->size(), " entries; expected ", config_.batch,
                    ", the batch of the cache");
    for (Index b = 0; b < config_.batch; b++)
      detail::require(0 <= (*real)[b].end && (*real)[b].end <= tokens, "counts[", b, "] is ", (*real)[b].end,
                      "; expected 0 to ", tokens, ", the tokens of k");
  } else if (real) {
    detail::check_ranges(*real, config_.batch, tokens, "ranges", "k", "the cache");
  }
  const Index capacity = config_.capacity > 0 ? config_.capacity : detail::kMaxTokens;
  for (Index b = 0; b < config_.batch; b++) {
    const Index left = capacity - sequences_[std::size_t(b)].length;
    if (!real) {
      detail::require(tokens <= left, "k has tokens ", tokens, "; expected at most ", left,
                      ", what is left of sequence ", b, "'s capacity ", capacity);
      continue;
    }
    const Index count = (*real)[b].end - (*real)[b].begin;
    detail::require(count <= left, name, "[", b, counted ? "] is " : "] is a range of ", count, "; expected at most ",
                    left, ", what is left of sequence ", b, "'s capacity ", capacity);
  }
}

template <class S>
template <class X, class Y>
void KvCache<S>::append_views(const View<const X>& k, const View<const Y>& v, const Real& real) {
  check_array(k, "k", config_.head_dim, "head_dim");
  check_array(v, "v", config_.value_dim, "value_dim");
  detail::require(v.tokens == k.tokens, "v has tokens ", v.tokens, "; expected ", k.tokens, ", the tokens of k");
  check_real(k.tokens, real);
  const auto tokens_of = [&](Index b) { return real ? (*real)[b] : KeyRange{0, k.tokens}; };

  Index opening = 0, leaving = 0;
  for (Index b = 0; b < config_.batch; b++) plan(b, tokens_of(b).end - tokens_of(b).begin, opening, leaving);
  if (opening > 0) provide(opening, leaving);

  // From here on nothing fails. All heads release their tiles before any head takes one.
  for (Index b = 0; b < config_.batch && leaving > 0; b++)
    for (Head& head : heads_of(b)) remove_leaving(head, length(b), std::max(opening, max_spare()));
  for (Index b = 0; b < config_.batch; b++) {
    SequenceState& sequence = sequences_[std::size_t(b)];
    const auto [begin, end] = tokens_of(b);
    if (begin == end) continue;
    for (Index h = 0; h < config_.kv_heads; h++) {
      const Index k_at = b * k.batch_stride + h * k.head_stride + begin * k.token_stride,
                  v_at = b * v.batch_stride + h * v.head_stride + begin * v.token_stride;
      const kernel::Rows<const X> keys{k.data + k_at, k.token_stride};
      const kernel::Rows<const Y> values{v.data + v_at, v.token_stride};
      heads_of(b)[std::size_t(h)].store.extend(sequence.length, keys, values, end - begin, spare_);
    }
    sequence.considered = sequence.length / kTile;
    sequence.length += end - begin;
  }
}

/// Adds to `opening` and `leaving` the numbers of tiles that a sequence gains and loses when it appends `tokens`, and
/// reserves the tables of its heads. Sets Head::leaving.
template <class S>
void KvCache<S>::plan(Index sequence, Index tokens, Index& opening, Index& leaving) {
  const auto [length, considered] = sequences_[std::size_t(sequence)];
  const Index opens = kernel::ceil_div(length + tokens, kTile) - kernel::ceil_div(length, kTile);
  // Once for each tile, because only whole tiles leave, and deciding an eviction costs as much as appending a token.
  const bool consider = tokens > 0 && length / kTile != considered;
  for (Index h = 0; h < config_.kv_heads; h++) {
    Head& head = heads_of(sequence)[std::size_t(h)];
    head.leaving = consider ? leaving_of(head.store, slopes_[std::size_t(h)], length) : detail::Leaving{};
    head.store.reserve(head.store.tiles() - head.leaving.tiles + opens);
    opening += opens;
    leaving += head.leaving.tiles;
  }
}

/// Allocates the spare tiles that `opening` new tiles need beyond those that leave and those that are spare already.
template <class S>
void KvCache<S>::provide(Index opening, Index leaving) {
  spare_.reserve(std::max(opening, max_spare()));
  detail::CacheTiles<S> missing;
  const Index count = std::max<Index>(opening - leaving - spare_.size(), 0);
  missing.reserve(count);
  for (Index i = 0; i < count; i++) missing.add_new(heads_.front().store.tile_size());
  spare_.append(std::move(missing));
}

/// The first tiles of a head of length `length` that no query from position p* on needs (kv_cache.hpp).
template <class S>
detail::Leaving KvCache<S>::leaving_of(const detail::CacheHead<S>& head, double slope, Index length) const {
  const Index first = head.key_bounds().first();
  const Index newest = length - 1 - std::min(config_.rollback, detail::kMaxTokens);  // p*
  Index stays = first;                                                               // the first tile that stays
  if (config_.window) stays = std::max(stays, (newest - std::min(*config_.window, detail::kMaxTokens) + 1) / kTile);
  const Index seen = stays;
  if (slope > 0 && newest >= (stays + 1) * kTile) {
    const Eviction& eviction = *config_.eviction;
    const double reach = std::abs(*eviction.scale) * eviction.query_norm,
                 newest_distance = double(head.distance(newest));
    double largest_radius = double(head.key_bounds().left());
    for (Index t = first; t < stays; t++)
      largest_radius = std::max(largest_radius, double(head.key_bounds().radius(t)));
    for (; newest >= (stays + 1) * kTile; stays++) {
      largest_radius = std::max(largest_radius, double(head.key_bounds().radius(stays)));
      const double log_mass =
          detail::log_evicted(slope, reach * (largest_radius + newest_distance), (stays + 1) * kTile - 1, newest);
      if (!(log_mass <= std::log(*eviction.tolerance))) break;  // also if it is NaN
    }
  }
  return {stays - first, stays > seen};
}

template <class S>
void KvCache<S>::remove_leaving(Head& head, Index length, Index max_spare_tiles) {
  if (head.leaving.tiles == 0) return;
  head.store.drop_first(head.leaving.tiles, spare_, max_spare_tiles);
  head.min_length = std::max(head.min_length, length - config_.rollback);
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
  const Index is = sequence_at(sequence).length, least = min_length(sequence);
  detail::require(0 <= length && length <= is, "length is ", length, "; expected 0 to ", is,
                  ", the length of sequence ", sequence);
  detail::require(length == 0 || length >= least, "length is ", length, "; expected at least ", least,
                  ": keys that a shorter sequence needs have left the cache (rollback is ", config_.rollback, ")");
}

template <class S>
void KvCache<S>::shorten(Index sequence, Index length) {
  SequenceState& of = sequences_[std::size_t(sequence)];
  if (length == of.length) return;
  of.length = length;
  for (Head& head : heads_of(sequence)) head.store.truncate(length, spare_, max_spare());
  if (length > 0) return;
  of.considered = 0;
  for (Head& head : heads_of(sequence)) {
    head.min_length = 0;
    head.evicted = false;
  }
}

}  // namespace alibi::inline ALIBI_ABI
