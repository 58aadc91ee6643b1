// Blocks of queries against tiles of keys: where a block stands, what it sees of a tile, and in what order tiles come.
// Integers only; every mask is decided here.
#pragma once

#include <algorithm>

#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/bias.hpp"
#include "alibi/mask.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// The keys of a tile that a block looks at, counted from the tile's first key, and which of them each of the block's
/// `vectors` of queries needs: vector r none from ends[r] on, the ends rising to `end`.
struct TileKeys {
  Index tile;  // the tile's first key
  int vectors;
  Index begin, end;
  Index ends[kVectors];
};

/// The same in whole units of `depth` keys, with such keys before and behind as are needed for that.
constexpr TileKeys whole(TileKeys keys, Index depth) {
  keys.begin = keys.begin / depth * depth;
  keys.end = (keys.end + depth - 1) / depth * depth;
  for (Index& end : keys.ends) end = (end + depth - 1) / depth * depth;
  return keys;
}

/// Which keys the lanes of a block see in a tile where not all see all: key with low <= key <= high.
template <class T>
struct LaneMask {
  T low[kBlock<T>], high[kBlock<T>];
};
struct NoMask {};

/// How the keys of a tile lie to the queries of a block that looks at them.
enum class Side { left, right, edge };

/// Queries first, …, first + rows - 1 of a head, one a lane.
template <class T>
class Block {
 public:
  Block() = default;

  /// `slope` decides which key the bias is measured from (bias.hpp).
  Block(const ResolvedMask& mask, Index first_query, Index row_count, double slope)
      : first(first_query), rows(row_count), vectors(int((row_count + kLanes<T> - 1) / kLanes<T>)) {
    const KeyRange of_first = mask.visible(first), of_last = mask.visible(first + rows - 1);
    some = {of_first.begin, of_last.end};
    all = {of_last.begin, of_first.end};
    positions.first = mask.position(first);
    lowest = positions.base = mask.nearest_key(first);
    highest = mask.nearest_key(first + rows - 1);
    for (Index i = 0; i < kBlock<T>; i++) {
      positions.from_base[i] = T(mask.nearest_key(first + i) - positions.base);
      positions.nearest[i] = slope >= 0 ? T(0) : T(mask.farthest(first + i));
    }
  }

  /// What the block looks at in a tile: nothing where begin >= end.
  TileKeys keys_of(const ResolvedMask& mask, Index tile) const {
    const Index begin = std::max<Index>(some.begin - tile, 0), end = std::min<Index>(some.end - tile, kTile);
    TileKeys keys{tile, vectors, begin, end, {}};
    for (int r = 0; r < kVectors; r++) {
      const Index last = first + std::min<Index>((r + 1) * kLanes<T>, rows) - 1;
      keys.ends[r] = std::clamp(mask.visible(last).end - tile, begin, std::max(begin, end));
    }
    return keys;
  }

  /// Where the keys lie, some of them perhaps hidden from some queries.
  Side place_of(const TileKeys& keys) const {
    if (keys.tile + keys.end - 1 <= lowest) return Side::left;
    return keys.tile + keys.begin >= highest ? Side::right : Side::edge;
  }

  /// The same, or an edge where a query does not see all of them.
  Side side_of(const TileKeys& keys) const {
    const bool seen = all.begin <= keys.tile + keys.begin && keys.tile + keys.end <= all.end;
    return seen ? place_of(keys) : Side::edge;
  }

  /// Tiles of which some query sees some key.
  Index tiles() const { return some.begin < some.end ? (some.end - 1) / kTile - some.begin / kTile + 1 : 0; }

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
  int vectors = 0;                // that hold a query
  KeyRange some{}, all{};         // the keys that some of its queries see, and those that all see
  Index lowest = 0, highest = 0;  // the keys nearest to its first and last query
  Positions<T> positions;
};

/// Calls f with what a tile's sums start from (bias.hpp), and with what hides keys from its lanes.
template <class BiasPolicy, class T, class Body>
EIGEN_ALWAYS_INLINE void with_start(const BiasPolicy& law, const Block<T>& block, const ResolvedMask& mask,
                                    const TileKeys& keys, Side side, const Body& f) {
  switch (side) {
    case Side::left:
      return f(law.left(block.positions, keys.tile, keys.begin, keys.end), NoMask());
    case Side::right:
      return f(law.right(block.positions, keys.tile, keys.begin, keys.end), NoMask());
    case Side::edge:
      return f(law.edge(block.positions, keys.tile), block.mask_of(mask, keys.tile));
  }
}

/// The order of a task's tiles: from `center` outward, the two sides in turn.
class Sweep {
 public:
  Sweep(Index first, Index center, Index last) : first_(first), last_(last), left_(center), right_(center + 1) {}

  /// The next tile's number, or -1 when all have been taken.
  Index next() {
    const bool left = left_ >= first_, right = right_ <= last_;
    if (left && (!right || !turn_)) {
      turn_ = true;
      return left_--;
    }
    turn_ = false;
    return right ? right_++ : -1;
  }

  /// Takes no more tiles of one side.
  void stop(Side side) { side == Side::left ? first_ = left_ + 1 : last_ = right_ - 1; }

 private:
  Index first_, last_, left_, right_;
  bool turn_ = false;
};

}  // namespace alibi::inline ALIBI_ISA::kernel
