// A value inside a JSON file that knows where it stands, so that errors name the file and the field.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>

namespace pretrained {

class Field {
 public:
  using Json = nlohmann::json;

  /// The whole file; both live longer than the field.
  Field(const Json& root, const std::string& file) : value_(&root), file_(&file) {}

  /// A member or an element; absent ones are null.
  Field operator[](const std::string& name) const {
    if (!value_->is_object()) expected("an object");
    const auto member = value_->find(name);
    return {member == value_->end() ? null() : *member, *file_, path_.empty() ? name : path_ + "." + name};
  }
  Field operator[](std::size_t index) const {
    return {array().at(index), *file_, path_ + "[" + std::to_string(index) + "]"};
  }

  bool is_null() const { return value_->is_null(); }
  bool is_string() const { return value_->is_string(); }
  bool is_array() const { return value_->is_array(); }
  bool equals(const Json& other) const { return *value_ == other; }

  const std::string& string() const {
    if (!value_->is_string()) expected("a string");
    return value_->get_ref<const std::string&>();
  }
  bool boolean() const {
    if (!value_->is_boolean()) expected("true or false");
    return value_->get<bool>();
  }
  bool boolean(bool otherwise) const { return is_null() ? otherwise : boolean(); }
  /// From `least`, 0 or more, to `limit`, which it does not reach.
  int integer(int limit, int least = 0) const {
    // What is negative as a signed integer is huge as an unsigned one.
    if (!value_->is_number_integer() || value_->get<std::uint64_t>() >= std::uint64_t(limit) ||
        value_->get<int>() < least)
      expected("an integer from " + std::to_string(least) + " to " + std::to_string(limit - 1));
    return value_->get<int>();
  }
  double number() const {
    if (!value_->is_number()) expected("a number");
    return value_->get<double>();
  }
  const Json::array_t& array() const {
    if (!value_->is_array()) expected("an array");
    return value_->get_ref<const Json::array_t&>();
  }
  const Json::object_t& object() const {
    if (!value_->is_object()) expected("an object");
    return value_->get_ref<const Json::object_t&>();
  }

  [[noreturn]] void fail(std::string_view what) const {
    throw std::runtime_error(*file_ + ": " + (path_.empty() ? "the whole" : path_) + " " + std::string(what));
  }
  [[noreturn]] void expected(std::string_view what) const {
    fail("is " + shortened() + "; expected " + std::string(what));
  }

  /// As in the file, at most some dozens of characters of it.
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

  static const Json& null() {
    static const Json kNull;
    return kNull;
  }

  const Json* value_;
  const std::string* file_;
  std::string path_;
};

}  // namespace pretrained
