// Blocks of queries and tiles of keys: the positions of a block, the keys that it sees in a tile, and the order of the
// tiles. Every mask is decided here, with integers. Internal.
#pragma once

#include <algorithm>

#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/bias.hpp"
#include "alibi/mask.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// The keys [begin, end) of a tile that a block reads, counted from the first key of the tile. Vector r of the block's
/// queries needs only keys before ends[r]. The ends rise to `end`.
struct TileKeys {
  Index tile;   // the tile's first key
  int vectors;  // of the block that hold a query
  Index begin, end;
  Index ends[kVectors];
};

/// The same keys in whole units of `depth` keys: extended at both ends as needed.
constexpr TileKeys whole(TileKeys keys, Index depth) {
  keys.begin = keys.begin / depth * depth;
  keys.end = (keys.end + depth - 1) / depth * depth;
  for (Index& end : keys.ends) end = (end + depth - 1) / depth * depth;
  return keys;
}

/// For a tile of which some lanes do not see all keys: a lane sees the keys with low <= key <= high.
template <class T>
struct LaneMask {
  T low[kBlock<T>], high[kBlock<T>];
};
/// For a tile of which all lanes see all keys.
struct NoMask {};

/// The side of a block's queries on which the keys of a tile lie; edge: on both sides, or partly hidden.
enum class Side { left, right, edge };

/// Queries first, …, first + rows - 1 of a head, one for each lane.
template <class T>
class Block {
 public:
  Block() = default;

  /// The sign of `slope` decides which key of a row has the largest bias (kernel/tile/bias.hpp).
  Block(const ResolvedMask& mask, Index first_query, Index row_count, double slope)
      : first(first_query), rows(row_count), vectors(int((row_count + kLanes<T> - 1) / kLanes<T>)) {
    see(mask);
    positions.first = mask.position(first);
    lowest = positions.base = mask.nearest_key(first);
    highest = mask.nearest_key(first + rows - 1);
    for (Index i = 0; i < kBlock<T>; i++) {
      positions.from_base[i] = T(mask.nearest_key(first + i) - positions.base);
      const Index nearest = mask.largest_bias(first + i, slope);
      positions.nearest[i] = T(nearest);
      far = far || (i < rows && nearest > 0);
    }
  }

  /// Takes the visible keys of another part of the mask (ResolvedMask::only_sinks). The positions stay.
  void see(const ResolvedMask& mask) {
    const KeyRange of_first = mask.visible(first), of_last = mask.visible(first + rows - 1);
    any_visible = {of_first.begin, of_last.end};
    all_visible = {of_last.begin, of_first.end};
  }

  /// The keys that the block reads in the tile that starts at key `tile`; none if begin >= end.
  TileKeys keys_of(const ResolvedMask& mask, Index tile) const {
    const Index begin = std::max<Index>(any_visible.begin - tile, 0),
                end = std::min<Index>(any_visible.end - tile, kTile);
    TileKeys keys{tile, vectors, begin, end, {}};
    for (int r = 0; r < kVectors; r++) {
      const Index last = first + std::min<Index>((r + 1) * kLanes<T>, rows) - 1;
      keys.ends[r] = std::clamp(mask.visible(last).end - tile, begin, std::max(begin, end));
    }
    return keys;
  }

  /// The side of the keys, by their positions alone: a query may not see all of them.
  Side place_of(const TileKeys& keys) const {
    if (keys.tile + keys.end - 1 <= lowest) return Side::left;
    return keys.tile + keys.begin >= highest ? Side::right : Side::edge;
  }

  /// The same, but edge if a query does not see all of the keys.
  Side side_of(const TileKeys& keys) const {
    const bool seen = all_visible.begin <= keys.tile + keys.begin && keys.tile + keys.end <= all_visible.end;
    return seen ? place_of(keys) : Side::edge;
  }

  /// The number of tiles in which some query sees some key.
  Index tiles() const {
    return any_visible.begin < any_visible.end ? (any_visible.end - 1) / kTile - any_visible.begin / kTile + 1 : 0;
  }

  LaneMask<T> mask_of(const ResolvedMask& mask, Index tile) const {
    LaneMask<T> lanes;
    for (int i = 0; i < kBlock<T>; i++) {
      const KeyRange keys = mask.visible(first + i);
      lanes.low[i] = T(std::clamp<Index>(keys.begin - tile, 0, kTile));
      lanes.high[i] = T(std::clamp<Index>(keys.end - 1 - tile, -1, kTile));
    }
    return lanes;
  }

  Index first = 0, rows = 0;
  int vectors = 0;                        // the number of vectors that hold a query
  KeyRange any_visible{}, all_visible{};  // the keys that some query sees, and those that every query sees
  Index lowest = 0, highest = 0;          // the keys nearest to the first and the last query
  bool far = false;  // whether some largest bias is not that of the nearest key; the bound of pruning needs the nearest
  Positions<T> positions;
};

/// Calls f with the start of a tile's sums (kernel/tile/bias.hpp) and the mask of its lanes, LaneMask or NoMask.
template <class BiasPolicy, class T, class Body>
EIGEN_ALWAYS_INLINE void with_start(const BiasPolicy& bias, const Block<T>& block, const ResolvedMask& mask,
                                    const TileKeys& keys, Side side, const Body& f) {
  switch (side) {
    case Side::left:
      return f(bias.left(block.positions, keys.tile, keys.begin, keys.end), NoMask());
    case Side::right:
      return f(bias.right(block.positions, keys.tile, keys.begin, keys.end), NoMask());
    case Side::edge:
      return f(bias.edge(block.positions, keys.tile), block.mask_of(mask, keys.tile));
  }
}

/// The order of the tiles of a task: from `center` outward, the two sides in turn.
class Sweep {
 public:
  Sweep(Index first, Index center, Index last) : first_(first), last_(last), left_(center), right_(center + 1) {}

  /// The number of the next tile, or -1 after the last one.
  Index next() {
    const bool left = left_ >= first_, right = right_ <= last_;
    if (left && (!right || !turn_)) {
      turn_ = true;
      return left_--;
    }
    turn_ = false;
    return right ? right_++ : -1;
  }

  /// Ends one side: next() returns no more of its tiles.
  void stop(Side side) { side == Side::left ? first_ = left_ + 1 : last_ = right_ - 1; }

 private:
  Index first_, last_, left_, right_;
  bool turn_ = false;
};

}  // namespace alibi::inline ALIBI_ISA::kernel
