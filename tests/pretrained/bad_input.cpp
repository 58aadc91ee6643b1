// Files and requests that are wrong: an error that names the file and what is wrong in it, and nothing half-written.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "batch.hpp"
#include "command_line.hpp"
#include "configuration.hpp"
#include "generation.hpp"
#include "golden_model.hpp"
#include "logits.hpp"
#include "model.hpp"
#include "perplexity.hpp"
#include "safetensors.hpp"

namespace {

namespace fs = std::filesystem;
using pretrained::Dtype;
using pretrained::Model;

/// The message of what a call throws.
template <class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "nothing was thrown";
}

#define EXPECT_ERROR(expected, ...) EXPECT_EQ(error_of([&] { (void)(__VA_ARGS__); }), expected)

std::string file_of(const std::string& header, std::size_t data, std::uint64_t size) {
  return std::string(reinterpret_cast<const char*>(&size), 8) + header + std::string(data, '\0');
}

std::string parse_error(const std::string& file) {
  return error_of([&] { pretrained::parse_safetensors(std::as_bytes(std::span(file)), "F"); });
}
std::string header_error(const std::string& header, std::size_t data = 8) {
  return parse_error(file_of(header, data, header.size()));
}

TEST(BadSafetensors, Sizes) {
  EXPECT_EQ(parse_error(""), "F: has 0 bytes; expected at least 8, the size of the header");
  EXPECT_EQ(parse_error("1234567"), "F: has 7 bytes; expected at least 8, the size of the header");
  for (const std::uint64_t size : {std::uint64_t(3), std::numeric_limits<std::uint64_t>::max()})
    EXPECT_EQ(parse_error(file_of("{}", 0, size)), "F: has a header of " + std::to_string(size) +
                                                       " bytes by its first 8 bytes; expected at most 2: is it "
                                                       "truncated?");
  EXPECT_EQ(parse_error(file_of("{}", 0, 2)), "nothing was thrown");
  EXPECT_EQ(parse_error(file_of("{}", 5, 2)), "F: has 5 bytes behind its last tensor");
}

TEST(BadSafetensors, Headers) {
  EXPECT_EQ(header_error("[]"), "F: the JSON is an array; expected an object");
  for (const std::string& header : {std::string("{"), std::string(100000, '['), std::string(R"({"a":1e999})")})
    EXPECT_TRUE(header_error(header).starts_with("F: is no JSON: ")) << header_error(header);
  EXPECT_EQ(header_error(R"({"a":1})"), "F: a is 1; expected an object");
  EXPECT_EQ(header_error(R"({"a":{}})"), "F: a.dtype is null; expected a string");
  EXPECT_EQ(header_error(R"({"a":{"dtype":4}})"), "F: a.dtype is 4; expected a string");
  EXPECT_EQ(header_error(R"({"a":{"dtype":"F33"}})"),
            "F: a.dtype is \"F33\"; expected a dtype such as F32, F16, BF16 or I64");
  EXPECT_EQ(header_error(R"({"a":{"dtype":"F32"}})"), "F: a.shape is null; expected an array");
  for (const std::string size : {"-2", "2.0", "\"2\"", "null"})
    EXPECT_EQ(header_error(R"({"a":{"dtype":"F32","shape":[)" + size + "]}}"),
              "F: a.shape[0] is " + size + "; expected an integer from 0 to 9223372036854775807");
  EXPECT_EQ(header_error(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})"),
            "F: a.shape asks for 2^63 bytes or more");
  EXPECT_EQ(header_error(R"({"a":{"dtype":"F32","shape":[2]}})"), "F: a.data_offsets is null; expected an array");
  EXPECT_EQ(header_error(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8]}})"),
            "F: a.data_offsets has 1 numbers; expected 2");
}

TEST(BadSafetensors, Offsets) {
  const auto one = [](const std::string& offsets) {
    return header_error(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":)" + offsets + "}}");
  };
  EXPECT_EQ(one("[0,8]"), "nothing was thrown");
  EXPECT_EQ(one("[8,0]"), "F: a.data_offsets[1] is 0; expected an integer from 8 to 9223372036854775807");
  EXPECT_EQ(one("[4,12]"), "F: a.data_offsets[1] is 12, but the file has 8 bytes of data; is it truncated?");
  EXPECT_EQ(one("[0,4]"), "F: a.data_offsets has 4 bytes; expected 8 for dtype F32 and shape [2]");
  EXPECT_EQ(one("[-1,7]"), "F: a.data_offsets[0] is -1; expected an integer from 0 to 9223372036854775807");

  const auto two = [](const std::string& b, std::size_t data) {
    return header_error(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],)"
                        R"("data_offsets":)" +
                            b + "}}",
                        data);
  };
  EXPECT_EQ(two("[4,8]", 8), "nothing was thrown");
  EXPECT_EQ(two("[2,6]", 6), "F: tensor 'b' overlaps tensor 'a'");
  EXPECT_EQ(two("[0,4]", 4), "F: tensor 'b' overlaps tensor 'a'");
  EXPECT_EQ(two("[6,10]", 10), "F: tensor 'b' begins 2 bytes behind the end of what is before it");
  EXPECT_EQ(two("[4,8]", 9), "F: has 1 bytes behind its last tensor");
}

/// A copy of a golden folder in which files can be broken.
class BadCheckpoint : public testing::Test {
 protected:
  void SetUp() override {
    fs::remove_all(folder_);
    fs::copy(test::golden_folder("bloom"), folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string path(const char* file) const { return (folder_ / file).string(); }
  std::string read(const char* file) const {
    std::ifstream in(folder_ / file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  }
  void write(const char* file, const std::string& bytes) const {
    std::ofstream(folder_ / file, std::ios::binary) << bytes;
  }
  void replace(const char* file, const std::string& from, const std::string& to) const {
    std::string text = read(file);
    const std::size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    write(file, text.replace(at, from.size(), to));
  }
  std::string load_error(Dtype dtype = Dtype::float32) const {
    return error_of([&] { const Model model(folder_, dtype); });
  }

  const fs::path folder_ = fs::path(testing::TempDir()) / "bad_checkpoint";
  static constexpr const char* kConfig = "config.json";
  static constexpr const char* kIndex = "model.safetensors.index.json";
  static constexpr const char* kShard = "model-00002-of-00002.safetensors";
};

TEST_F(BadCheckpoint, Whole) { EXPECT_EQ(load_error(), "nothing was thrown"); }

TEST_F(BadCheckpoint, MissingFiles) {
  fs::remove(folder_ / kShard);
  EXPECT_EQ(load_error(), path(kShard) + ": No such file or directory");
  fs::create_directory(folder_ / kShard);
  EXPECT_EQ(load_error(), path(kShard) + ": is no regular file");
  fs::remove(folder_ / kIndex);
  EXPECT_EQ(load_error(), path("model.safetensors") + ": No such file or directory");
  fs::remove(folder_ / kConfig);
  EXPECT_EQ(load_error(), path(kConfig) + ": No such file or directory");
}

TEST_F(BadCheckpoint, Index) {
  const std::string whole = read(kIndex);
  write(kIndex, "{");
  EXPECT_TRUE(load_error().starts_with(path(kIndex) + ": is no JSON: ")) << load_error();
  write(kIndex, "{}");
  EXPECT_EQ(load_error(), path(kIndex) + ": weight_map is null; expected an object");
  for (const char* file : {"../model.safetensors", "/etc/passwd", "", ".."}) {
    write(kIndex, std::string(R"({"weight_map": {"a": ")") + file + "\"}}");
    EXPECT_EQ(load_error(),
              path(kIndex) + ": weight_map.a is \"" + file + "\"; expected the name of a file in the same folder");
  }
  write(kIndex, std::string(R"({"weight_map": {"a": ")") + kShard + "\"}}");
  EXPECT_EQ(load_error(), path(kShard) + ": has no tensor 'a'");
  write(kIndex, R"({"weight_map": {}})");
  EXPECT_EQ(load_error(), path(kIndex) + ": has no tensor 'transformer.word_embeddings.weight'");
}

TEST_F(BadCheckpoint, Tensors) {
  const std::string whole = read(kShard);
  write(kShard, whole.substr(0, whole.size() - 1));
  EXPECT_NE(load_error().find("is it truncated?"), std::string::npos) << load_error();
  write(kShard, whole + "1");
  EXPECT_EQ(load_error(), path(kShard) + ": has 1 bytes behind its last tensor");
  write(kShard, "");
  EXPECT_EQ(load_error(), path(kShard) + ": has 0 bytes; expected at least 8, the size of the header");
  write(kShard, whole);
  replace(kShard, "\"dtype\":\"F32\"", "\"dtype\":\"I32\"");
  EXPECT_NE(load_error().find("has dtype I32; expected F32, BF16 or F16"), std::string::npos) << load_error();
}

TEST_F(BadCheckpoint, Shapes) {
  replace(kConfig, "\"vocab_size\": 40", "\"vocab_size\": 41");
  const std::string first = path("model-00001-of-00002.safetensors");
  EXPECT_EQ(load_error(),
            first + ": tensor 'transformer.word_embeddings.weight' has shape [40, 18]; expected [41, 18]");
  replace(kConfig, "\"vocab_size\": 41", "\"vocab_size\": 40");
  replace(kConfig, "\"n_layer\": 2", "\"n_layer\": 3");
  EXPECT_EQ(load_error(), path(kIndex) + ": has no tensor 'transformer.h.2.input_layernorm.weight'");
  replace(kConfig, "\"n_layer\": 3", "\"n_layer\": 2");
  replace(kConfig, "\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
  EXPECT_EQ(load_error(), path(kIndex) + ": has no tensor 'lm_head.weight'");
}

TEST(BadConfiguration, Fields) {
  const auto error = [](const std::string& json) {
    return error_of([&] { pretrained::parse_configuration(json, "C"); });
  };
  EXPECT_TRUE(error("{").starts_with("C: is no JSON: ")) << error("{");
  EXPECT_EQ(error("[1]"), "C: the JSON is an array; expected an object");
  EXPECT_EQ(error("{}"), "C: model_type is null; expected bloom, mpt or falcon");
  EXPECT_EQ(error(R"({"model_type": "llama"})"), "C: model_type is \"llama\"; expected bloom, mpt or falcon");

  const auto bloom = [&](const std::string& more) {
    return error(R"({"model_type": "bloom", "vocab_size": 9, "hidden_size": 8, "n_layer": 1, "n_head": 2)" + more +
                 "}");
  };
  EXPECT_EQ(bloom(""), "nothing was thrown");
  EXPECT_EQ(bloom(R"(, "n_head": 3)"), "C: n_head is 3; expected a divisor of the hidden size, 8");
  EXPECT_EQ(bloom(R"(, "n_head": 0)"), "C: n_head is 0; expected an integer from 1 to 16384");
  EXPECT_EQ(bloom(R"(, "n_layer": -1)"), "C: n_layer is -1; expected an integer from 1 to 65536");
  EXPECT_EQ(bloom(R"(, "hidden_size": 1e9)"), "C: hidden_size is 1000000000.0; expected an integer from 1 to 1048576");
  EXPECT_EQ(bloom(R"(, "vocab_size": null)"), "C: vocab_size is null; expected an integer from 1 to 268435456");
  EXPECT_EQ(bloom(R"(, "layer_norm_epsilon": 0)"),
            "C: layer_norm_epsilon is 0; expected a number above 0 and below 1e30");
  EXPECT_EQ(bloom(R"(, "layer_norm_epsilon": "x")"), "C: layer_norm_epsilon is \"x\"; expected a number");
  EXPECT_EQ(bloom(R"(, "eos_token_id": [1, "x"])"),
            "C: eos_token_id[1] is \"x\"; expected an integer from 0 to 268435456");

  const auto mpt = [&](const std::string& attention, const std::string& more = "") {
    return error(
        R"({"model_type": "mpt", "vocab_size": 9, "d_model": 8, "n_layers": 1, "n_heads": 2, "attn_config": {)" +
        attention + "}" + more + "}");
  };
  EXPECT_EQ(mpt(""), "nothing was thrown");
  EXPECT_EQ(mpt(R"("alibi": false)"), "C: attn_config.alibi is false; supported: null, true");
  EXPECT_EQ(mpt(R"("qk_ln": true)"), "C: attn_config.qk_ln is true; supported: null, false");
  EXPECT_EQ(mpt(R"("prefix_lm": true)"), "C: attn_config.prefix_lm is true; supported: null, false");
  EXPECT_EQ(mpt(R"("attn_type": "multiquery_attention")"),
            "C: attn_config.attn_type is \"multiquery_attention\"; supported: null, \"multihead_attention\"");
  EXPECT_EQ(mpt(R"("alibi_bias_max": -8)"),
            "C: attn_config.alibi_bias_max is -8; expected a number above 0 and below 1e30");
  EXPECT_EQ(mpt(R"("rope": true)"), "C: attn_config.rope is true; supported: null, false");
  EXPECT_EQ(mpt(R"("sliding_window_size": 8)"), "C: attn_config.sliding_window_size is 8; supported: null, -1");
  EXPECT_EQ(mpt("", R"(, "ffn_config": {"ffn_type": "mptglu"})"),
            "C: ffn_config.ffn_type is \"mptglu\"; supported: null, \"mptmlp\"");
  EXPECT_EQ(mpt("", R"(, "no_bias": false)"), "C: no_bias is false; supported: null, true");
  EXPECT_EQ(mpt("", R"(, "logit_scale": 2)"), "C: logit_scale is 2; supported: null");
  EXPECT_EQ(mpt("", R"(, "norm_type": "rmsnorm")"),
            "C: norm_type is \"rmsnorm\"; supported: null, \"low_precision_layernorm\", \"layernorm\"");

  const auto falcon = [&](const std::string& more) {
    return error(
        R"({"model_type": "falcon", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2)" +
        more + "}");
  };
  EXPECT_EQ(falcon(R"(, "alibi": true)"), "nothing was thrown");
  EXPECT_EQ(falcon(""), "C: alibi is null; expected true");
  EXPECT_EQ(falcon(R"(, "alibi": true, "new_decoder_architecture": true)"),
            "C: new_decoder_architecture is true; supported: null, false");
  EXPECT_EQ(falcon(R"(, "alibi": true, "activation": "relu")"), "C: activation is \"relu\"; supported: null, \"gelu\"");
}

TEST(Configuration, EndTokens) {
  const auto of = [](const std::string& more) {
    return pretrained::parse_configuration(
               R"({"model_type": "bloom", "vocab_size": 9, "hidden_size": 8, "n_layer": 1, "n_head": 2)" + more + "}",
               "C")
        .end_tokens;
  };
  EXPECT_EQ(of(""), std::vector{2});  // the default of transformers' BloomConfig
  EXPECT_EQ(of(R"(, "eos_token_id": null)"), std::vector<int>());
  EXPECT_EQ(of(R"(, "eos_token_id": [4, 5])"), (std::vector{4, 5}));
  EXPECT_EQ(pretrained::parse_end_tokens(R"({"eos_token_id": 7})", "G"), std::vector{7});
  EXPECT_EQ(pretrained::parse_end_tokens("{}", "G"), std::vector<int>());
  EXPECT_ERROR("G: eos_token_id is \"x\"; expected an integer from 0 to 268435456",
               pretrained::parse_end_tokens(R"({"eos_token_id": "x"})", "G"));
}

// Falcon's slopes are rounded to bfloat16, then scaled. 2^(-1/2) is no bfloat16.
TEST(Configuration, SlopesOfFalcon) {
  const auto c = pretrained::parse_configuration(
      R"({"model_type": "falcon", "alibi": true, "vocab_size": 9, "hidden_size": 128, "num_hidden_layers": 1,
          "num_attention_heads": 16})",
      "C");
  ASSERT_EQ(c.slopes.size(), 16u);
  EXPECT_EQ(c.slopes[0], float(0.70703125 / std::sqrt(8.0)));
  EXPECT_EQ(c.slopes[1], float(0.5 / std::sqrt(8.0)));
}

TEST(BadRequests, TokensAndSizes) {
  const Model model(test::golden_folder("bloom"), Dtype::float32);
  const pretrained::Threads threads(1);
  const auto session = pretrained::new_session(model, threads, {.batch = 2, .capacity = 4});
  const auto generate = [&](const std::vector<std::vector<int>>& prompts) {
    return error_of([&] { pretrained::generate(*session, prompts, 1, {}, [](auto, int) {}); });
  };
  EXPECT_EQ(generate({}), "there is no prompt");
  EXPECT_EQ(generate({{1}, {}}), "prompt 1 is empty");
  EXPECT_EQ(generate({{1}, {1, 40}}), "token 1 of sequence 1 is 40; expected 0 to 39");
  EXPECT_EQ(generate({{1}, {-1}}), "token 0 of sequence 1 is -1; expected 0 to 39");
  EXPECT_EQ(generate({{1}, {1, 2, 3, 4, 5}}), "sequence 1 would have 5 tokens; expected at most 4");

  const std::vector<int> ids = {1, 2, 3, 40};
  const auto read = [&](const pretrained::Chunk& chunk) { return error_of([&] { session->read(chunk); }); };
  EXPECT_EQ(read({ids, 2}), "token 1 of sequence 1 is 40; expected 0 to 39");
  EXPECT_EQ(read({ids, 3}), "the sizes of a chunk do not fit its batch of 2");
  const std::vector<pretrained::KeyRange> outside = {{0, 2}, {1, 3}}, first = {{0, 2}, {0, 1}};
  EXPECT_EQ(read({ids, 2, outside}), "the real tokens of sequence 1 are not in its chunk");
  EXPECT_EQ(read({ids, 2, first}), "nothing was thrown");
  std::vector<float> logits(40);
  const std::vector<pretrained::Index> row = {4};
  EXPECT_ERROR("logits of place 4, which is not a token that was read", session->logits(row, logits));
  logits.pop_back();
  EXPECT_ERROR("logits have 39 places; expected 40", session->logits(row, logits));

  const auto perplexity = [&](pretrained::Index window) {
    return error_of([&] {
      pretrained::perplexity(model, threads, std::span(ids).first(3), window, std::nullopt, std::nullopt,
                             [](double) {});
    });
  };
  EXPECT_EQ(perplexity(3), "the window is 3; expected at most the 2 predictions");
  EXPECT_EQ(perplexity(0), "the window is 0; expected at least 1");
}

TEST(BadRequests, NothingHalfWritten) {
  const Model model(test::golden_folder("bloom"), Dtype::float32);
  const pretrained::Threads threads(1);
  const auto session = pretrained::new_session(model, threads, {.batch = 1, .capacity = 2});
  const fs::path out = fs::path(testing::TempDir()) / "half_written.safetensors";
  const std::vector<std::vector<int>> too_long = {{1, 2, 3}};
  EXPECT_ERROR("sequence 0 would have 3 tokens; expected at most 2", pretrained::write_logits(*session, too_long, out));
  EXPECT_FALSE(fs::exists(out));
  EXPECT_FALSE(fs::exists(out.string() + ".part"));
  const std::vector<std::vector<int>> good = {{1, 2}};
  EXPECT_ERROR("/nowhere/x.part: cannot be written", pretrained::write_logits(*session, good, "/nowhere/x"));
}

TEST(BadCommandLine, Options) {
  const auto error = [](std::vector<const char*> words) {
    words.insert(words.begin(), "pretrained");
    return error_of([&] { pretrained::parse_command_line(int(words.size()), words.data()); });
  };
  EXPECT_EQ(error({}), "expected a model's folder and a command; --help says which");
  EXPECT_EQ(error({"m", "sing"}), "the command is 'sing'; expected generate, logits or perplexity");
  EXPECT_EQ(error({"m", "generate"}), "generate needs --prompt or --ids, and not both");
  EXPECT_EQ(error({"m", "generate", "--prompt", "a", "--ids", "1"}), "generate needs --prompt or --ids, and not both");
  EXPECT_EQ(error({"m", "generate", "--prompt"}), "--prompt has no value, or is no option; --help lists them");
  EXPECT_EQ(error({"m", "generate", "--out", "f"}), "generate has no option --out; --help lists them");
  EXPECT_EQ(error({"m", "logits", "--ids", "1,x", "--out", "f"}),
            "--ids is '1,x'; expected token ids by commas, as 5,17,9");
  EXPECT_EQ(error({"m", "logits", "--ids", "1,", "--out", "f"}),
            "--ids is '1,'; expected token ids by commas, as 5,17,9");
  EXPECT_EQ(error({"m", "logits", "--ids", "1"}), "logits needs --out");
  EXPECT_EQ(error({"m", "perplexity"}), "perplexity needs --text or --ids, and not both");
  EXPECT_EQ(error({"m", "perplexity", "--ids", "f", "--beside", "g"}), "--beside needs --picture");
  EXPECT_EQ(error({"m", "generate", "--ids", "1", "--dtype", "int"}),
            "--dtype is 'int'; expected float, bfloat16 or half");
  EXPECT_EQ(error({"m", "generate", "--ids", "1", "--temperature", "nan"}),
            "--temperature is 'nan'; expected a number from 0 on");
  EXPECT_EQ(error({"m", "generate", "--ids", "1", "--threads", "0"}),
            "--threads is '0'; expected a whole number from 1 to 1024");
  EXPECT_EQ(error({"m", "generate", "--ids", "1", "--dtype", "float,half"}),
            "--dtype takes one type; a list is for perplexity");
}

}  // namespace
