// The plan of a call over several ranks: the ranks agree on the call, tell each other what they know of their keys, and
// ask for those that they need (detail/context_plan.hpp). Internal.
//
// What travels, for kv_heads K, ranks P and tiles of 64 keys:
//   the centre     K head_dim numbers from the first rank that has tokens
//   radii          K floats of each rank; then, of ranks that cannot be ruled out, a float for each tile of a head
//   requests       a byte and two ints of each pair of ranks; 24 bytes for each run of keys
// Without a head that may prune there are no centre and no radii.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "alibi/detail/call.hpp"
#include "alibi/detail/context_measure.hpp"
#include "alibi/detail/context_plan.hpp"
#include "alibi/detail/mpi/communicator.hpp"
#include "alibi/detail/validate.hpp"
#include "alibi/error.hpp"
#include "alibi/executor.hpp"
#include "alibi/mask.hpp"
#include "alibi/options.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// What ranks call, for the agreement.
enum class ContextOperation : std::int8_t { attention, backward, cache };

/// Heads [head, head + heads) of sequences [batch, batch + sequences), tokens [token, token + tokens).
template <class X>
View<X> part_of_view(View<X> x, Index batch, Index sequences, Index head, Index heads, Index token, Index tokens) {
  if (x.data) x.data += batch * x.batch_stride + head * x.head_stride + token * x.token_stride;
  x.batch = sequences, x.heads = heads, x.tokens = tokens;
  return x;
}
/// The bias of these heads and sequences.
template <BiasKind kind, class T>
BiasView<T> part_of_bias(BiasView<T> bias, Index batch, Index sequences, Index head, Index heads) {
  if constexpr (kind == BiasKind::table) {
    bias.table.data += head * bias.table.head_stride;
    bias.table.heads = heads;
    bias.slopes.heads = heads;
  } else {
    SlopeView& m = bias.slopes;
    const Index at = batch * m.batch_stride + head * m.head_stride;
    m.data = static_cast<const char*>(m.data) + at * size_of(m.scalar);
    m.batch = m.batch_stride == 0 ? 1 : sequences;
    m.heads = heads;
  }
  return bias;
}

template <class E>
constexpr Index scalar_number() {
  return std::is_same_v<E, float> ? 0 : std::is_same_v<E, double> ? 1 : std::is_same_v<E, Eigen::bfloat16> ? 2 : 3;
}

/// The arguments of a call that must be the same on all ranks. `out` has Communicator::kFields entries.
template <class E, BiasKind kind>
std::size_t shared_fields(ContextOperation operation, const View<const E>& q, Index kv_heads, Index value_dim,
                          const BiasView<Sum<E>>& bias, const Options& options,
                          std::array<SharedField, Communicator::kFields>& out) {
  static constexpr const char* kOperations[] = {"attention", "attention_backward", "attention over a cache"};
  static constexpr const char* kScalars[] = {"float", "double", "bfloat16", "half"};
  static constexpr const char* kTruth[] = {"false", "true"};
  static constexpr const char* kBiases[] = {"slopes", "a table"};
  std::size_t count = 0;
  const auto add = [&](SharedField field) { out[count++] = field; };
  const auto choose = [&](const char* name, Index value, const char* const* choices) {
    add({name, SharedField::Kind::choice, value, choices});
  };
  choose("the call is", Index(operation), kOperations);
  choose("q is an array of", scalar_number<E>(), kScalars);
  add(SharedField::of("q has batch", q.batch));
  add(SharedField::of("q has heads", q.heads));
  add(SharedField::of("k has heads", kv_heads));
  add(SharedField::of("q has head_dim", q.head_dim));
  add(SharedField::of("v has head_dim", value_dim));
  choose("mask.causal is", options.mask.causal, kTruth);
  add(SharedField::of("mask.window is", options.mask.window.value_or(0)));
  add(SharedField::of("scale is", scale_of<Sum<E>>(options, q.head_dim)));
  add(SharedField::of("tolerance is", tolerance_of<Sum<E>>(options)));
  choose("bf16_dot is", options.bf16_dot, kTruth);
  choose("the bias is", Index(kind), kBiases);
  ContentHash hash;
  if constexpr (kind == BiasKind::table) {
    add(SharedField::of("the table has entries", bias.table.entries));
    add(SharedField::of("the table's first distance is", bias.table.first));
    for (Index h = 0; h < q.heads; h++)
      for (Index t = 0; t < bias.table.entries; t++) hash.add(double(bias.table.data[h * bias.table.head_stride + t]));
    add(SharedField::content("the table has entries", hash.value()));
  } else {
    for (Index b = 0; b < q.batch; b++)
      for (Index h = 0; h < q.heads; h++) hash.add(slope_at(bias.slopes, b, h));
    add(SharedField::content("slopes are", hash.value()));
  }
  return count;
}

/// The checks of the options that attention over several ranks shares.
inline void check_context_options(const Options& options, Index tokens, Index queries) {
  require(!options.mask.query_offset, "mask.query_offset is ", options.mask.query_offset.value_or(0),
          " over several ranks; expected none: the pieces give the positions");
  require(options.queries.empty() && options.keys.empty(), "options.", options.queries.empty() ? "keys" : "queries",
          " is given over several ranks; expected none");
  require(options.mask.prefix == 0, "mask.prefix is ", options.mask.prefix, " over several ranks; expected 0");
  require(options.mask.sinks.value_or(0) == 0, "mask.sinks is ", options.mask.sinks.value_or(0),
          " over several ranks; expected 0");
  require(options.query_offsets.empty() && options.prefixes.empty(), "options.",
          options.query_offsets.empty() ? "prefixes" : "query_offsets", " is given over several ranks; expected none");
  require(options.pruning_stats.empty(), "pruning_stats has ", options.pruning_stats.size(),
          " entries over several ranks; expected none: statistics() counts");
  require(queries == tokens, "q has tokens ", queries, "; expected ", tokens, ", the tokens of this rank");
}

/// What a call needs of other ranks, and what they need of this one.
template <class E, BiasKind kind>
class ContextPlan {
 public:
  using T = Sum<E>;

  ContextPlan(Communicator& mpi, std::span<const Index> starts, const View<const E>& q, const View<const E>& k,
              const BiasView<T>& bias, const Options& options, std::span<const T> lse)
      : mpi_(mpi), pieces_{starts}, q_(q), k_(k), bias_(bias), options_(options), lse_(lse) {}

  /// Makes the plan, after the ranks have agreed on the call. Throws on all ranks if it fails on one.
  void make(Outcome& outcome) {
    const std::size_t heads = std::size_t(q_.batch * q_.heads), kv = std::size_t(q_.batch * k_.heads),
                      ranks = std::size_t(mpi_.size());
    std::vector<T> center;
    std::vector<float> own_largest, largest, own_radii;
    std::vector<char> asks, asked;
    std::vector<MPI_Request> requests;
    outcome.attempt([&] {
      mask_ = resolve(options_.mask, q_.tokens, q_.tokens);
      scale_ = scale_of<T>(options_, q_.head_dim);
      tolerance_ = tolerance_of<T>(options_);
      blocks_ = context_blocks(q_.tokens);
      needs.assign(heads * std::size_t(blocks_), {});
      fetched.assign(kv, {});
      given.assign(ranks * kv, {});
      center.assign(kv * std::size_t(k_.head_dim), T(0));
      own_largest.assign(kv, 0);
      largest.assign(kv * ranks, 0);
      own_radii.assign(kv * std::size_t(tiles(mpi_.rank())), 0);
      radii_.assign(ranks, {});
      needed_.assign(kv * ranks, 0);
      asks.assign(ranks, 0);
      asked.assign(ranks, 0);
      requests.reserve(2 * ranks);
    });
    mpi_.agree(outcome);
    if (mpi_.size() == 1 || q_.heads == 0) return;

    const bool prunes = any_prunes(0, q_.batch, 0, q_.heads);
    if (prunes) {
      int root = 0;
      while (root < mpi_.size() - 1 && pieces_.tokens(root) == 0) root++;
      if (mpi_.rank() == root) each_kv([&](Index b, Index g) { measure_center(k_, b, g, center_of(center, b, g)); });
      mpi_.broadcast<T>(center, root);
      outcome.attempt([&] {
        options_.executor.for_each(Index(kv), [&](Index i, int) {
          const auto at = std::size_t(i), count = std::size_t(tiles(mpi_.rank()));
          own_largest[at] = measure_radii<E, T>(k_, i / k_.heads, i % k_.heads, center.data() + i * k_.head_dim,
                                                std::span(own_radii).subspan(at * count, count));
        });
      });
      mpi_.all_gather<float>(own_largest, largest);
    }
    outcome.attempt([&] { find_ranks(center, own_largest, largest, asks); });
    if (prunes) {
      mpi_.all_to_all<char>(asks, asked);
      outcome.attempt([&] {
        for (std::size_t s = 0; s < ranks; s++)
          if (asks[s]) radii_[s].assign(kv * std::size_t(tiles(Index(s))), 0);
      });
      mpi_.agree(outcome);
      for (int s = 0; s < mpi_.size(); s++) {
        if (asks[std::size_t(s)]) receive(radii_[std::size_t(s)], s, requests);
        if (asked[std::size_t(s)]) send(own_radii, s, requests);
      }
      wait(requests);
    }
    ask(outcome, requests);
  }

  /// The runs of keys that a block of rows of a query head needs, [batch][heads][blocks].
  std::vector<std::vector<KeyRun>> needs;
  /// The runs of keys of a kv head that this rank fetches, in rising order of rank, [batch][kv_heads].
  std::vector<std::vector<KeyRun>> fetched;
  /// The runs of own keys that other ranks fetch, [ranks][batch][kv_heads].
  std::vector<std::vector<KeyRun>> given;

  const std::vector<KeyRun>& needs_of(Index b, Index h, Index block) const {
    return needs[std::size_t((b * q_.heads + h) * blocks_ + block)];
  }
  Index blocks() const { return blocks_; }
  const Pieces& pieces() const { return pieces_; }
  double scale() const { return scale_; }
  /// The share of all calls of attention together: all that the plan does not use.
  double share_of_calls() const { return mpi_.size() == 1 ? tolerance_ : tolerance_ / 2; }

  /// Finds again the keys that blocks of rows need, among those that were fetched, with the lse of the own keys.
  void refine(std::span<const T> lse) {
    if (mpi_.size() == 1 || radii_.empty()) return;
    const auto n = std::size_t(q_.tokens);
    options_.executor.for_each(q_.batch * q_.heads, [&](Index i, int) {
      const Index b = i / q_.heads, h = i % q_.heads, at = b * k_.heads + h / group();
      if (is_dense(b, h) || n == 0) return;
      const std::size_t first = std::size_t(i) * n;
      raise_masses<T>(std::span(score_).subspan(first, n), std::span<const double>(log_masses_).subspan(first, n),
                      lse.subspan(first, n));
      find_needs(b, h, radii_of(at), tolerance_ / 4);
      for (Index block = 0; block < blocks_; block++)
        keep_common(needs[std::size_t(i * blocks_ + block)], fetched[std::size_t(at)]);
    });
  }

 private:
  static constexpr int kTag = 1;

  Index group() const { return q_.heads / k_.heads; }
  Index tiles(Index rank) const { return context_tiles(pieces_.tokens(rank)); }
  double slope(Index b, Index h) const { return kind == BiasKind::table ? 0 : slope_at(bias_.slopes, b, h); }
  bool is_dense(Index b, Index h) const { return HeadPlan::is_dense(slope(b, h), tolerance_); }
  bool any_prunes(Index b, Index sequences, Index h, Index heads) const {
    for (Index i = b; i < b + sequences; i++)
      for (Index j = h; j < h + heads; j++)
        if (!is_dense(i, j)) return true;
    return false;
  }
  T* center_of(std::vector<T>& center, Index b, Index g) const {
    return center.data() + (b * k_.heads + g) * k_.head_dim;
  }
  std::span<char> needed_of(Index kv) {
    return std::span(needed_).subspan(std::size_t(kv * mpi_.size()), std::size_t(mpi_.size()));
  }
  template <class Body>
  void each_kv(const Body& body) const {
    for (Index b = 0; b < k_.batch; b++)
      for (Index g = 0; g < k_.heads; g++) body(b, g);
  }
  HeadPlan head_plan(Index b, Index h, double share) const {
    const std::size_t n = std::size_t(q_.tokens), at = std::size_t(b * q_.heads + h) * n;
    const bool dense = is_dense(b, h);
    return HeadPlan({pieces_, mpi_.rank(), mask_.left, mask_.right, slope(b, h), share,
                     dense ? std::span<const double>() : std::span<const double>(score_).subspan(at, n),
                     dense ? std::span<const double>() : std::span<const double>(norm_).subspan(at, n)});
  }

  /// Measures the queries, and finds the ranks that cannot be ruled out and whose tiles must be known.
  void find_ranks(const std::vector<T>& center, const std::vector<float>& own_largest,
                  const std::vector<float>& largest, std::vector<char>& asks) {
    const std::size_t n = std::size_t(q_.tokens), kv = std::size_t(q_.batch * k_.heads);
    score_.resize(std::size_t(q_.batch * q_.heads) * n);
    norm_.resize(score_.size());
    log_masses_.resize(score_.size());
    options_.executor.for_each(q_.batch * q_.heads, [&](Index i, int) {
      const Index b = i / q_.heads, h = i % q_.heads, g = h / group(), at = b * k_.heads + g;
      if (is_dense(b, h) || n == 0) return;
      float far_radius = 0;
      for (std::size_t s = 0; s < std::size_t(mpi_.size()); s++)
        if (int(s) != mpi_.rank()) far_radius = std::max(far_radius, largest[s * kv + std::size_t(at)]);
      const std::size_t first = std::size_t(i) * n;
      measure_queries_of<E>({.q = q_,
                             .k = k_,
                             .b = b,
                             .h = h,
                             .g = g,
                             .center = center.data() + at * k_.head_dim,
                             .own_radius = own_largest[std::size_t(at)],
                             .far_radius = far_radius,
                             .scale = scale_,
                             .slope = slope(b, h),
                             .share = tolerance_ / 8,
                             .left = mask_.left,
                             .both_sides = mask_.right > 0,
                             .lse = lse_.empty() ? lse_ : lse_.subspan(first, n)},
                            {std::span(score_).subspan(first, n), std::span(norm_).subspan(first, n),
                             std::span(log_masses_).subspan(first, n)});
    });
    options_.executor.for_each(Index(kv), [&](Index at, int) {
      const Index b = at / k_.heads, g = at % k_.heads;
      std::vector<float> radius(std::size_t(mpi_.size()));
      for (std::size_t s = 0; s < radius.size(); s++) radius[s] = largest[s * kv + std::size_t(at)];
      for (Index h = g * group(); h < (g + 1) * group(); h++)
        head_plan(b, h, tolerance_ / 8).find_ranks(radius, needed_of(at));
    });
    each_kv([&](Index b, Index g) {
      if (!any_prunes(b, 1, g * group(), group())) return;
      const std::span<const char> needed = needed_of(b * k_.heads + g);
      for (std::size_t s = 0; s < needed.size(); s++) asks[s] = char(asks[s] | needed[s]);
    });
  }

  /// The radii of the tiles of each rank that is known, and their range.
  struct TileRadii {
    std::vector<std::span<const float>> of_rank;
    RadiusRange range;
  };
  TileRadii radii_of(Index at) {
    TileRadii radii;
    const std::span<const char> needed = needed_of(at);
    for (Index s = 0; s < mpi_.size(); s++) {
      const auto count = std::size_t(tiles(s));
      const std::vector<float>& all = radii_[std::size_t(s)];
      auto& here = radii.of_rank.emplace_back();
      if (!needed[std::size_t(s)] || all.empty()) continue;
      here = std::span<const float>(all).subspan(std::size_t(at) * count, count);
      radii.range.add(here);
    }
    radii.range = radii.range.finished();
    return radii;
  }
  void find_needs(Index b, Index h, const TileRadii& radii, double share) {
    const HeadPlan plan = head_plan(b, h, share);
    for (Index block = 0; block < blocks_; block++)
      needs[std::size_t((b * q_.heads + h) * blocks_ + block)] = plan.find_tiles(
          block, needed_of(b * k_.heads + h / group()), [&](Index s) { return radii.of_rank[std::size_t(s)]; },
          radii.range);
  }

  /// Finds the keys that each block of rows needs, and those that this rank fetches.
  void find_keys() {
    options_.executor.for_each(q_.batch * k_.heads, [&](Index at, int) {
      const Index b = at / k_.heads, g = at % k_.heads;
      const TileRadii radii = radii_of(at);
      std::vector<KeyRun>& all = fetched[std::size_t(at)];
      for (Index h = g * group(); h < (g + 1) * group(); h++) {
        find_needs(b, h, radii, tolerance_ / 8);
        for (Index block = 0; block < blocks_; block++) {
          const auto& runs = needs_of(b, h, block);
          all.insert(all.end(), runs.begin(), runs.end());
        }
      }
      join_runs(all);
    });
  }

  /// Tells the other ranks which of their keys this one needs, and learns what they need.
  void ask(Outcome& outcome, std::vector<MPI_Request>& requests) {
    const auto ranks = std::size_t(mpi_.size());
    std::vector<std::vector<std::array<std::int64_t, 3>>> wants, wanted;  // kv head of a sequence, begin, end
    std::vector<int> want_counts, wanted_counts;
    outcome.attempt([&] {
      find_keys();
      wants.resize(ranks), wanted.resize(ranks);
      want_counts.resize(ranks), wanted_counts.resize(ranks);
      for (std::size_t at = 0; at < fetched.size(); at++)
        for (const KeyRun& run : fetched[at]) {
          wants[std::size_t(run.rank)].push_back({std::int64_t(at), run.begin, run.end});
          mpi_.statistics.tiles_fetched += context_tiles(run.end - run.begin);
        }
      for (std::size_t s = 0; s < ranks; s++) want_counts[s] = int(wants[s].size());
    });
    mpi_.agree(outcome);
    mpi_.all_to_all<int>(want_counts, wanted_counts);
    outcome.attempt([&] {
      for (std::size_t s = 0; s < ranks; s++) wanted[s].resize(std::size_t(wanted_counts[s]));
    });
    mpi_.agree(outcome);
    for (int s = 0; s < mpi_.size(); s++) {
      if (!wanted[std::size_t(s)].empty()) receive(wanted[std::size_t(s)], s, requests);
      if (!wants[std::size_t(s)].empty()) send(wants[std::size_t(s)], s, requests);
    }
    wait(requests);
    outcome.attempt([&] {
      for (std::size_t s = 0; s < ranks; s++)
        for (const auto& run : wanted[s])
          given[s * fetched.size() + std::size_t(run[0])].push_back({mpi_.rank(), run[1], run[2]});
    });
  }

  template <class X>
  void send(const std::vector<X>& x, int to, std::vector<MPI_Request>& requests) {
    mpi_.send(x.data(), x.size() * sizeof(X), to, kTag, requests.emplace_back());
  }
  template <class X>
  void receive(std::vector<X>& x, int from, std::vector<MPI_Request>& requests) {
    mpi_.receive(x.data(), x.size() * sizeof(X), from, kTag, requests.emplace_back());
  }
  void wait(std::vector<MPI_Request>& requests) {
    mpi_.timed([&] { MPI_Waitall(int(requests.size()), requests.data(), MPI_STATUSES_IGNORE); });
    requests.clear();
  }

  Communicator& mpi_;
  Pieces pieces_;
  View<const E> q_, k_;
  BiasView<T> bias_;
  const Options& options_;
  std::span<const T> lse_;  // [batch][heads][tokens], if it is known
  ResolvedMask mask_{};
  double scale_ = 1, tolerance_ = 0;
  Index blocks_ = 0;
  std::vector<double> score_, norm_, log_masses_;  // [batch][heads][tokens]
  std::vector<char> needed_;                       // [batch][kv_heads][ranks]
  std::vector<std::vector<float>> radii_;          // of each rank that is asked, [batch][kv_heads][tiles]
};

}  // namespace alibi::inline ALIBI_ABI::detail
