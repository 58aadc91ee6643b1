// Files with a text or with the ids of its tokens. Every function throws std::runtime_error that names the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace pretrained {

[[noreturn]] inline void fail(const std::filesystem::path& file, const std::string& what) {
  throw std::runtime_error(file.string() + ": " + what);
}

/// The bytes of a file that is not empty.
inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in || std::filesystem::is_directory(path)) fail(path, "cannot be read");
  std::string bytes{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  if (bytes.empty()) fail(path, "is empty");
  return bytes;
}

/// The ids of a .u16 file, 16 bits each, little endian.
inline std::vector<int> read_ids(const std::filesystem::path& path) {
  const std::string bytes = read_file(path);
  if (bytes.size() % 2 != 0) fail(path, "has " + std::to_string(bytes.size()) + " bytes; expected two for each id");
  std::vector<int> ids;
  for (std::size_t i = 0; i < bytes.size(); i += 2)
    ids.push_back(int(std::uint8_t(bytes[i])) | int(std::uint8_t(bytes[i + 1])) << 8);
  return ids;
}

}  // namespace pretrained
