// A file in memory, read only. The operating system reads a page of it when the page is first used.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

namespace pretrained {

class MappedFile {
 public:
  /// Throws std::runtime_error that names the file and what is wrong.
  explicit MappedFile(const std::filesystem::path& path) {
    const auto fail = [&](const std::string& what) { throw std::runtime_error(path.string() + ": " + what); };
    const auto fail_with = [&](int error) { fail(std::generic_category().message(error)); };
    // O_NONBLOCK: a pipe must not wait for its writer before it is refused.
    const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) fail_with(errno);
    struct stat status{};
    const bool is_known = fstat(descriptor, &status) == 0;
    const bool is_regular = is_known && S_ISREG(status.st_mode);
    const std::size_t size = is_regular ? std::size_t(status.st_size) : 0;
    // mmap() refuses a size of 0.
    void* memory = size > 0 ? mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0) : nullptr;
    const int error = errno;
    close(descriptor);
    if (is_known && !is_regular) fail("is no regular file");
    if (!is_known || memory == MAP_FAILED) fail_with(error);
    bytes_ = {static_cast<const std::byte*>(memory), size};
  }
  ~MappedFile() {
    if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return bytes_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(bytes_.data()), bytes_.size()}; }

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace pretrained
