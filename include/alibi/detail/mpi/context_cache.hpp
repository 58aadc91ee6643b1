// Attention over a cache whose keys lie on several ranks: each rank holds a KvCache with a contiguous part of them, and
// all have the same queries. Internal.
//
// The rank with the newest keys attends first, and tells the others the lse of its part. Another rank attends only if
// its keys cannot be ruled out: for each row, the sum of (1) of detail/context_plan.hpp over its tiles must be at most
// ε / (8 (ranks - 1)) of that mass. The calls of attention get 7/8 ε, each of its own part of the mass; evicted keys
// have a share of the part that they were evicted from. Ranks with keys that a head without bias sees, and all ranks at
// a tolerance of 0, do not wait for the newest. The parts are merged in the order of ranks, on every rank.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>
#include <span>
#include <vector>

#include "alibi/cached_attention.hpp"
#include "alibi/detail/call.hpp"
#include "alibi/detail/context_measure.hpp"
#include "alibi/detail/mpi/communicator.hpp"
#include "alibi/detail/mpi/context_plan.hpp"
#include "alibi/detail/validate.hpp"
#include "alibi/kernel/tile/key_bounds.hpp"
#include "alibi/kv_cache.hpp"
#include "alibi/merge.hpp"
#include "alibi/options.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ABI::detail {

template <class E, class S, BiasKind kind>
class ContextCache {
 public:
  using T = Sum<E>;

  /// `call` must be checked. `agreement` is the scratch of Communicator::agree().
  ContextCache(Communicator& mpi, const CachedCall<E, S>& call, const Options& options)
      : mpi_(mpi), call_(call), q_(call.q), options_(options) {}

  /// Checks a call of this rank, before the ranks agree.
  static void check(const CachedCall<E, S>& call, const Options& options) {
    const KvCacheConfig& config = call.cache.config();
    const View<const E>& q = call.q;
    check_queries(q, config);
    check_bias<kind>(call.bias, q.heads, {.count = q.batch, .queries = q.tokens});
    check_output(call.output, q, config.value_dim);
    if (call.lse) lse_row(*call.lse, q.batch * q.heads * q.tokens);
    check_context_options(options, q.tokens, q.tokens);
    require(config.sinks == 0, "the cache has ", config.sinks, " sinks; expected 0 over several ranks");
    for (Index b = 1; b < q.batch; b++)
      require(call.cache.length(b) == call.cache.length(0), "the cache holds ", call.cache.length(b),
              " tokens of sequence ", b, "; expected ", call.cache.length(0),
              ", as of sequence 0: over several ranks all have one length");
  }
  /// A hash of the queries, which must be the same on all ranks.
  static std::uint64_t hash_of(const View<const E>& q) {
    ContentHash hash;
    for (Index b = 0; b < q.batch; b++)
      for (Index h = 0; h < q.heads; h++)
        for (Index i = 0; i < q.tokens; i++)
          for (Index d = 0; d < q.head_dim; d++) hash.add(double(token_of(q, b, h, i)[d]));
    return hash.value();
  }

  void run(Outcome& outcome) {
    const auto ranks = std::size_t(mpi_.size());
    std::vector<std::int64_t> lengths;
    std::vector<char> attends;
    std::vector<T> of_newest;
    outcome.attempt([&] {
      rows_ = q_.batch * q_.heads * q_.tokens;
      tolerance_ = tolerance_of<T>(options_);
      scale_ = scale_of<T>(options_, q_.head_dim);
      lengths.assign(ranks, 0);
      attends.assign(ranks, 0);
      of_newest.resize(std::size_t(rows_));
      output_.resize(std::size_t(rows_ * call_.output.head_dim));
      lse_.resize(std::size_t(rows_));
    });
    mpi_.agree(outcome);
    if (rows_ == 0) return;

    const std::int64_t own = call_.cache.length(0);
    mpi_.all_gather<std::int64_t>({&own, 1}, lengths);
    std::size_t newest = ranks - 1;
    while (newest > 0 && lengths[newest] == 0) newest--;
    const auto before = lengths.begin() + mpi_.rank();
    start_ = std::accumulate(lengths.begin(), before, Index(0));
    position_ = std::accumulate(before, lengths.end(), start_) - q_.tokens;

    const bool is_newest = mpi_.rank() == int(newest);
    bool attended = is_newest || (own > 0 && sees_all());
    if (attended) outcome.attempt([&] { attend(); });
    if (is_newest) std::copy(lse_.begin(), lse_.end(), of_newest.begin());
    mpi_.agree(outcome);
    mpi_.template broadcast<T>(of_newest, int(newest));
    if (!attended && own > 0)
      outcome.attempt([&] {
        if (!(attended = matters(of_newest))) return;
        attend();
      });
    mpi_.agree(outcome);
    const char flag = attended ? 1 : 0;
    mpi_.template all_gather<char>({&flag, 1}, attends);
    merge(outcome, attends, attended);
  }

 private:
  /// 0 for a table, of which nothing is known.
  double slope(Index b, Index h) const { return kind == BiasKind::table ? 0 : slope_at(call_.bias.slopes, b, h); }
  Index group() const { return q_.heads / call_.cache.config().kv_heads; }
  std::optional<Index> window() const {
    const std::optional<Index> of_cache = call_.cache.config().window;
    return options_.mask.window ? options_.mask.window : of_cache;
  }
  /// Whether the window of some query reaches the keys of this rank.
  bool in_window() const {
    const Index last = start_ + call_.cache.length(0) - 1;
    return !window() || position_ - last < *window();
  }
  /// Whether some head needs all keys that it sees.
  bool sees_all() const {
    if (!in_window()) return false;
    if (tolerance_ == 0) return true;
    for (Index b = 0; b < q_.batch; b++)
      for (Index h = 0; h < q_.heads; h++)
        if (!(slope(b, h) > 0)) return true;
    return false;
  }

  /// Whether the keys of this rank cannot be ruled out. `lse` is that of the newest keys.
  bool matters(const std::vector<T>& lse) const {
    if (!in_window()) return false;
    if (position_ < start_ + call_.cache.length(0)) return true;
    for (Index row = 0; row < rows_; row++)
      if (!(share_of_row(row, double(lse[std::size_t(row)])) <= tolerance_ / 8 / double(mpi_.size() - 1))) return true;
    return false;
  }
  /// An upper bound of the mass of the keys of this rank, as a share of e^lse.
  double share_of_row(Index row, double lse) const {
    const Index i = row % q_.tokens, h = row / q_.tokens % q_.heads, b = row / q_.tokens / q_.heads;
    const auto head = CacheAccess::head(call_.cache, b, h / group());
    const auto& bounds = head.key_bounds;
    const E* const query = token_of(q_, b, h, i);
    double square = 0, dot = 0;
    for (Index d = 0; d < q_.head_dim; d++) {
      square += double(query[d]) * double(query[d]);
      dot += double(query[d]) * double(bounds.center[d]);
    }
    constexpr double kUnit = double(std::numeric_limits<T>::epsilon());
    const double norm = std::abs(scale_) * std::sqrt(square) * (1 + 1e-12), m = slope(b, h);
    const double margin =
        1e-3 + 1e-5 * std::abs(lse) +
        4 * kUnit * double(q_.head_dim + 8) * norm * (double(bounds.center_norm) + double(bounds.largest));
    const double a = scale_ * dot - lse + margin;
    double sum = 0;
    for (Index t = 0; t < bounds.tiles; t++) {
      const Index tile = bounds.first + t, last = std::min((tile + 1) * kContextTile, head.length) - 1;
      const Index keys = last + 1 - tile * kContextTile;
      const double distance = double(position_ + i - start_ - last);
      sum +=
          std::exp(a + norm * double(bounds.radius[t]) - m * distance) * std::expm1(-m * double(keys)) / std::expm1(-m);
    }
    return sum;
  }

  View<E> own_output() {
    const Index dims = call_.output.head_dim, n = q_.tokens;
    return {output_.data(), q_.batch, q_.heads, n, dims, q_.heads * n * dims, n * dims, dims};
  }
  void attend() {
    std::vector<PruningStats> stats(std::size_t(q_.batch * q_.heads));
    Options options = options_;
    options.mask.query_offset = position_ - start_;
    options.tolerance = mpi_.size() == 1 ? tolerance_ : tolerance_ * 0.875;
    options.pruning_stats = stats;
    forward_cached<E, S, kind>({q_, own_output(), std::span<T>(lse_), call_.cache, call_.bias}, options);
    for (const PruningStats& x : stats) mpi_.statistics.tiles_computed += x.tiles_computed;
  }

  /// Sends the part of this rank to all, and merges the parts.
  void merge(Outcome& outcome, const std::vector<char>& attends, bool attended) {
    const std::size_t values = output_.size() * sizeof(E), bytes = values + lse_.size() * sizeof(T);
    std::vector<int> sizes, begins;
    std::vector<std::byte> mine, all;
    outcome.attempt([&] {
      require(bytes * attends.size() < std::size_t(std::numeric_limits<int>::max()), "the output of q has ", bytes,
              " bytes; expected less than 2^31 on all ranks together");
      int sum = 0;
      for (const char flag : attends) {
        begins.push_back(sum);
        sizes.push_back(flag ? int(bytes) : 0);
        sum += sizes.back();
      }
      mine.resize(attended ? bytes : 0), all.resize(std::size_t(sum));
      if (!attended) return;
      std::memcpy(mine.data(), output_.data(), values);
      std::memcpy(mine.data() + values, lse_.data(), bytes - values);
    });
    mpi_.agree(outcome);
    mpi_.template all_gather<std::byte>(mine, all, sizes, begins);
    outcome.attempt([&] {
      using Part = ForwardResultView<E>;
      const Index dims = call_.output.head_dim, n = q_.tokens;
      std::vector<std::vector<E>> outputs;
      std::vector<std::vector<T>> lses;
      std::vector<Part> parts;
      for (std::size_t r = 0; r < attends.size(); r++) {
        if (!attends[r]) continue;
        const std::byte* const from = all.data() + begins[r];
        std::memcpy(outputs.emplace_back(output_.size()).data(), from, values);
        std::memcpy(lses.emplace_back(lse_.size()).data(), from + values, bytes - values);
        mpi_.statistics.ranks_asked += int(r) != mpi_.rank();
        const View<const E> output{outputs.back().data(), q_.batch, q_.heads, n, dims,
                                   q_.heads * n * dims,   n * dims, dims};
        parts.emplace_back(output, lses.back());
      }
      View<E> into = call_.output;
      if (call_.lse) {
        std::span<T> lse = *call_.lse;
        merge_into(into, lse, std::span<const Part>(parts));
      } else {
        merge_into(into, lse_, std::span<const Part>(parts));
      }
    });
    mpi_.agree(outcome);
  }

  Communicator& mpi_;
  const CachedCall<E, S>& call_;
  View<const E> q_;
  const Options& options_;
  Index rows_ = 0, start_ = 0, position_ = 0;
  double tolerance_ = 0, scale_ = 1;
  std::vector<E> output_;
  std::vector<T> lse_;
};

}  // namespace alibi::inline ALIBI_ABI::detail
