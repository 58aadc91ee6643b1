// The functions of the compiled library when it has several units: each calls that of the active unit. The sources that
// instantiate them are compiled for the compiler's default vector unit. Internal to the compiled library.
#pragma once

#include <cstddef>
#include <span>
#include <tuple>
#include <utility>

#include "units.hpp"

namespace alibi::inline ALIBI_ABI {
namespace detail {

template <class Entry>
const Entry& entry() {
  return std::get<Entry>(static_cast<const Unit&>(active_unit()).entries);
}

template <class E, BiasKind bias>
void forward(const ForwardCall<E>& call, const Options& options) {
  entry<ForwardEntry<E, bias>>().call(call, options);
}

template <class E, BiasKind bias>
void backward(const BackwardCall<E>& call, const Options& options) {
  entry<BackwardEntry<E, bias>>().call(call, options);
}

template <class E, class S, BiasKind bias>
void forward_cached(const CachedCall<E, S>& call, const Options& options) {
  entry<CachedEntry<E, S, bias>>().call(call, options);
}

}  // namespace detail

template <class S>
KvCache<S>::KvCache(KvCacheConfig config) : KvCache(detail::entry<detail::CacheEntry<S>>().make(std::move(config))) {}

template <class S>
KvCache<S> KvCache<S>::clone() const {
  return (this->*detail::entry<detail::CacheEntry<S>>().clone)();
}

template <class S>
Index KvCache<S>::min_length(Index sequence) const {
  return (this->*detail::entry<detail::CacheEntry<S>>().min_length)(sequence);
}

template <class S>
std::size_t KvCache<S>::bytes() const {
  return (this->*detail::entry<detail::CacheEntry<S>>().bytes)();
}

template <class S>
void KvCache<S>::truncate(Index length) {
  (this->*detail::entry<detail::CacheEntry<S>>().truncate)(length);
}

template <class S>
void KvCache<S>::truncate(Index sequence, Index length) {
  (this->*detail::entry<detail::CacheEntry<S>>().truncate_one)(sequence, length);
}

template <class S>
void KvCache<S>::fork(Index from, Index to) {
  (this->*detail::entry<detail::CacheEntry<S>>().fork)(from, to);
}

template <class S>
void KvCache<S>::reorder(std::span<const Index> indices) {
  (this->*detail::entry<detail::CacheEntry<S>>().reorder)(indices);
}

template <class S>
template <class X, class Y>
void KvCache<S>::append_views(const View<const X>& k, const View<const Y>& v, const detail::AppendTo& to) {
  detail::entry<detail::AppendEntry<S, X, Y>>().call(*this, k, v, to);
}

}  // namespace alibi::inline ALIBI_ABI
