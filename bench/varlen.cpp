// Times sequences of different lengths, varlen and padded, and compares with one call for each sequence. README.md in
// this folder defines every unit.
#include <Eigen/Core>
#include <algorithm>
#include <alibi/attention.hpp>
#include <alibi/mask.hpp>
#include <alibi/varlen.hpp>
#include <cmath>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "common.hpp"

namespace {

using bench::Index;
using bench::RowMatrix;
using bench::Vector;

constexpr Index kSequences = 64, kLongest = 2000, kHeads = 8, kHeadDim = 64;

/// From 1 to 2,000, including both; the same in every run.
std::vector<Index> lengths() {
  bench::Random random(5);
  std::vector<Index> result(kSequences);
  for (Index& length : result) length = 1 + random.below(kLongest);
  result[kSequences / 3] = 1;
  result[kSequences / 2] = kLongest;
  return result;
}

/// Causal work of one sequence, in GFLOP.
double work(Index length) { return 4e-9 * kHeadDim * kHeads * double(length) * double(length + 1) / 2; }

/// [sequences, heads, kLongest, head_dim], or [1, heads, all tokens, head_dim]. Tokens are contiguous in memory.
auto view(RowMatrix<float>& x, Index sequences) {
  constexpr Index d = kHeadDim, token = kHeads * d;
  const Index tokens = x.rows() / sequences;
  return alibi::view(x.data(), {sequences, kHeads, tokens, d}, {tokens * token, d, token, 1});
}

/// One of the sequences: `length` tokens from row `first` on.
auto sequence(RowMatrix<float>& x, Index first, Index length) {
  auto one = view(x, 1);
  one.data += first * one.token_stride;
  one.tokens = length;
  return one;
}

/// The tokens of all sequences, contiguous. Sequence s begins at row begins[s].
struct Arrays {
  std::vector<Index> begins;
  RowMatrix<float> q, k, v, output;  // [tokens, heads x head_dim]
  Vector<float> slopes = alibi::slopes<float>(kHeads);

  Arrays(std::vector<Index> begins_of, Index tokens)
      : begins(std::move(begins_of)), output(RowMatrix<float>::Zero(tokens, kHeads * kHeadDim)) {
    bench::Random random(2);
    q = random.matrix<float>(tokens, kHeads * kHeadDim);
    k = random.matrix<float>(tokens, kHeads * kHeadDim);
    v = random.matrix<float>(tokens, kHeads * kHeadDim);
  }
};

/// Checks every eighth sequence, the shortest and the longest.
void check(const std::string& name, Arrays& x) {
  const std::vector<Index> length = lengths();
  for (std::size_t s = 0; s < length.size(); s++) {
    if (s % 8 != 0 && length[s] != 1 && length[s] != kLongest) continue;
    const auto of = [&](RowMatrix<float>& all) { return sequence(all, x.begins[s], length[s]); };
    bench::check<float>(name + ", sequence " + std::to_string(s), of(x.q), of(x.k), of(x.v), of(x.output), x.slopes);
  }
}

/// Options with which every key is read.
alibi::Options dense(alibi::Workspace& workspace) { return {.tolerance = 0, .workspace = &workspace}; }

/// GFLOP/s without padding and with sequences of equal length. The length is the mean length of the batch, weighted by
/// work. The number of sequences gives a tenth of the batch's work.
double free_rate() {
  double weighted = 0, sum = 0;
  for (const Index length : lengths()) {
    weighted += work(length) * double(length);
    sum += work(length);
  }
  const auto length = Index(std::lround(weighted / sum));
  const auto count = Index(std::lround(0.1 * sum / work(length)));
  Arrays x({}, count * length);
  alibi::Workspace workspace;
  const double seconds = bench::median(3, [&] {
    alibi::attention_into(view(x.output, count), view(x.q, count), view(x.k, count), view(x.v, count), x.slopes,
                          dense(workspace));
  });
  return double(count) * work(length) / seconds;
}

/// Times `call(x, workspace)`. The rate without padding is measured right before and after it, so that both
/// measurements meet the machine in the same state.
template <class Call>
void add(const std::string& method, const std::function<Arrays()>& arrays, const Call& call) {
  const std::string name = method + bench::field("sequences", kSequences) + bench::field("heads", kHeads) +
                           bench::field("head_dim", kHeadDim);
  const auto body = [=](benchmark::State& state) {
    Arrays x = arrays();
    alibi::Workspace workspace;
    double all = 0;
    for (const Index length : lengths()) all += work(length);
    const double before = free_rate();
    bench::time(state, name, [&] { call(x, workspace); }, [&] { check(name, x); }, true);
    const double rate = (before + free_rate()) / 2;
    state.counters["GFLOP/s"] = bench::per_second(all);
    state.counters["of_free"] = bench::per_second(all / rate);
  };
  bench::add(name, body, 5);
}

/// The cumulative lengths, n + 1 ascending offsets of n adjacent sequences.
std::vector<Index> cu_seqlens() {
  std::vector<Index> result = {0};
  for (const Index length : lengths()) result.push_back(result.back() + length);
  return result;
}

Arrays varlen_arrays() { return {cu_seqlens(), cu_seqlens().back()}; }

/// The token range of every sequence in its row of kLongest tokens, padded on the left or on the right.
std::vector<alibi::KeyRange> ranges(bool left) {
  std::vector<alibi::KeyRange> result;
  for (const Index length : lengths())
    left ? result.push_back({kLongest - length, kLongest}) : result.push_back({0, length});
  return result;
}

void add_padded(const char* method, bool left) {
  const auto arrays = [left] {
    std::vector<Index> begins;
    for (const auto& range : ranges(left)) begins.push_back(Index(begins.size()) * kLongest + range.begin);
    return Arrays(begins, kSequences * kLongest);
  };
  add(method, arrays, [keys = ranges(left)](Arrays& x, alibi::Workspace& workspace) {
    alibi::Options options = dense(workspace);
    options.keys = keys;
    alibi::attention_into(view(x.output, kSequences), view(x.q, kSequences), view(x.k, kSequences),
                          view(x.v, kSequences), x.slopes, options);
  });
}

/// Sequences of one token, as a batch of classifications or a router makes them. Memory limits their speed: `GB/s`
/// counts q, k, v and the output once.
void add_one_token() {
  constexpr Index kTokens = 200'000;
  const std::string name = "one_token" + bench::field("sequences", kTokens) + bench::field("heads", kHeads) +
                           bench::field("head_dim", kHeadDim);
  const auto body = [=](benchmark::State& state) {
    std::vector<Index> cu_seqlens(kTokens + 1);
    std::iota(cu_seqlens.begin(), cu_seqlens.end(), Index(0));
    Arrays x(cu_seqlens, kTokens);
    alibi::Workspace workspace;
    const auto call = [&] {
      alibi::attention_varlen_into(view(x.output, 1), view(x.q, 1), view(x.k, 1), view(x.v, 1), x.slopes,
                                   {.cu_seqlens_q = cu_seqlens}, {.workspace = &workspace});
    };
    const auto check = [&] {
      for (Index s = 0; s < kTokens; s += kTokens / 100) {
        const auto of = [&](RowMatrix<float>& all) { return sequence(all, s, 1); };
        bench::check<float>(name, of(x.q), of(x.k), of(x.v), of(x.output), x.slopes);
      }
    };
    bench::time(state, name, call, check);
    state.counters["GB/s"] = bench::per_second(4e-9 * double(sizeof(float) * kTokens * kHeads * kHeadDim));
  };
  bench::add(name, body, 5);
}

}  // namespace

int main(int argc, char** argv) {
  add("varlen", varlen_arrays, [cu_seqlens = cu_seqlens()](Arrays& x, alibi::Workspace& workspace) {
    alibi::attention_varlen_into(view(x.output, 1), view(x.q, 1), view(x.k, 1), view(x.v, 1), x.slopes,
                                 {.cu_seqlens_q = cu_seqlens}, dense(workspace));
  });
  add("one_by_one", varlen_arrays, [length = lengths()](Arrays& x, alibi::Workspace& workspace) {
    for (std::size_t s = 0; s < length.size(); s++) {
      const auto of = [&](RowMatrix<float>& all) { return sequence(all, x.begins[s], length[s]); };
      alibi::attention_into(of(x.output), of(x.q), of(x.k), of(x.v), x.slopes, dense(workspace));
    }
  });
  add_padded("padded_left", true);
  add_padded("padded_right", false);
  add_one_token();
  return bench::main(argc, argv, {{"of_single", "varlen/", "one_by_one/"}});
}
