// libFuzzer over what examples/pretrained reads from files of others: any bytes give a result or an exception of the
// standard library. The first byte selects the reader, the others are its input. tests/fuzz/run.sh runs this.
//
//   s  the header of a safetensors file, a zero byte, the data; or a zero byte, the whole file
//   c  config.json
//   t  tokenizer.json, a zero byte, a text
//   m  members of a small tokenizer.json, a zero byte, a text
//   x  a text for a small tokenizer
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "configuration.hpp"
#include "nfc.hpp"
#include "safetensors.hpp"
#include "tokenizer.hpp"
#include "utf8.hpp"

namespace {

using pretrained::StreamDecoder;
using pretrained::Tokenizer;

[[noreturn]] void finding(std::string_view what) {
  std::cerr << "FINDING: " << what << '\n';
  std::abort();
}

void require(bool holds, std::string_view what) {
  if (!holds) finding(what);
}

/// Cuts off what is before the next zero byte.
std::string_view next_part(std::string_view& bytes) {
  const std::size_t end = std::min(bytes.find('\0'), bytes.size());
  const std::string_view part = bytes.substr(0, end);
  bytes.remove_prefix(std::min(end + 1, bytes.size()));
  return part;
}

/// Parts of characters must not reach a terminal.
void check_stream(const Tokenizer& tokenizer, std::span<const int> ids) {
  StreamDecoder decoder(tokenizer);
  const auto check = [](const std::string& part) {
    require(pretrained::utf8::valid_prefix(part) == part.size(), "a stream is no UTF-8");
  };
  for (const int id : ids) check(decoder.push(id));
  check(decoder.finish());
}

/// Byte-level BPE of all 256 bytes without merges, plus the members of the input.
std::string small_tokenizer(std::string_view members) {
  static const std::string kVocabulary = [] {
    std::string text;
    int id = 0;
    const auto add = [&](char32_t character) {
      const std::string quote = character == '"' || character == '\\' ? "\"\\" : "\"";
      text += (id > 0 ? "," : "") + quote;
      pretrained::utf8::append(text, character);
      text += "\":" + std::to_string(id++);
    };
    for (char32_t c = 0x21; c < 0x7F; c++) add(c);
    for (char32_t c = 0xA1; c < 0x100; c++)
      if (c != 0xAD) add(c);
    for (char32_t c = 0x100; c < 0x144; c++) add(c);
    return text;
  }();
  return R"({"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false},"decoder":{"type":"ByteLevel"},)"
         R"("model":{"type":"BPE","vocab":{)" +
         kVocabulary + R"(,"Ġa":256,"aa":257,"aaa":258,"Ã©":259},"merges":["Ġ a","a a","aa a",["Ã","©"]]})" +
         (members.empty() ? "" : ",") + std::string(members) + "}";
}

/// A tokenizer.json and, behind a zero byte, a text.
void fuzz_tokenizer(std::string_view bytes) {
  const Tokenizer tokenizer = Tokenizer::parse(next_part(bytes), "fuzz");
  const std::vector<int> ids = tokenizer.encode(bytes);
  for (const int id : ids) require(id >= 0, "an id is negative");
  tokenizer.decode(ids);
  check_stream(tokenizer, ids);
}

/// Members for a whole tokenizer, added tokens or another pre-tokenizer, and a text.
void fuzz_members(std::string_view bytes) {
  const std::string_view members = next_part(bytes);
  const Tokenizer tokenizer = Tokenizer::parse(small_tokenizer(members), "fuzz");
  const std::vector<int> ids = tokenizer.encode(bytes);
  const std::string text = tokenizer.decode(ids);
  if (members.empty()) require(text == bytes, "a text does not survive");
  check_stream(tokenizer, ids);
}

/// A text, and the same as ids of any size.
void fuzz_text(std::string_view bytes) {
  static const Tokenizer kTokenizer = Tokenizer::parse(small_tokenizer(""), "fuzz");
  const std::vector<int> ids = kTokenizer.encode(bytes);
  require(kTokenizer.decode(ids) == bytes, "a text does not survive");
  check_stream(kTokenizer, ids);
  std::vector<int> others;
  for (std::size_t i = 0; i + 1 < bytes.size(); i += 2)
    others.push_back((std::uint8_t(bytes[i]) << 8 | std::uint8_t(bytes[i + 1])) % 300 - 20);
  check_stream(kTokenizer, others);
  const std::string form_c = pretrained::composed(bytes);
  require(pretrained::composed(form_c) == form_c, "form C is not idempotent");
}

/// A header without the size in front of it, because a fuzzer seldom finds the right size; or a whole file.
void fuzz_safetensors(std::string_view bytes) {
  std::vector<std::byte> file;
  const auto append = [&](std::string_view part) {
    for (const char c : part) file.push_back(std::byte(c));
  };
  if (bytes.starts_with('\0')) {
    append(bytes.substr(1));
  } else {
    const std::string_view header = next_part(bytes);
    for (int byte = 0; byte < 8; byte++) file.push_back(std::byte(std::uint64_t(header.size()) >> 8 * byte & 0xFF));
    append(header);
    append(bytes);
  }
  file.shrink_to_fit();  // the address sanitizer detects a read behind the end
  std::uint64_t sum = 0;
  for (const auto& [name, tensor] : pretrained::parse_safetensors(file, "fuzz")) {
    for (const std::byte byte : tensor.bytes) sum += std::uint64_t(byte);
    require(tensor.bytes.empty() || (tensor.bytes.data() >= file.data() + 8 &&
                                     tensor.bytes.data() + tensor.bytes.size() <= file.data() + file.size()),
            "a tensor is not in its file");
  }
  [[maybe_unused]] const volatile std::uint64_t kept = sum;  // the bytes are read
}

void fuzz_configuration(std::string_view bytes) {
  const pretrained::Configuration c = pretrained::parse_configuration(bytes, "fuzz");
  for (const pretrained::Index size : {c.vocabulary, c.dim, c.layers, c.heads, c.kv_heads, c.feed_forward})
    require(size > 0, "a size is not positive");
  require(c.head_dim() * c.heads == c.dim && c.heads % c.kv_heads == 0, "heads do not fit");
  require(std::ptrdiff_t(c.slopes.size()) == c.heads, "slopes are not one a head");
  for (const float slope : c.slopes) require(std::isfinite(slope), "a slope is not finite");
  require(std::isfinite(c.scale) && std::isfinite(c.norm_epsilon), "a number is not finite");
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    switch (data[0]) {
      case 's':
        fuzz_safetensors(bytes);
        break;
      case 'c':
        fuzz_configuration(bytes);
        break;
      case 't':
        fuzz_tokenizer(bytes);
        break;
      case 'm':
        fuzz_members(bytes);
        break;
      case 'x':
        fuzz_text(bytes);
        break;
      default:
        return -1;  // not for the corpus
    }
  } catch (const std::exception&) {
    // An error is right. (The fuzzer itself limits the memory.)
  }
  return 0;
}
