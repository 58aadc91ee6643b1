// Attention of one or a few queries over the cache of a head. Memory limits its speed. Every byte of keys and values is
// therefore read once, as fast as memory delivers it.
//
// A row is one query of one query head. All rows of a kv head use a tile while it is loaded. For scores each lane is a
// key; the cache stores keys transposed for this (kernel/tile/cached.hpp), and a table is in reverse order. For values
// each lane is a value dim. The only reductions across lanes are a maximum and a sum for each row and tile. The sums
// start with the same values and run in the same order as in the forward (kernel/tile/scores.hpp, values.hpp), so that
// both results agree to a few units in the last place.
//
// A task is one split of the keys of a kv head. It reads its tiles from the newest to the oldest, until the remaining
// keys cannot matter to any row (pruning.hpp). The tests are those of the forward, in double and for one row at a time.
// If a split does not hold the nearest tile of a row, it first computes the mass of that tile, as a part of the
// denominator. The states of splits are merged in a fixed order.
//
// The sinks before a window are visited after the keys of the window, by the split that has their tiles.
//
// Error budget: 15/16 of the tolerance covers all keys beyond the nearest split that stops, so that the pruned mass of
// more distant splits need not be added. Outlier tiles and tiles of sinks share 1/16 equally. Internal.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>
#include <span>
#include <utility>

#include "alibi/kernel/decode/schedule.hpp"
#include "alibi/kernel/decode/state.hpp"
#include "alibi/kernel/forward/params.hpp"
#include "alibi/kernel/pruning/bound.hpp"
#include "alibi/kernel/simd/vec.hpp"
#include "alibi/kernel/tile/cached.hpp"
#include "alibi/kernel/tile/load.hpp"
#include "alibi/kernel/tile/microkernel.hpp"
#include "alibi/kernel/tile/rows.hpp"
#include "alibi/kernel/tile/softmax.hpp"
#include "alibi/mask.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

inline constexpr int kMaxRows = 8;                            // rows that use a part of a tile together, at most
inline constexpr int kRegisterRows = kManyRegisters ? 8 : 4;  // rows of a register tile acc[M][vectors_for(M)], at most
inline constexpr Index kRowStride = kTile;                    // from one row to the next, of queries and probabilities
/// The vectors of the register tiles of `rows` rows. Eight sums are enough for the one multiply-add a cycle of AVX-512.
constexpr int vectors_for(Index rows) {
  if constexpr (kManyRegisters) return rows <= 2 ? 8 : rows <= 4 ? 4 : kLanes<float> > 8 ? 1 : 2;
  return rows == 1 ? 8 : rows == 2 ? 4 : 2;
}

template <class F>
class DecodeTask {
 public:
  using S = typename F::Stored;
  using T = typename F::T;

  /// Row r of the task has states[r], and its output [padded value_dim] at outputs + r padded value_dim. `scratch` has
  /// bytes() bytes.
  DecodeTask(const Params<F>& params, const DecodeItem& item, RowState<T>* states, T* outputs, std::byte* scratch);

  /// The scratch of a task: a multiple of 64, because the scratch of all slots is one array.
  static std::size_t bytes(Index rows, Index head_dim) {
    const std::size_t all =
        (sizeof(Row) + 2 * sizeof(void*)) * std::size_t(rows) +
        sizeof(T) * std::size_t(rows * head_dim + kMaxRows * kTile + packed_size(head_dim) * ceil_div(rows, kMaxRows));
    return (all + 63) / 64 * 64;
  }

  void run() {
    find_nearest_tile_masses();
    for (Index number = last_; number >= first_; number--) {
      ahead_ = number > first_ ? number - 1 : -1;
      compute_tile(number, [&](Row& row) { return row.state->pruned_until < 0 && !try_prune(row, number); });
      if (std::all_of(rows_, rows_ + count_, [](const Row& row) { return row.state->pruned_until >= 0; })) break;
    }
    ahead_ = -1;
    const KeyTileBounds<T>& key_bounds = source_.key_bounds;
    for (Index i = key_bounds.outlier_count; i-- > 0;) {
      const Index number = key_bounds.outliers[i];
      if (number < first_ || number > last_) continue;
      compute_tile(number,
                   [&](Row& row) { return number <= row.state->pruned_until && !try_prune_alone(row, number); });
    }
    if (sinks_ > 0) compute_sinks();
  }

 private:
  /// A row and its constants.
  struct Row {
    const T* q;  // [head_dim], scaled by τ log2 e
    T* o;        // [padded value_dim]
    RowState<T>* state;
    T slope;         // m log2 e; 0 with a table
    Index head, p;   // of the query: its head and position, for a table
    Index position;  // the key nearest to the query
    Index nearest;   // d_i of kernel/tile/bias.hpp
    KeyRange seen;   // in compute_sinks() the sinks
    Index sinks;     // that the query sees before its window
    bool prunes;
    double slope_log2e, center_score, norm;  // for the bound, in base 2
    double tile_series;                      // log_geometric_series() of a tile
    double nearest_tile_mass;                // log2 of the mass of the nearest tile, if it is in another split
  };
  /// A row and a tile: key j of the tile has the bias -slope (|at - j| - nearest) + offset. The first part is at most 0
  /// for every key that the row sees, so that no slope is too large. `factor` is that of the output. With a table, key
  /// j has the bias entries[j] instead.
  struct TileBias {
    T at, nearest, offset, factor;
    bool masked;
    const T* entries;
  };

  void find_nearest_tile_masses();
  void compute_sinks();
  template <class Needs>
  void compute_tile(Index number, const Needs& needs);
  template <int M>
  void attend(Row* const* rows, Index number);
  const T* packed_queries(Row* const* rows, int count, Index group);
  template <int M>
  void score(const T* q, Row* const* rows, const TileBias* frame, const S* keys);
  template <int M, int N>
  void score_rows(const T* q, Row* const* rows, const TileBias* frame, const S* keys, Index first, T* scores);
  void add_to_softmax(const Row& row, Index number, TileBias& frame, T* s);
  template <int M>
  void accumulate(Row* const* rows, const TileBias* frame, const S* values);
  template <int M, int N>
  void accumulate_rows(Row* const* rows, const TileBias* frame, const S* values, Index dim, const T* probabilities);
  TileBias tile_bias_of(const Row& row, Index number) const;
  bool try_prune(Row& row, Index number);
  bool try_prune_alone(Row& row, Index number);
  double bound(const Row& row, Index last_key, double radius) const;
  const S* tile(Index number) const { return source_.tile(number); }
  bool prefetch_pages() const;
  void prefetch_some();
  Index tile_size() const { return source_.value_offset + kTile * value_dim_; }

  static constexpr Index kLine = Index(64 / sizeof(S));
  static constexpr Index kSlice = 8;  // dims, or keys, between two prefetches
  static Index packed_size(Index head_dim) { return kMaxRows * (head_dim + kRowStride - 1) / kRowStride * kRowStride; }

  Cached<S, T> source_;
  Tables<T> tables_{};  // in reverse order
  Index head_dim_, value_dim_;
  Index first_, last_;                                     // the tiles of the split that windows may reach
  Index oldest_, sinks_;                                   // the first tile of the split, and the number of all sinks
  double log2_side_ = kNothing, log2_outlier_ = kNothing;  // log2 of shares of the pruning budget
  Index ahead_ = -1;                                       // the tile to prefetch, or -1
  Index next_line_ = 0, step_ = 0;                         // of that tile, in elements
  Index count_;                                            // rows
  Row* rows_;
  Row** active_;  // the rows that need the tile in use
  Row** packed_;  // the rows whose queries packed_q_ holds
  T* packed_q_;   // [groups of kMaxRows rows][blocks of kRowStride dims][kMaxRows][kRowStride]
  T* scores_;     // [kMaxRows][kTile]: scores, then probabilities
};

template <class F>
DecodeTask<F>::DecodeTask(const Params<F>& params, const DecodeItem& item, RowState<T>* states, T* outputs,
                          std::byte* scratch)
    : head_dim_(params.head_dim), value_dim_(params.value_dim) {
  const SequenceParams<F>& sequence = params.sequences[std::size_t(item.sequence)];
  const ResolvedMask mask = sequence.mask_of(item.kv_head);
  source_ = sequence.cached[item.kv_head];
  tables_ = sequence.tables;
  const KeyTileBounds<T>& key_bounds = source_.key_bounds;
  const DecodePlan plan = DecodePlan::of(sequence);
  const Index newest = ceil_div(source_.length, kTile) - 1;
  last_ = newest - item.split * plan.tiles;
  oldest_ = std::max<Index>(last_ - plan.tiles + 1, 0);
  first_ = std::max(oldest_, source_.first_tile);
  sinks_ = mask.sinks;

  const Index queries = sequence.q.tokens;
  count_ = params.group() * queries;
  const auto take = [&scratch]<class X>(X*& to, Index size) {
    // NOLINTNEXTLINE(bugprone-sizeof-expression): X may be a pointer
    to = reinterpret_cast<X*>(std::exchange(scratch, scratch + std::size_t(size) * sizeof(X)));
  };
  T* q;
  take(scores_, kMaxRows * kTile);
  take(rows_, count_);
  take(active_, count_);
  take(packed_, count_);
  std::fill_n(packed_, count_, nullptr);
  take(packed_q_, packed_size(head_dim_) * ceil_div(count_, kMaxRows));
  take(q, count_ * head_dim_);
  const PruningBudget budget = sequence.budget(item.kv_head * params.group());
  log2_side_ = budget.log2_side();
  log2_outlier_ = budget.log2_outlier(key_bounds.outlier_count + ceil_div(sinks_, kTile));
  const T scale = T(params.scale * std::numbers::log2e);
  for (Index r = 0; r < count_; r++, q += head_dim_) {
    const Index head = item.kv_head * params.group() + r / queries, query = r % queries;
    const auto* from = sequence.q.data + head * sequence.q.head_stride + query * sequence.q.token_stride;
    double dot = 0;
    T square = 0;
    for (Index d = 0; d < head_dim_; d++) {
      q[d] = T(from[d]) * scale;
      dot += double(q[d]) * double(key_bounds.center[d]);
      square += q[d] * q[d];
    }
    const double slope = sequence.slope(head);
    const T norm = norm_above(square, head_dim_);
    KeyRange seen = mask.visible(query);
    if (seen.begin >= seen.end) seen = {0, 0};  // it sees keys in no tile
    T* const o = outputs + r * round_up<T>(value_dim_);
    std::fill_n(o, round_up<T>(value_dim_), T(0));
    rows_[r] = {
        .q = q,
        .o = o,
        .state = states + r,
        .slope = base2<T>(slope),
        .head = head,
        .p = mask.position(query),
        .position = mask.nearest_key(query),
        .nearest = mask.largest_bias(query, slope),
        .seen = seen,
        .sinks = mask.visible_sinks(query).end,
        .prunes = sequence.budget(head).enabled && mask.largest_bias(query, slope) == 0,  // the bound needs that
        .slope_log2e = slope * std::numbers::log2e,
        .center_score = dot + double(margin(norm, head_dim_, key_bounds.center_norm + key_bounds.largest, mask.keys)),
        .norm = double(norm),
        .tile_series = slope > 0 ? log_geometric_series<double>(slope * std::numbers::log2e, kTile) : 0,
        .nearest_tile_mass = kNothing};
    states[r] = RowState<T>();
  }
}

/// Computes nearest_tile_mass for rows whose nearest tile lies in another split.
template <class F>
void DecodeTask<F>::find_nearest_tile_masses() {
  for (Row& row : std::span(rows_, std::size_t(count_))) {
    const Index number = row.position / kTile;
    if (!row.prunes || number <= last_ || row.seen.begin >= row.seen.end) continue;
    Row* const single = &row;
    TileBias frame = tile_bias_of(row, number);
    score<1>(packed_queries(&single, 1, 0), &single, &frame, tile(number));
    add_to_softmax(row, number, frame, scores_);
    row.nearest_tile_mass = row.state->log_mass();
    *row.state = RowState<T>();
  }
}

/// Computes the tiles of the split with sinks before the windows of the rows, unless they are pruned.
template <class F>
void DecodeTask<F>::compute_sinks() {
  source_.turn_to_sinks();
  for (Row& row : std::span(rows_, std::size_t(count_))) row.seen = {0, row.sinks};
  for (Index number = oldest_; number <= last_ && number * kTile < sinks_; number++)
    compute_tile(number, [&](Row& row) { return !row.prunes || !try_prune_alone(row, number); });
}

/// Computes a tile for the rows that see some of its keys and need it, several rows at a time.
template <class F>
template <class Needs>
void DecodeTask<F>::compute_tile(Index number, const Needs& needs) {
  Index active = 0;
  const Index first = number * kTile;
  for (Row& row : std::span(rows_, std::size_t(count_)))
    if (row.seen.begin < first + kTile && first < row.seen.end && needs(row)) active_[active++] = &row;
  if (active == 0) return;
  const Index width = vectors_for(std::min<Index>(active, kMaxRows)) * kLanes<T>;
  const Index passes =
      ceil_div(std::min<Index>(active, kMaxRows), kRegisterRows) *
      (ceil_div(kTile, width) * ceil_div(head_dim_, kSlice) + ceil_div(value_dim_, width) * ceil_div(kTile, kSlice));
  if (prefetch_pages()) ahead_ = -1;
  next_line_ = 0;
  step_ = ceil_div(ceil_div(tile_size(), kLine), passes * std::max<Index>(ceil_div(active, kMaxRows), 1) + 2 * active) *
          kLine;
  for (Index r = 0; r < active; r += kMaxRows)
    with_vectors<kMaxRows>(int(std::min<Index>(kMaxRows, active - r)),
                           [&](auto rows) { attend<rows>(active_ + r, number); });
}

template <class F>
typename DecodeTask<F>::TileBias DecodeTask<F>::tile_bias_of(const Row& row, Index number) const {
  const Index first = number * kTile;
  const Index begin = std::max<Index>(row.seen.begin - first, 0), end = std::min<Index>(row.seen.end - first, kTile);
  const Index at = std::clamp<Index>(row.position - first, begin, end - 1);
  const Index nearest = row.slope >= 0 ? 0 : std::max(at - begin, end - 1 - at);
  const Index beyond = std::abs(row.position - first - at) + nearest - row.nearest;
  return {T(at),
          T(nearest),
          -row.slope * T(beyond),
          T(1),
          row.seen.begin > first || row.seen.end < first + kTile,
          tables_.padded ? tables_.of_keys(row.head, row.p, first) : nullptr};
}

/// The queries of the rows of a group, side by side. They are copied only when the rows differ from those before.
template <class F>
const typename F::T* DecodeTask<F>::packed_queries(Row* const* rows, int count, Index group) {
  T* const packed = packed_q_ + group * packed_size(head_dim_);
  Row** const packed_rows = packed_ + group * kMaxRows;
  for (int a = 0; a < count; a++) {
    if (packed_rows[a] == rows[a]) continue;
    packed_rows[a] = rows[a];
    for (Index d = 0; d < head_dim_; d += kRowStride)
      std::copy_n(rows[a]->q + d, std::min(kRowStride, head_dim_ - d), packed + d * kMaxRows + a * kRowStride);
  }
  return packed;
}

/// The three lines of the paper, for M rows.
template <class F>
template <int M>
void DecodeTask<F>::attend(Row* const* rows, Index number) {
  TileBias frame[std::size_t(M)];
  for (int a = 0; a < M; a++) frame[a] = tile_bias_of(*rows[a], number);
  const T* const q = packed_queries(rows, M, (rows - active_) / kMaxRows);
  score<M>(q, rows, frame, tile(number));                                                       // S = τ Q K' + bias
  for (int a = 0; a < M; a++) add_to_softmax(*rows[a], number, frame[a], scores_ + a * kTile);  // P = 2^(S - μ)
  accumulate<M>(rows, frame, tile(number) + source_.value_offset);                              // O = α O + P V
}

template <class F>
template <int M>
void DecodeTask<F>::score(const T* q, Row* const* rows, const TileBias* frame, const S* keys) {
  constexpr int kFirst = std::min(M, kRegisterRows), kSpan = std::min(vectors_for(M), int(kTile) / kLanes<T>);
  for (Index j = 0; j < kTile; j += kSpan * kLanes<T>) {
    score_rows<kFirst, kSpan>(q, rows, frame, keys, j, scores_ + j);
    if constexpr (kFirst < M)
      score_rows<M - kFirst, kSpan>(q + kFirst * kRowStride, rows + kFirst, frame + kFirst, keys, j,
                                    scores_ + kFirst * kTile + j);
  }
}

/// The scores of M rows and N vectors of keys, from key `first` on.
template <class F>
template <int M, int N>
void DecodeTask<F>::score_rows(const T* q, Row* const* rows, const TileBias* frame, const S* keys, Index first,
                               T* scores) {
  constexpr int W = kLanes<T>;
  alignas(64) static constexpr auto kKeys = [] {
    std::array<T, std::size_t(kTile)> j{};
    for (std::size_t i = 0; i < j.size(); i++) j[i] = T(i);
    return j;
  }();
  Vec<T> acc[std::size_t(M)][std::size_t(N)];
  if (tables_.padded) {
#pragma GCC unroll 8
    for (int a = 0; a < M; a++)
#pragma GCC unroll 8
      for (int r = 0; r < N; r++) acc[a][r] = load<T>(frame[a].entries + first + r * W);
  } else {
#pragma GCC unroll 8
    for (int a = 0; a < M; a++)
#pragma GCC unroll 8
      for (int r = 0; r < N; r++) {
        const Vec<T> distance = abs(sub(broadcast<T>(frame[a].at), load<T>(&kKeys[std::size_t(first + r * W)])));
        acc[a][r] = mul(broadcast<T>(-rows[a]->slope), sub(distance, broadcast<T>(frame[a].nearest)));
      }
  }
  for (Index d = 0; d < head_dim_; d += kSlice) {
    prefetch_some();
    multiply_add_rows<N, kRowStride>(q + d / kRowStride * kRowStride * kMaxRows + d % kRowStride,
                                     keys + d * kTile + first, kTile, std::min(kSlice, head_dim_ - d), acc);
  }
#pragma GCC unroll 8
  for (int a = 0; a < M; a++)
#pragma GCC unroll 8
    for (int r = 0; r < N; r++) store<T>(scores + a * kTile + r * W, acc[a][r]);
}

/// Replaces the scores s [kTile] of a row by probabilities and adds them to its state. Sets frame.factor to the factor
/// of the output so far.
template <class F>
void DecodeTask<F>::add_to_softmax(const Row& row, Index number, TileBias& frame, T* s) {
  constexpr int W = kLanes<T>;
  RowState<T>& state = *row.state;
  if (frame.masked) {
    const Index first = number * kTile;
    for (Index j = 0; j < kTile; j++)
      if (first + j < row.seen.begin || row.seen.end <= first + j) s[j] = -std::numeric_limits<T>::infinity();
  }
  prefetch_some();
  Vec<T> most = load<T>(s);
  for (Index j = W; j < kTile; j += W) most = max(most, load<T>(s + j));
  const T highest = reduce_max(most), largest = highest + frame.offset;
  if (largest > state.reference + kSlack<T>) {
    T factor[std::size_t(W)];
    store<T>(factor, exp2<T>(broadcast<T>(state.reference - largest)));
    frame.factor = factor[0];
    state.sum *= frame.factor;
    state.reference = largest;
  }
  prefetch_some();
  const Vec<T> shift =
      broadcast<T>(std::max(state.reference - frame.offset, highest - kSlack<T>));  // as in softmax.hpp
  Vec<T> sum = broadcast<T>(T(0));
  for (Index j = 0; j < kTile; j += W) {
    const Vec<T> x = sub(load<T>(s + j), shift);
    const Vec<T> p = frame.masked ? probability<true, T>(x) : probability<false, T>(x);
    sum = add(sum, p);
    store<T>(s + j, p);
  }
  state.sum += reduce_add(sum);
  state.computed++;
}

template <class F>
template <int M>
void DecodeTask<F>::accumulate(Row* const* rows, const TileBias* frame, const S* values) {
  constexpr int W = kLanes<T>, kFirst = std::min(M, kRegisterRows), kSpan = vectors_for(M);
  for (Index d = 0; d < value_dim_; d += kSpan * W) {
    const int vectors = int(std::min<Index>(kSpan, ceil_div(value_dim_ - d, W)));
    with_vectors<kSpan>(vectors, [&](auto n) {
      accumulate_rows<kFirst, n>(rows, frame, values, d, scores_);
      if constexpr (kFirst < M)
        accumulate_rows<M - kFirst, n>(rows + kFirst, frame + kFirst, values, d, scores_ + kFirst * kTile);
    });
  }
}

/// Adds N vectors of value dims, from `dim` on, to the outputs of M rows.
template <class F>
template <int M, int N>
void DecodeTask<F>::accumulate_rows(Row* const* rows, const TileBias* frame, const S* values, Index dim,
                                    const T* probabilities) {
  Vec<T> acc[std::size_t(M)][std::size_t(N)];
#pragma GCC unroll 8
  for (int a = 0; a < M; a++)
#pragma GCC unroll 8
    for (int r = 0; r < N; r++) acc[a][r] = broadcast<T>(T(0));
  for (Index j = 0; j < kTile; j += kSlice) {
    prefetch_some();
    multiply_add_rows<N, kRowStride>(probabilities + j, values + j * value_dim_ + dim, value_dim_, kSlice, acc);
  }
#pragma GCC unroll 8
  for (int a = 0; a < M; a++)
#pragma GCC unroll 8
    for (int r = 0; r < N; r++) {
      T* const at = rows[a]->o + dim + r * kLanes<T>;
      store<T>(at, fma(load<T>(at), broadcast<T>(frame[a].factor), acc[a][r]));
    }
}

/// Few rows read a tile once from end to end. If the tile ahead follows in memory, the processor prefetches this stream
/// by itself, with more requests at a time than prefetch instructions can make, but only to the end of a page.
/// Prefetches the first lines ahead, and those of each page, and returns true. Otherwise every line has to be
/// prefetched.
template <class F>
bool DecodeTask<F>::prefetch_pages() const {
  constexpr std::uintptr_t kPageBytes = 4096, kMostApart = 256;
  constexpr Index kPage = Index(kPageBytes / sizeof(S)), kFirstLines = 3;
  const Index span = vectors_for(count_) * kLanes<T>;
  if (ahead_ < 0 || span < std::max<Index>(kTile, value_dim_)) return false;
  const auto address = [this](Index number) { return reinterpret_cast<std::uintptr_t>(tile(number)); };
  const std::uintptr_t end = address(ahead_ + 1) + std::uintptr_t(tile_size()) * sizeof(S);
  if (address(ahead_) - end > kMostApart) return false;  // or before it: a difference below 0 is large
  const auto prefetch_from = [this](Index at) {
    for (Index line = 0; line < kFirstLines; line++) prefetch_once(tile(ahead_) + at + line * kLine);
  };
  prefetch_from(0);
  for (Index at = Index(-address(ahead_) % kPageBytes / sizeof(S)); at < tile_size(); at += kPage) prefetch_from(at);
  return true;
}

/// Prefetches some cache lines of the next tile.
template <class F>
EIGEN_ALWAYS_INLINE void DecodeTask<F>::prefetch_some() {
  if (ahead_ < 0) return;
  const S* const at = tile(ahead_);
  for (const Index stop = std::min(next_line_ + step_, tile_size()); next_line_ < stop; next_line_ += kLine)
    prefetch_once(at + next_line_);
}

/// log2 of (2) of pruning.hpp without its series, for keys up to `last_key`.
template <class F>
double DecodeTask<F>::bound(const Row& row, Index last_key, double radius) const {
  return row.center_score + row.norm * radius - row.slope_log2e * double(row.position - last_key);
}

/// Prunes the tile and all tiles before it for a row, if the pruned mass stays within the share.
template <class F>
bool DecodeTask<F>::try_prune(Row& row, Index number) {
  const Index last_key = std::min((number + 1) * kTile, source_.length) - 1;
  if (!row.prunes || last_key > row.position) return false;
  RowState<T>& state = *row.state;
  const double least = bound(row, last_key, double(source_.key_bounds.prefix_max[number - source_.key_bounds.first]));
  // In most cases the test fails clearly, and no logarithm is needed: a sum is below keys times 2^kSlack. The limit of
  // 2^40 keys stands for their number.
  constexpr double kMaxLog2Keys = 40;
  if (!(least <=
        log2_side_ + std::max(row.nearest_tile_mass, double(state.reference) + kMaxLog2Keys + double(kSlack<T>)) + 1))
    return false;
  const double pruned_mass =
      least + double(log_geometric_series<double>(row.slope_log2e, last_key + 1 - row.seen.begin));
  if (!(pruned_mass <= log2_side_ + log_add(row.nearest_tile_mass, state.log_mass()))) return false;
  state.pruned_mass = pruned_mass;
  state.pruned_until = number;
  return true;
}

/// Prunes one outlier tile, which the row skipped with the others, or one tile of sinks, if its mass stays within the
/// share.
template <class F>
bool DecodeTask<F>::try_prune_alone(Row& row, Index number) {
  const Index last_key = std::min((number + 1) * kTile, row.seen.end) - 1;
  RowState<T>& state = *row.state;
  const double pruned_mass = bound(row, last_key, double(source_.key_bounds.radius_of(number))) + row.tile_series;
  if (!(pruned_mass <= log2_outlier_ + log_add(row.nearest_tile_mass, state.log_mass()))) return false;
  state.pruned_outliers = log_add(state.pruned_outliers, pruned_mass);
  return true;
}

}  // namespace alibi::inline ALIBI_ISA::kernel
