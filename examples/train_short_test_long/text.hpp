// The text: the bytes of a file or of all files below directories, split by file into training and validation text.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace experiment {

/// FNV-1a, 64 bits.
inline std::uint64_t fnv1a(std::string_view bytes, std::uint64_t hash = 0xcbf29ce484222325) {
  for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

struct Text {
  std::string train = {}, validation = {};
  std::size_t files = 0;
  std::uint64_t hash() const { return fnv1a(validation, fnv1a(train)); }
};

/// Every sixteenth file is for validation; for a single file, its last sixteenth.
constexpr std::size_t kValidationShare = 16;

inline std::string read_file(const std::filesystem::path& path) {
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  if (error) throw std::runtime_error("cannot read " + path.string() + ": " + error.message());
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::string bytes(size, '\0');
  if (!file.read(bytes.data(), std::streamsize(size)))
    throw std::runtime_error("cannot read " + path.string() + ": " + std::generic_category().message(errno));
  return bytes;
}

/// The file itself, or all files below a directory in the order of their names. The split does not depend on the
/// location of the directory.
inline std::vector<std::filesystem::path> files_of(const std::filesystem::path& path) {
  std::error_code error;
  const auto kind = std::filesystem::status(path, error).type();
  if (kind == std::filesystem::file_type::not_found || kind == std::filesystem::file_type::none)
    throw std::runtime_error("cannot read " + path.string() + ": " + error.message());
  if (kind == std::filesystem::file_type::regular) return {path};
  if (kind != std::filesystem::file_type::directory)
    throw std::runtime_error("cannot read " + path.string() + ": neither a file nor a directory");
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(path))
    if (entry.is_regular_file()) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

/// Throws std::runtime_error that names what cannot be read, and for an empty text.
inline Text read_text(const std::vector<std::filesystem::path>& paths) {
  std::vector<std::filesystem::path> files;
  for (const auto& path : paths) std::ranges::copy(files_of(path), std::back_inserter(files));
  Text text{.files = files.size()};
  for (std::size_t i = 0; i < files.size(); i++)
    (i % kValidationShare == kValidationShare / 2 ? text.validation : text.train) += read_file(files[i]);
  if (files.size() == 1) {
    text.validation = text.train.substr(text.train.size() - text.train.size() / kValidationShare);
    text.train.resize(text.train.size() - text.validation.size());
  }
  if (text.train.empty()) throw std::runtime_error("the text " + paths.front().string() + " is empty");
  return text;
}

}  // namespace experiment
