// The definitions of the functions of KvCache (kv_cache.hpp). Internal.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

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
      slopes_(detail::smallest_slopes(config_)),
      spare_(detail::CacheHead<S>::tile_size(config_.head_dim, config_.value_dim)) {
  heads_.reserve(std::size_t(config_.batch * config_.kv_heads));
  for (Index i = 0; i < config_.batch * config_.kv_heads; i++)
    heads_.push_back(
        {detail::CacheHead<S>(config_.head_dim, config_.value_dim, kernel::ceil_div(config_.sinks, kTile))});
  spare_.reserve(max_spare());
}

template <class S>
KvCache<S> KvCache<S>::clone() const {
  KvCache copy(config_);
  copy.sequences_ = sequences_;
  std::unordered_map<const S*, S*> copies;  // of shared tiles
  for (std::size_t i = 0; i < heads_.size(); i++) {
    const Head& head = heads_[i];
    copy.heads_[i] = {head.store.clone(copies), head.min_length, head.evicted};
  }
  copy.spare_.add_shared(spare_.shared());
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
  std::size_t sum = std::size_t(spare_.size()) * spare_.tile_bytes() + spare_.table_bytes();
  for (const Head& head : heads_) sum += head.store.bytes();
  return sum - std::size_t(spare_.shared()) * spare_.tile_bytes();
}

// append()

template <class S>
template <class X>
void KvCache<S>::check_array(const View<const X>& x, const char* name, Index head_dim, const char* head_dim_name,
                             bool one_sequence) const {
  const auto check = [name](Index is, Index expected, const char* what, const char* of) {
    detail::require(is == expected, name, " has ", what, ' ', is, "; expected ", expected, ", the ", of,
                    " of the cache");
  };
  if (one_sequence)
    detail::require(x.batch == 1, name, " has batch ", x.batch, "; expected 1, for one sequence");
  else
    check(x.batch, config_.batch, "batch", "batch");
  check(x.heads, config_.kv_heads, "heads", "kv_heads");
  check(x.head_dim, head_dim, "head_dim", head_dim_name);
  const Index tokens = x.batch * x.heads * x.tokens;
  detail::require(x.data || tokens == 0, name, " is null; expected ", tokens, " tokens of ", x.head_dim);
}

template <class S>
void KvCache<S>::check_real(Index tokens, const detail::AppendTo& to) const {
  const TokenRanges& real = to.real;
  const bool counted = real.counted();
  const char* const name = counted ? "counts" : "ranges";
  if (!real.empty() && counted) {
    detail::require(real.size() == config_.batch, "counts has ", real.size(), " entries; expected ", config_.batch,
                    ", the batch of the cache");
    for (Index b = 0; b < config_.batch; b++)
      detail::require(0 <= real[b].end && real[b].end <= tokens, "counts[", b, "] is ", real[b].end, "; expected 0 to ",
                      tokens, ", the tokens of k");
  } else if (!real.empty()) {
    detail::check_ranges(real, config_.batch, tokens, "ranges", "k", "the cache");
  }
  const Index capacity = config_.capacity > 0 ? config_.capacity : detail::kMaxTokens;
  for (Index b = to.sequence.value_or(0); b < to.sequence.value_or(config_.batch - 1) + 1; b++) {
    const Index left = capacity - sequences_[std::size_t(b)].length;
    if (real.empty()) {
      detail::require(tokens <= left, "k has tokens ", tokens, "; expected at most ", left,
                      ", what is left of sequence ", b, "'s capacity ", capacity);
      continue;
    }
    const Index count = real[b].end - real[b].begin;
    detail::require(count <= left, name, "[", b, counted ? "] is " : "] is a range of ", count, "; expected at most ",
                    left, ", what is left of sequence ", b, "'s capacity ", capacity);
  }
}

template <class S>
template <class X, class Y>
void KvCache<S>::append_views(const View<const X>& k, const View<const Y>& v, const detail::AppendTo& to) {
  if (to.sequence) check_sequence(*to.sequence, "sequence");
  check_array(k, "k", config_.head_dim, "head_dim", to.sequence.has_value());
  check_array(v, "v", config_.value_dim, "value_dim", to.sequence.has_value());
  detail::require(v.tokens == k.tokens, "v has tokens ", v.tokens, "; expected ", k.tokens, ", the tokens of k");
  check_real(k.tokens, to);
  const Index first = to.sequence.value_or(0);  // entry i of k and v is for sequence first + i
  const auto tokens_of = [&](Index i) { return to.real.empty() ? KeyRange{0, k.tokens} : to.real[i]; };

  Plan all;
  for (Index i = 0; i < k.batch; i++) plan(first + i, tokens_of(i).end - tokens_of(i).begin, all);
  if (all.opening > 0) provide(all.opening, all.freed);

  // From here on nothing fails. All heads release their tiles before any head takes one.
  for (Index i = 0; i < k.batch && all.leaving > 0; i++)
    for (Head& head : heads_of(first + i)) remove_leaving(head, length(first + i), std::max(all.opening, max_spare()));
  for (Index i = 0; i < k.batch; i++) {
    SequenceState& sequence = sequences_[std::size_t(first + i)];
    const auto [begin, end] = tokens_of(i);
    if (begin == end) continue;
    for (Index h = 0; h < config_.kv_heads; h++) {
      const Index k_at = i * k.batch_stride + h * k.head_stride + begin * k.token_stride,
                  v_at = i * v.batch_stride + h * v.head_stride + begin * v.token_stride;
      const kernel::Rows<const X> keys{k.data + k_at, k.token_stride};
      const kernel::Rows<const Y> values{v.data + v_at, v.token_stride};
      heads_of(first + i)[std::size_t(h)].store.extend(sequence.length, keys, values, end - begin, spare_);
    }
    sequence.considered = sequence.length / kTile;
    sequence.length += end - begin;
  }
  spare_.trim(max_spare());
}

/// Adds to `all` the tiles of a sequence that change when it appends `tokens`, and reserves the tables of its heads.
/// Sets Head::leaving.
template <class S>
void KvCache<S>::plan(Index sequence, Index tokens, Plan& all) {
  const auto [length, considered] = sequences_[std::size_t(sequence)];
  const Index opens = kernel::ceil_div(length + tokens, kTile) - kernel::ceil_div(length, kTile);
  // Once for each tile, because only whole tiles leave, and deciding an eviction costs as much as appending a token.
  const bool consider = tokens > 0 && length / kTile != considered, shares = tokens > 0 && spare_.shared() > 0;
  for (Index h = 0; h < config_.kv_heads; h++) {
    Head& head = heads_of(sequence)[std::size_t(h)];
    head.leaving = consider ? leaving_of(head.store, slopes_[std::size_t(h)], length) : detail::Leaving{};
    const Index removed = head.store.removed(head.leaving.tiles);
    head.store.reserve(head.store.tiles() - removed + opens);
    // Where all sequences that share a tile append at once, one of them writes the tile itself: then one tile more is
    // provided than needed.
    all.opening += opens + (shares && head.store.writes_shared(length));
    all.leaving += removed;
    all.freed += shares ? head.store.unshared(head.leaving.tiles) : removed;
  }
}

/// Allocates the spare tiles that `opening` new tiles need beyond those that are freed and those that are spare
/// already.
template <class S>
void KvCache<S>::provide(Index opening, Index freed) {
  spare_.reserve(std::max(opening, max_spare()));
  detail::CacheTiles<S> missing(spare_.elements());
  const Index count = std::max<Index>(opening - freed - spare_.size(), 0);
  missing.reserve(count);
  for (Index i = 0; i < count; i++) missing.add_new();
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
  if (stays <= kernel::ceil_div(config_.sinks, kTile)) return {};  // sinks stay
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
  truncate_range(0, config_.batch, length);
}

template <class S>
void KvCache<S>::truncate(Index sequence, Index length) {
  check_sequence(sequence, "sequence");
  truncate_range(sequence, sequence + 1, length);
}

template <class S>
void KvCache<S>::truncate_range(Index first, Index end, Index length) {
  for (Index b = first; b < end; b++) check_truncation(b, length);
  Index copies = 0;
  for (Index b = first; b < end && spare_.shared() > 0; b++)
    if (length < this->length(b))
      for (const Head& head : heads_of(b)) copies += head.store.writes_shared(length);
  if (copies > 0) provide(copies, 0);
  for (Index b = first; b < end; b++) shorten(b, length);
  spare_.trim(max_spare());
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

// fork() and reorder()

/// Appends to `forks` heads that share the tiles of those of a sequence. The cache does not count them as shared yet.
template <class S>
void KvCache<S>::add_forks(Index sequence, std::vector<Head>& forks) const {
  for (Index h = 0; h < config_.kv_heads; h++) {
    const Head& head = head_at(sequence, h);
    forks.push_back({head.store.fork(), head.min_length, head.evicted});
  }
}

template <class S>
void KvCache<S>::fork(Index from, Index to) {
  check_sequence(from, "from");
  check_sequence(to, "to");
  if (from == to) return;
  std::vector<Head> forks;
  add_forks(from, forks);

  // From here on nothing fails.
  for (const Head& head : forks) spare_.add_shared(head.store.tiles());
  replace(to, sequences_[std::size_t(from)], forks);
}

template <class S>
void KvCache<S>::reorder(std::span<const Index> indices) {
  const auto index_of = [&](Index b) { return indices[std::size_t(b)]; };
  detail::require(Index(indices.size()) == config_.batch, "indices has ", indices.size(), " entries; expected ",
                  config_.batch, ", the batch of the cache");
  for (Index b = 0; b < config_.batch; b++)
    detail::require(0 <= index_of(b) && index_of(b) < config_.batch, "indices[", b, "] is ", index_of(b),
                    "; expected 0 to ", config_.batch - 1);

  // The heads of a sequence go to one of those that continue it: to itself, or to the first. The others get forks.
  constexpr Index kNobody = -1;
  std::vector<Index> heir(std::size_t(config_.batch), kNobody);
  for (Index b = 0; b < config_.batch; b++)
    if (index_of(b) == b) heir[std::size_t(b)] = b;
  for (Index b = 0; b < config_.batch; b++)
    if (Index& of = heir[std::size_t(index_of(b))]; of == kNobody) of = b;
  const auto inherits = [&](Index b) { return heir[std::size_t(index_of(b))] == b; };

  std::vector<Head> forks, heads;
  for (Index b = 0; b < config_.batch; b++)
    if (!inherits(b)) add_forks(index_of(b), forks);
  heads.reserve(heads_.size());
  std::vector<SequenceState> sequences;
  for (Index b = 0; b < config_.batch; b++) sequences.push_back(sequences_[std::size_t(index_of(b))]);

  // From here on nothing fails.
  for (const Head& head : forks) spare_.add_shared(head.store.tiles());
  auto fork = forks.begin();
  for (Index b = 0; b < config_.batch; b++)
    for (Index h = 0; h < config_.kv_heads; h++)
      heads.push_back(std::move(inherits(b) ? heads_of(index_of(b))[std::size_t(h)] : *fork++));
  for (Index b = 0; b < config_.batch; b++)
    if (heir[std::size_t(b)] == kNobody)
      for (Head& head : heads_of(b)) head.store.clear(spare_, max_spare());
  heads_.swap(heads);
  sequences_.swap(sequences);
}

}  // namespace alibi::inline ALIBI_ABI
