// The bytes that a rank receives in attention over a sequence on many ranks, by simulation (simulation.hpp), for random
// q and k of variance 1. Usage: bytes [most-ranks] [tokens-of-a-rank] [table]
//
// Prints for 2, 4, … ranks the keys that a rank fetches, summed over the heads, as mean and largest of the ranks; the
// bytes of keys and values and of all that ranks tell each other; and those of ring attention. Writes the same to
// `table` for bytes.gnuplot.
#include <cstdio>
#include <cstdlib>

#include "simulation.hpp"

int main(int argc, char** argv) {
  using bench::Index;
  const Index most = argc > 1 ? std::atol(argv[1]) : 128, tokens = argc > 2 ? std::atol(argv[2]) : 8192;
  std::FILE* const table = argc > 3 ? std::fopen(argv[3], "w") : nullptr;
  const auto piece_of = [=](bench::Array array, Index rank) {
    return bench::Piece(array, rank, bench::kHeads, tokens, bench::kDim);
  };
  bench::print_head("ranks");
  if (table) std::fprintf(table, "# ranks tokens keys_mean keys_most bytes_most ring_bytes\n");
  for (Index ranks = 2; ranks <= most; ranks *= 2) {
    const bench::Simulation x = bench::simulate(piece_of, ranks, tokens);
    bench::print_row(ranks, ranks * tokens, x);
    if (table)
      std::fprintf(table, "%td %td %.0f %.0f %.0f %.0f\n", ranks, ranks * tokens, x.mean_keys, x.most_keys, x.bytes,
                   x.ring);
  }
  if (table) std::fclose(table);
}
