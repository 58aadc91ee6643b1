// The keys and values of one head of a cache (kv_cache.hpp), as kernels see them.
//
// A tile of kTile keys is one piece of memory, aligned to a cache line: the keys transposed, [head_dim][kTile], so that
// a query meets as many keys at once as a vector has lanes, and from `value_offset` on the values [kTile][value_dim].
// What lies behind the last key is 0, and behind the last value there is room to read one vector more.
#pragma once

#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/key_bounds.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

template <class S, class T>
struct Cached {
  const void* const* tiles;  // tile t is tiles[t - first_tile], of S
  Index first_tile;
  Index begin;         // the first key that is held
  Index length;        // one behind the last
  Index value_offset;  // elements from the start of a tile to its values
  KeyTileBounds<T> key_bounds;

  const S* tile(Index t) const { return static_cast<const S*>(tiles[t - first_tile]); }

  bool half = false;   // of an S that may be bfloat16 or half (rows.hpp)
  double evicted = 0;  // share of any row's softmax mass that keys which have left have had, at most
};

}  // namespace alibi::inline ALIBI_ISA::kernel
