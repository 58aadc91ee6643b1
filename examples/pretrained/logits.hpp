// The logits of sequences, as a file.
#pragma once

#include <filesystem>
#include <span>
#include <vector>

#include "batch.hpp"
#include "model.hpp"

namespace pretrained {

/// Writes `logits` [batch, tokens, vocabulary] in float32, sequences padded on the left; those of padding are 0. The
/// session's batch is that of the sequences, its capacity their longest. `chunk_rows` are calculated at once.
void write_logits(Session& session, std::span<const std::vector<int>> sequences, const std::filesystem::path& out,
                  Index chunk_rows = kChunkRows);

}  // namespace pretrained
