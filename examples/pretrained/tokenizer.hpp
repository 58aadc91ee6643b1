// Text to token ids and back: byte-level byte-pair encoding from a `tokenizer.json` as on the Hugging Face hub, with
// the ids that the Python package `tokenizers` gives.
//
// Read are: model BPE; added tokens with all their flags; the pre-tokenizers ByteLevel and Split, and Sequences of
// them; the normalizer NFC; the post-processors ByteLevel and TemplateProcessing; the decoder ByteLevel. Anything else
// is refused by an error that names the file and the field. Truncation and padding are ignored: they are the caller's.
//
// Any bytes survive encode() and decode(). Where the package would lose something:
//   a byte without a token       an error here; dropped there, unless there is an unknown token
//   what is no UTF-8             byte by byte here, also in decode(); refused or replaced by U+FFFD there
//   an added token such as <é>   decodes to itself here; to a broken byte there
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

/// Immutable: copies share it, and threads may use one at the same time.
class Tokenizer {
 public:
  /// Throws std::runtime_error that names the file and what is wrong with it.
  static Tokenizer load(const std::filesystem::path& file);

  /// The same of a text; `name` stands for the file in errors.
  static Tokenizer parse(std::string_view json, const std::string& name);

  /// The ids of a text, with those that the file's template puts around every text, if it has one. Takes O(n log n) for
  /// n bytes. Throws std::runtime_error for a byte that has no token, and for more than 2^31 - 1 bytes.
  std::vector<int> encode(std::string_view text, bool with_template = true) const;

  /// The bytes of tokens, one after another. Ids that no token has give nothing: models often have more rows than there
  /// are tokens. With `skip_special`, special tokens give nothing either.
  std::string decode(std::span<const int> ids, bool skip_special = false) const;

  /// The bytes of a token, empty for an id that no token has.
  std::string_view token(int id) const;
  bool is_special(int id) const;

  /// The highest id and one.
  int size() const;

 private:
  explicit Tokenizer(std::shared_ptr<const TokenizerModel> model) : model_(std::move(model)) {}

  std::shared_ptr<const TokenizerModel> model_;
};

/// Decodes a sequence as it is generated. A character may take several tokens: push() returns what has become complete,
/// so that all strings are valid UTF-8; what cannot become valid gives U+FFFD, one for each longest broken beginning.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = false)
      : tokenizer_(tokenizer), skips_special_(skip_special) {}

  std::string push(int id);

  /// What is left, which is broken then; the next push() begins another text.
  std::string finish();

 private:
  Tokenizer tokenizer_;
  bool skips_special_;
  std::string pending_;
};

}  // namespace pretrained
