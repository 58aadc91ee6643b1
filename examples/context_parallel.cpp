// A long sequence over several ranks of MPI, against one process. Usage: mpirun -n 4 context_parallel [tokens]
//
// Each rank holds a piece of the sequence (by default of 262,144 tokens, eight heads of 64) and gets its piece of the
// result. It fetches only those keys of the others that ALiBi's bias leaves within reach. Rank 0 then attends to the
// whole sequence alone, and compares.
//
// There is no model: q, k and v are noise of variance 1, made from the position, so that every rank can make any piece.
#include <alibi/alibi.hpp>
#include <alibi/mpi.hpp>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <thread>
#include <vector>

namespace {

using alibi::Index;

constexpr Index kHeads = 8, kHeadDim = 64, kWidth = kHeads * kHeadDim;

/// A piece of q, k, v or the output, [tokens, heads, head_dim].
class Piece {
 public:
  explicit Piece(Index tokens) : tokens_(tokens), data_(std::size_t(tokens * kWidth)) {}

  /// Tokens [begin, begin + tokens) of noise number `which`: uniform, of mean 0 and variance 1.
  static Piece noise(int which, Index begin, Index tokens) {
    Piece piece(tokens);
    std::uint64_t state = std::uint64_t(begin * kWidth * 3 + which);
    for (float& x : piece.data_) {
      std::uint64_t bits = (state += 3) * 0x9e3779b97f4a7c15;
      bits = (bits ^ (bits >> 32)) * 0xd6e8feb86659fd93;
      x = 3.4641016F * (float(bits >> 40) * 0x1p-24F - 0.5F);
    }
    return piece;
  }

  auto view() {
    return alibi::view(data_.data(), {1, kHeads, tokens_, kHeadDim}, {tokens_ * kWidth, kHeadDim, kWidth, 1});
  }
  std::vector<float>& data() { return data_; }

 private:
  Index tokens_;
  std::vector<float> data_;
};

/// Waits for all ranks without keeping a core busy, unlike MPI_Barrier().
void wait_for_all() {
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_Ibarrier(MPI_COMM_WORLD, &request);
  for (int done = 0; MPI_Test(&request, &done, MPI_STATUS_IGNORE), done == 0;)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
}

/// The largest difference of the pieces from the whole output, on rank 0. Each rank sends its piece in parts.
double compare(Piece& piece, std::vector<float>* whole, const alibi::ContextParallel& parallel) {
  constexpr Index kPart = Index(1) << 22;
  std::vector<float> part;
  double largest = 0;
  for (int r = 0; r < parallel.size(); r++) {
    const Index begin = parallel.start(r) * kWidth, end = parallel.start(r + 1) * kWidth;
    for (Index at = begin; at < end; at += kPart) {
      const auto count = std::size_t(std::min(kPart, end - at));
      if (r == parallel.rank())
        part.assign(piece.data().begin() + at - begin, piece.data().begin() + at - begin + Index(count));
      if (r == parallel.rank() && r > 0) MPI_Send(part.data(), int(count), MPI_FLOAT, 0, 0, MPI_COMM_WORLD);
      if (whole == nullptr) continue;
      part.resize(count);
      if (r > 0) MPI_Recv(part.data(), int(count), MPI_FLOAT, r, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
      for (std::size_t i = 0; i < count; i++)
        largest = std::max(largest, double(std::abs(part[i] - (*whole)[std::size_t(at) + i])));
    }
  }
  return largest;
}

void run(Index tokens) {
  int rank = 0, ranks = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  const Index begin = tokens * rank / ranks, mine = tokens * (rank + 1) / ranks - begin;
  const Eigen::VectorXf slopes = alibi::slopes(kHeads);

  // What a program needs: the tokens of this rank, and its own piece of everything.
  alibi::ContextParallel parallel(MPI_COMM_WORLD, {.tokens = mine});
  Piece q = Piece::noise(0, begin, mine), k = Piece::noise(1, begin, mine), v = Piece::noise(2, begin, mine),
        output(mine);
  wait_for_all();
  double start = MPI_Wtime();
  parallel.attention_into(output.view(), q.view(), k.view(), v.view(), slopes);
  const double seconds = MPI_Wtime() - start;

  const alibi::ContextStatistics& did = parallel.statistics();
  const double ring = double(tokens - mine) * double(2 * kWidth * Index(sizeof(float)));
  for (int r = 0; r < ranks; r++) {
    wait_for_all();
    if (r != rank) continue;
    std::printf("rank %d, tokens %td to %td: %.2f s, received %.1f MB (ring attention: %.0f MB), waited %.2f s\n", rank,
                begin, begin + mine - 1, seconds, 1e-6 * double(did.bytes_received), 1e-6 * ring, did.seconds_waiting);
    std::fflush(stdout);
  }
  wait_for_all();

  std::vector<float> whole;
  if (rank == 0) {
    Piece all_q = Piece::noise(0, 0, tokens), all_k = Piece::noise(1, 0, tokens), all_v = Piece::noise(2, 0, tokens),
          all(tokens);
    start = MPI_Wtime();
    alibi::attention_into(all.view(), all_q.view(), all_k.view(), all_v.view(), slopes);
    std::printf("one process, one thread: %.2f s\n", MPI_Wtime() - start);
    whole = std::move(all.data());
  }
  wait_for_all();
  const double difference = compare(output, rank == 0 ? &whole : nullptr, parallel);
  if (rank == 0) std::printf("largest difference: %.1e\n", difference);
}

}  // namespace

int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  try {
    run(argc > 1 ? std::atol(argv[1]) : 262144);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "context_parallel: %s\n", error.what());
    MPI_Abort(MPI_COMM_WORLD, 1);  // other ranks may wait for this one
  }
  MPI_Finalize();
}
