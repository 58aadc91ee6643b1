// The effect of a slope on a head, drawn for a real text. Usage: heads [text-file] [picture.png]
//
// The first 96 words of the text are the tokens. There is no trained model: the query and the key of a word are the
// same pattern of random signs, derived from its letters, so a word attracts its earlier occurrences. All heads have
// the same queries and keys and differ only in their slopes.
//
// The weights are computed by the library: the values are the identity, so the output of attention is its weights.
#include <algorithm>
#include <alibi/alibi.hpp>
#include <bit>
#include <cctype>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "heads_picture.hpp"

namespace {

using alibi::Index;
using Tensor4 = Eigen::Tensor<float, 4, Eigen::RowMajor>;  // [batch, heads, tokens, head_dim]

constexpr Index kHeads = 8, kHeadDim = 64, kMaxTokens = 96;
constexpr double kAttraction = 3;  // logit of a word with itself; with other words it is about 0

/// Whether the first byte of every character is followed by the number of bytes that it states, which is rare in other
/// encodings.
bool is_utf8(const std::string& text) {
  int awaited = 0;
  for (const char c : text) {
    const int leading_ones = std::countl_one(static_cast<unsigned char>(c));
    if ((leading_ones == 1) != (awaited > 0) || leading_ones > 4) return false;
    awaited = leading_ones == 1 ? awaited - 1 : std::max(leading_ones - 1, 0);
  }
  return awaited == 0;
}

/// The first words of a file: sequences of letters and digits, in lower case.
std::vector<std::string> words_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path)) throw std::runtime_error("cannot read " + path);
  std::vector<std::string> words(1);
  for (char c; file.get(c) && Index(words.size()) <= kMaxTokens;) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) || byte >= 0x80)
      words.back() += char(std::tolower(byte));
    else if (!words.back().empty())
      words.emplace_back();
  }
  if (words.back().empty() || Index(words.size()) > kMaxTokens) words.pop_back();
  if (words.size() < 2) throw std::runtime_error(path + " has fewer than two words");
  if (!std::all_of(words.begin(), words.end(), is_utf8)) throw std::runtime_error(path + " is no text in UTF-8");
  return words;
}

/// [1, heads, words, head_dim]: signs from a hash (FNV-1a, then xorshift), the same for the same word and for every
/// head.
Tensor4 embed(const std::vector<std::string>& words, Index heads) {
  Tensor4 x(1, heads, Index(words.size()), kHeadDim);
  for (Index i = 0; i < Index(words.size()); i++) {
    std::uint64_t bits = 0xcbf29ce484222325;
    for (const char c : words[std::size_t(i)]) bits = (bits ^ static_cast<unsigned char>(c)) * 0x100000001b3;
    for (Index d = 0; d < kHeadDim; d++) {
      bits ^= bits << 13;
      bits ^= bits >> 7;
      bits ^= bits << 17;
      for (Index h = 0; h < heads; h++) x(0, h, i, d) = bits >> 63 ? 1.0F : -1.0F;
    }
  }
  return x;
}

/// [1, heads, tokens, tokens]: the weight that each head's query (rows) gives to each key (columns).
Tensor4 attention_weights(const std::vector<std::string>& words, const Eigen::VectorXf& slopes) {
  const auto n = Index(words.size());
  const Tensor4 q = embed(words, kHeads), k = embed(words, 1);  // eight query heads share one kv head
  Tensor4 identity(1, 1, n, n);
  identity.setZero();
  for (Index i = 0; i < n; i++) identity(0, 0, i, i) = 1;
  return alibi::attention(q, k, identity, slopes, {.scale = kAttraction / double(kHeadDim)});
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::string text = argc > 1 ? argv[1] : ALIBI_EXAMPLE_TEXT, png = argc > 2 ? argv[2] : "heads.png";
    const std::vector<std::string> words = words_of(text);
    const auto n = Index(words.size());

    const Eigen::VectorXf slopes = alibi::slopes(kHeads);
    const auto bias = alibi::bias_matrix(slopes, n, n);
    const Tensor4 weights = attention_weights(words, slopes);

    draw({words, slopes, bias, weights, std::filesystem::path(text).filename().string()}, png);
    std::cout << "drew " << kHeads << " heads over the first " << n << " words of " << text << " into " << png << '\n';
  } catch (const std::exception& error) {
    std::cerr << "heads: " << error.what() << '\n';
    return 1;
  }
}
