// The bytes that a rank receives in attention over a sequence on many ranks, by simulation (simulation.hpp), for q and
// k of a trained checkpoint. Usage: checkpoint MODEL FILE.u16 [ranks] [tokens-of-a-rank]
//
// The model has 8 heads of 64 and the authors' slopes. It reads as many ids of the file as fill whole pieces, at most
// one for each rank, as one sequence. If there are fewer pieces than ranks, ranks repeat them in order. Prints a row
// for each layer. In memory: q and k of all layers.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <thread>
#include <vector>

#include "batch.hpp"
#include "model.hpp"
#include "simulation.hpp"
#include "text_file.hpp"

namespace {

using bench::Array, bench::Index, bench::kDim, bench::kHeads;

/// q and k of one layer, [heads, tokens, head_dim].
struct LayerArrays {
  std::vector<float> q, k;
};

std::vector<LayerArrays> read_layers(const pretrained::Model& model, std::vector<int> ids) {
  const auto tokens = Index(ids.size()), size = kHeads * tokens * kDim;
  std::vector<LayerArrays> layers(std::size_t(model.configuration().layers));
  for (LayerArrays& layer : layers) {
    layer.q.resize(std::size_t(size));
    layer.k.resize(std::size_t(size));
  }
  Index first = 0;  // token of the chunk
  const auto keep = [&first, tokens](const alibi::View<const float>& x, std::vector<float>& to) {
    for (Index h = 0; h < kHeads; h++)
      for (Index i = 0; i < x.tokens; i++)
        std::copy_n(x.data + h * x.head_stride + i * x.token_stride, kDim,
                    &to[std::size_t((h * tokens + first + i) * kDim)]);
  };
  const pretrained::Threads threads(int(std::max(1U, std::thread::hardware_concurrency())));
  const auto session = pretrained::new_session(
      model, threads, {.capacity = tokens, .observe = [&](Index layer, const auto& q, const auto& k) {
                         keep(q, layers[std::size_t(layer)].q);
                         keep(k, layers[std::size_t(layer)].k);
                       }});
  const pretrained::Batch batch{.size = 1, .tokens = tokens, .ids = std::move(ids), .real = {{0, tokens}}};
  pretrained::read_in_chunks(*session, batch, [&](Index start, const auto& chunk) { first = start + chunk.tokens; });
  return layers;
}

void run(int argc, char** argv) {
  if (argc < 3) throw std::invalid_argument("usage: checkpoint MODEL FILE.u16 [ranks] [tokens-of-a-rank]");
  const Index ranks = argc > 3 ? std::atol(argv[3]) : 64, tokens = argc > 4 ? std::atol(argv[4]) : 8192;
  const pretrained::Model model(argv[1], pretrained::Dtype::float32);
  const pretrained::Configuration& c = model.configuration();
  if (c.heads != kHeads || c.kv_heads != kHeads || c.head_dim() != kDim)
    throw std::invalid_argument("the model has heads of another number or size; expected 8 of 64");
  const Eigen::VectorXf slopes = alibi::slopes(kHeads);
  if (!std::equal(slopes.begin(), slopes.end(), c.slopes.begin(), c.slopes.end()) || std::abs(c.scale - 0.125) > 1e-6)
    throw std::invalid_argument("the model has other slopes or another scale; expected those of BLOOM");
  std::vector<int> ids = pretrained::read_ids(argv[2]);
  const Index pieces = std::min(ranks, Index(ids.size()) / tokens);
  if (pieces < 1) throw std::invalid_argument("the file has fewer ids than one piece");
  ids.resize(std::size_t(pieces * tokens));
  std::printf("%td tokens of text on %td ranks%s\n", pieces * tokens, ranks, pieces < ranks ? ", repeated" : "");
  const std::vector<LayerArrays> layers = read_layers(model, ids);
  bench::print_head("layer");
  for (std::size_t layer = 0; layer < layers.size(); layer++) {
    const auto piece_of = [&](Array array, Index rank) {
      const std::vector<float>& from = array == Array::q ? layers[layer].q : layers[layer].k;
      bench::Piece piece(kHeads, tokens, kDim);
      for (Index h = 0; h < kHeads; h++)
        std::copy_n(&from[std::size_t((h * pieces + rank % pieces) * tokens * kDim)], tokens * kDim,
                    &piece.data[std::size_t(h * tokens * kDim)]);
      return piece;
    };
    bench::print_row(Index(layer), ranks * tokens, bench::simulate(piece_of, ranks, tokens));
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
