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

/// Rows whose logits are held at once: about 16 MiB of them, but enough rows for fast products with a large vocabulary.
inline Index logit_rows(const Session& session) {
  return std::clamp<Index>((Index(1) << 22) / session.vocabulary(), 128, kChunkRows);
}

/// The length of a chunk from `first` on: as many tokens as have up to `rows` real ones in all sequences together. Its
/// places, padding included, are limited too, because attention gives each of them memory.
inline Index chunk_length(const Batch& batch, Index first, Index rows) {
  const Index most = std::min(batch.tokens - first, std::max<Index>(1, 8 * rows / batch.size));
  Index length = 0, real = 0;
  while (length < most) {
    for (const KeyRange& range : batch.real) real += first + length >= range.begin && first + length < range.end;
    if (real > rows && length > 0) break;
    length++;
  }
  return length;
}

/// Lets a session read a batch in chunks, and calls each(first, chunk) after each of them; `first` is its first token.
template <class Each>
void read_in_chunks(Session& session, const Batch& batch, const Each& each, Index rows = kChunkRows) {
  std::vector<int> ids;
  std::vector<KeyRange> real;
  for (Index first = 0, tokens = 0; first < batch.tokens; first += tokens) {
    tokens = chunk_length(batch, first, rows);
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
