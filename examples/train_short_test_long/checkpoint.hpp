// Checkpoints: the state of a run, in a file that is either complete or missing. The contents, in the byte order of the
// machine:
//
//   magic, version, settings [name, value ...], step, parameters, both moments of Adam, losses, evaluations, times,
//   and an FNV-1a hash of all that
//
// A file is written under a temporary name, synchronised to the disk and renamed. If anything fails, such as a full
// disk or a power cut, the previous file remains.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <Eigen/Core>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include "model.hpp"
#include "settings.hpp"
#include "text.hpp"

namespace experiment {

enum class Reading : Index { nonoverlapping, sliding };
inline constexpr std::array<std::string_view, 2> kReadingNames = {"nonoverlapping", "sliding"};
inline std::string_view name_of(Reading reading) { return kReadingNames[std::size_t(reading)]; }

/// A row of results.csv.
struct Evaluation {
  Method method = Method::alibi;
  Reading reading = Reading::nonoverlapping;
  Index length = 0, stride = 0, bytes = 0;  // the length of a window, its step, and the number of predicted bytes
  double loss = 0;                          // nats per byte
  double tokens_per_second = 0;             // read, not predicted
};

struct Validation {
  Index step = 0;
  double loss = 0;  // nats per byte
};

struct Seconds {
  double training = 0;   // by the clock
  double working = 0;    // of all threads, in the model and in the optimiser
  double attention = 0;  // the part of `working` inside attention
};

/// The whole state of a run.
struct State {
  explicit State(const Shape& shape)
      : parameters(shape),
        first_moment(Eigen::VectorXf::Zero(parameters.flat.size())),
        second_moment(Eigen::VectorXf::Zero(parameters.flat.size())) {}

  Index step = 0;  // steps done
  Parameters parameters;
  Eigen::VectorXf first_moment, second_moment;
  std::vector<double> losses;  // of each step, nats per byte
  std::vector<Validation> validations;
  std::vector<Evaluation> evaluations;
  Seconds seconds;
};

namespace detail {

/// A file descriptor with the name of its file, for error messages.
class File {
 public:
  File(const std::filesystem::path& path, int flags) : path_(path), descriptor_(::open(path.c_str(), flags, 0666)) {
    if (descriptor_ < 0) fail();
  }
  ~File() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  void write(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) fail();
      bytes.remove_prefix(std::size_t(written));
    }
  }
  void synchronise() {
    if (::fsync(descriptor_) != 0) fail();
  }
  /// Some file systems report a full disk only here.
  void close() {
    if (::close(std::exchange(descriptor_, -1)) != 0) fail();
  }

 private:
  [[noreturn]] void fail() const {
    throw std::runtime_error("cannot write " + path_.string() + ": " + std::generic_category().message(errno));
  }

  std::filesystem::path path_;
  int descriptor_;
};

}  // namespace detail

/// Throws std::runtime_error that names the file and the reason; the previous file then remains.
inline void write_whole(const std::filesystem::path& path, std::string_view bytes) {
  const std::filesystem::path part = path.string() + ".part";
  try {
    detail::File file(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC);
    file.write(bytes);
    file.synchronise();
    file.close();
    std::filesystem::rename(part, path);
  } catch (const std::exception& error) {
    std::error_code ignored;
    std::filesystem::remove(part, ignored);
    const bool kept = std::filesystem::exists(path, ignored);
    throw std::runtime_error(error.what() + (kept ? "; " + path.string() + " is left as it was" : std::string()));
  }
  // The new name reaches the disk with its directory. A power cut before that restores the old file, which is complete
  // too.
  const int directory =
      ::open(path.has_parent_path() ? path.parent_path().c_str() : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) return;
  ::fsync(directory);
  ::close(directory);
}

namespace detail {

inline constexpr std::string_view kMagic = "alibi: train short, test long\n";
inline constexpr std::uint32_t kVersion = 2;

class Serialiser {
 public:
  template <class T>
  void operator()(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void operator()(const std::string& text) {
    (*this)(std::uint64_t(text.size()));
    bytes_ += text;
  }
  void operator()(const Eigen::VectorXf& values) { array(values.data(), values.size()); }
  template <class T>
  void operator()(const std::vector<T>& values) {
    array(values.data(), values.size());
  }
  std::string& bytes() { return bytes_; }

 private:
  template <class T, class Size>
  void array(const T* values, Size size) {
    (*this)(std::uint64_t(size));
    bytes_.append(reinterpret_cast<const char*>(values), std::size_t(size) * sizeof(T));
  }
  std::string bytes_;
};

/// The inverse of Serialiser, with the same calls.
class Deserialiser {
 public:
  explicit Deserialiser(std::string_view bytes) : bytes_(bytes) {}

  template <class T>
  void operator()(T& value) {
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
  }
  void operator()(std::string& text) { text = take(size()); }
  void operator()(Eigen::VectorXf& values) {
    const std::size_t count = size();
    if (count != std::size_t(values.size()))
      throw std::runtime_error("holds " + std::to_string(count) + " numbers of a kind; expected " +
                               std::to_string(values.size()));
    std::memcpy(values.data(), take(count * sizeof(float)).data(), count * sizeof(float));
  }
  template <class T>
  void operator()(std::vector<T>& values) {
    const std::size_t count = size();
    const std::string_view bytes = take(count > bytes_.size() ? count : count * sizeof(T));
    values.resize(count);
    if (count > 0) std::memcpy(values.data(), bytes.data(), bytes.size());
  }
  bool at_end() const { return bytes_.empty(); }

 private:
  std::size_t size() {
    std::uint64_t size = 0;
    (*this)(size);
    return size;
  }
  std::string_view take(std::size_t count) {
    if (count > bytes_.size()) throw std::runtime_error("ends too early");
    const std::string_view taken = bytes_.substr(0, count);
    bytes_.remove_prefix(count);
    return taken;
  }
  std::string_view bytes_;
};

/// The contents of a checkpoint after its settings, in order.
template <class Visitor, class AnyState>
void visit(Visitor& visitor, AnyState& state) {
  visitor(state.step);
  visitor(state.parameters.flat);
  visitor(state.first_moment);
  visitor(state.second_moment);
  visitor(state.losses);
  visitor(state.validations);
  visitor(state.evaluations);
  visitor(state.seconds);
}

inline void check_settings(Deserialiser& in, const Settings& settings) {
  for (const auto& [name, expected] : fields_of(settings)) {
    std::string found_name, found;
    in(found_name);
    in(found);
    std::string message;
    if (found_name != name)
      message.append("has a setting ").append(found_name).append("; expected ").append(name);
    else if (found != expected)
      message.append("is of another run: its ")
          .append(name)
          .append(" is ")
          .append(found)
          .append("; expected ")
          .append(expected);
    if (!message.empty()) throw std::runtime_error(message);
  }
}

inline void deserialise_checkpoint(std::string_view bytes, const Settings& settings, State& state) {
  if (!bytes.starts_with(kMagic)) throw std::runtime_error("is no checkpoint of this program");
  std::uint64_t found = 0;
  if (bytes.size() < kMagic.size() + sizeof found) throw std::runtime_error("is damaged: it ends too early");
  const std::string_view content = bytes.substr(0, bytes.size() - sizeof found);
  Deserialiser(bytes.substr(content.size()))(found);
  if (const std::uint64_t hash = fnv1a(content); hash != found)
    throw std::runtime_error("is damaged: the hash of its content is " + std::to_string(hash) + "; expected " +
                             std::to_string(found));
  Deserialiser in(content.substr(kMagic.size()));
  std::uint32_t version = 0;
  in(version);
  if (version != kVersion)
    throw std::runtime_error("has version " + std::to_string(version) + "; expected " + std::to_string(kVersion));
  check_settings(in, settings);
  visit(in, state);
  if (!in.at_end()) throw std::runtime_error("is longer than expected");
}

}  // namespace detail

inline void save_checkpoint(const std::filesystem::path& path, const Settings& settings, const State& state) {
  detail::Serialiser out;
  out.bytes() = detail::kMagic;
  out(detail::kVersion);
  for (const auto& [name, value] : fields_of(settings)) {
    out(name);
    out(value);
  }
  detail::visit(out, state);
  out(fnv1a(out.bytes()));
  write_whole(path, out.bytes());
}

/// Throws std::runtime_error that names the file, what is wrong and what was expected.
inline void load_checkpoint(const std::filesystem::path& path, const Settings& settings, State& state) {
  const std::string bytes = read_file(path);
  try {
    detail::deserialise_checkpoint(bytes, settings, state);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error("the checkpoint " + path.string() + " " + error.what());
  }
}

}  // namespace experiment
