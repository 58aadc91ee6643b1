// JSON whose values know where they stand. Every error names the file and the field, says what the field is, and what
// was expected.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace pretrained {

using Json = nlohmann::json;

/// Throws std::runtime_error that says where in the text the mistake is; `file` stands for the text in errors.
inline Json parse_json(std::string_view text, const std::string& file) {
  try {
    return Json::parse(text);
  } catch (const Json::exception& error) {
    constexpr std::size_t kMost = 200;  // a message may quote the whole text
    std::string_view what = error.what();
    what.remove_prefix(std::min(what.find("] ") + 2, what.size()));  // "[json.exception.parse_error.101] "
    throw std::runtime_error(file + ": is no JSON: " + std::string(what.substr(0, kMost)));
  }
}

class Field {
 public:
  /// The whole text. Both arguments have to outlive the field.
  Field(const Json& root, const std::string& file) : value_(&root), file_(&file) {}

  /// A member of an object, null if it is absent.
  Field operator[](const std::string& name) const {
    static const Json kNull;
    const auto member = object().find(name);
    return {member == object().end() ? kNull : member->second, *file_, path_.empty() ? name : path_ + "." + name};
  }
  Field operator[](std::size_t index) const {
    return {array().at(index), *file_, path_ + "[" + std::to_string(index) + "]"};
  }

  bool is_null() const { return value_->is_null(); }
  bool is_string() const { return value_->is_string(); }
  bool is_array() const { return value_->is_array(); }
  bool equals(const Json& other) const { return *value_ == other; }

  const std::string& string() const {
    if (!is_string()) expected("a string");
    return value_->get_ref<const std::string&>();
  }
  bool boolean() const {
    if (!value_->is_boolean()) expected("true or false");
    return value_->get<bool>();
  }
  bool boolean(bool if_null) const { return is_null() ? if_null : boolean(); }
  /// From `least`, which is not negative, to `most`.
  std::int64_t integer(std::int64_t most, std::int64_t least = 0) const {
    // A negative integer, read as an unsigned one, is larger than every `most`.
    if (!value_->is_number_integer() || value_->get<std::uint64_t>() > std::uint64_t(most) ||
        value_->get<std::int64_t>() < least)
      expected("an integer from " + std::to_string(least) + " to " + std::to_string(most));
    return value_->get<std::int64_t>();
  }
  double number() const {
    if (!value_->is_number()) expected("a number");
    return value_->get<double>();
  }
  const Json::array_t& array() const {
    if (!is_array()) expected("an array");
    return value_->get_ref<const Json::array_t&>();
  }
  const Json::object_t& object() const {
    if (!value_->is_object()) expected("an object");
    return value_->get_ref<const Json::object_t&>();
  }

  /// Refuses every value other than null and these.
  void support(std::initializer_list<Json> values) const {
    std::string supported = "null";
    for (const Json& value : values) {
      if (equals(value)) return;
      supported += ", " + value.dump();
    }
    if (!is_null()) fail("is " + shortened() + "; supported: " + supported);
  }

  /// Throws "FILE: FIELD `what`".
  [[noreturn]] void fail(std::string_view what) const {
    throw std::runtime_error(*file_ + ": " + (path_.empty() ? "the JSON" : path_) + " " + std::string(what));
  }
  [[noreturn]] void expected(std::string_view what) const {
    fail("is " + shortened() + "; expected " + std::string(what));
  }

  /// The value as in the file, but at most some dozens of characters of it.
  std::string shortened() const {
    constexpr std::size_t kMost = 60;
    if (value_->is_object()) return "an object";
    if (value_->is_array()) return "an array";
    std::string text = value_->dump(-1, ' ', true);
    if (text.size() > kMost) text.replace(kMost, std::string::npos, "...");
    return text;
  }

 private:
  Field(const Json& value, const std::string& file, std::string path)
      : value_(&value), file_(&file), path_(std::move(path)) {}

  const Json* value_;
  const std::string* file_;
  std::string path_;
};

}  // namespace pretrained
