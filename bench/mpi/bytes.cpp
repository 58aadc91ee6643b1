// The bytes that a rank receives in attention over a sequence on many ranks, by the plan of alibi/mpi.hpp, simulated in
// one process without MPI. Usage: bytes [most-ranks] [tokens-of-a-rank] [table]
//
// Eight heads with the authors' slopes, head_dim 64, float, causal, random q and k of variance 1. Prints for 2, 4, …
// ranks the keys that a rank fetches, summed over the heads, as mean and largest of the ranks; the bytes of keys and
// values and of all that ranks tell each other; and those of ring attention, which passes all keys and values around.
// Writes the same to `table` for bytes.gnuplot.
#include <alibi/detail/context_measure.hpp>
#include <alibi/detail/context_plan.hpp>
#include <alibi/slopes.hpp>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "inputs.hpp"

namespace {

using alibi::Index;
using alibi::detail::HeadPlan, alibi::detail::KeyRun, alibi::detail::Pieces;

constexpr Index kHeads = 8, kDim = 64;
constexpr double kTolerance = 0x1p-24;

/// What is known of the keys of all ranks, by head.
struct Keys {
  std::vector<float> center;                       // [heads][head_dim]
  std::vector<std::vector<float>> radii, largest;  // [ranks][heads][tiles], [ranks][heads]
};

Keys measure_keys(Index ranks, Index tokens) {
  Keys keys;
  const auto tiles = std::size_t(alibi::detail::context_tiles(tokens));
  for (Index r = 0; r < ranks; r++) {
    const bench::Piece k(bench::Array::k, r, kHeads, tokens, kDim);
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

Received plan_of(Index rank, const Pieces& pieces, const Keys& keys) {
  const Index tokens = pieces.tokens(rank), tiles = alibi::detail::context_tiles(tokens), ranks = pieces.ranks();
  const bench::Piece q(bench::Array::q, rank, kHeads, tokens, kDim), k(bench::Array::k, rank, kHeads, tokens, kDim);
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

}  // namespace

int main(int argc, char** argv) {
  const Index most = argc > 1 ? std::atol(argv[1]) : 128, tokens = argc > 2 ? std::atol(argv[2]) : 8192;
  std::FILE* const table = argc > 3 ? std::fopen(argv[3], "w") : nullptr;
  std::printf("%6s %9s %13s %13s %13s %11s %7s\n", "ranks", "tokens", "keys, mean", "keys, most", "received, MB",
              "ring, MB", "ratio");
  if (table) std::fprintf(table, "# ranks tokens keys_mean keys_most bytes_most ring_bytes\n");
  for (Index ranks = 2; ranks <= most; ranks *= 2) {
    std::vector<Index> starts;
    for (Index r = 0; r <= ranks; r++) starts.push_back(r * tokens);
    const Pieces pieces{starts};
    const Keys keys = measure_keys(ranks, tokens);
    double mean = 0, largest = 0, asked = 0;
    for (Index r = 0; r < ranks; r++) {
      const Received received = plan_of(r, pieces, keys);
      mean += received.keys / double(ranks);
      largest = std::max(largest, received.keys);
      asked = std::max(asked, received.asked);
    }
    const double others = double(ranks - 1), tiles = double(alibi::detail::context_tiles(tokens));
    // The agreement, the largest radii, a byte and an int of each rank; the centre; radii of tiles.
    const double told = others * (21 * 8 + kHeads * 4 + 1 + 4) + kHeads * kDim * 4 + asked * kHeads * tiles * 4;
    const double bytes = largest * 2 * kDim * 4 + told, ring = others * double(tokens) * kHeads * 2 * kDim * 4;
    std::printf("%6td %9td %13.0f %13.0f %13.2f %11.1f %7.1f\n", ranks, ranks * tokens, mean, largest, 1e-6 * bytes,
                1e-6 * ring, ring / bytes);
    std::fflush(stdout);
    if (table) std::fprintf(table, "%td %td %.0f %.0f %.0f %.0f\n", ranks, ranks * tokens, mean, largest, bytes, ring);
  }
  if (table) std::fclose(table);
}
