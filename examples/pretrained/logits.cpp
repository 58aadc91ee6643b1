#include "logits.hpp"

#include <algorithm>
#include <cstddef>
#include <numeric>

#include "batch.hpp"

namespace pretrained {

void write_logits(Session& session, std::span<const std::vector<int>> sequences, const std::filesystem::path& out,
                  Index chunk_rows) {
  check_sequences(sequences, session.configuration());
  const Batch batch = pad_left(sequences);
  const Index vocabulary = session.vocabulary();
  TensorWriter writer(out, "logits", {batch.size, batch.tokens, vocabulary});
  const Index most = logit_rows(session);
  std::vector<float> logits;
  std::vector<Index> rows;
  // Padding is not written: what is left out of a file reads as 0.
  const auto write_chunk = [&](Index first, const Chunk& chunk) {
    for (Index b = 0; b < batch.size; b++) {
      const auto [begin, end] = chunk.real[std::size_t(b)];
      for (Index t = begin; t < end; t += most) {
        rows.resize(std::size_t(std::min(most, end - t)));
        std::iota(rows.begin(), rows.end(), b * chunk.tokens + t);
        logits.resize(rows.size() * std::size_t(vocabulary));
        session.logits(rows, logits);
        writer.write((b * batch.tokens + first + t) * vocabulary, logits);
      }
    }
  };
  session.clear();
  read_in_chunks(session, batch, write_chunk, chunk_rows);
  writer.finish();
}

}  // namespace pretrained
