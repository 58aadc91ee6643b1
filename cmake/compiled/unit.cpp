// The table of a unit. Compiled once for each, with ALIBI_UNIT as its name. A table is constant data, so that reading
// it runs no instruction of the unit.
#include <string_view>
#include <utility>

#include "instruction_sets.hpp"
#include "units.hpp"

#define ALIBI_TEXT_OF(name) #name
#define ALIBI_TEXT(macro) ALIBI_TEXT_OF(macro)
#define ALIBI_JOINED_OF(a, b) a##b
#define ALIBI_JOINED(a, b) ALIBI_JOINED_OF(a, b)

namespace alibi::inline ALIBI_ABI::detail {

static_assert(kernel::kIsa == std::string_view(ALIBI_TEXT(ALIBI_UNIT)),
              "alibi: the flags of a unit of the compiled library are not the only ones that select a vector unit. Set "
              "ALIBI_ARCH, so that the library is built for one.");

namespace {

template <class E, BiasKind bias>
constexpr void fill(ForwardEntry<E, bias>& entry) {
  entry.call = &forward<E, bias>;
}
template <class E, BiasKind bias>
constexpr void fill(BackwardEntry<E, bias>& entry) {
  entry.call = &backward<E, bias>;
}
template <class E, class S, BiasKind bias>
constexpr void fill(CachedEntry<E, S, bias>& entry) {
  entry.call = &forward_cached<E, S, bias>;
}
template <class S>
constexpr void fill(CacheEntry<S>& entry) {
  entry.make = [](KvCacheConfig config) { return KvCache<S>(std::move(config)); };
  entry.clone = &KvCache<S>::clone;
  entry.min_length = &KvCache<S>::min_length;
  entry.bytes = &KvCache<S>::bytes;
  entry.truncate = &KvCache<S>::truncate;
  entry.truncate_one = &KvCache<S>::truncate;
  entry.fork = &KvCache<S>::fork;
  entry.reorder = &KvCache<S>::reorder;
}
template <class S, class K, class V>
constexpr void fill(AppendEntry<S, K, V>& entry) {
  entry.call = &CacheAccess::append<S, K, V>;
}

constexpr Unit unit() {
  Unit unit{{kernel::kIsa, kOwnSets, {}}, {}};
  std::apply([](auto&... entry) { (fill(entry), ...); }, unit.entries);
  return unit;
}

}  // namespace

constinit const Unit ALIBI_JOINED(alibi_unit_, ALIBI_UNIT) = unit();

}  // namespace alibi::inline ALIBI_ABI::detail
