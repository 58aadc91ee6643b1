// Which keys of other ranks a rank needs, for attention over a sequence that lies in pieces on several ranks: pure
// functions of a few numbers, without MPI.
//
// A rank knows of each of its queries the norm |τ q_i|, the score τ q_i·c against a centre c that all ranks share, and
// a lower bound M_i of the softmax mass of its row (detail/context_measure.hpp). Of the keys of other ranks it knows
// the radius R >= |k_j - c| of a set of them: of a whole piece first, then of each tile of 64 keys. As in pruning.hpp,
// a set of n keys at distances d, d + 1, … from row i has at most the share
//
//   e^{a_i + |τ q_i| R - m d} · (1 - e^{-mn}) / (1 - e^{-m}),      a_i = τ q_i·c - ln M_i                        (1)
//
// of the softmax mass of the row. For a block of rows with positions p_0, …, p_1 and keys before p_0, d is
// p_0 - (the last key) + (p_i - p_0), so that (1) is at most e^{f(R) - m (p_0 - last)} times the series, with
//
//   f(R) = max_i (a_i - m (p_i - p_0) + |τ q_i| R)                                                            (2)
//
// f is convex. Between knots it lies below its chords; it is computed at the knots only. For keys after p_1 the mirror
// image holds.
//
// The tolerance ε of a call is divided:
//   ε/8   pieces of ranks that are ruled out as a whole, for all rows of a head at once
//   ε/8   tiles of the other ranks that are not fetched, for each block of 192 rows
//   ε/4   fetched tiles that a block does not compute, because M_i is larger once the rank has attended to its own keys
//   ε/2   the calls of attention over the keys that remain. Each prunes a share of its own part of the softmax mass in
//         the forward, so that the shares do not add up. In the backward pass each prunes a share of the whole, so that
//         each gets a part of ε/2.
// A sum of (1) over the sets that are left out bounds what a row loses. Sets with the smallest bounds are left out
// first, until the share is used up. The four parts together are at most ε of the softmax mass of each row, which is
// the certificate of pruning.hpp. M_i is the mass of some of the keys that the row sees, so that it is at most the
// whole.
//
// Everything visible is needed at a tolerance of 0, with a slope of 0 or below, with a table, for rows whose bounds are
// not finite, and of keys whose radius is not finite. A window limits the keys exactly. Internal.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "alibi/kernel/simd/isa.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// The keys of a tile, which a rank sends as a whole or not at all.
inline constexpr Index kContextTile = 64;
/// The rows of a block, which are planned and attend together; a multiple of the blocks of the kernels, at most 48.
inline constexpr Index kContextRows = 192;

inline Index context_blocks(Index rows) { return (rows + kContextRows - 1) / kContextRows; }
inline Index context_tiles(Index keys) { return (keys + kContextTile - 1) / kContextTile; }

/// The pieces of a sequence: rank r holds tokens [starts[r], starts[r + 1]).
struct Pieces {
  std::span<const Index> starts;

  Index ranks() const { return Index(starts.size()) - 1; }
  Index start(Index r) const { return starts[std::size_t(r)]; }
  Index tokens(Index r) const { return start(r + 1) - start(r); }
};

/// Keys [begin, end) of a rank, counted from the first of its piece.
struct KeyRun {
  Index rank, begin, end;
};

/// Sorts runs and joins those of one rank that touch, overlap, or have at most `gap` keys between them.
inline void join_runs(std::vector<KeyRun>& runs, Index gap = 0) {
  std::sort(runs.begin(), runs.end(),
            [](const KeyRun& a, const KeyRun& b) { return a.rank != b.rank ? a.rank < b.rank : a.begin < b.begin; });
  std::size_t count = 0;
  for (const KeyRun& run : runs) {
    if (count > 0 && runs[count - 1].rank == run.rank && run.begin <= runs[count - 1].end + gap)
      runs[count - 1].end = std::max(runs[count - 1].end, run.end);
    else
      runs[count++] = run;
  }
  runs.resize(count);
}

/// Reduces runs to the keys that they have in common with others. Both are joined.
inline void keep_common(std::vector<KeyRun>& runs, std::span<const KeyRun> others) {
  std::vector<KeyRun> common;
  for (const KeyRun& run : runs)
    for (const KeyRun& other : others) {
      const Index begin = std::max(run.begin, other.begin), end = std::min(run.end, other.end);
      if (run.rank == other.rank && begin < end) common.push_back({run.rank, begin, end});
    }
  runs = std::move(common);
}

/// An upper bound of a convex function f on [low, high], by its chords.
class Chords {
 public:
  template <class F>
  Chords(double low, double high, const F& f) : low_(low), step_((high - low) / (kKnots - 1)) {
    for (int i = 0; i < kKnots; i++) {
      value_[i] = step_ > 0 || i == 0 ? f(low + i * step_) : value_[0];
      finite_ = finite_ && std::isfinite(value_[i]);
    }
  }
  double operator()(double x) const {
    if (!finite_) return std::numeric_limits<double>::infinity();
    if (!(step_ > 0)) return value_[0];
    const double at = std::clamp((x - low_) / step_, 0., double(kKnots - 1));
    const int i = std::min(int(at), kKnots - 2);
    return value_[i] + (value_[i + 1] - value_[i]) * (at - i);
  }

 private:
  static constexpr int kKnots = 8;
  double low_, step_, value_[kKnots];
  bool finite_ = true;
};

/// The smallest and largest finite number of some radii; {0, 0} without one.
struct RadiusRange {
  double low = std::numeric_limits<double>::infinity(), high = 0;
  bool all_finite = true;

  void add(std::span<const float> radii) {
    for (const float radius : radii) {
      all_finite = all_finite && std::isfinite(radius);
      if (!std::isfinite(radius)) continue;
      low = std::min(low, double(radius));
      high = std::max(high, double(radius));
    }
  }
  RadiusRange finished() const { return low <= high ? *this : RadiusRange{0, 0, all_finite}; }
};

/// What a rank needs for one query head of one sequence.
class HeadPlan {
 public:
  struct Config {
    Pieces pieces;
    Index rank;
    Index left, right;                    // the largest distances of visible keys (ResolvedMask)
    double slope;                         // 0 for a table
    double share;                         // of the softmax mass, for what this plan leaves out
    std::span<const double> score, norm;  // a_i and |τ q_i| of each row; empty if is_dense()
  };
  explicit HeadPlan(const Config& config) : x_(config) {}

  /// Whether a head needs every visible key, whatever its rows and keys are.
  static bool is_dense(double slope, double share) { return !(slope > 0 && share > 0); }
  bool is_dense() const { return is_dense(x_.slope, x_.share); }

  /// Adds the ranks that cannot be ruled out to `needed` [ranks]. `radius` [ranks] has the largest radius of each
  /// piece.
  void find_ranks(std::span<const float> radius, std::span<char> needed) const {
    const Index blocks = context_blocks(x_.pieces.tokens(x_.rank));
    std::vector<Bound> bounds;
    RadiusRange range;
    for (Index s = 0; s < x_.pieces.ranks(); s++)
      if (sees(s)) range.add(radius.subspan(std::size_t(s), 1));
    range = range.finished();
    std::vector<double> largest(std::size_t(x_.pieces.ranks()), -std::numeric_limits<double>::infinity());
    for (Index block = 0; block < blocks && !is_dense(); block++) {
      const Rows rows = rows_of(block);
      if (needs_nothing(rows, range)) continue;
      const Chords before = chords(rows, true, range), after = x_.right > 0 ? chords(rows, false, range) : before;
      for (Index s = 0; s < x_.pieces.ranks(); s++) {
        const Index begin = x_.pieces.start(s), end = x_.pieces.start(s + 1);
        if (!sees(s) || !visible(rows, begin, end)) continue;
        double& bound = largest[std::size_t(s)];
        bound = std::max(bound, bound_of(rows, before, after, begin, end, radius[std::size_t(s)]));
      }
    }
    for (Index s = 0; s < x_.pieces.ranks(); s++) {
      if (!sees(s)) continue;
      if (is_dense())
        needed[std::size_t(s)] = 1;
      else
        bounds.push_back({largest[std::size_t(s)], s, 0});
    }
    for (const Bound& bound : needed_of(bounds)) needed[std::size_t(bound.rank)] = 1;
  }

  /// The keys that a block of rows needs, as runs of whole tiles. `needed` [ranks] is what find_ranks() left of the
  /// heads that share a kv head; `radii(s)` are the radii of the tiles of rank s, and `range` is that of all of them.
  template <class Radii>
  std::vector<KeyRun> find_tiles(Index block, std::span<const char> needed, const Radii& radii,
                                 const RadiusRange& range) const {
    const Rows rows = rows_of(block);
    std::vector<KeyRun> runs;
    const auto each_rank = [&](const auto& body) {
      for (Index s = 0; s < x_.pieces.ranks(); s++)
        if (needed[std::size_t(s)] && sees(s) && visible(rows, x_.pieces.start(s), x_.pieces.start(s + 1))) body(s);
    };
    if (is_dense()) {
      each_rank([&](Index s) {
        const Index start = x_.pieces.start(s), tokens = x_.pieces.tokens(s);
        const Index begin = std::max<Index>(rows.first - x_.left - start, 0) / kContextTile * kContextTile;
        const Index end = std::min(tokens, rows.last + x_.right + 1 - start);
        runs.push_back({s, begin, std::min(context_tiles(end) * kContextTile, tokens)});
      });
      return runs;
    }
    if (needs_nothing(rows, range)) return runs;
    std::vector<Bound> bounds;
    const Chords before = chords(rows, true, range), after = x_.right > 0 ? chords(rows, false, range) : before;
    each_rank([&](Index s) {
      const std::span<const float> radius = radii(s);
      const Index start = x_.pieces.start(s), tokens = x_.pieces.tokens(s);
      for (Index t = 0; t < context_tiles(tokens); t++) {
        const Index begin = start + t * kContextTile, end = start + std::min((t + 1) * kContextTile, tokens);
        if (visible(rows, begin, end))
          bounds.push_back({bound_of(rows, before, after, begin, end, radius[std::size_t(t)]), s, t});
      }
    });
    for (const Bound& bound : needed_of(bounds))
      runs.push_back({bound.rank, bound.tile * kContextTile,
                      std::min((bound.tile + 1) * kContextTile, x_.pieces.tokens(bound.rank))});
    join_runs(runs, kGap);
    return runs;
  }

 private:
  static constexpr Index kGap = 4 * kContextTile;  // a run with a small gap costs less than two runs

  struct Bound {
    double log_share;
    Index rank, tile;
  };
  struct Rows {
    Index first, last;        // their positions
    std::size_t begin, size;  // in score and norm
  };

  Rows rows_of(Index block) const {
    const Index begin = block * kContextRows, end = std::min(begin + kContextRows, x_.pieces.tokens(x_.rank));
    const Index start = x_.pieces.start(x_.rank);
    return {start + begin, start + end - 1, std::size_t(begin), std::size_t(end - begin)};
  }
  /// Whether rank s is another one that has keys which some row sees.
  bool sees(Index s) const {
    const Index first = x_.pieces.start(x_.rank), last = x_.pieces.start(x_.rank + 1) - 1;
    return s != x_.rank && x_.pieces.tokens(s) > 0 && last >= first && x_.pieces.start(s + 1) - 1 >= first - x_.left &&
           x_.pieces.start(s) <= last + x_.right;
  }
  bool visible(const Rows& rows, Index begin, Index end) const {
    return end - 1 >= rows.first - x_.left && begin <= rows.last + x_.right;
  }
  /// f(R) of (2) for keys before the rows, or after them.
  double largest_score(const Rows& rows, bool before, double radius) const {
    const double *const score = x_.score.data() + rows.begin, *const norm = x_.norm.data() + rows.begin;
    double largest = -std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < rows.size; i++) {
      const double distance = double(before ? i : rows.size - 1 - i);
      largest = std::max(largest, score[i] + norm[i] * radius - x_.slope * distance);
    }
    return largest;
  }
  Chords chords(const Rows& rows, bool before, const RadiusRange& range) const {
    return {range.low, range.high, [&](double radius) { return largest_score(rows, before, radius); }};
  }
  /// Whether all keys of other ranks together, at the largest radius, fit into the share.
  bool needs_nothing(const Rows& rows, const RadiusRange& range) const {
    if (!range.all_finite) return false;
    const double own = double(x_.pieces.start(x_.rank)), end = double(x_.pieces.start(x_.rank + 1));
    double share = std::exp(largest_score(rows, true, range.high) - x_.slope * (double(rows.first) - own + 1));
    if (x_.right > 0) share += std::exp(largest_score(rows, false, range.high) - x_.slope * (end - double(rows.last)));
    return share <= -std::expm1(-x_.slope) * x_.share;
  }
  /// The logarithm of (1) for keys [begin, end), counted in the sequence.
  double bound_of(const Rows& rows, const Chords& before, const Chords& after, Index begin, Index end,
                  float radius) const {
    if (!std::isfinite(radius)) return std::numeric_limits<double>::infinity();
    const bool is_before = begin < rows.first;
    const double distance = double(is_before ? rows.first - (end - 1) : begin - rows.last);
    const double series = std::log(std::expm1(-x_.slope * double(end - begin)) / std::expm1(-x_.slope));
    return (is_before ? before : after)(double(radius)) - x_.slope * distance + series;
  }
  /// The sets that remain when those with the smallest bounds are left out, as many as the share allows.
  std::span<const Bound> needed_of(std::vector<Bound>& bounds) const {
    // Sets that fit into half of the share even if all were as large need no order.
    const double small = std::log(x_.share) - std::log(2 * double(std::max<std::size_t>(bounds.size(), 1)));
    const auto middle =
        std::partition(bounds.begin(), bounds.end(), [&](const Bound& x) { return x.log_share <= small; });
    double sum = 0;
    for (auto at = bounds.begin(); at != middle; ++at) sum += std::exp(at->log_share);
    std::sort(middle, bounds.end(), [](const Bound& a, const Bound& b) {
      return a.log_share != b.log_share ? a.log_share < b.log_share
             : a.rank != b.rank         ? a.rank < b.rank
                                        : a.tile < b.tile;
    });
    auto at = middle;
    for (; at != bounds.end(); ++at) {
      sum += std::exp(std::min(at->log_share, 700.));
      if (!(sum <= x_.share)) break;
    }
    return {at, bounds.end()};
  }

  Config x_;
};

}  // namespace alibi::inline ALIBI_ABI::detail
