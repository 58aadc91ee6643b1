// The inputs of the benchmarks of several ranks: random q, k and v of variance 1, made piece by piece, so that each
// rank and the simulation of many ranks have the same numbers without holding the whole sequence.
#pragma once

#include <alibi/view.hpp>
#include <cstddef>
#include <vector>

#include "../inputs.hpp"

namespace bench {

enum class Array : std::uint8_t { q, k, v };

/// A piece of an array, [1, heads, tokens, head_dim].
struct Piece {
  Index heads, tokens, head_dim;
  std::vector<float> data;

  Piece(Index head_count, Index token_count, Index dims)
      : heads(head_count), tokens(token_count), head_dim(dims), data(std::size_t(heads * tokens * head_dim)) {}
  Piece(Array array, Index rank, Index head_count, Index token_count, Index dims)
      : Piece(head_count, token_count, dims) {
    Random random(std::uint64_t(rank) * 3 + std::uint64_t(array) + 1);
    for (float& x : data) x = float(random.normal());
  }
  alibi::View<const float> view() const {
    return {data.data(), 1, heads, tokens, head_dim, heads * tokens * head_dim, tokens * head_dim, head_dim};
  }
};

}  // namespace bench
