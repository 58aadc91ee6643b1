// One or a few queries against the cache of a head: bound by memory, so that what counts is that every byte of keys and
// values is read once, and as fast as memory delivers it.
//
// A row is one query of one query head; all rows of a kv head share each tile while it is near. A lane is a key where
// scores are made, which the cache keeps transposed for that (cached.hpp), and a value dim where values are added up:
// nothing is reduced across lanes but a maximum and a sum per row and tile. The sums start and run in the same order as
// in the forward (score.hpp, value.hpp), so that the two agree to a few units in the last place.
//
// A task is one split of the keys of a kv head, cut by the length alone. Its tiles come from the newest to the oldest,
// until no row can gain by the rest (horizon.hpp): the tests are the forward's, in double and one row at a time. A
// split that does not hold a row's nearest tile looks at that tile first, for its share of the denominator. States of
// splits merge in a fixed order.
//
// What may be lost: the nearest split that drops its rest answers for all keys beyond, which is why those of farther
// splits need not be added up; 15/16 of the tolerance is for that, and 1/16 for the tiles that stand apart, in equal
// parts.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>
#include <span>
#include <tuple>
#include <type_traits>
#include <utility>

#include "alibi/horizon.hpp"
#include "alibi/kernel/cached.hpp"
#include "alibi/kernel/horizon.hpp"
#include "alibi/kernel/plan.hpp"
#include "alibi/kernel/product.hpp"
#include "alibi/kernel/rows.hpp"
#include "alibi/kernel/simd.hpp"
#include "alibi/kernel/softmax.hpp"
#include "alibi/kernel/tile.hpp"
#include "alibi/mask.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

inline constexpr Index kMostQueries = 8;  // of a head; with more, blocks of the forward use the lanes better
inline constexpr int kTogether = 8;       // rows of a register tile acc[M][span(M)]
/// Vectors of a register tile of so many rows.
constexpr int span(Index rows) { return (kManyRegisters ? 4 : 2) / (rows > kTogether / 2 ? 2 : 1); }

inline constexpr double kNothing = -std::numeric_limits<double>::infinity();  // log2 of no mass

/// log2(2^a + 2^b)
inline double log_add(double a, double b) {
  const double larger = std::max(a, b);
  return larger == kNothing ? kNothing : larger + std::log2(1 + std::exp2(std::min(a, b) - larger));
}

/// A row over the keys of a split, as it leaves its task; beside it goes its output [padded value_dim].
template <class T>
struct RowState {
  T reference = std::numeric_limits<T>::lowest() / 2, sum = 0;
  Index visited = 0;             // tiles
  Index dropped = -1;            // the tiles up to this one were left out, but for some that stand apart
  double lost = kNothing;        // log2 of what keys up to there have at most, in whatever split
  double lost_apart = kNothing;  // log2 of what tiles that stand apart and were left out have at most

  SoftmaxState<T> softmax() const { return {splat<T>(reference), splat<T>(sum)}; }
  double log_mass() const { return sum > 0 ? double(reference) + std::log2(double(sum)) : kNothing; }
};

/// How the keys of a head are cut into splits: by their number, and so that few heads still make work for many threads.
struct DecodePlan {
  Index splits, tiles;  // of a head; of a split

  /// Without queries there are no splits.
  template <class F>
  static DecodePlan of(const Sequence<F>& sequence) {
    if (sequence.q.tokens == 0) return {0, 1};
    const Index all = pieces(sequence.mask.keys, kTile), most = std::max<Index>(16 / sequence.kv_heads, 1);
    const Index tiles = std::max<Index>(pieces(all, std::clamp<Index>(all / 16, 1, most)), 1);
    return {std::max<Index>(pieces(all, tiles), 1), tiles};
  }
};

/// One task: a split of the keys of a kv head. Split 0 has the newest.
struct DecodeItem {
  float cost;
  std::int32_t sequence, kv_head, split;
  Index first_row;  // of its rows among those of the call
};

template <class F>
class DecodeTask {
 public:
  using S = typename F::Stored;
  using T = typename F::T;

  /// Row r of the task has states[r] and `outputs` + r padded value_dim; `scratch` has bytes().
  DecodeTask(const Forward<F>& call, const DecodeItem& item, RowState<T>* states, T* outputs, std::byte* scratch);

  /// A multiple of 64: slots lie one after another.
  static std::size_t bytes(Index rows, Index head_dim) {
    const std::size_t all = (sizeof(Row) + sizeof(void*)) * std::size_t(rows) +
                            sizeof(T) * std::size_t(rows * head_dim + kTogether * kTile);
    return (all + 63) / 64 * 64;
  }

  void run() {
    find_near_masses();
    for (Index number = last_; number >= first_; number--) {
      ahead_ = number > first_ ? number - 1 : -1;
      visit(number, [&](Row& row) { return row.state->dropped < 0 && !passed(row, number); });
      if (std::all_of(rows_, rows_ + count_, [](const Row& row) { return row.state->dropped >= 0; })) break;
    }
    ahead_ = -1;
    const Radii<T>& radii = source_.radii;
    for (Index i = radii.apart_count; i-- > 0;) {
      const Index number = radii.apart[i];
      if (number < first_ || number > last_) continue;
      visit(number, [&](Row& row) { return number <= row.state->dropped && !negligible(row, number); });
    }
  }

 private:
  /// What is fixed of a row.
  struct Row {
    const T* q;  // [head_dim], scaled by τ log2 e
    T* o;        // [padded value_dim]
    RowState<T>* state;
    T slope;         // m log2 e
    Index position;  // the key nearest to the query
    Index nearest;   // what the bias is measured from, as in bias.hpp
    KeyRange seen;
    bool prunes;
    double log_slope, content, norm;  // of the bound, in base 2
    double tail_of_tile;
    double near_mass;  // log2 of the mass of a tile in another split
  };
  /// A row against a tile: key j of it has the bias -slope (|at - j| - nearest) + offset. The first part is at most 0
  /// for every key that the row sees, so that no slope is too large.
  struct Frame {
    T at, nearest, offset, factor;
    bool masked;
  };

  void find_near_masses();
  template <class Needs>
  void visit(Index number, const Needs& needs);
  template <int M>
  void attend(Row* const* rows, Index number);
  template <int M>
  void score(Row* const* rows, const Frame* frame, const S* keys);
  void add_to_softmax(const Row& row, Index number, Frame& frame, T* s);
  template <int M>
  void accumulate(Row* const* rows, const Frame* frame, const S* values);
  Frame frame_of(const Row& row, Index number) const;
  bool passed(Row& row, Index number);
  bool negligible(Row& row, Index number);
  double bound(const Row& row, Index last_key, double radius) const;
  const S* tile(Index number) const { return source_.tile(number); }
  void prefetch_some();
  Index tile_size() const { return source_.value_offset + kTile * value_dim_; }

  static constexpr Index kLine = Index(64 / sizeof(S));
  static constexpr Index kSlice = 4;  // dims, or keys, between two looks ahead

  Cached<S, T> source_;
  Index head_dim_, value_dim_;
  Index first_, last_;  // tiles
  double log_tolerance_ = kNothing;
  Index ahead_ = -1;                // the tile to be brought near meanwhile
  Index next_line_ = 0, step_ = 0;  // of it, in elements
  Index count_;                     // rows
  Row* rows_;
  Row** active_;  // those that need the tile in use
  T* scores_;     // [kTogether][kTile], then probabilities
};

template <class F>
DecodeTask<F>::DecodeTask(const Forward<F>& call, const DecodeItem& item, RowState<T>* states, T* outputs,
                          std::byte* scratch)
    : head_dim_(call.head_dim), value_dim_(call.value_dim) {
  const Sequence<F>& sequence = call.sequences[std::size_t(item.sequence)];
  const ResolvedMask mask = sequence.mask_of(item.kv_head);
  source_ = sequence.cached[item.kv_head];
  const Radii<T>& radii = source_.radii;
  const DecodePlan plan = DecodePlan::of(sequence);
  const Index newest = pieces(source_.length, kTile) - 1;
  last_ = newest - item.split * plan.tiles;
  first_ = std::max(last_ - plan.tiles + 1, source_.first_tile);

  const Index queries = sequence.q.tokens;
  count_ = call.group() * queries;
  const auto take = [&scratch]<class X>(X*& to, Index size) {
    // NOLINTNEXTLINE(bugprone-sizeof-expression): X may be a pointer
    to = reinterpret_cast<X*>(std::exchange(scratch, scratch + std::size_t(size) * sizeof(X)));
  };
  T* q;
  take(scores_, kTogether * kTile);
  take(rows_, count_);
  take(active_, count_);
  take(q, count_ * head_dim_);
  const double tolerance = sequence.tolerance_of(item.kv_head);
  log_tolerance_ = std::log2(tolerance);
  const T scale = T(call.scale * std::numbers::log2e);
  for (Index r = 0; r < count_; r++, q += head_dim_) {
    const Index head = item.kv_head * call.group() + r / queries, query = r % queries;
    const auto* from = sequence.q.data + head * sequence.q.head_stride + query * sequence.q.token_stride;
    double dot = 0;
    T square = 0;
    for (Index d = 0; d < head_dim_; d++) {
      q[d] = T(from[d]) * scale;
      dot += double(q[d]) * double(radii.center[d]);
      square += q[d] * q[d];
    }
    const double slope = sequence.slope(head);
    const T norm = norm_above(square, head_dim_);
    KeyRange seen = mask.visible(query);
    if (seen.begin >= seen.end) seen = {0, 0};  // in no tile
    T* const o = outputs + r * padded<T>(value_dim_);
    std::fill_n(o, padded<T>(value_dim_), T(0));
    rows_[r] = {.q = q,
                .o = o,
                .state = states + r,
                .slope = base2<T>(slope),
                .position = mask.nearest_key(query),
                .nearest = slope >= 0 ? 0 : mask.farthest(query),
                .seen = seen,
                .prunes = worth_pruning(slope, tolerance, mask, queries),
                .log_slope = slope * std::numbers::log2e,
                .content = dot + double(margin(norm, head_dim_, radii.center_norm + radii.largest, mask.keys)),
                .norm = double(norm),
                .tail_of_tile = slope > 0 ? tail<double>(slope * std::numbers::log2e, kTile) : 0,
                .near_mass = kNothing};
    states[r] = RowState<T>();
  }
}

/// For rows whose nearest tile lies in another split: how much of the denominator is there.
template <class F>
void DecodeTask<F>::find_near_masses() {
  for (Row& row : std::span(rows_, std::size_t(count_))) {
    const Index number = row.position / kTile;
    if (!row.prunes || number <= last_ || row.seen.begin >= row.seen.end) continue;
    Row* const alone = &row;
    Frame frame = frame_of(row, number);
    score<1>(&alone, &frame, tile(number));
    add_to_softmax(row, number, frame, scores_);
    row.near_mass = row.state->log_mass();
    *row.state = RowState<T>();
  }
}

/// The tile against those rows that see some of it and need it, several at a time.
template <class F>
template <class Needs>
void DecodeTask<F>::visit(Index number, const Needs& needs) {
  Index active = 0;
  const Index first = number * kTile;
  for (Row& row : std::span(rows_, std::size_t(count_)))
    if (row.seen.begin < first + kTile && first < row.seen.end && needs(row)) active_[active++] = &row;
  const Index width = span(std::min<Index>(active, kTogether)) * kLanes<T>;
  const Index passes =
      pieces(kTile, width) * pieces(head_dim_, kSlice) + pieces(value_dim_, width) * pieces(kTile, kSlice);
  next_line_ = 0;
  step_ =
      pieces(pieces(tile_size(), kLine), passes * std::max<Index>(pieces(active, kTogether), 1) + 2 * active) * kLine;
  for (Index r = 0; r < active; r += kTogether)
    with_vectors<kTogether>(int(std::min<Index>(kTogether, active - r)),
                            [&](auto rows) { attend<rows>(active_ + r, number); });
}

template <class F>
typename DecodeTask<F>::Frame DecodeTask<F>::frame_of(const Row& row, Index number) const {
  const Index first = number * kTile, at = std::clamp<Index>(row.position - first, 0, kTile - 1);
  const Index begin = std::max<Index>(row.seen.begin - first, 0), end = std::min<Index>(row.seen.end - first, kTile);
  const Index nearest = row.slope >= 0 ? 0 : std::max(at - begin, end - 1 - at);
  const Index beyond = std::abs(row.position - first - at) + nearest - row.nearest;
  return {T(at), T(nearest), -row.slope * T(beyond), T(1), row.seen.begin > first || row.seen.end < first + kTile};
}

/// The paper's three lines, for M rows.
template <class F>
template <int M>
void DecodeTask<F>::attend(Row* const* rows, Index number) {
  Frame frame[std::size_t(M)];
  for (int a = 0; a < M; a++) frame[a] = frame_of(*rows[a], number);
  score<M>(rows, frame, tile(number));                                                          // S = τ Q K' + bias
  for (int a = 0; a < M; a++) add_to_softmax(*rows[a], number, frame[a], scores_ + a * kTile);  // P = 2^(S - μ)
  accumulate<M>(rows, frame, tile(number) + source_.value_offset);                              // O = α O + P V
}

template <class F>
template <int M>
void DecodeTask<F>::score(Row* const* rows, const Frame* frame, const S* keys) {
  constexpr int W = kLanes<T>, kSpan = span(M), kPass = kSpan * W;
  alignas(64) static constexpr auto kKeys = [] {
    std::array<T, std::size_t(kTile)> j{};
    for (std::size_t i = 0; i < j.size(); i++) j[i] = T(i);
    return j;
  }();
  for (Index j = 0; j < kTile; j += kPass) {
    Pack<T> acc[std::size_t(M)][std::size_t(kSpan)];
    const T* q[std::size_t(M)];
    for (int a = 0; a < M; a++) {
      q[a] = rows[a]->q;
      for (int r = 0; r < kSpan; r++) {
        const Pack<T> distance = abs(sub(splat<T>(frame[a].at), load<T>(&kKeys[std::size_t(j + r * W)])));
        acc[a][r] = mul(splat<T>(-rows[a]->slope), sub(distance, splat<T>(frame[a].nearest)));
      }
    }
    for (Index d = 0; d < head_dim_; d += kSlice) {
      prefetch_some();
      const Index length = std::min(kSlice, head_dim_ - d);
      multiply_add<0, kSpan>(q, 1, keys + d * kTile + j, kTile, length, acc);
      for (int a = 0; a < M; a++) q[a] += length;
    }
    for (int a = 0; a < M; a++)
      for (int r = 0; r < kSpan; r++) store<T>(scores_ + a * kTile + j + r * W, acc[a][r]);
  }
}

/// A row's scores s [kTile] become probabilities, and its state takes them in; frame.factor is what its output so far
/// is to be multiplied with.
template <class F>
void DecodeTask<F>::add_to_softmax(const Row& row, Index number, Frame& frame, T* s) {
  constexpr int W = kLanes<T>;
  RowState<T>& state = *row.state;
  if (frame.masked) {
    const Index first = number * kTile;
    for (Index j = 0; j < kTile; j++)
      if (first + j < row.seen.begin || row.seen.end <= first + j) s[j] = -std::numeric_limits<T>::infinity();
  }
  prefetch_some();
  Pack<T> most = load<T>(s);
  for (Index j = W; j < kTile; j += W) most = max(most, load<T>(s + j));
  const T highest = reduce_max(most), largest = highest + frame.offset;
  if (largest > state.reference + kSlack<T>) {
    T factor[std::size_t(W)];
    store<T>(factor, exp2<T>(splat<T>(state.reference - largest)));
    frame.factor = factor[0];
    state.sum *= frame.factor;
    state.reference = largest;
  }
  prefetch_some();
  const Pack<T> shift = splat<T>(std::max(state.reference - frame.offset, highest - kSlack<T>));  // as in softmax.hpp
  Pack<T> sum = splat<T>(T(0));
  for (Index j = 0; j < kTile; j += W) {
    const Pack<T> x = sub(load<T>(s + j), shift);
    const Pack<T> p = frame.masked ? probability<true, T>(x) : probability<false, T>(x);
    sum = add(sum, p);
    store<T>(s + j, p);
  }
  state.sum += reduce_add(sum);
  state.visited++;
}

template <class F>
template <int M>
void DecodeTask<F>::accumulate(Row* const* rows, const Frame* frame, const S* values) {
  constexpr int W = kLanes<T>, kSpan = span(M);
  for (Index d = 0; d < value_dim_; d += kSpan * W) {
    const int vectors = int(std::min<Index>(kSpan, pieces(value_dim_ - d, W)));
    with_vectors<kSpan>(vectors, [&](auto n) {
      Pack<T> acc[std::size_t(M)][std::size_t(n)];
      const T* p[std::size_t(M)];
      for (int a = 0; a < M; a++) {
        p[a] = scores_ + a * kTile;
        for (int r = 0; r < n; r++) acc[a][r] = splat<T>(T(0));
      }
      for (Index j = 0; j < kTile; j += kSlice) {
        prefetch_some();
        multiply_add<0, n>(p, 1, values + j * value_dim_ + d, value_dim_, kSlice, acc);
        for (int a = 0; a < M; a++) p[a] += kSlice;
      }
      for (int a = 0; a < M; a++)
        for (int r = 0; r < n; r++) {
          T* const at = rows[a]->o + d + r * W;
          store<T>(at, fma(load<T>(at), splat<T>(frame[a].factor), acc[a][r]));
        }
    });
  }
}

/// Asks for some lines of the next tile.
template <class F>
EIGEN_ALWAYS_INLINE void DecodeTask<F>::prefetch_some() {
  if (ahead_ < 0) return;
  const S* const at = tile(ahead_);
  for (const Index stop = std::min(next_line_ + step_, tile_size()); next_line_ < stop; next_line_ += kLine)
    prefetch_once(at + next_line_);
}

/// log2 of (2) of horizon.hpp without its series, for keys up to `last_key`.
template <class F>
double DecodeTask<F>::bound(const Row& row, Index last_key, double radius) const {
  return row.content + row.norm * radius - row.log_slope * double(row.position - last_key);
}

/// Whether a row can do without the tile and all before it; if so, it drops them.
template <class F>
bool DecodeTask<F>::passed(Row& row, Index number) {
  const Index last_key = std::min((number + 1) * kTile, source_.length) - 1;
  if (!row.prunes || last_key > row.position) return false;
  RowState<T>& state = *row.state;
  const double log_share = log_tolerance_ + std::log2(15. / 16);
  const double least = bound(row, last_key, double(source_.radii.before[number - source_.radii.first]));
  // Far from it, which is nearly always, no logarithm is needed: a sum is below keys times 2^kSlack.
  constexpr double kMostKeys = 40;
  if (!(least <= log_share + std::max(row.near_mass, double(state.reference) + kMostKeys + double(kSlack<T>)) + 1))
    return false;
  const double lost = least + double(tail<double>(row.log_slope, last_key + 1 - row.seen.begin));
  if (!(lost <= log_share + log_add(row.near_mass, state.log_mass()))) return false;
  state.lost = lost;
  state.dropped = number;
  return true;
}

/// Whether a row that has dropped a tile which stands apart can do without it.
template <class F>
bool DecodeTask<F>::negligible(Row& row, Index number) {
  const Index last_key = std::min((number + 1) * kTile, source_.length) - 1;
  const Radii<T>& radii = source_.radii;
  RowState<T>& state = *row.state;
  const double log_share = log_tolerance_ - std::log2(16. * double(radii.apart_count));
  const double lost = bound(row, last_key, double(radii.radius[number - radii.first])) + row.tail_of_tile;
  if (!(lost <= log_share + log_add(row.near_mass, state.log_mass()))) return false;
  state.lost_apart = log_add(state.lost_apart, lost);
  return true;
}

/// The states of a row's splits, newest first, as one; outputs [padded dims] of split n at outputs + n stride, and the
/// result in those of the first.
template <class T>
RowState<T> merge_splits(RowState<T>* states, Index state_stride, T* outputs, Index stride, Index splits, Index dims) {
  RowState<T> all = states[0];
  SoftmaxState<T> state = all.softmax();
  for (Index n = 1; n < splits; n++) {
    const RowState<T>& next = states[n * state_stride];
    all.visited += next.visited;
    all.lost_apart = log_add(all.lost_apart, next.lost_apart);
    if (all.dropped < 0) all.dropped = next.dropped, all.lost = next.lost;
    const auto factors = state.merge(next.softmax());
    for (Index d = 0; d < dims; d += kLanes<T>) {
      const Pack<T> others = mul(load<T>(outputs + n * stride + d), factors.others);
      store<T>(outputs + d, fma(load<T>(outputs + d), factors.mine, others));
    }
  }
  all.reference = reduce_max(state.reference);
  all.sum = reduce_max(state.sum);
  return all;
}

/// Writes the rows of a kv head, whose splits have left their states and outputs one after another.
template <class F>
void finish_decode(const Forward<F>& call, Index sequence_number, Index kv_head, Index splits,
                   RowState<typename F::T>* states, typename F::T* outputs) {
  using T = typename F::T;
  using E = typename F::Query;
  const Sequence<F>& sequence = call.sequences[std::size_t(sequence_number)];
  const ResolvedMask mask = sequence.mask_of(kv_head);
  const Index queries = sequence.q.tokens, rows = call.group() * queries, dims = padded<T>(call.value_dim);
  for (Index r = 0; r < rows; r++) {
    const Index head = kv_head * call.group() + r / queries, query = r % queries;
    T* const o = outputs + r * dims;
    const RowState<T> all = merge_splits(states + r, rows, o, rows * dims, splits, call.value_dim);
    E* const to = sequence.output.data + head * sequence.output.head_stride + query * sequence.output.token_stride;
    const T normalizer = all.sum == 0 ? T(0) : T(1) / all.sum;
    for (Index d = 0; d < call.value_dim; d++) to[d] = E(all.sum == 0 ? T(0) : o[d] * normalizer);

    const KeyRange seen = mask.visible(query);
    if (sequence.lse) {
      const double slope = sequence.slope(head);
      const Index beyond = std::abs(mask.position(query) - mask.nearest_key(query));
      const Index nearest = slope >= 0 ? 0 : mask.farthest(query);
      const double log_sum = double(all.reference) * std::numbers::ln2 + std::log(double(all.sum));
      sequence.lse[head * sequence.lse_stride + query] =
          all.sum == 0 ? -std::numeric_limits<T>::infinity() : T(log_sum - slope * double(beyond + nearest));
    }
    if (call.report) {
      Pruning& report = call.report[sequence_number * call.heads + head];
      const double lost = log_add(all.lost, all.lost_apart);
      report.tiles_visited += all.visited;
      report.tiles_visible += seen.begin < seen.end ? (seen.end - 1) / kTile - seen.begin / kTile + 1 : 0;
      report.bound = std::max(
          report.bound, sequence.cached[kv_head].evicted + (lost > kNothing ? std::exp2(lost - all.log_mass()) : 0));
    }
  }
}

/// The tasks of a call, the most expensive first; each has the rows of its sequence.
template <class F>
void list_items(const Forward<F>& call, std::span<DecodeItem> items) {
  std::size_t n = 0;
  Index first_row = 0;
  for (std::size_t s = 0; s < call.sequences.size(); s++) {
    const Sequence<F>& sequence = call.sequences[s];
    const DecodePlan plan = DecodePlan::of(sequence);
    for (Index kv = 0; kv < call.kv_heads; kv++) {
      double reach = 0;
      for (Index g = 0; g < call.group(); g++)
        reach = std::max(reach, estimated_reach(sequence, kv * call.group() + g));
      for (Index split = 0; split < plan.splits; split++, n++, first_row += call.group() * sequence.q.tokens) {
        const double before = double(split * plan.tiles * kTile), size = double(plan.tiles * kTile);
        items[n] = {float(std::clamp(reach - before, 0., size)), std::int32_t(s), std::int32_t(kv), std::int32_t(split),
                    first_row};
      }
    }
  }
  std::sort(items.begin(), items.end(), [](const DecodeItem& a, const DecodeItem& b) {
    return std::tuple(-a.cost, a.sequence, a.kv_head, a.split) < std::tuple(-b.cost, b.sequence, b.kv_head, b.split);
  });
}

}  // namespace alibi::inline ALIBI_ISA::kernel
