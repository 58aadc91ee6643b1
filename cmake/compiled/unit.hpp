// A unit: the functions of the compiled library, compiled for one vector unit, and the table of their addresses. The
// table is the only symbol of a unit that the linker sees (cmake/compiled/library.cmake).
//
// The functions of the library (dispatch.hpp) look up the table of the active unit and call through it, which costs
// nanoseconds. What they pass has the same layout in every unit: views, numbers and pointers, and Options, Workspace
// and KvCache, whose members are of such types. Internal to the compiled library.
#pragma once

#include <cstddef>
#include <span>
#include <tuple>

#include "alibi/cached_attention.hpp"
#include "alibi/detail/call.hpp"
#include "alibi/kv_cache.hpp"
#include "alibi/kv_cache_config.hpp"
#include "alibi/options.hpp"
#include "alibi/view.hpp"
#include "alibi/workspace.hpp"

namespace alibi::inline ALIBI_ABI::detail {

template <class E, BiasKind bias>
struct ForwardEntry {
  void (*call)(const ForwardCall<E>&, const Options&);
};
template <class E, BiasKind bias>
struct BackwardEntry {
  void (*call)(const BackwardCall<E>&, const Options&);
};
template <class E, class S, BiasKind bias>
struct CachedEntry {
  void (*call)(const CachedCall<E, S>&, const Options&);
};
/// The functions of KvCache<S> but append().
template <class S>
struct CacheEntry {
  KvCache<S> (*make)(KvCacheConfig);
  KvCache<S> (KvCache<S>::*clone)() const;
  Index (KvCache<S>::*min_length)(Index) const;
  std::size_t (KvCache<S>::*bytes)() const;
  void (KvCache<S>::*truncate)(Index);
  void (KvCache<S>::*truncate_one)(Index, Index);
  void (KvCache<S>::*fork)(Index, Index);
  void (KvCache<S>::*reorder)(std::span<const Index>);
};
template <class S, class K, class V>
struct AppendEntry {
  void (*call)(KvCache<S>&, const View<const K>&, const View<const V>&, const AppendTo&);
};

/// The sizes of the classes that pass between the library and its units.
struct Layout {
  std::size_t options = sizeof(Options), workspace = sizeof(Workspace), cache = sizeof(KvCache<float>),
              cache_of_double = sizeof(KvCache<double>), cache_of_half = sizeof(KvCache<Eigen::half>);

  bool operator==(const Layout&) const = default;
};

/// What a unit was compiled for.
struct UnitInfo {
  const char* name;           ///< as in ALIBI_ISA
  unsigned instruction_sets;  ///< bits of InstructionSet
  Layout layout;
};

template <class... Entry>
struct UnitOf : UnitInfo {
  std::tuple<Entry...> entries;
};

/// The unit that this process uses.
const UnitInfo& active_unit();

}  // namespace alibi::inline ALIBI_ABI::detail
