// Continuous batching over one cache: requests that arrive and end at different times share its slots.
//
// The cache has a sequence for each slot. A request that has arrived takes a free slot. Every step is one call for all
// slots, whatever they are at: it appends the whole prompt of a request that has just begun, the last letter of one
// that goes on, and nothing for a free slot, which costs nothing. A request that has ended clears its slot.
//
// The program prints when each request ran. It checks the answers against those of each request alone in a cache.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <iostream>
#include <optional>
#include <stdexcept>

#include "toy_model.hpp"

namespace {

constexpr Index kSlots = 3, kCapacity = 600;

struct Request {
  Index arrives;  // the step
  std::string prompt;
  Index letters;  // how many the answer has
  std::string answer = {};
  Index slot = -1, begins = -1, ends = -1;  // steps

  /// What is appended in a step: the prompt, then the last letter.
  std::string input() const { return answer.empty() ? prompt : answer.substr(answer.size() - 1); }
};

alibi::KvCache<float> new_cache(Index batch) {
  return alibi::KvCache<float>(
      {.batch = batch, .kv_heads = ToyModel::kHeads, .head_dim = ToyModel::kHeadDim, .capacity = kCapacity});
}

class Engine {
 public:
  Engine(const ToyModel& model, Index slots) : model_(model), cache_(new_cache(slots)), running_(std::size_t(slots)) {}

  /// Runs all requests, which are in the order of their arrival.
  void run(std::vector<Request>& requests) {
    auto waiting = requests.begin();
    Index now = 0;
    do {
      for (Request*& slot : running_)
        if (!slot && waiting != requests.end() && waiting->arrives <= now) {
          slot = &*waiting++;
          slot->slot = &slot - running_.data();
          slot->begins = now;
        }
      step();
      most_bytes_ = std::max(most_bytes_, cache_.bytes());
      for (Request*& slot : running_)
        if (slot && Index(slot->answer.size()) == slot->letters) {
          slot->ends = now;
          cache_.clear(slot->slot);
          slot = nullptr;
        }
      now++;
    } while (waiting != requests.end() || std::ranges::any_of(running_, [](const Request* slot) { return slot; }));
  }
  std::size_t most_bytes() const { return most_bytes_; }

 private:
  /// Every running request gets its next letter.
  void step() {
    const Index slots = Index(running_.size());
    std::vector<Index> counts;  // the new tokens of each slot
    for (const Request* slot : running_) counts.push_back(slot ? Index(slot->input().size()) : 0);
    const Index tokens = std::ranges::max(counts);
    std::string input;  // [slots, tokens], padded on the right
    for (const Request* slot : running_) {
      std::string own = slot ? slot->input() : "";
      own.resize(std::size_t(tokens), 'a');
      input += own;
    }
    const Matrix projected = model_.project(input);
    const auto [q, k, v] = ToyModel::views(projected, slots);
    cache_.append(k, v, counts);
    Matrix attended(slots * tokens, ToyModel::kWidth);
    alibi::attention_into(ToyModel::view(attended, slots), q, cache_, model_.slopes(),
                          {.queries = counts, .workspace = &workspace_});
    for (Index b = 0; b < slots; b++) {
      Request* const slot = running_[std::size_t(b)];
      if (!slot) continue;
      const Index last = b * tokens + counts[std::size_t(b)] - 1;
      Index best = 0;
      model_.next(input[std::size_t(last)], attended.row(last)).maxCoeff(&best);
      slot->answer += char('a' + best);
    }
  }

  const ToyModel& model_;
  alibi::KvCache<float> cache_;
  alibi::Workspace workspace_;
  std::vector<Request*> running_;  // [slots], null: free
  std::size_t most_bytes_ = 0;
};

}  // namespace

int main() {
  try {
    const ToyModel model;
    std::vector<Request> requests;
    for (const auto& [arrives, prompt, letters] : {std::array<Index, 3>{0, 300, 40},
                                                   {0, 20, 12},
                                                   {3, 500, 30},
                                                   {4, 1, 25},
                                                   {10, 64, 8},
                                                   {10, 150, 20},
                                                   {60, 90, 10}})
      requests.push_back({arrives, ToyModel::prompt(prompt, unsigned(prompt)), letters});

    Engine engine(model, kSlots);
    engine.run(requests);
    std::puts("arrives  prompt  slot  begins  ends  answer");
    for (const Request& request : requests)
      std::printf("%7td %7zu %5td %7td %5td  %s\n", request.arrives, request.prompt.size(), request.slot,
                  request.begins, request.ends, request.answer.c_str());
    std::printf("%td slots held %.2f MB at most\n", kSlots, 1e-6 * double(engine.most_bytes()));

    for (const Request& request : requests) {
      std::vector<Request> alone = {{0, request.prompt, request.letters}};
      Engine(model, 1).run(alone);
      if (alone.front().answer != request.answer)
        throw std::runtime_error("alone, a request has another answer: " + alone.front().answer);
    }
    std::puts("every request has the same answer alone");
  } catch (const std::exception& error) {
    std::cerr << "continuous_batching: " << error.what() << '\n';
    return 1;
  }
}
