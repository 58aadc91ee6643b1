// The plan of attention over several ranks, without MPI: what a rank does not fetch has at most half of the tolerance
// of the softmax mass of each row, for random pieces, queries and keys with outliers and a common mean.
#include <alibi/detail/context_measure.hpp>
#include <alibi/detail/context_plan.hpp>
#include <numeric>

#include "common.hpp"

namespace {

using alibi::detail::HeadPlan, alibi::detail::KeyRun, alibi::detail::Pieces;
using test::Index, test::Random, test::Tensor4;

/// A head of a sequence in pieces.
struct Case {
  std::vector<Index> starts{0};
  Tensor4<float> q, k;
  double slope, tolerance, scale = 0.2;
  Index left, right;
  std::vector<float> center;

  explicit Case(Random& random) {
    const Index ranks = random.integer(2, 6);
    for (Index r = 0; r < ranks; r++) {
      const Index tokens = random.chance(0.15) ? 0 : random.integer(1, random.chance(0.5) ? 900 : 100);
      starts.push_back(starts.back() + tokens);
    }
    const Index n = starts.back(), dims = random.integer(1, 24);
    q = random.tensor<float>(1, 1, n, dims, random.uniform(0.2, 2));
    k = random.tensor<float>(1, 1, n, dims, random.uniform(0.2, 2));
    const auto mean = float(random.uniform(-4, 4));
    for (Index i = 0; i < k.size(); i++) k.data()[i] += mean;
    for (int outliers = int(random.integer(0, 4)); outliers > 0 && n > 0; outliers--) {
      const Index j = random.integer(0, n - 1);
      for (Index d = 0; d < dims; d++) k(0, 0, j, d) *= 8;
    }
    slope = std::exp2(-random.uniform(0, 7));
    tolerance = std::exp2(-random.uniform(2, 24));
    const bool causal = random.chance(0.5);
    left = random.chance(0.3) ? random.integer(0, n) : Index(1) << 40;
    right = causal ? 0 : left;
    center.resize(std::size_t(dims));
  }
  Pieces pieces() const { return {starts}; }
  bool sees(Index i, Index j) const { return j <= i ? i - j <= left : j - i <= right; }
  double score(Index i, Index j) const {
    double dot = 0;
    for (Index d = 0; d < q.dimension(3); d++) dot += double(q(0, 0, i, d)) * double(k(0, 0, j, d));
    return scale * dot - slope * double(std::abs(i - j));
  }
  alibi::View<const float> piece(const Tensor4<float>& x, Index r) const {
    const Index dims = x.dimension(3);
    return {x.data() + starts[std::size_t(r)] * dims, 1, 1, pieces().tokens(r), dims, 0, 0, dims};
  }
};

/// The lse of the rows of rank `r` over the keys of that rank.
std::vector<float> own_lse(const Case& x, Index r) {
  std::vector<float> lse;
  for (Index i = x.starts[std::size_t(r)]; i < x.starts[std::size_t(r) + 1]; i++) {
    double sum = 0;
    for (Index j = x.starts[std::size_t(r)]; j < x.starts[std::size_t(r) + 1]; j++)
      if (x.sees(i, j)) sum += std::exp(x.score(i, j));
    lse.push_back(float(std::log(sum)));
  }
  return lse;
}

/// The keys of other ranks that rank `r` needs for each of its blocks, as a plan of all ranks in one process: those
/// that it fetches, or with `refined` those that it computes.
std::vector<std::vector<KeyRun>> needs_of(Case& x, Index r, bool refined = false) {
  const Pieces pieces = x.pieces();
  const auto ranks = std::size_t(pieces.ranks());
  Index root = 0;
  while (root < pieces.ranks() - 1 && pieces.tokens(root) == 0) root++;
  alibi::detail::measure_center(x.piece(x.k, root), 0, 0, x.center.data());
  std::vector<std::vector<float>> radii(ranks);
  std::vector<float> largest(ranks);
  alibi::detail::RadiusRange range;
  for (std::size_t s = 0; s < ranks; s++) {
    radii[s].resize(std::size_t(alibi::detail::context_tiles(pieces.tokens(Index(s)))));
    largest[s] = alibi::detail::measure_radii<float, float>(x.piece(x.k, Index(s)), 0, 0, x.center.data(), radii[s]);
    range.add(radii[s]);
  }
  std::vector<double> score(static_cast<std::size_t>(pieces.tokens(r))), norm(score.size()), log_masses(score.size());
  alibi::detail::measure_queries_of<float>({.q = x.piece(x.q, r),
                                            .k = x.piece(x.k, r),
                                            .b = 0,
                                            .h = 0,
                                            .g = 0,
                                            .center = x.center.data(),
                                            .own_radius = largest[std::size_t(r)],
                                            .far_radius = *std::max_element(largest.begin(), largest.end()),
                                            .scale = x.scale,
                                            .slope = x.slope,
                                            .share = x.tolerance / 8,
                                            .left = x.left,
                                            .both_sides = x.right > 0},
                                           {score, norm, log_masses});
  const HeadPlan plan({pieces, r, x.left, x.right, x.slope, x.tolerance / 8, score, norm});
  std::vector<char> needed(ranks);
  plan.find_ranks(largest, needed);
  const auto radii_of = [&](Index s) { return std::span<const float>(radii[std::size_t(s)]); };
  range = range.finished();
  std::vector<KeyRun> fetched;
  std::vector<std::vector<KeyRun>> runs;
  for (Index block = 0; block < alibi::detail::context_blocks(pieces.tokens(r)); block++) {
    runs.push_back(plan.find_tiles(block, needed, radii_of, range));
    fetched.insert(fetched.end(), runs.back().begin(), runs.back().end());
  }
  if (!refined) return runs;
  alibi::detail::join_runs(fetched);
  alibi::detail::raise_masses<float>(score, log_masses, own_lse(x, r));
  const HeadPlan second({pieces, r, x.left, x.right, x.slope, x.tolerance / 4, score, norm});
  for (Index block = 0; block < Index(runs.size()); block++) {
    runs[std::size_t(block)] = second.find_tiles(block, needed, radii_of, range);
    alibi::detail::keep_common(runs[std::size_t(block)], fetched);
  }
  return runs;
}

TEST(ContextPlan, WhatIsLeftOutFitsIntoItsShareOfTheTolerance) {
  for (const bool refined : {false, true}) {
    const double share = refined ? 0.5 : 0.25;
    double worst = 0;
    Index needed_pairs = 0, visible = 0;
    for (std::uint64_t seed = 1; seed <= 60; seed++) {
      Random random(seed);
      Case x(random);
      const Pieces pieces = x.pieces();
      const Index r = random.integer(0, pieces.ranks() - 1), first = pieces.start(r);
      const auto needs = needs_of(x, r, refined);
      for (Index row = 0; row < pieces.tokens(r); row += 1 + row / 8) {
        const Index i = first + row;
        std::vector<double> scores(std::size_t(x.starts.back()), -test::kInfinity);
        for (Index j = 0; j < x.starts.back(); j++)
          if (x.sees(i, j)) scores[std::size_t(j)] = x.score(i, j);
        const double top = *std::max_element(scores.begin(), scores.end());
        double all = 0, lost = 0;
        for (Index j = 0; j < x.starts.back(); j++) {
          const double mass = std::exp(scores[std::size_t(j)] - top);
          all += mass;
          const bool own = j >= first && j < pieces.start(r + 1);
          bool needed = own;
          for (const KeyRun& run : needs[std::size_t(row / alibi::detail::kContextRows)])
            needed = needed || (j >= pieces.start(run.rank) + run.begin && j < pieces.start(run.rank) + run.end);
          if (!needed) lost += mass;
          visible += !own && x.sees(i, j);
          needed_pairs += !own && needed && x.sees(i, j);
        }
        worst = std::max(worst, lost / all / (x.tolerance * share));
        ASSERT_LE(lost, x.tolerance * share * all) << "seed " << seed << ", row " << row;
      }
    }
    EXPECT_LE(double(needed_pairs), 0.7 * double(visible));  // the plan rules out keys
    std::cout << "worst loss " << worst << " of what is allowed; " << needed_pairs << " of " << visible << " pairs\n";
  }
}

TEST(ContextPlan, NothingIsRuledOutWithoutABias) {
  const std::vector<Index> starts = {0, 100, 100, 300, 400};
  for (const auto& [slope, share] : {std::pair(0., 1e-3), std::pair(-1., 1e-3), std::pair(0.5, 0.)}) {
    const HeadPlan plan({{starts}, 3, Index(1) << 40, 0, slope, share, {}, {}});
    std::vector<char> needed(4);
    plan.find_ranks(std::vector<float>(4), needed);
    EXPECT_EQ(needed, (std::vector<char>{1, 0, 1, 0}));
    const auto runs = plan.find_tiles(0, needed, [](Index) { return std::span<const float>(); }, {});
    ASSERT_EQ(runs.size(), 2);
    EXPECT_EQ(runs[0].end, 100);
    EXPECT_EQ(runs[1].end, 200);
  }
  const HeadPlan windowed({{starts}, 3, 50, 0, 0, 0, {}, {}});  // keys 250 to 299 of the sequence, 150 to 199 of rank 2
  std::vector<char> needed(4);
  windowed.find_ranks(std::vector<float>(4), needed);
  EXPECT_EQ(needed, (std::vector<char>{0, 0, 1, 0}));
  const auto runs = windowed.find_tiles(0, needed, [](Index) { return std::span<const float>(); }, {});
  ASSERT_EQ(runs.size(), 1);
  EXPECT_EQ(runs[0].begin, 128);
  EXPECT_EQ(runs[0].end, 200);
}

TEST(ContextPlan, RowsAndKeysThatAreNotFiniteNeedEveryKey) {
  Random random(3);
  Case x(random);
  x.starts = {0, 600, 1200};
  x.q = random.tensor<float>(1, 1, 1200, 8), x.k = random.tensor<float>(1, 1, 1200, 8);
  x.slope = 1, x.tolerance = 1e-6, x.left = Index(1) << 40, x.right = 0, x.center.resize(8);
  EXPECT_LE(needs_of(x, 1)[1].size(), 0U);
  x.q(0, 0, 600 + 300, 2) = std::numeric_limits<float>::quiet_NaN();
  ASSERT_EQ(needs_of(x, 1)[1].size(), 1U);
  EXPECT_EQ(needs_of(x, 1)[1][0].end, 600);
  x.q(0, 0, 600 + 300, 2) = 0;
  x.k(0, 0, 70, 2) = std::numeric_limits<float>::infinity();
  ASSERT_EQ(needs_of(x, 1)[1].size(), 1U);
  EXPECT_EQ(needs_of(x, 1)[1][0].begin, 64);
  EXPECT_EQ(needs_of(x, 1)[1][0].end, 128);
}

}  // namespace
