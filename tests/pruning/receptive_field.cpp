// The receptive field, against sums over the worst logits.
#include <alibi/pruning.hpp>

#include "common.hpp"

namespace {

using test::Index;

constexpr Index kEverything = std::numeric_limits<Index>::max();
const std::vector<double> kSlopes = {8, 2, 1, 0.5, 0.25, 1. / 16, 1. / 64, 1. / 256, 0.003};
const std::vector<double> kScoreBounds = {0, 1e-3, 0.5, 1, 5, 20, 100};
const std::vector<double> kTolerances = {0x1p-53, 0x1p-24, 1e-5, 1e-3, 1e-2, 0.3, 0.5, 0.9, 0.999};

// The share of the softmax mass of the keys at distance >= reach, beyond along an endless sequence. Their logits are
// +score_bound and those of all closer keys are -score_bound, which is the worst case. Unit of the sums: e^score_bound.
long double mass_beyond(double slope, double score_bound, Index reach) {
  constexpr long double kLast = 1e-30L;
  long double within = 0, beyond = 0;
  for (Index distance = 0;; distance++) {
    const long double weight = std::exp(-(long double)slope * (long double)distance);
    if (distance < reach) {
      within += std::exp(-2 * (long double)score_bound) * weight;
    } else {
      beyond += weight;
      if (weight < kLast * beyond * (1 - std::exp(-(long double)slope))) break;
    }
  }
  return beyond / (within + beyond);
}

TEST(ReceptiveField, MassBeyondItIsWithinTheTolerance) {
  double worst = 0;
  for (const double slope : kSlopes)
    for (const double score_bound : kScoreBounds)
      for (const double tolerance : kTolerances) {
        const Index reach = alibi::receptive_field(slope, score_bound, tolerance);
        const double share = double(mass_beyond(slope, score_bound, reach));
        EXPECT_LE(share, tolerance * (1 + 1e-12))
            << "slope " << slope << ", score bound " << score_bound << ", tolerance " << tolerance << ": " << reach;
        EXPECT_GE(reach, 1) << "a query sees its own key";
        worst = std::max(worst, share / tolerance);
      }
  EXPECT_GT(worst, 0.9) << "the bound is not tight";
}

// The result is the smallest distance with e^{2 B - m w} / (1 - e^{-m}) <= ε, the bound of the header, up to rounding.
TEST(ReceptiveField, IsTheSmallestProvenDistance) {
  for (const double slope : kSlopes)
    for (const double score_bound : kScoreBounds)
      for (const double tolerance : kTolerances) {
        const long double nats = 2 * (long double)score_bound - std::log((long double)tolerance) -
                                 std::log(-std::expm1(-(long double)slope));
        const long double exact = std::max(nats / (long double)slope, 1.L);
        const auto reach = (long double)alibi::receptive_field(slope, score_bound, tolerance);
        EXPECT_GE(reach, exact) << "slope " << slope << ", score bound " << score_bound << ", tolerance " << tolerance;
        EXPECT_LE(reach, exact * (1 + 1e-12L) + 1)
            << "slope " << slope << ", score bound " << score_bound << ", tolerance " << tolerance;
      }
}

TEST(ReceptiveField, WithoutASlopeOrATolerance) {
  for (const double slope : {0., -0., -1e-300, -0.5, -1e300})
    for (const double tolerance : {0., 1e-3}) EXPECT_EQ(alibi::receptive_field(slope, 1, tolerance), kEverything);
  for (const double slope : {1e-300, 0.5, 1e300}) EXPECT_EQ(alibi::receptive_field(slope, 1, 0), kEverything);
}

TEST(ReceptiveField, OfExtremeSlopes) {
  for (const double slope : {1e300, 1e100, 1e6}) EXPECT_EQ(alibi::receptive_field(slope, 1, 0x1p-24), 1);
  for (const double slope : {std::numeric_limits<double>::denorm_min(), 1e-300, 1e-20, 1e-18})
    EXPECT_EQ(alibi::receptive_field(slope, 1, 0x1p-24), kEverything) << slope;
  // (2 B + ln 1/ε + ln 1/m) / m = (2 + 16.6355… + 20.7232…) / m
  EXPECT_NEAR(double(alibi::receptive_field(1e-9, 1, 0x1p-24)), 39.3587981703851e9, 2);
  EXPECT_EQ(alibi::receptive_field(0.5, 1e300, 0x1p-24), kEverything);
  const Index reach = alibi::receptive_field(0.5, 1e6, 0x1p-24);
  EXPECT_GE(reach, 4'000'036);  // 2 (2e6 + 16.6355… + 0.9328…)
  EXPECT_LE(reach, 4'000'037);
  EXPECT_GE(alibi::receptive_field(1, 0, 1e-300), 690);
  EXPECT_LE(alibi::receptive_field(1, 0, 1e-300), 692);
}

TEST(ReceptiveField, IsMonotonic) {
  for (const double slope : kSlopes)
    for (const double score_bound : kScoreBounds)
      for (const double tolerance : kTolerances) {
        const Index reach = alibi::receptive_field(slope, score_bound, tolerance);
        EXPECT_LE(alibi::receptive_field(slope * 1.01, score_bound, tolerance), reach);
        EXPECT_GE(alibi::receptive_field(slope, score_bound + 0.01, tolerance), reach);
        EXPECT_LE(alibi::receptive_field(slope, score_bound, tolerance + 0.01 * (1 - tolerance)), reach);
      }
}

std::string thrown(double slope, double score_bound, double tolerance) {
  try {
    alibi::receptive_field(slope, score_bound, tolerance);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

TEST(ReceptiveField, Errors) {
  const double nan = std::nan("");
  EXPECT_EQ(thrown(0.5, 1, 1), "alibi: tolerance is 1; expected at least 0 and below 1");
  EXPECT_EQ(thrown(0.5, 1, nan), "alibi: tolerance is nan; expected at least 0 and below 1");
  EXPECT_EQ(thrown(0.5, 1, -0.1), "alibi: tolerance is -0.1; expected at least 0 and below 1");
  EXPECT_EQ(thrown(0.5, -1, 0.1), "alibi: score_bound is -1; expected a finite number, at least 0");
  EXPECT_EQ(thrown(0.5, nan, 0.1), "alibi: score_bound is nan; expected a finite number, at least 0");
  EXPECT_EQ(thrown(0.5, test::kInfinity, 0.1), "alibi: score_bound is inf; expected a finite number, at least 0");
  EXPECT_EQ(thrown(nan, 1, 0.1), "alibi: slope is nan; expected a finite number");
  EXPECT_EQ(thrown(-test::kInfinity, 1, 0.1), "alibi: slope is -inf; expected a finite number");
}

}  // namespace
