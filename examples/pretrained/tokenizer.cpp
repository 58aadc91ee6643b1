#include "tokenizer.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "byte_pairs.hpp"
#include "json_field.hpp"
#include "mapped_file.hpp"
#include "nfc.hpp"
#include "tokenizer_file.hpp"
#include "tokenizer_model.hpp"
#include "utf8.hpp"

namespace pretrained {

namespace {

/// One call of encode().
class Encoder {
 public:
  explicit Encoder(const TokenizerModel& model) : model_(model) {}

  std::vector<int> operator()(std::string_view text, bool with_template) {
    if (with_template) ids_ = model_.before;
    const auto push = [&](int id) { ids_.push_back(id); };
    model_.added.split(
        text,
        [&](std::string_view part) {
          if (model_.composes) part = keep(composed(part));
          model_.added_normalized.split(part, [&](std::string_view rest) { add_text(rest, 0); }, push);
        },
        push);
    if (with_template) ids_.insert(ids_.end(), model_.behind.begin(), model_.behind.end());
    return std::move(ids_);
  }

 private:
  /// Keeps a text as long as the cache, which points into it.
  std::string_view keep(std::string text) { return texts_.emplace_back(std::move(text)); }

  void add_text(std::string_view text, std::size_t split) {
    if (split < model_.splits.size())
      return model_.splits[split](text, [&](std::string_view part) { add_text(part, split + 1); });
    if (model_.adds_prefix_space && !text.starts_with(' ')) text = keep(" " + std::string(text));
    if (model_.byte_level_split)
      (*model_.byte_level_split)(text, [&](std::string_view word) { add_word(word); });
    else
      add_word(text);
  }

  void add_word(std::string_view word) {
    constexpr std::size_t kCachedBytes = 32, kCachedWords = 1 << 18;
    if (word.size() > kCachedBytes) return merge_word(word);
    const auto known = cache_.find(word);
    const std::size_t begin = ids_.size();
    if (known == cache_.end()) {
      merge_word(word);
      if (cache_.size() < kCachedWords) cache_.emplace(word, std::pair(begin, ids_.size() - begin));
      return;
    }
    const auto [first, count] = known->second;
    ids_.resize(begin + count);
    std::copy_n(ids_.begin() + std::ptrdiff_t(first), count, ids_.begin() + std::ptrdiff_t(begin));
  }

  void merge_word(std::string_view word) {
    if (!model_.words.empty()) {
      if (const auto found = model_.words.find(std::string(word)); found != model_.words.end())
        return ids_.push_back(found->second);
    }
    if (word.size() >= std::size_t(std::numeric_limits<int>::max()))
      throw std::runtime_error(model_.file + ": a word has " + std::to_string(word.size()) +
                               " bytes; expected fewer than 2^31 - 1");
    merger_.begin();
    bool after_unknown = false;
    for (const char c : word) {
      const int id = model_.byte_ids[std::uint8_t(c)];
      if (id >= 0)
        merger_.add(id);
      else if (model_.unknown < 0)
        throw std::runtime_error(model_.file + ": model.vocab has no token for the byte " +
                                 std::to_string(std::uint8_t(c)) + ", and there is no unk_token");
      else if (!after_unknown || !model_.fuses_unknown)
        merger_.add(model_.unknown);
      after_unknown = id < 0;
    }
    merger_.merge(model_.merges);
    merger_.append_to(ids_);
  }

  const TokenizerModel& model_;
  std::vector<int> ids_;
  std::deque<std::string> texts_;
  WordMerger merger_;
  std::unordered_map<std::string_view, std::pair<std::size_t, std::size_t>>
      cache_;  // begin and count of the ids of a word, in ids_
};

}  // namespace

Tokenizer Tokenizer::load(const std::filesystem::path& file) { return parse(MappedFile(file).text(), file.string()); }

Tokenizer Tokenizer::parse(std::string_view text, const std::string& name) {
  const Json json = parse_json(text, name);
  return Tokenizer(TokenizerFile(json, name).read());
}

std::vector<int> Tokenizer::encode(std::string_view text, bool with_template) const {
  try {
    return Encoder(*model_)(text, with_template);
  } catch (const MatchError& error) {
    throw std::runtime_error(model_->file + ": " + error.what());
  }
}

std::string Tokenizer::decode(std::span<const int> ids, bool skip_special) const {
  std::string text;
  for (const int id : ids)
    if (!skip_special || !is_special(id)) text += token(id);
  return text;
}

std::string_view Tokenizer::token(int id) const { return model_->token(id); }
bool Tokenizer::is_special(int id) const { return id >= 0 && id < size() && model_->tokens[std::size_t(id)].special; }
int Tokenizer::size() const { return int(model_->tokens.size()); }

std::string StreamDecoder::push(int id) {
  if (skips_special_ && tokenizer_.is_special(id)) return {};
  pending_ += tokenizer_.token(id);
  std::string text;
  std::size_t at = 0;
  while (at < pending_.size()) {
    const utf8::Sequence sequence = utf8::first(std::string_view(pending_).substr(at));
    if (sequence.status == utf8::Status::cut) break;
    if (sequence.status == utf8::Status::complete)
      text.append(pending_, at, sequence.length);
    else
      utf8::append(text, 0xFFFD);
    at += sequence.length;
  }
  pending_.erase(0, at);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text;
  if (!pending_.empty()) utf8::append(text, 0xFFFD);
  pending_.clear();
  return text;
}

}  // namespace pretrained
