// Buckets of relative positions that share a learned bias, as in T5 (Raffel et al., arXiv 1910.10683, section 2.1, and
// the authors' code).
//
// Of the n buckets for one direction, the first n / 2 hold one distance each. The width of the others grows with the
// logarithm of the distance up to max_distance. The last bucket holds all larger distances:
//
//   bucket(x) = n/2 + floor(log(x / (n/2)) / log(max_distance / (n/2)) · n/2),   at most n - 1
//
// A causal query has n = buckets and sees only keys before it. A bidirectional query has n = buckets / 2 for each
// direction: first the buckets of keys at or before it, then those of keys after it.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "alibi/error.hpp"
#include "alibi/kernel/simd/isa.hpp"

namespace alibi::inline ALIBI_ABI {

/// The configuration of the buckets.
struct T5Buckets {
  Index buckets = 32;          ///< the number of all buckets; even, and a multiple of 4 if bidirectional
  Index max_distance = 128;    ///< all distances from here on share the last bucket, in tokens
  bool bidirectional = false;  ///< whether keys after the query have buckets of their own
};

/// The bucket, 0 … buckets - 1, of a key at `relative` = key position - query position. For a causal query, keys after
/// it have the bucket of its own position. Throws std::invalid_argument for a number of buckets that is not a positive
/// multiple of 2 (of 4 if bidirectional), and for a max_distance that is not above the distances with buckets of their
/// own.
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

/// The distance p_i - j of the first entry of t5_table(): 0, or -max_distance if bidirectional.
inline Index t5_first_distance(const T5Buckets& config = {}) { return config.bidirectional ? -config.max_distance : 0; }

/// The number of entries of t5_table(), one for each distance. Larger distances share the entry at the end.
inline Index t5_entries(const T5Buckets& config = {}) { return config.max_distance + 1 - t5_first_distance(config); }

namespace detail {

/// A table [heads, columns] of zeros.
template <class T>
auto zero_table(Index heads, Index columns) {
  using Table = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  return Table(Table::Zero(heads, columns));
}

/// Calls f(entry, bucket) for every distance that has an entry.
template <class Body>
void for_each_entry(const T5Buckets& config, const Body& f) {
  for (Index entry = 0; entry < t5_entries(config); entry++)
    f(entry, t5_bucket(-(t5_first_distance(config) + entry), config));
}

}  // namespace detail

/// The weights of the buckets [heads, buckets], an Eigen matrix, as a table [heads, t5_entries()] for relative_bias():
///
///     const auto table = t5_table(weights, config);
///     attention(q, k, v, relative_bias(table, t5_first_distance(config)))
///
/// Throws as t5_bucket() does, and std::invalid_argument for weights with another number of columns.
template <class Weights>
auto t5_table(const Eigen::MatrixBase<Weights>& weights, const T5Buckets& config = {}) {
  t5_bucket(0, config);
  detail::require(weights.cols() == config.buckets, "weights has ", weights.cols(), " columns; expected ",
                  config.buckets, ", the buckets");
  auto table = detail::zero_table<typename Weights::Scalar>(weights.rows(), t5_entries(config));
  detail::for_each_entry(config, [&](Index entry, Index bucket) { table.col(entry) = weights.col(bucket); });
  return table;
}

/// The gradient of the weights, [heads, buckets], from the gradient of their table, [heads, t5_entries()]. Throws as
/// t5_bucket() does, and std::invalid_argument for a table with another number of columns.
template <class Table>
auto t5_weights_gradient(const Eigen::MatrixBase<Table>& grad_table, const T5Buckets& config = {}) {
  t5_bucket(0, config);
  detail::require(grad_table.cols() == t5_entries(config), "grad_table has ", grad_table.cols(), " columns; expected ",
                  t5_entries(config), ", the distances of the buckets");
  auto weights = detail::zero_table<typename Table::Scalar>(grad_table.rows(), config.buckets);
  detail::for_each_entry(config, [&](Index entry, Index bucket) { weights.col(bucket) += grad_table.col(entry); });
  return weights;
}

}  // namespace alibi::inline ALIBI_ABI
