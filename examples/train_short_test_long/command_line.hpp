// The command line. Every number is checked.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "settings.hpp"

namespace experiment {

inline constexpr const char* kUsage =
    R"(train_short_test_long: language models that differ in nothing but how they know positions, trained at one
length and evaluated at 1, 2, 4, 8 and 16 times that length

  --text PATH           a file, or a directory of files (default: the C++ sources of Eigen)
  --out DIR             for checkpoints, CSV and the picture (default: train_short_test_long.out)
  --methods LIST        by commas, of alibi, t5, rotary, rotary-alibi, xpos, sinusoidal, learned, and of
                        rotary-interpolation, rotary-ntk and rotary-yarn, which only evaluate the model of rotary
                        (default: all)
  --length N            bytes of a training sequence (default: 256)
  --steps N             (default: 2000)
  --batch N             sequences of a step (default: 16)
  --dim N               (default: 128)
  --layers N            (default: 4)
  --heads N             (default: 4)
  --learning-rate X     at its highest (default: 0.002)
  --seed N              (default: 1)
  --threads N           (default: one a core); results do not depend on it
  --attention NAME      alibi, this library; or naive, plain Eigen (default: alibi)
  --checkpoint-every N  steps (default: 100)
  --evaluate BYTES      of the validation text, at most (default: 262144)
  --resume              go on from the checkpoints in DIR
  --no-picture          CSV only; gnuplot is not needed then
)";

inline std::vector<Method> all_methods() {
  std::vector<Method> methods;
  for (std::size_t i = 0; i < kMethodNames.size(); i++) methods.push_back(Method(i));
  return methods;
}

struct Arguments {
  std::vector<std::filesystem::path> text;
  std::filesystem::path out = "train_short_test_long.out";
  std::vector<Method> methods = all_methods();
  Settings settings;
  int threads = std::max(1, int(std::thread::hardware_concurrency()));
  Index checkpoint_every = 100;
  bool resume = false, picture = true, help = false;
};

namespace detail {

[[noreturn]] inline void refuse(const std::string& option, std::string_view value, const std::string& expected) {
  throw std::invalid_argument(option + " is '" + std::string(value) + "'; expected " + expected);
}

template <class Number>
Number number(const std::string& option, std::string_view value, Number least, Number most, const std::string& what) {
  Number result{};
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), result);
  const bool whole = error == std::errc() && end == value.data() + value.size();
  if (!whole || !(result >= least && result <= most)) refuse(option, value, what);
  return result;
}

inline Index integer(const std::string& option, std::string_view value, Index most = 1 << 30) {
  return number<Index>(option, value, 1, most, "a whole number from 1 to " + std::to_string(most));
}

/// The index of a name in a list of names.
template <std::size_t size>
std::size_t place(const std::string& option, std::string_view value, const std::array<std::string_view, size>& names) {
  const auto found = std::ranges::find(names, value);
  if (found == names.end()) {
    std::string list;
    for (const std::string_view name : names) list += (list.empty() ? "" : ", ") + std::string(name);
    refuse(option, value, "one of " + list);
  }
  return std::size_t(found - names.begin());
}

inline std::vector<Method> methods(const std::string& option, std::string_view list) {
  std::vector<Method> result;
  for (std::size_t begin = 0; begin <= list.size();) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    const auto method = Method(place(option, list.substr(begin, end - begin), kMethodNames));
    if (std::ranges::count(result, method) > 0) refuse(option, list, "each method once");
    result.push_back(method);
    begin = end + 1;
  }
  return result;
}

/// Checks the conditions between several options.
inline void check(const Arguments& arguments) {
  const Settings& s = arguments.settings;
  const Shape& shape = s.shape;
  if (shape.dim % (2 * shape.heads) != 0)
    refuse("--dim", std::to_string(shape.dim),
           "an even number for each of the " + std::to_string(shape.heads) + " heads");
  if (shape.head_dim() < 4 && std::ranges::count(arguments.methods, Method::rotary_ntk) > 0)
    refuse("--dim", std::to_string(shape.dim), "at least 4 for each head, with the method rotary-ntk");
  if (s.batch % kShards != 0) refuse("--batch", std::to_string(s.batch), "a multiple of " + std::to_string(kShards));
  if (s.length() % 4 != 0) refuse("--length", std::to_string(s.length()), "a multiple of 4");
  if (s.evaluated < kLongest * s.length())
    refuse("--evaluate", std::to_string(s.evaluated),
           "at least " + std::to_string(kLongest * s.length()) + ", a window of the longest evaluation");
}

inline void take(Arguments& a, const std::string& option, std::string_view value) {
  Settings& s = a.settings;
  if (option == "--text")
    a.text = {std::string(value)};
  else if (option == "--out")
    a.out = std::string(value);
  else if (option == "--methods")
    a.methods = methods(option, value);
  else if (option == "--length")
    s.shape.training_length = integer(option, value, 1 << 16);
  else if (option == "--steps")
    s.steps = integer(option, value);
  else if (option == "--batch")
    s.batch = integer(option, value, 1 << 16);
  else if (option == "--dim")
    s.shape.dim = integer(option, value, 1 << 14);
  else if (option == "--layers")
    s.shape.layers = integer(option, value, 1 << 10);
  else if (option == "--heads")
    s.shape.heads = integer(option, value, 1 << 10);
  else if (option == "--learning-rate")
    s.learning_rate = number(option, value, 1e-9, 1.0, "a number from 1e-9 to 1");
  else if (option == "--seed")
    s.seed = number<std::uint64_t>(option, value, 0, std::numeric_limits<std::uint64_t>::max(), "a whole number");
  else if (option == "--threads")
    a.threads = int(integer(option, value, 1 << 10));
  else if (option == "--attention")
    s.shape.backend = Backend(place(option, value, kBackendNames));
  else if (option == "--checkpoint-every")
    a.checkpoint_every = integer(option, value);
  else if (option == "--evaluate")
    s.evaluated = integer(option, value);
  else
    throw std::invalid_argument("there is no option " + option + "; --help lists them");
}

}  // namespace detail

/// Throws std::invalid_argument that names the option, its value and what was expected.
inline Arguments parse(int argc, char** argv, const std::vector<std::filesystem::path>& default_text) {
  Arguments arguments;
  arguments.text = default_text;
  for (int i = 1; i < argc; i++) {
    const std::string option = argv[i];
    if (option == "--resume") {
      arguments.resume = true;
    } else if (option == "--no-picture") {
      arguments.picture = false;
    } else if (option == "--help") {
      arguments.help = true;
    } else if (i + 1 == argc) {
      throw std::invalid_argument(option + " has no value, or is no option; --help lists them");
    } else {
      detail::take(arguments, option, argv[++i]);
    }
  }
  detail::check(arguments);
  return arguments;
}

}  // namespace experiment
