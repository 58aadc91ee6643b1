// The keys and values of one head of a cache (kv_cache.hpp), as kernels read them.
//
// A tile of kTile keys is one piece of memory, aligned to a cache line. It starts with the keys, transposed to
// [head_dim][kTile], so that one vector holds as many keys as it has lanes. The values [kTile][value_dim] follow from
// `value_offset` on. Entries after the last key are 0. After the last value a further vector can be read. Internal.
#pragma once

#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/key_bounds.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

template <class S, class T>
struct Cached {
  const void* const* tiles;  // tile t, of S, is at tiles[t - first_tile]
  Index first_tile;
  Index begin;         // the first key in the cache, sinks excepted
  Index length;        // one after the last key
  Index value_offset;  // elements from the start of a tile to its values
  KeyTileBounds<T> key_bounds;

  const void* const* sinks =
      nullptr;  // tile t of the sinks is at sinks[t], also when keys after it have left the cache

  const S* tile(Index t) const { return static_cast<const S*>(tiles[t - first_tile]); }
  /// From here on, tile() returns tiles of sinks alone.
  void turn_to_sinks() {
    tiles = sinks;
    first_tile = 0;
  }

  bool half = false;   // for S = Narrow: whether it is half or bfloat16 (rows.hpp)
  double evicted = 0;  // the share of a row's softmax mass that evicted keys have at most
};

}  // namespace alibi::inline ALIBI_ISA::kernel
