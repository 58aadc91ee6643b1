#include "command_line.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>
#include <thread>

namespace pretrained {

namespace {

constexpr std::array<std::string_view, 4> kCommands = {"--help", "generate", "logits", "perplexity"};
constexpr Index kMost = Index(1) << 36;  // caches count tokens up to 2^37

[[noreturn]] void refuse(const std::string& option, std::string_view value, const std::string& expected) {
  throw UsageError(option + " is '" + std::string(value) + "'; expected " + expected);
}

/// A number from least to most; nothing if the text is none.
template <class Number>
std::optional<Number> parsed(std::string_view text, Number least, Number most) {
  Number result{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), result);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  return whole && result >= least && result <= most ? std::optional(result) : std::nullopt;
}

template <class Number>
Number number(const std::string& option, std::string_view value, Number least, Number most, const std::string& what) {
  const auto result = parsed(value, least, most);
  if (!result) refuse(option, value, what);
  return *result;
}

Index integer(const std::string& option, std::string_view value, Index most = kMost) {
  return number<Index>(option, value, 1, most, "a whole number from 1 to " + std::to_string(most));
}

/// Calls take(entry) for each entry of a list by commas.
template <class Take>
void for_each_entry(std::string_view list, const Take& take) {
  for (std::size_t begin = 0; begin <= list.size();) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    take(list.substr(begin, end - begin));
    begin = end + 1;
  }
}

/// Whole numbers by commas; `what` describes them in errors.
template <class Number>
std::vector<Number> integers(const std::string& option, std::string_view list, Number least, Number most,
                             const std::string& what) {
  std::vector<Number> result;
  for_each_entry(list, [&](std::string_view entry) {
    const auto value = parsed(entry, least, most);
    if (!value) refuse(option, list, what);
    result.push_back(*value);
  });
  return result;
}

std::vector<Dtype> dtypes(const std::string& option, std::string_view list) {
  std::vector<Dtype> result;
  for_each_entry(list, [&](std::string_view entry) {
    const auto found = std::ranges::find(kDtypeNames, entry);
    if (found == kDtypeNames.end()) refuse(option, list, "float, bfloat16 or half");
    result.push_back(Dtype(found - kDtypeNames.begin()));
  });
  return result;
}

/// Whether the command has the option; the value is then taken.
bool take(Arguments& a, const std::string& option, std::string_view value) {
  const bool generates = a.command == Command::generate, writes = a.command == Command::logits,
             evaluates = a.command == Command::perplexity;
  if (option == "--dtype")
    a.dtypes = dtypes(option, value);
  else if (option == "--threads")
    a.threads = int(integer(option, value, 1 << 10));
  else if (option == "--tolerance")
    a.tolerance = number(option, value, 0.0, 0.999999, "a number from 0, below 1");
  else if (option == "--ids" && !evaluates)
    a.ids.push_back(integers<int>(option, value, 0, std::numeric_limits<int>::max(), "token ids by commas, as 5,17,9"));
  else if (option == "--ids")
    a.ids_file = value;
  else if (option == "--prompt" && generates)
    a.prompts.emplace_back(value);
  else if (option == "--tokens" && generates)
    a.tokens = integer(option, value);
  else if (option == "--temperature" && generates)
    a.sampling.temperature = number(option, value, 0.0, 1e6, "a number from 0 on");
  else if (option == "--top-p" && generates)
    a.sampling.top_p = number(option, value, 1e-9, 1.0, "a number above 0, up to 1");
  else if (option == "--seed" && generates)
    a.sampling.seed = number<std::uint64_t>(option, value, 0, std::numeric_limits<std::uint64_t>::max(),
                                            "a whole number from 0 to 2^64 - 1");
  else if (option == "--out" && writes)
    a.out = value;
  else if (option == "--text" && evaluates)
    a.text = value;
  else if (option == "--window" && evaluates)
    a.windows = integers<Index>(option, value, 1, kMost, "numbers of tokens by commas, as 512,2048");
  else if (option == "--limit" && evaluates)
    a.limit = integer(option, value);
  else if (option == "--picture" && evaluates)
    a.picture = value;
  else if (option == "--beside" && evaluates)
    a.beside = value;
  else
    return false;
  return true;
}

/// What holds between several options.
void check(const Arguments& a) {
  const auto require = [](bool holds, const char* what) {
    if (!holds) throw UsageError(what);
  };
  if (a.command == Command::generate)
    require(a.prompts.empty() != a.ids.empty(), "generate needs --prompt or --ids, and not both");
  if (a.command == Command::logits) {
    require(!a.ids.empty(), "logits needs --ids");
    require(!a.out.empty(), "logits needs --out");
  }
  if (a.command == Command::perplexity) {
    require(a.text.empty() != a.ids_file.empty(), "perplexity needs --text or --ids, and not both");
    require(a.beside.empty() || !a.picture.empty(), "--beside needs --picture");
  } else {
    require(a.dtypes.size() == 1, "--dtype takes one type; a list is for perplexity");
  }
}

}  // namespace

Arguments parse_command_line(int argc, const char* const* argv) {
  Arguments a;
  a.threads = std::max(1, int(std::thread::hardware_concurrency()));
  for (int i = 1; i < argc; i++)
    if (std::string_view(argv[i]) == "--help") return a;
  if (argc < 3) throw UsageError("expected a model's folder and a command; --help says which");
  a.model = argv[1];
  const auto command = std::ranges::find(kCommands, std::string_view(argv[2]));
  if (command == kCommands.end()) refuse("the command", argv[2], "generate, logits or perplexity");
  a.command = Command(command - kCommands.begin());
  for (int i = 3; i < argc; i += 2) {
    const std::string option = argv[i];
    if (i + 1 == argc) throw UsageError(option + " has no value, or is no option; --help lists them");
    if (!take(a, option, argv[i + 1]))
      throw UsageError(std::string(*command) + " has no option " + option + "; --help lists them");
  }
  check(a);
  return a;
}

}  // namespace pretrained
