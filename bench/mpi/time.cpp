// Time of attention over a sequence on several ranks against the same number of threads of one process, and the bytes
// that a rank receives. Usage: mpirun -n <ranks> time [tokens-of-a-rank] [repetitions] [backward]
//
// Eight heads with the authors' slopes, head_dim 64, float, causal, random q, k and v of variance 1; one thread a rank.
// Rank 0 also attends to the whole sequence, with as many threads as there are ranks, while the others sleep. Both take
// turns. Prints the medians, the slowest rank of each repetition, and the largest difference of the outputs. With
// `backward` the gradients are timed instead.
#include <algorithm>
#include <alibi/mpi.hpp>
#include <alibi/slopes.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "inputs.hpp"

namespace {

using alibi::Index;
constexpr Index kHeads = 8, kDim = 64;

/// Waits for all ranks without keeping a core busy.
void sleeping_barrier() {
  MPI_Request request;
  MPI_Ibarrier(MPI_COMM_WORLD, &request);
  for (int done = 0; MPI_Test(&request, &done, MPI_STATUS_IGNORE), !done;)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

double median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return x[x.size() / 2];
}

alibi::View<float> view_of(std::vector<float>& x, Index tokens) {
  return {x.data(), 1, kHeads, tokens, kDim, kHeads * tokens * kDim, tokens * kDim, kDim};
}

/// The arrays of one call: of a rank, or of the whole sequence.
struct Arrays {
  Index tokens;
  std::vector<float> q, k, v, grad_output, output, lse, grad_q, grad_k, grad_v;

  Arrays(Index first_rank, Index ranks, Index tokens_of_rank) : tokens(ranks * tokens_of_rank) {
    for (auto* x : {&q, &k, &v, &output, &grad_q, &grad_k, &grad_v}) x->resize(std::size_t(kHeads * tokens * kDim));
    lse.resize(std::size_t(kHeads * tokens));
    for (Index r = 0; r < ranks; r++)
      for (const auto& [array, to] : {std::pair(bench::Array::q, &q), {bench::Array::k, &k}, {bench::Array::v, &v}}) {
        const bench::Piece piece(array, first_rank + r, kHeads, tokens_of_rank, kDim);
        for (Index h = 0; h < kHeads; h++)
          std::copy_n(piece.data.data() + h * tokens_of_rank * kDim, tokens_of_rank * kDim,
                      to->data() + (h * tokens + r * tokens_of_rank) * kDim);
      }
    grad_output = v;
  }
  alibi::View<float> view(std::vector<float>& x) const { return view_of(x, tokens); }
};

}  // namespace

int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  int rank = 0, ranks = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  const Index tokens = argc > 1 ? std::atol(argv[1]) : 65536;
  const int repetitions = argc > 2 ? std::atoi(argv[2]) : 5;
  const bool backward = argc > 3 && std::strcmp(argv[3], "backward") == 0;
  {
    const Eigen::VectorXf slopes = alibi::slopes(kHeads);
    Eigen::VectorXf grad_slopes(kHeads);
    alibi::ContextParallel parallel(MPI_COMM_WORLD, {.tokens = tokens});
    Arrays mine(rank, 1, tokens);
    std::vector<Arrays> whole;
    if (rank == 0) whole.emplace_back(0, ranks, tokens);
    const alibi::Executor threads(ranks, [](Index count, alibi::Task task) {
      std::vector<std::jthread> others;
      for (Index i = 1; i < count; i++) others.emplace_back([=] { task(i); });
      task(0);
    });
    const auto forward_of_ranks = [&] {
      auto output = mine.view(mine.output);
      parallel.attention_with_lse_into(output, mine.lse, mine.view(mine.q), mine.view(mine.k), mine.view(mine.v),
                                       slopes);
    };
    const auto forward_of_one = [&] {
      auto output = whole[0].view(whole[0].output);
      alibi::attention_with_lse_into(output, whole[0].lse, whole[0].view(whole[0].q), whole[0].view(whole[0].k),
                                     whole[0].view(whole[0].v), slopes, {.executor = threads});
    };
    const auto backward_of_ranks = [&] {
      parallel.attention_backward_into(
          {mine.view(mine.grad_q), mine.view(mine.grad_k), mine.view(mine.grad_v), grad_slopes},
          mine.view(mine.grad_output), mine.view(mine.q), mine.view(mine.k), mine.view(mine.v), slopes,
          {mine.view(mine.output), mine.lse});
    };
    const auto backward_of_one = [&] {
      Arrays& x = whole[0];
      alibi::attention_backward_into({x.view(x.grad_q), x.view(x.grad_k), x.view(x.grad_v), grad_slopes},
                                     x.view(x.grad_output), x.view(x.q), x.view(x.k), x.view(x.v), slopes,
                                     {x.view(x.output), x.lse}, {.executor = threads});
    };
    forward_of_ranks();
    if (rank == 0) forward_of_one();
    std::vector<double> of_ranks, of_one, waiting;
    for (int i = 0; i <= repetitions; i++) {  // the first one warms up
      sleeping_barrier();
      double start = MPI_Wtime();
      backward ? backward_of_ranks() : forward_of_ranks();
      double seconds = MPI_Wtime() - start, slowest = 0, waited = parallel.statistics().seconds_waiting, most = 0;
      MPI_Allreduce(&seconds, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
      MPI_Allreduce(&waited, &most, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
      start = MPI_Wtime();
      if (rank == 0) backward ? backward_of_one() : forward_of_one();
      seconds = MPI_Wtime() - start;
      sleeping_barrier();
      if (i == 0) continue;
      of_ranks.push_back(slowest), waiting.push_back(most), of_one.push_back(seconds);
    }
    // The pieces against the whole, one rank after another.
    const std::vector<float>&own = backward ? mine.grad_k : mine.output, none;
    const std::vector<float>& all = rank != 0 ? none : backward ? whole[0].grad_k : whole[0].output;
    double difference = 0;
    std::vector<float> piece(own.size());
    for (int r = 0; r < ranks; r++) {
      if (r == rank && r > 0) MPI_Send(own.data(), int(own.size()), MPI_FLOAT, 0, 0, MPI_COMM_WORLD);
      if (rank > 0) continue;
      if (r > 0)
        MPI_Recv(piece.data(), int(piece.size()), MPI_FLOAT, r, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
      else
        piece = own;
      for (Index h = 0; h < kHeads; h++)
        for (Index i = 0; i < tokens * kDim; i++)
          difference = std::max(difference, double(std::abs(piece[std::size_t(h * tokens * kDim + i)] -
                                                            all[std::size_t((h * ranks + r) * tokens * kDim + i)])));
    }
    std::vector<double> received(static_cast<std::size_t>(ranks));
    const double own_bytes = double(parallel.statistics().bytes_received);
    MPI_Gather(&own_bytes, 1, MPI_DOUBLE, received.data(), 1, MPI_DOUBLE, 0, MPI_COMM_WORLD);
    if (rank == 0) {
      const double ring = double((ranks - 1) * tokens * kHeads * 2 * kDim) * 4;
      std::printf("%s, %d ranks of %td tokens, %d repetitions\n", backward ? "backward" : "forward", ranks, tokens,
                  repetitions);
      std::printf("  %d ranks       %.4f s, of which a rank waits up to %.4f s\n", ranks, median(of_ranks),
                  median(waiting));
      std::printf("  %d threads     %.4f s; ranks / threads %.3f\n", ranks, median(of_one),
                  median(of_ranks) / median(of_one));
      const double most = *std::max_element(received.begin(), received.end());
      std::printf("  a rank receives up to %.2f MB; ring attention %.2f MB, %.1f times\n", 1e-6 * most, 1e-6 * ring,
                  ring / most);
      std::printf("  largest difference %.1e\n", difference);
    }
  }
  MPI_Finalize();
}
