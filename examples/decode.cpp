// The cost of a token as the context grows, with and without pruning. Usage: decode [most-tokens] [picture.png]
//
// The loop is that of an inference engine: the key and value of the new token are appended to the cache, and its query
// attends to the whole cache. There are eight heads with the authors' slopes. At 1,024, 2,048, … tokens of context, 64
// tokens are generated one by one and timed. The tokens between are appended in bulk, as in a prompt, without
// attention.
//
// There is no trained model: keys and values are noise, and a query is noise plus the attention output of the previous
// token. The savings of pruning depend on the size of queries and keys; these have mean 0 and variance 1. Only
// attention is timed, on one thread.
//
// Every token attends twice: first to every key, then at the default tolerance. The second call therefore does not find
// its data in the processor's caches, as in a model, where other layers run between. Ctrl-C stops the program and draws
// the results so far.
#include <unistd.h>

#include <algorithm>
#include <alibi/alibi.hpp>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "decode_picture.hpp"

namespace {

using alibi::Index;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;  // [tokens, ·]
using Clock = std::chrono::steady_clock;

constexpr Index kHeads = 8, kHeadDim = 64, kWidth = kHeads * kHeadDim;
constexpr Index kShortest = 1024, kGenerated = 64, kChunk = 1024;
constexpr double kTileBytes = 64 * 2 * kHeadDim * sizeof(float);  // a tile of 64 keys and values of one head

volatile std::sig_atomic_t stopped = 0;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

template <class Call>
double timed(const Call& call) {
  const auto start = Clock::now();
  call();
  return seconds_since(start);
}

/// Replaces a model: q, k and v of `tokens` tokens, side by side, [tokens, 3 x heads x head_dim]. Uniform, of mean 0
/// and variance 1, with the same numbers in every run.
Matrix project(Index tokens) { return std::sqrt(3.0F) * Matrix::Random(tokens, 3 * kWidth); }

enum Part : std::uint8_t { kQuery, kKey, kValue };

/// A view of one of the three, [1, heads, tokens, head_dim].
auto part(const Matrix& projected, Part which) {
  const Index n = projected.rows(), row = projected.cols();
  return alibi::view(projected.data() + which * kWidth, {1, kHeads, n, kHeadDim}, {n * row, kHeadDim, row, 1});
}

/// A growing cache and the output of the last token.
class Generation {
 public:
  explicit Generation(Index capacity)
      : cache_({.batch = 1, .kv_heads = kHeads, .head_dim = kHeadDim, .capacity = capacity}) {}

  Index length() const { return cache_.length(); }

  void append_prompt(Index tokens) {
    const Matrix projected = project(tokens);
    cache_.append(part(projected, kKey), part(projected, kValue));
  }

  /// Generates one token and returns its cost.
  Cost step() {
    Matrix projected = project(1);
    projected.leftCols(kWidth) += output_;  // of the previous token
    cache_.append(part(projected, kKey), part(projected, kValue));
    Cost cost{.context = length()};
    cost.every_key = attend(projected, 0, every_key_);
    cost.pruned = attend(projected, std::nullopt, output_);
    for (Index d = 0; d < kWidth; d++)
      cost.difference = std::max(cost.difference, double(std::abs(output_(0, d) - every_key_(0, d))));
    return cost;
  }

 private:
  Reading attend(const Matrix& projected, std::optional<double> tolerance, Matrix& output) {
    const auto into = alibi::view(output.data(), {1, kHeads, 1, kHeadDim}, {kWidth, kHeadDim, kHeadDim, 1});
    std::vector<alibi::PruningStats> stats(kHeads);
    Reading reading{.seconds = timed([&] {
                      alibi::attention_into(into, part(projected, kQuery), cache_, slopes_,
                                            {.tolerance = tolerance, .pruning_stats = stats, .workspace = &workspace_});
                    })};
    for (const alibi::PruningStats& head : stats) reading.bytes.push_back(kTileBytes * double(head.tiles_computed));
    return reading;
  }

  alibi::KvCache<float> cache_;
  alibi::Workspace workspace_;
  Eigen::VectorXf slopes_ = alibi::slopes(kHeads);
  Matrix output_ = Matrix::Zero(1, kWidth), every_key_ = Matrix::Zero(1, kWidth);
};

/// A progress line on the terminal: the position, the cost, and the remaining time.
class Progress {
 public:
  explicit Progress(Index most) : most_(most) {}

  void appended(Index tokens, double seconds) {
    tokens_ += double(tokens);
    append_seconds_ += seconds;
  }
  void generated(const Cost& cost) {
    keys_ += double(cost.context);
    attend_seconds_ += cost.every_key.seconds + cost.pruned.seconds;
    last_ = cost;
  }

  void show(Index tokens) {
    if (!terminal_ || seconds_since(shown_) < 0.05) return;
    shown_ = Clock::now();
    std::fprintf(stderr, "\r%td of %td tokens; a token takes %.3f ms and reads %.2f MB; %.0f s left \033[K", tokens,
                 most_, 1e3 * last_.pruned.seconds, 1e-6 * last_.pruned.all_bytes(), seconds_left(tokens));
  }
  void clear() const {
    if (terminal_) std::fprintf(stderr, "\r\033[K");
  }

 private:
  /// The remaining tokens of a prompt are assumed to cost the average so far, and generated tokens to cost the average
  /// for each key of their context.
  double seconds_left(Index tokens) const {
    double left = double(most_ - tokens) * append_seconds_ / std::max(tokens_, 1.0);
    for (Index context = most_; context > tokens; context /= 2)
      left += double(kGenerated * context) * attend_seconds_ / std::max(keys_, 1.0);
    return left;
  }

  Index most_;
  bool terminal_ = isatty(STDERR_FILENO) == 1;
  double tokens_ = 0, append_seconds_ = 0, keys_ = 0, attend_seconds_ = 0;
  Cost last_;
  Clock::time_point shown_;
};

/// Appends a prompt up to the last kGenerated tokens of `context`, generates these one by one, and returns their costs.
/// Returns fewer if stopped.
std::vector<Cost> generate(Generation& generation, Index context, Progress& progress) {
  std::vector<Cost> costs;
  while (generation.length() < context && !stopped) {
    const Index prompt = std::min(context - kGenerated - generation.length(), kChunk);
    if (prompt > 0) {
      progress.appended(prompt, timed([&] { generation.append_prompt(prompt); }));
    } else {
      costs.push_back(generation.step());
      progress.generated(costs.back());
    }
    progress.show(generation.length());
  }
  progress.clear();
  return costs;
}

void print_header() {
  std::cout << "                  every key          default tolerance\n"
               "   context   ms/token  MB/token    ms/token  MB/token    times as fast   largest difference\n";
}
void print(const Cost& cost) {
  char line[120];
  std::snprintf(line, sizeof line, "%10td %10.3f %9.2f  %10.3f %9.3f %16.1f %20.1e\n", cost.context,
                1e3 * cost.every_key.seconds, 1e-6 * cost.every_key.all_bytes(), 1e3 * cost.pruned.seconds,
                1e-6 * cost.pruned.all_bytes(), cost.every_key.seconds / cost.pruned.seconds, cost.difference);
  std::cout << line << std::flush;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Index most = argc > 1 ? std::atol(argv[1]) : 65536;
    const std::string png = argc > 2 ? argv[2] : "decode.png";
    if (most < kShortest) throw std::invalid_argument("expected: decode [most-tokens, at least 1024] [picture.png]");
    std::signal(SIGINT, [](int) { stopped = 1; });

    Generation generation(most);
    Progress progress(most);
    std::vector<Cost> measured;
    print_header();
    for (Index context = kShortest; context <= most && !stopped; context *= 2) {
      const std::vector<Cost> costs = generate(generation, context, progress);
      if (stopped) break;
      measured.push_back(middle(costs));
      print(measured.back());
    }
    std::signal(SIGINT, SIG_DFL);
    std::cout << "medians of " << kGenerated << " tokens generated one by one; the others were appended in bulk\n";
    if (stopped) std::cout << "stopped at " << generation.length() << " of " << most << " tokens\n";
    if (measured.size() < 2) {
      std::cout << "nothing drawn: a line needs two lengths of context\n";
    } else {
      draw(measured, alibi::slopes(kHeads), png);
      std::cout << "drew " << png << '\n';
    }
  } catch (const std::exception& error) {
    std::cerr << "decode: " << error.what() << '\n';
    return 1;
  }
}
