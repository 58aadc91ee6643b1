// Buckets of relative positions, as T5 shares a learned bias among them (Raffel et al., arXiv 1910.10683, section 2.1,
// and the authors' code).
//
// Of n buckets for one direction the first n / 2 hold one distance each. The others grow with the logarithm of the
// distance up to max_distance, and the last one holds all that is farther:
//
//   bucket(x) = n/2 + floor(log(x / (n/2)) / log(max_distance / (n/2)) · n/2),   at most n - 1
//
// A causal query has n = buckets and looks back only. A bidirectional one has n = buckets / 2 for each direction, those
// of keys behind it after those of keys before it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "alibi/error.hpp"
#include "alibi/kernel/isa.hpp"

namespace alibi::inline ALIBI_ISA {

struct T5Buckets {
  Index buckets = 32;        ///< in all; even, and a multiple of 4 if bidirectional
  Index max_distance = 128;  ///< from here on all share the last bucket
  bool bidirectional = false;
};

/// The bucket, 0 … buckets - 1, of a key at `relative` = key position - query position. A causal query gives keys
/// behind it the bucket of its own position. Throws std::invalid_argument for buckets that cannot be divided so, and
/// for a max_distance that is not beyond the distances with buckets of their own.
inline Index t5_bucket(Index relative, const T5Buckets& config = {}) {
  const Index parts = config.bidirectional ? 4 : 2;
  detail::require(config.buckets >= parts && config.buckets % parts == 0, "buckets is ", config.buckets,
                  "; expected a positive multiple of ", parts);
  const Index n = config.bidirectional ? config.buckets / 2 : config.buckets, exact = n / 2;
  detail::require(config.max_distance > exact, "max_distance is ", config.max_distance, "; expected more than ", exact,
                  ", the distances with a bucket of their own");
  const Index start = config.bidirectional && relative > 0 ? n : 0;
  const Index distance = config.bidirectional ? std::abs(relative) : std::max<Index>(-relative, 0);
  if (distance < exact) return start + distance;
  const double octaves =
      std::log(double(distance) / double(exact)) / std::log(double(config.max_distance) / double(exact));
  return start + std::min(exact + Index(octaves * double(n - exact)), n - 1);
}

}  // namespace alibi::inline ALIBI_ISA
