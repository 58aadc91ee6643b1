// Reads a tokenizer.json, and refuses what is not supported.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "json_field.hpp"
#include "nfc.hpp"
#include "tokenizer_model.hpp"

namespace pretrained {

class TokenizerFile {
 public:
  TokenizerFile(const nlohmann::json& json, const std::string& file) : root_(json, file) { model_->file = file; }

  std::shared_ptr<const TokenizerModel> read() {
    const Field model = root_["model"];
    check_model(model);
    read_vocabulary(model);
    read_merges(model["merges"]);
    read_normalizer(root_["normalizer"]);
    read_added_tokens(root_["added_tokens"]);
    for_each_part(root_["pre_tokenizer"], "pretokenizers",
                  [&](const Field& part, const std::string& type) { read_pre_tokenizer(part, type); });
    if (!has_byte_level_) root_["pre_tokenizer"].fail("has no ByteLevel: only byte-level BPE is supported");
    read_post_processor(root_["post_processor"]);
    const Field decoder = root_["decoder"];
    if (type_of(decoder) != "ByteLevel") refuse(decoder, "ByteLevel");
    return model_;
  }

 private:
  /// The largest id that is taken. Memory is proportional to the largest id of a file.
  static constexpr int kMostId = (1 << 20) - 1;
  /// Each Split takes a level of recursion.
  static constexpr std::size_t kMostSplits = 64;
  static constexpr std::size_t kMostTemplateIds = 1000;

  /// GPT-2's pattern, by which ByteLevel splits texts if it has use_regex.
  static constexpr std::string_view kByteLevelPattern =
      R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

  static std::string type_of(const Field& field) { return field.is_null() ? "null" : field["type"].string(); }
  [[noreturn]] static void refuse(const Field& field, const std::string& supported) {
    field.fail("is " + type_of(field) + "; supported: " + supported);
  }

  /// Calls visit(part, type) for the parts of a Sequence, which are its member `name`, or for the field itself.
  template <class Visit>
  static void for_each_part(const Field& field, const std::string& name, const Visit& visit, int depth = 0) {
    if (type_of(field) != "Sequence") return visit(field, type_of(field));
    if (depth > 8) field.fail("is a Sequence inside too many others");
    const Field parts = field[name];
    for (std::size_t i = 0; i < parts.array().size(); i++) for_each_part(parts[i], name, visit, depth + 1);
  }

  static void check_model(const Field& model) {
    model["type"].support({"BPE"});
    model["dropout"].support({0});
    model["continuing_subword_prefix"].support({""});
    model["end_of_word_suffix"].support({""});
    model["byte_fallback"].support({false});
  }

  void read_vocabulary(const Field& model) {
    const Field vocabulary = model["vocab"];
    const bool ignores_merges = model["ignore_merges"].boolean(false);
    if (vocabulary.object().empty()) vocabulary.fail("is empty");
    ids_.reserve(vocabulary.object().size());
    for (const auto& [text, value] : vocabulary.object()) {
      // A Field makes a string of its path, so there is one only for errors.
      if (!value.is_number_integer() || value.get<std::uint64_t>() > std::uint64_t(kMostId))
        vocabulary[text].integer(kMostId);
      const int id = value.get<int>();
      if (std::size_t(id) < model_->tokens.size() && model_->tokens[std::size_t(id)].exists)
        vocabulary[text].fail("is " + std::to_string(id) + ", the id of another token too");
      const std::optional<std::string> bytes = bytes_of(text);
      model_->set_token(id, bytes ? *bytes : text, false);
      ids_.emplace(text, id);
      if (ignores_merges && bytes) model_->words.emplace(*bytes, id);
    }
    for (int byte = 0; byte < 256; byte++) {
      std::string character;
      utf8::append(character, character_of(std::uint8_t(byte)));
      model_->byte_ids[std::size_t(byte)] = id_of(character);
    }
    if (const Field unknown = model["unk_token"]; !unknown.is_null()) {
      model_->unknown = id_of(unknown.string());
      if (model_->unknown < 0) unknown.fail("is " + unknown.shortened() + ", which is not in model.vocab");
    }
    model_->fuses_unknown = model["fuse_unk"].boolean(false);
  }

  int id_of(const std::string& text) const {
    const auto found = ids_.find(text);
    return found == ids_.end() ? -1 : found->second;
  }

  void read_merges(const Field& merges) {
    const std::size_t count = merges.array().size();
    std::uint32_t rank = 0;
    for (std::size_t i = 0; i < count; i++) {
      const auto& value = merges.array()[i];
      std::string left, right;
      if (value.is_string()) {
        const std::string& text = value.get_ref<const std::string&>();
        if (text.starts_with("#version")) continue;
        const std::size_t space = text.find(' ');
        if (space == text.npos || text.find(' ', space + 1) != text.npos) merges[i].expected("two tokens and a space");
        left = text.substr(0, space), right = text.substr(space + 1);
      } else if (value.is_array() && value.size() == 2 && value[0].is_string() && value[1].is_string()) {
        left = value[0].get<std::string>(), right = value[1].get<std::string>();
      } else {
        merges[i].expected("a pair of tokens");
      }
      const int left_id = known_id(merges, i, left), right_id = known_id(merges, i, right);
      const int id = known_id(merges, i, left + right);
      model_->merges.set(left_id, right_id, {rank++, id});
    }
  }

  int known_id(const Field& merges, std::size_t index, const std::string& text) const {
    const int id = id_of(text);
    if (id < 0) merges[index].fail("needs the token \"" + text + "\", which is not in model.vocab");
    return id;
  }

  void read_normalizer(const Field& normalizer) {
    for_each_part(normalizer, "normalizers", [&](const Field& part, const std::string& type) {
      if (type == "NFC")
        model_->composes = true;
      else if (type != "null")
        refuse(part, "null, NFC, Sequence");
    });
  }

  void read_added_tokens(const Field& tokens) {
    if (tokens.is_null()) return;
    const int vocabulary = int(ids_.size());
    int next = vocabulary;
    for (std::size_t i = 0; i < tokens.array().size(); i++) {
      const Field token = tokens[i];
      const std::string& content = token["content"].string();
      if (content.empty()) continue;
      if (content.size() > AddedTokens::kMostBytes)
        token["content"].fail("has " + std::to_string(content.size()) + " bytes; expected at most " +
                              std::to_string(AddedTokens::kMostBytes));
      const int id = int(token["id"].integer(kMostId));
      // `tokenizers` ignores an id that is not the one by this rule. The model may have been trained with either.
      const int known = id_of(content), expected = known >= 0 ? known : next;
      if (id != expected)
        token["id"].fail("is " + std::to_string(id) + "; the token \"" + content + "\" has " +
                         std::to_string(expected) + " by its place");
      next = std::max(next, id + 1);
      ids_.emplace(content, id);
      const bool special = token["special"].boolean(false);
      model_->set_token(id, content, special);
      const AddedToken added = {.id = id,
                                .single_word = token["single_word"].boolean(false),
                                .strips_left = token["lstrip"].boolean(false),
                                .strips_right = token["rstrip"].boolean(false)};
      if (token["normalized"].boolean(!special))
        model_->added_normalized.add(model_->composes ? composed(content) : content, added);
      else
        model_->added.add(content, added);
    }
  }

  void read_pre_tokenizer(const Field& field, const std::string& type) {
    if (has_byte_level_) field.fail("is " + type + " behind a ByteLevel, which is not supported");
    if (type == "ByteLevel") {
      has_byte_level_ = true;
      model_->adds_prefix_space = field["add_prefix_space"].boolean();
      if (field["use_regex"].boolean(true)) model_->byte_level_split = Split{Pattern(kByteLevelPattern)};
    } else if (type == "Split") {
      if (model_->splits.size() == kMostSplits)
        field.fail("is a Split behind " + std::to_string(kMostSplits) + " others");
      model_->splits.push_back(
          {pattern_of(field["pattern"]), behavior_of(field["behavior"]), field["invert"].boolean(false)});
    } else {
      refuse(field, "ByteLevel, Split, Sequence");
    }
  }

  static Pattern pattern_of(const Field& field) {
    const Field regex = field["Regex"], text = field["String"];
    if (regex.is_null() == text.is_null()) field.expected("an object with either Regex or String");
    try {
      return regex.is_null() ? Pattern::literal(text.string()) : Pattern(regex.string());
    } catch (const std::invalid_argument& error) {
      (regex.is_null() ? text : regex).fail(error.what());
    }
  }

  static Behavior behavior_of(const Field& field) {
    constexpr std::array<std::pair<std::string_view, Behavior>, 5> kBehaviors = {{
        {"Removed", Behavior::removed},
        {"Isolated", Behavior::isolated},
        {"MergedWithPrevious", Behavior::merged_with_previous},
        {"MergedWithNext", Behavior::merged_with_next},
        {"Contiguous", Behavior::contiguous},
    }};
    for (const auto& [name, behavior] : kBehaviors)
      if (field.string() == name) return behavior;
    field.expected("Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
  }

  void read_post_processor(const Field& field) {
    for_each_part(field, "processors", [&](const Field& part, const std::string& type) {
      if (type == "TemplateProcessing")
        read_template(part);
      else if (type != "null" && type != "ByteLevel")  // ByteLevel only moves offsets
        refuse(part, "null, ByteLevel, TemplateProcessing, Sequence");
    });
  }

  void read_template(const Field& field) {
    const Field single = field["single"];
    std::vector<int> before, behind;
    bool has_text = false;
    for (std::size_t i = 0; i < single.array().size(); i++) {
      const Field special = single[i]["SpecialToken"], text = single[i]["Sequence"];
      if (special.is_null() == text.is_null()) single[i].expected("either a SpecialToken or a Sequence");
      if (special.is_null()) {
        if (text["id"].string() != "A" || has_text) text.fail("is not the one Sequence A");
        has_text = true;
        continue;
      }
      const Field ids = field["special_tokens"][special["id"].string()]["ids"];
      const std::size_t count = model_->before.size() + model_->behind.size() + before.size() + behind.size();
      if (count + ids.array().size() > kMostTemplateIds)
        single.fail("has more than " + std::to_string(kMostTemplateIds) + " ids around a text");
      for (std::size_t j = 0; j < ids.array().size(); j++)
        (has_text ? behind : before).push_back(int(ids[j].integer(std::int64_t(model_->tokens.size()) - 1)));
    }
    if (!has_text) single.fail("has no Sequence A");
    // A template wraps the ids of those before it in a Sequence.
    model_->before.insert(model_->before.begin(), before.begin(), before.end());
    model_->behind.insert(model_->behind.end(), behind.begin(), behind.end());
  }

  Field root_;
  std::shared_ptr<TokenizerModel> model_ = std::make_shared<TokenizerModel>();
  std::unordered_map<std::string, int> ids_;  // by token, as the file writes it
  bool has_byte_level_ = false;
};

}  // namespace pretrained
