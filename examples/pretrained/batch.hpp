// Sequences of different lengths as one array, padded on the left, and cut into chunks.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "model.hpp"

namespace pretrained {

struct Batch {
  Index size = 0, tokens = 0;       ///< sequences, and tokens of the longest
  std::vector<int> ids = {};        ///< [size, tokens]
  std::vector<KeyRange> real = {};  ///< [size], the places of its own tokens
};

/// Sequences that are not empty, each at the right end of its row.
inline Batch pad_left(std::span<const std::vector<int>> sequences) {
  Batch batch{.size = Index(sequences.size())};
  for (const auto& sequence : sequences) batch.tokens = std::max(batch.tokens, Index(sequence.size()));
  for (const auto& sequence : sequences) {
    const Index padding = batch.tokens - Index(sequence.size());
    batch.ids.insert(batch.ids.end(), std::size_t(padding), 0);
    batch.ids.insert(batch.ids.end(), sequence.begin(), sequence.end());
    batch.real.push_back({padding, batch.tokens});
  }
  return batch;
}

/// Rows that are calculated at once: enough for fast products; the memory of a prefill grows with them, not with the
/// prompt.
inline constexpr Index kChunkRows = 512;

/// Rows whose logits are held at once: about 16 MiB of them.
inline Index logit_rows(const Session& session) {
  return std::clamp<Index>((Index(1) << 22) / session.vocabulary(), 16, kChunkRows);
}

/// Lets a session read a batch in chunks, and calls each(first, chunk) after each of them; `first` is its first token.
template <class Each>
void read_in_chunks(Session& session, const Batch& batch, const Each& each, Index rows = kChunkRows) {
  const Index most = std::max<Index>(1, rows / batch.size);
  std::vector<int> ids;
  std::vector<KeyRange> real;
  for (Index first = 0; first < batch.tokens; first += most) {
    const Index tokens = std::min(most, batch.tokens - first);
    ids.clear();
    real.clear();
    for (Index b = 0; b < batch.size; b++) {
      const auto row = batch.ids.begin() + b * batch.tokens + first;
      ids.insert(ids.end(), row, row + tokens);
      const KeyRange of_row = batch.real[std::size_t(b)];
      real.push_back(
          {std::clamp<Index>(of_row.begin - first, 0, tokens), std::clamp<Index>(of_row.end - first, 0, tokens)});
    }
    const Chunk chunk{ids, tokens, real};
    session.read(chunk);
    each(first, chunk);
  }
}

}  // namespace pretrained
