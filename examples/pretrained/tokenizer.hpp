// Text to token ids and back: byte-level byte-pair encoding by a `tokenizer.json` as on the Hugging Face hub, with the
// ids that the Python package `tokenizers` gives.
//
// Supported are the model BPE, added tokens with all their flags, the normalizer NFC, the pre-tokenizers ByteLevel and
// Split, the post-processors ByteLevel and TemplateProcessing, the decoder ByteLevel, and Sequences of these. An error
// that names the file and the field refuses anything else. Truncation and padding are left to the caller.
//
// Any bytes survive encode() and decode(). The package loses some:
//
//                             here                             `tokenizers`
//   a byte without a token    an error, or the unknown token   dropped, or the unknown token
//   bytes that are no UTF-8   kept                             refused, in decode() replaced by U+FFFD
//   an added token, <é>       decodes to itself                decodes to a broken byte
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pretrained {

struct TokenizerModel;

/// Immutable. Copies share their data, and threads may use one at the same time.
class Tokenizer {
 public:
  /// Throws std::runtime_error that names the file and what is wrong with it.
  static Tokenizer load(const std::filesystem::path& file);

  /// The same, given the text of the file; `name` stands for it in errors.
  static Tokenizer parse(std::string_view json, const std::string& name);

  /// The ids of a text, with those that the template of the file puts around every text, if there is one. Takes
  /// O(n log n) for n bytes, besides the patterns of the file. Throws std::runtime_error for a byte that has no token,
  /// a word of 2^31 - 1 bytes or more, and a pattern that takes too long.
  std::vector<int> encode(std::string_view text, bool with_template = true) const;

  /// The bytes of tokens, one after another. An id without a token has no bytes, as models often have more ids than
  /// there are tokens. With `skip_special`, special tokens have none either.
  std::string decode(std::span<const int> ids, bool skip_special = false) const;

  /// The bytes of a token, empty for an id that no token has.
  std::string_view token(int id) const;
  bool is_special(int id) const;

  /// The highest id plus one.
  int size() const;

 private:
  explicit Tokenizer(std::shared_ptr<const TokenizerModel> model) : model_(std::move(model)) {}

  std::shared_ptr<const TokenizerModel> model_;
};

/// Decodes a sequence token by token. A character may take several tokens: push() returns the characters that are
/// complete, so that every string is valid UTF-8. U+FFFD stands for each longest broken part.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = false)
      : tokenizer_(tokenizer), skips_special_(skip_special) {}

  std::string push(int id);

  /// The end of the text: U+FFFD for a character that is not complete. The next push() begins another text.
  std::string finish();

 private:
  Tokenizer tokenizer_;
  bool skips_special_;
  std::string pending_;
};

}  // namespace pretrained
