// The bytes that a rank receives in causal attention over a sequence on many ranks, by the plan of alibi/mpi.hpp,
// simulated in one process without MPI: eight heads with the authors' slopes, head_dim 64, float, the default
// tolerance.
#pragma once

#include <algorithm>
#include <alibi/detail/context_measure.hpp>
#include <alibi/detail/context_plan.hpp>
#include <alibi/slopes.hpp>
#include <cstdio>
#include <functional>
#include <vector>

#include "inputs.hpp"

namespace bench {

using alibi::Index;
using alibi::detail::HeadPlan, alibi::detail::KeyRun, alibi::detail::Pieces;

inline constexpr Index kHeads = 8, kDim = 64;
inline constexpr double kTolerance = 0x1p-24;

/// Returns q or k of a rank. All have the same number of tokens.
using PieceOf = std::function<Piece(Array, Index rank)>;

/// What is known of the keys of all ranks, by head.
struct Keys {
  std::vector<float> center;                       // [heads][head_dim]
  std::vector<std::vector<float>> radii, largest;  // [ranks][heads][tiles], [ranks][heads]
};

inline Keys measure_keys(const PieceOf& piece_of, Index ranks, Index tokens) {
  Keys keys;
  const auto tiles = std::size_t(alibi::detail::context_tiles(tokens));
  for (Index r = 0; r < ranks; r++) {
    const Piece k = piece_of(Array::k, r);
    if (r == 0) {
      keys.center.resize(std::size_t(kHeads * kDim));
      for (Index h = 0; h < kHeads; h++) alibi::detail::measure_center(k.view(), 0, h, keys.center.data() + h * kDim);
    }
    auto& radii = keys.radii.emplace_back(std::size_t(kHeads) * tiles);
    auto& largest = keys.largest.emplace_back();
    for (Index h = 0; h < kHeads; h++)
      largest.push_back(alibi::detail::measure_radii<float, float>(
          k.view(), 0, h, keys.center.data() + h * kDim, std::span(radii).subspan(std::size_t(h) * tiles, tiles)));
  }
  return keys;
}

struct Received {
  double keys = 0, asked = 0;  // keys of all heads; ranks whose tiles were asked for
};

inline Received plan_of(const PieceOf& piece_of, Index rank, const Pieces& pieces, const Keys& keys) {
  const Index tokens = pieces.tokens(rank), tiles = alibi::detail::context_tiles(tokens), ranks = pieces.ranks();
  const Piece q = piece_of(Array::q, rank), k = piece_of(Array::k, rank);
  const Eigen::VectorXf slopes = alibi::slopes(kHeads);
  Received received;
  std::vector<char> asked(std::size_t(ranks), 0);
  const auto tokens_of_rank = static_cast<std::size_t>(tokens);
  for (Index h = 0; h < kHeads; h++) {
    std::vector<double> score(tokens_of_rank), norm(tokens_of_rank), log_masses(tokens_of_rank);
    constexpr Index kFar = Index(1) << 61;
    float far_radius = 0;
    for (const auto& of_rank : keys.largest) far_radius = std::max(far_radius, of_rank[std::size_t(h)]);
    alibi::detail::measure_queries_of<float>({.q = q.view(),
                                              .k = k.view(),
                                              .b = 0,
                                              .h = h,
                                              .g = h,
                                              .center = keys.center.data() + h * kDim,
                                              .own_radius = keys.largest[std::size_t(rank)][std::size_t(h)],
                                              .far_radius = far_radius,
                                              .scale = 0.125,
                                              .slope = double(slopes[h]),
                                              .share = kTolerance / 8,
                                              .left = kFar,
                                              .both_sides = false},
                                             {score, norm, log_masses});
    const HeadPlan plan({pieces, rank, kFar, 0, double(slopes[h]), kTolerance / 8, score, norm});
    std::vector<float> largest;
    for (const auto& of_rank : keys.largest) largest.push_back(of_rank[std::size_t(h)]);
    std::vector<char> needed(std::size_t(ranks), 0);
    plan.find_ranks(largest, needed);
    const auto radii = [&](Index s) {
      return std::span<const float>(keys.radii[std::size_t(s)]).subspan(std::size_t(h * tiles), std::size_t(tiles));
    };
    alibi::detail::RadiusRange range;
    for (Index s = 0; s < ranks; s++) {
      if (needed[std::size_t(s)]) range.add(radii(s));
      asked[std::size_t(s)] = char(asked[std::size_t(s)] | needed[std::size_t(s)]);
    }
    std::vector<KeyRun> all;
    for (Index block = 0; block < alibi::detail::context_blocks(tokens); block++) {
      const auto runs = plan.find_tiles(block, needed, radii, range.finished());
      all.insert(all.end(), runs.begin(), runs.end());
    }
    alibi::detail::join_runs(all);
    for (const KeyRun& run : all) received.keys += double(run.end - run.begin);
  }
  for (const char x : asked) received.asked += x;
  return received;
}

/// What the ranks of one sequence receive.
struct Simulation {
  double mean_keys = 0, most_keys = 0;  // fetched by a rank, summed over the heads
  double bytes = 0;                     // the most that a rank receives, with all that ranks tell each other
  double ring = 0;                      // that of ring attention, which passes all keys and values around
};

inline Simulation simulate(const PieceOf& piece_of, Index ranks, Index tokens) {
  std::vector<Index> starts;
  for (Index r = 0; r <= ranks; r++) starts.push_back(r * tokens);
  const Pieces pieces{starts};
  const Keys keys = measure_keys(piece_of, ranks, tokens);
  Simulation all;
  double asked = 0;
  for (Index r = 0; r < ranks; r++) {
    const Received received = plan_of(piece_of, r, pieces, keys);
    all.mean_keys += received.keys / double(ranks);
    all.most_keys = std::max(all.most_keys, received.keys);
    asked = std::max(asked, received.asked);
  }
  const double others = double(ranks - 1), tiles = double(alibi::detail::context_tiles(tokens));
  // The agreement, the largest radii, a byte and an int of each rank; the centre; radii of tiles.
  const double told = others * (21 * 8 + kHeads * 4 + 1 + 4) + kHeads * kDim * 4 + asked * kHeads * tiles * 4;
  all.bytes = all.most_keys * 2 * kDim * 4 + told;
  all.ring = others * double(tokens) * kHeads * 2 * kDim * 4;
  return all;
}

/// One row of a table; `first` is the number of ranks or of a layer.
inline void print_row(Index first, Index tokens, const Simulation& x) {
  std::printf("%6td %9td %13.0f %13.0f %13.2f %11.1f %7.1f\n", first, tokens, x.mean_keys, x.most_keys, 1e-6 * x.bytes,
              1e-6 * x.ring, x.ring / x.bytes);
  std::fflush(stdout);
}
inline void print_head(const char* first) {
  std::printf("%6s %9s %13s %13s %13s %11s %7s\n", first, "tokens", "keys, mean", "keys, most", "received, MB",
              "ring, MB", "ratio");
}

}  // namespace bench
