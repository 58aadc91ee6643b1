// The checkpoints of golden/, which make_goldens.py wrote with transformers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "model.hpp"
#include "safetensors.hpp"

namespace test {

using pretrained::Index;

inline std::filesystem::path golden_folder(const std::string& name) {
  return std::filesystem::path(PRETRAINED_GOLDEN) / name;
}

template <class T>
std::vector<T> numbers(const pretrained::Tensor& tensor) {
  std::vector<T> values(tensor.bytes.size() / sizeof(T));
  std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
  return values;
}

struct Golden {
  std::filesystem::path folder;
  std::vector<int> ids, greedy;
  std::vector<float> logits, batch_logits;  // [tokens, vocabulary], [batch, tokens, vocabulary]
  std::vector<std::vector<int>> batch;      // without their padding
  Index batch_tokens = 0;                   // of the longest

  explicit Golden(const std::string& name) : folder(golden_folder(name)) {
    const pretrained::SafetensorsFile file(folder / "golden.safetensors");
    ids = numbers<int>(file.at("ids"));
    greedy = numbers<int>(file.at("greedy"));
    logits = numbers<float>(file.at("logits"));
    batch_logits = numbers<float>(file.at("batch.logits"));
    const auto padded = numbers<int>(file.at("batch.ids"));
    const auto lengths = numbers<int>(file.at("batch.lengths"));
    batch_tokens = *std::max_element(lengths.begin(), lengths.end());
    for (std::size_t b = 0; b < lengths.size(); b++) {
      const auto end = padded.begin() + std::ptrdiff_t(b + 1) * batch_tokens;
      batch.emplace_back(end - lengths[b], end);
    }
  }
};

}  // namespace test
