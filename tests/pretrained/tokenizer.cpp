// The tokenizer of examples/pretrained against the ids of the Python package `tokenizers`
// (make_tokenizer_goldens.py), bytes of any kind there and back, and files that it refuses.
#include "tokenizer.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nfc.hpp"
#include "utf8.hpp"

#ifndef PRETRAINED_GOLDEN
#define PRETRAINED_GOLDEN "tests/pretrained/golden"
#endif

namespace {

using nlohmann::json;
using pretrained::StreamDecoder;
using pretrained::Tokenizer;

const std::filesystem::path kFolder = std::filesystem::path(PRETRAINED_GOLDEN) / "tokenizer";

json read_json(const std::string& name) {
  std::ifstream stream(kFolder / name);
  return json::parse(stream);
}

Tokenizer patched(const std::string& file, const json& patch) {
  json content = read_json(file);
  content.merge_patch(patch);
  return Tokenizer::parse(content.dump(), file);
}

std::string streamed(const Tokenizer& tokenizer, const std::vector<int>& ids) {
  StreamDecoder decoder(tokenizer);
  std::string text;
  for (const int id : ids) {
    const std::string part = decoder.push(id);
    EXPECT_EQ(pretrained::utf8::valid_prefix(part), part.size()) << "a part of a character was streamed";
    text += part;
  }
  return text + decoder.finish();
}

TEST(TokenizerGolden, IdsAndText) {
  const auto strings = read_json("strings.json").get<std::vector<std::string>>();
  ASSERT_GE(strings.size(), 200U);
  for (const json& golden : read_json("expected.json")) {
    const Tokenizer tokenizer = patched(golden["file"], golden["patch"]);
    // The package takes these added tokens for bytes of the vocabulary's alphabet when it decodes.
    const auto decodes_otherwise = [](std::string_view text) {
      return text.find("<caf") != text.npos || text.find("<nfc>") != text.npos;
    };
    for (std::size_t i = 0; i < golden["strings"].size(); i++) {
      const std::string& text = strings[golden["strings"][i].get<std::size_t>()];
      const auto ids = golden["ids"][i].get<std::vector<int>>();
      SCOPED_TRACE(golden["name"].get<std::string>() + ": " + json(text).dump(-1, ' ', true));
      EXPECT_EQ(tokenizer.encode(text), ids);
      if (decodes_otherwise(text)) continue;
      const std::string decoded = golden["decoded"].value(std::to_string(i), text);
      EXPECT_EQ(streamed(tokenizer, ids), decoded);
      // Parts of characters, where others were unknown, are bytes in the one and U+FFFD in the other.
      if (decoded == text || decoded.find("\ufffd") == decoded.npos) {
        EXPECT_EQ(tokenizer.decode(ids), decoded);
      }
    }
  }
}

TEST(TokenizerGolden, AddedTokensDecodeToThemselves) {
  const Tokenizer tokenizer = Tokenizer::load(kFolder / "added.json");
  // A space comes before every text between tokens; the normalized token is found in both forms.
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("x<caf\u00e9>y<nfc>\u00e9</nfc>"), true),
            " x<caf\u00e9> y<nfc>e\u0301</nfc>");
}

TEST(Tokenizer, TemplateAndSpecialTokens) {
  const Tokenizer tokenizer = Tokenizer::load(kFolder / "added.json");
  const std::vector<int> with = tokenizer.encode("a"), without = tokenizer.encode("a", false);
  ASSERT_EQ(with.size(), without.size() + 2);
  EXPECT_EQ(with.front(), 1);
  EXPECT_EQ(with.back(), 2);
  EXPECT_EQ(std::vector<int>(with.begin() + 1, with.end() - 1), without);
  EXPECT_EQ(tokenizer.decode(with), "<s> a</s>");
  EXPECT_EQ(tokenizer.decode(with, true), " a");
  EXPECT_TRUE(tokenizer.is_special(1));
  EXPECT_FALSE(tokenizer.is_special(without.front()));
}

TEST(Tokenizer, IdsWithoutATokenDecodeToNothing) {
  const Tokenizer tokenizer = Tokenizer::load(kFolder / "gpt2.json");
  EXPECT_EQ(tokenizer.size(), 510);
  const std::vector<int> ids = {-1, tokenizer.size(), 1 << 30, -(1 << 30)};
  EXPECT_EQ(tokenizer.decode(ids), "");
  EXPECT_FALSE(tokenizer.is_special(-1));
}

/// Texts of random bytes, most of them near to UTF-8.
std::string random_bytes(std::mt19937& random, std::size_t count) {
  using namespace std::string_literals;
  static const std::vector<std::string> kParts = {
      "a",   "b ",   "\n",   "1",        "\u00e9",       "\u0301",       "\u4e2d",
      "🙂",  "\xf0", "\xc3", "\xe2\x80", "\xed\xa0\x80", "\xc0\xaf",     "\xff",
      "\0"s, "'s",   "<s>",  "\x80",     "\xf4\x90\x80", "\xf0\x9f\x99", "  "};
  std::string text;
  while (text.size() < count) {
    if (random() % 4 == 0)
      text.push_back(char(std::uint8_t(random())));
    else
      text += kParts[random() % kParts.size()];
  }
  return text;
}

TEST(Tokenizer, AnyBytesSurvive) {
  std::mt19937 random(1);
  for (const std::string name : {"gpt2.json", "bloom.json"}) {
    const Tokenizer tokenizer = Tokenizer::load(kFolder / name);
    for (int i = 0; i < 256; i++) {
      const std::string text(1, char(std::uint8_t(i)));
      EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
    }
    for (int i = 0; i < 2000; i++) {
      const std::string text = random_bytes(random, random() % 60);
      const std::vector<int> ids = tokenizer.encode(text);
      ASSERT_EQ(tokenizer.decode(ids), text) << name << ", " << i;
      // What is streamed is the same with broken sequences replaced, which is idempotent.
      const std::string seen = streamed(tokenizer, ids);
      ASSERT_EQ(streamed(tokenizer, tokenizer.encode(seen)), seen);
    }
  }
}

TEST(Tokenizer, ValidPartsKeepTheirTokens) {
  const Tokenizer tokenizer = Tokenizer::load(kFolder / "gpt2.json");
  const std::vector<int> whole = tokenizer.encode("The model\xff it's");
  std::vector<int> parts = tokenizer.encode("The model");
  for (const std::string_view part : {"\xff", " it's"})
    for (const int id : tokenizer.encode(part)) parts.push_back(id);
  EXPECT_EQ(whole, parts);
}

TEST(StreamDecoder, HoldsWhatIsIncomplete) {
  const Tokenizer tokenizer = patched("gpt2.json", {{"model", {{"merges", json::array()}}}});
  StreamDecoder decoder(tokenizer);
  const std::vector<int> ids = tokenizer.encode("\xf0\x9f\x99\x82x\xe2\x82\xe2\x82\xac\xf0\x9f");
  const std::vector<std::string> expected = {"", "", "", "🙂", "x", "", "", "\ufffd", "", "€", "", ""};
  ASSERT_EQ(ids.size(), expected.size());
  for (std::size_t i = 0; i < ids.size(); i++) EXPECT_EQ(decoder.push(ids[i]), expected[i]) << i;
  EXPECT_EQ(decoder.finish(), "\ufffd");
  EXPECT_EQ(decoder.finish(), "");
}

TEST(StreamDecoder, OutlivesItsTokenizer) {
  auto tokenizer = std::make_unique<Tokenizer>(Tokenizer::load(kFolder / "gpt2.json"));
  const std::vector<int> ids = tokenizer->encode("model");
  StreamDecoder decoder(*tokenizer);
  tokenizer.reset();
  std::string text;
  for (const int id : ids) text += decoder.push(id);
  EXPECT_EQ(text, "model");
}

/// In O(n^2), this would take hours.
TEST(Tokenizer, LongWordsDoNotTakeQuadraticTime) {
  const Tokenizer tokenizer = Tokenizer::load(kFolder / "gpt2.json");
  std::string word;
  for (std::size_t i = 0; i < 1'000'000; i++) word += char('a' + i * i % 7);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(word)), word);

  // White space that is a token, and takes the white space behind it.
  const json token = {{"id", 510}, {"content", "\t"}, {"special", true}, {"rstrip", true}};
  const Tokenizer tabs = patched("gpt2.json", {{"added_tokens", {token}}});
  EXPECT_EQ(tabs.encode(std::string(1'000'000, '\t')), std::vector<int>(1'000'000, 510));
}

TEST(Nfc, ComposesAcrossNothingBroken) {
  EXPECT_EQ(pretrained::composed("e\u0301"), "\u00e9");
  EXPECT_EQ(pretrained::composed("e\xff\u0301"), "e\xff\u0301");
  EXPECT_EQ(pretrained::composed("\u0344\xc3"), "\u0308\u0301\xc3");
  EXPECT_EQ(pretrained::composed("\u1100\u1161\u11a8\u11a8"), "\uac01\u11a8");
  EXPECT_EQ(pretrained::composed("a\u0302\u0323\u0307"), "\u1ead\u0307");
  EXPECT_EQ(pretrained::composed("a\u0323\u0307\u0302"), "\u1ea1\u0307\u0302");  // one above blocks the next
  EXPECT_EQ(pretrained::composed("\u0958"), "\u0915\u093c");
}

struct Refused {
  std::string name, pointer;  // where in gpt2.json
  json value;                 // is put, or with a discarded one erased
  std::string message;        // is a part of the error
};

TEST(Tokenizer, RefusesByFileAndField) {
  const json erased(json::value_t::discarded);
  const json split = {{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Isolated"}, {"invert", false}};
  const json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  const auto sequence_of = [&](json part) {
    return json{{"type", "Sequence"}, {"pretokenizers", {std::move(part), byte_level}}};
  };
  const auto pattern = [&](const std::string& regex) {
    json part = split;
    part["pattern"]["Regex"] = regex;
    return sequence_of(part);
  };
  json behavior = split;
  behavior["behavior"] = "Merged";
  const json unigram = {{"type", "Unigram"}, {"vocab", json::array()}};
  const json special = {{"SpecialToken", {{"id", "a"}}}}, specials = {{"a", {{"ids", std::vector<int>(100, 1)}}}};
  const auto processed = [&](const json& single) {
    return json{{"type", "TemplateProcessing"}, {"single", single}, {"special_tokens", specials}};
  };
  const json many_splits = {{"type", "Sequence"}, {"pretokenizers", std::vector<json>(65, split)}};
  const auto token = [](int id, const std::string& content) {
    return json{{{"id", id}, {"content", content}, {"special", true}}};
  };
  const std::vector<Refused> refused = {
      {"no model", "/model", erased, "model is null; expected an object"},
      {"model", "/model", 3, "model is 3; expected an object"},
      {"model type", "/model", unigram, "model.type is \"Unigram\"; supported: null, \"BPE\""},
      {"dropout", "/model/dropout", 0.1, "model.dropout is 0.1"},
      {"prefix", "/model/continuing_subword_prefix", "##", "model.continuing_subword_prefix"},
      {"suffix", "/model/end_of_word_suffix", "</w>", "model.end_of_word_suffix"},
      {"byte fallback", "/model/byte_fallback", true, "model.byte_fallback"},
      {"unknown", "/model/unk_token", "<what>", "model.unk_token is \"<what>\""},
      {"empty vocabulary", "/model/vocab", json::object(), "model.vocab is empty"},
      {"no vocabulary", "/model/vocab", erased, "model.vocab is null; expected an object"},
      {"negative id", "/model/vocab/a", -1, "model.vocab.a is -1"},
      {"huge id", "/model/vocab/a", std::uint64_t(1) << 62, "model.vocab.a is 4611686018427387904"},
      {"fractional id", "/model/vocab/a", 1.5, "model.vocab.a is 1.5"},
      {"twice an id", "/model/vocab/a", 0, "the id of another token too"},
      {"no merges", "/model/merges", erased, "model.merges is null; expected an array"},
      {"merge of one", "/model/merges/3", "ab", "model.merges[3] is \"ab\""},
      {"merge of three", "/model/merges/3", {"a", "b", "c"}, "model.merges[3] is an array"},
      {"merge unknown", "/model/merges/3", {"a", "b"}, "needs the token \"ab\""},
      {"normalizer", "/normalizer", {{"type", "Lowercase"}}, "normalizer is Lowercase; supported"},
      {"no ByteLevel", "/pre_tokenizer", nullptr, "pre_tokenizer is null"},
      {"Split alone", "/pre_tokenizer", split, "only byte-level BPE"},
      {"Whitespace", "/pre_tokenizer", sequence_of({{"type", "Whitespace"}}),
       "pre_tokenizer.pretokenizers[0] is Whitespace"},
      {"behind ByteLevel", "/pre_tokenizer", sequence_of(byte_level), "behind a ByteLevel"},
      {"behavior", "/pre_tokenizer", sequence_of(behavior), "pretokenizers[0].behavior is \"Merged\""},
      {"pattern broken", "/pre_tokenizer", pattern("(a"), "pretokenizers[0].pattern.Regex is no pattern"},
      {"intersection", "/pre_tokenizer", pattern("[a&&b]"), "has &&"},
      {"inner negation", "/pre_tokenizer", pattern("[a[^b]]"), "has [^"},
      {"POSIX class", "/pre_tokenizer", pattern("[[:alpha:]]"), "has [:"},
      {"empty class", "/pre_tokenizer", pattern("[]"), "has ]"},
      {"script", "/pre_tokenizer", pattern("\\p{Han}"), "property \\p{Han}"},
      {"open property", "/pre_tokenizer", pattern("\\p{L"), "property \\p{L"},
      {"word", "/pre_tokenizer", pattern("\\w"), "has \\w"},
      {"reference", "/pre_tokenizer", pattern("(a)\\1"), "has \\1"},
      {"option", "/pre_tokenizer", pattern("(?m:a)"), "has (?m"},
      {"verb", "/pre_tokenizer", pattern("(*UCP)a"), "has (*"},
      {"range behind a set", "/pre_tokenizer", pattern("[\\s-a]"), "has -a"},
      {"range to a set", "/pre_tokenizer", pattern("[a-\\p{L}]"), "has -\\p"},
      {"range to a class", "/pre_tokenizer", pattern("[a-[b]]"), "has -["},
      {"byte", "/pre_tokenizer", pattern("\\xe9"), "has \\xe9"},
      {"open code point", "/pre_tokenizer", pattern("\\x{e9"), "has \\x{e9"},
      {"possessive interval", "/pre_tokenizer", pattern("a{2,3}+"), "has {2,3}+"},
      {"brace", "/pre_tokenizer", pattern("a{,2}"), "has a { that begins no interval"},
      {"open class", "/pre_tokenizer", pattern("[a[b]"), "[ without its ]"},
      {"trailing backslash", "/pre_tokenizer", pattern("a\\"), "backslash"},
      {"many Splits", "/pre_tokenizer", many_splits, "is a Split behind 64 others"},
      {"post-processor", "/post_processor", {{"type", "RobertaProcessing"}}, "post_processor is RobertaProcessing"},
      {"long template", "/post_processor", processed(std::vector<json>(11, special)),
       "more than 1000 ids around a text"},
      {"no Sequence", "/post_processor", processed(json::array()), "post_processor.single has no Sequence A"},
      {"decoder", "/decoder", {{"type", "WordPiece"}}, "decoder is WordPiece; supported: ByteLevel"},
      {"no decoder", "/decoder", nullptr, "decoder is null"},
      {"long added token", "/added_tokens", token(510, std::string(1025, 'a')),
       "added_tokens[0].content has 1025 bytes"},
      {"id in the vocabulary", "/added_tokens", token(7, "<unk>"), "added_tokens[0].id is 7"},
      {"id with a gap", "/added_tokens", token(900, "<new>"), "added_tokens[0].id is 900"},
      {"flag", "/added_tokens/0/lstrip", "yes", "added_tokens[0].lstrip is \"yes\"; expected true or false"},
  };
  for (const Refused& r : refused) {
    json content = read_json("gpt2.json");
    const json::json_pointer pointer(r.pointer);
    if (r.value.is_discarded())
      content[pointer.parent_pointer()].erase(pointer.back());
    else
      content[pointer] = r.value;
    try {
      Tokenizer::parse(content.dump(), "folder/tokenizer.json");
      ADD_FAILURE() << r.name << " is taken";
    } catch (const std::runtime_error& error) {
      const std::string message = error.what();
      EXPECT_TRUE(message.starts_with("folder/tokenizer.json: ")) << message;
      EXPECT_NE(message.find(r.message), message.npos) << r.name << ": " << message;
    }
  }
  EXPECT_THROW(Tokenizer::parse("{\"model\": ", "x"), std::runtime_error);
  EXPECT_THROW(Tokenizer::parse(std::string(100'000, '['), "x"), std::runtime_error);
  EXPECT_THROW(Tokenizer::load("no/such/tokenizer.json"), std::runtime_error);
  EXPECT_THROW(Tokenizer::load(kFolder), std::runtime_error);
}

TEST(Tokenizer, RefusesAByteWithoutToken) {
  json content = read_json("gpt2.json");
  content["model"]["merges"] = json::array();
  content["model"]["vocab"].erase("\u0143");  // byte 0xAD
  const Tokenizer tokenizer = Tokenizer::parse(content.dump(), "x.json");
  try {
    tokenizer.encode("a\u00ad");
    ADD_FAILURE();
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "x.json: model.vocab has no token for the byte 173, and there is no unk_token");
  }
}

}  // namespace
