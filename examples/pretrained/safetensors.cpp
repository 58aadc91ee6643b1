#include "safetensors.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <utility>

#include "json_field.hpp"

namespace pretrained {

namespace {

using Json = nlohmann::json;
using Range = std::pair<std::uint64_t, std::uint64_t>;

static_assert(std::endian::native == std::endian::little, "the numbers of these files are little endian");

constexpr std::uint64_t kPrefix = 8, kMostHeader = 100'000'000;  // the limit of the reference implementation

[[noreturn]] void fail(const std::string& file, const std::string& what) {
  throw std::runtime_error(file + ": " + what);
}

std::string quoted(const std::string& name) { return "'" + name + "'"; }

/// Bytes of a number, 0 for a dtype that does not exist.
std::uint64_t size_of_dtype(std::string_view dtype) {
  static constexpr std::array<std::pair<std::string_view, std::uint64_t>, 14> kSizes = {{{"F32", 4},
                                                                                         {"F16", 2},
                                                                                         {"BF16", 2},
                                                                                         {"F64", 8},
                                                                                         {"I64", 8},
                                                                                         {"I32", 4},
                                                                                         {"I16", 2},
                                                                                         {"I8", 1},
                                                                                         {"U64", 8},
                                                                                         {"U32", 4},
                                                                                         {"U16", 2},
                                                                                         {"U8", 1},
                                                                                         {"BOOL", 1},
                                                                                         {"F8_E4M3", 1}}};
  const auto found = std::ranges::find(kSizes, dtype, [](const auto& entry) { return entry.first; });
  return found == kSizes.end() ? 0 : found->second;
}

std::uint64_t unsigned_of(const Json& value, const Tensor& tensor, const char* what) {
  if (!value.is_number_unsigned()) tensor.fail("has a " + std::string(what) + " that is not a whole number from 0 on");
  return value.get<std::uint64_t>();
}

const Json& member(const Json& object, const char* key, const Tensor& tensor) {
  const auto found = object.find(key);
  if (found == object.end()) tensor.fail("has no " + std::string(key));
  return *found;
}

/// What the header says of one tensor; `data` is all that lies behind the header.
Range read_entry(const Json& entry, std::span<const std::byte> data, Tensor& tensor) {
  if (!entry.is_object()) tensor.fail("is no object in the header");
  const Json& dtype = member(entry, "dtype", tensor);
  if (!dtype.is_string()) tensor.fail("has a dtype that is no string");
  tensor.dtype = dtype.get<std::string>();
  std::uint64_t bytes = size_of_dtype(tensor.dtype);
  if (bytes == 0) tensor.fail("has the unknown dtype " + quoted(tensor.dtype.substr(0, 40)));

  const Json& shape = member(entry, "shape", tensor);
  if (!shape.is_array()) tensor.fail("has a shape that is no array");
  constexpr std::uint64_t kMost = std::uint64_t(std::numeric_limits<Index>::max());
  for (const Json& value : shape) {
    const std::uint64_t size = unsigned_of(value, tensor, "size in its shape");
    if (size > kMost || (size != 0 && bytes > kMost / size)) tensor.fail("has a shape whose product overflows");
    bytes *= size;
    tensor.shape.push_back(Index(size));
  }

  const Json& offsets = member(entry, "data_offsets", tensor);
  if (!offsets.is_array() || offsets.size() != 2) tensor.fail("has data_offsets that are no array of two numbers");
  const std::uint64_t begin = unsigned_of(offsets[0], tensor, "data_offset");
  const std::uint64_t end = unsigned_of(offsets[1], tensor, "data_offset");
  const std::string said = "[" + std::to_string(begin) + ", " + std::to_string(end) + "]";
  if (begin > end) tensor.fail("has data_offsets " + said + ", the end before the begin");
  if (end > data.size())
    tensor.fail("has data_offsets " + said + " beyond the " + std::to_string(data.size()) +
                " bytes of data; is the file truncated?");
  if (end - begin != bytes)
    tensor.fail("has data_offsets " + said + "; its dtype " + tensor.dtype + " and shape " + to_string(tensor.shape) +
                " take " + std::to_string(bytes) + " bytes");
  tensor.bytes = data.subspan(begin, bytes);
  return {begin, end};
}

/// Tensors have to cover the data from its first byte to its last.
void check_cover(std::vector<std::pair<Range, const Tensor*>> ranges, std::uint64_t size, const std::string& file) {
  std::ranges::sort(ranges, {}, [](const auto& entry) { return std::pair(entry.first, entry.second->name); });
  std::uint64_t at = 0;
  const Tensor* before = nullptr;
  for (const auto& [range, tensor] : ranges) {
    if (range.first < at) tensor->fail("overlaps tensor " + quoted(before->name));
    if (range.first > at)
      tensor->fail("begins " + std::to_string(range.first - at) + " bytes behind the end of what is before it");
    at = range.second;
    before = tensor;
  }
  if (at != size) fail(file, "has " + std::to_string(size - at) + " bytes behind its last tensor");
}

}  // namespace

std::string to_string(const std::vector<Index>& shape) {
  std::string text = "[";
  for (const Index size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

void Tensor::fail(const std::string& what) const { pretrained::fail(file, "tensor " + quoted(name) + " " + what); }

Dtype Tensor::float_dtype() const {
  if (dtype == "F32") return Dtype::float32;
  if (dtype == "BF16") return Dtype::bfloat16;
  if (dtype == "F16") return Dtype::half;
  fail("has dtype " + dtype + "; expected F32, BF16 or F16");
}

void Tensor::expect_shape(const std::vector<Index>& expected) const {
  if (shape != expected) fail("has shape " + to_string(shape) + "; expected " + to_string(expected));
}

std::map<std::string, Tensor> parse_safetensors(std::span<const std::byte> file, const std::string& name) {
  if (file.size() < kPrefix)
    fail(name, "has " + std::to_string(file.size()) + " bytes, too few for the size of a header");
  std::uint64_t header_size;
  std::memcpy(&header_size, file.data(), kPrefix);
  if (header_size > std::min<std::uint64_t>(file.size() - kPrefix, kMostHeader))
    fail(name, "says that its header has " + std::to_string(header_size) + " bytes; the file has " +
                   std::to_string(file.size()) + ", and a header at most " + std::to_string(kMostHeader));
  const auto* text = reinterpret_cast<const char*>(file.data() + kPrefix);
  const Json header = Json::parse(text, text + header_size, nullptr, false);
  if (!header.is_object()) fail(name, "has a header that is no JSON object");

  const std::span<const std::byte> data = file.subspan(kPrefix + header_size);
  std::map<std::string, Tensor> tensors;
  std::vector<std::pair<Range, const Tensor*>> ranges;
  for (const auto& [key, entry] : header.items()) {
    if (key == "__metadata__") continue;
    Tensor& tensor = tensors[key];
    tensor.file = name;
    tensor.name = key;
    ranges.emplace_back(read_entry(entry, data, tensor), &tensor);
  }
  check_cover(std::move(ranges), data.size(), name);
  return tensors;
}

MappedFile::MappedFile(const std::filesystem::path& path) {
  const auto check = [&](bool good) {
    if (!good) fail(path.string(), std::generic_category().message(errno));
  };
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  check(descriptor >= 0);
  struct stat status{};
  const bool known = fstat(descriptor, &status) == 0;
  const bool regular = known && S_ISREG(status.st_mode);
  const auto size = known ? std::size_t(status.st_size) : 0;
  // Of an empty file there is nothing to map.
  void* memory = regular && size > 0 ? mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0) : nullptr;
  const int error = errno;
  close(descriptor);
  if (known && !regular) fail(path.string(), "is no file");
  errno = error;
  check(known && memory != MAP_FAILED);
  bytes_ = {static_cast<const std::byte*>(memory), memory ? size : 0};
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

const Tensor& SafetensorsFile::at(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) throw std::runtime_error("there is no tensor " + quoted(name));
  return found->second;
}

Checkpoint::Checkpoint(const std::filesystem::path& folder) {
  const std::filesystem::path whole = folder / "model.safetensors", index = folder / "model.safetensors.index.json";
  if (!std::filesystem::exists(whole) && std::filesystem::exists(index)) {
    read_shards(index);
    return;
  }
  source_ = whole.string();
  files_.emplace_back(whole);
  for (const auto& [name, tensor] : files_.back().tensors()) tensors_[name] = &tensor;
}

void Checkpoint::read_shards(const std::filesystem::path& index) {
  source_ = index.string();
  const MappedFile file(index);
  const auto* text = reinterpret_cast<const char*>(file.bytes().data());
  const Json json = Json::parse(text, text + file.bytes().size(), nullptr, false);
  const Field root(json, source_);
  if (!json.is_object()) root.fail("is no JSON object");
  std::map<std::string, std::size_t> shards;
  for (const auto& [name, unused] : root["weight_map"].object()) {
    const Field shard = root["weight_map"][name];
    const std::string& file_name = shard.string();
    // Files beside the index only: a checkpoint has no business elsewhere.
    if (file_name.find('/') != std::string::npos || file_name.empty() || file_name[0] == '.')
      shard.expected("the name of a file in the same folder");
    if (shards.emplace(file_name, files_.size()).second) files_.emplace_back(index.parent_path() / file_name);
  }
  for (const auto& [name, shard] : root["weight_map"].object()) {
    const auto& tensors = files_[shards.at(shard.get<std::string>())].tensors();
    const auto found = tensors.find(name);
    if (found == tensors.end())
      fail(source_, "has tensor " + quoted(name) + " in " + shard.get<std::string>() + ", which does not have it");
    tensors_[name] = &found->second;
  }
}

const Tensor& Checkpoint::at(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) fail(source_, "has no tensor " + quoted(name));
  return *found->second;
}

TensorWriter::TensorWriter(const std::filesystem::path& path, const std::string& name, const std::vector<Index>& shape)
    : path_(path), part_(path.string() + ".part"), out_(part_, std::ios::binary) {
  std::uint64_t bytes = 4;
  for (const Index size : shape) bytes *= std::uint64_t(size);
  std::string header = Json({{name, {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {0, bytes}}}}}).dump();
  header.resize((header.size() + 7) / 8 * 8, ' ');  // the data is then aligned
  const std::uint64_t size = header.size();
  out_.write(reinterpret_cast<const char*>(&size), kPrefix);
  out_.write(header.data(), std::streamsize(size));
  data_ = std::streamoff(kPrefix + size);
  check();
}

TensorWriter::~TensorWriter() {
  std::error_code ignored;
  out_.close();
  std::filesystem::remove(part_, ignored);  // renamed by finish(), it is no longer there
}

void TensorWriter::write(Index first, std::span<const float> numbers) {
  out_.seekp(data_ + std::streamoff(first) * 4);
  out_.write(reinterpret_cast<const char*>(numbers.data()), std::streamsize(numbers.size_bytes()));
  check();
}

void TensorWriter::finish() {
  out_.close();
  check();
  std::error_code error;
  std::filesystem::rename(part_, path_, error);
  if (error) fail(path_.string(), "cannot be written: " + error.message());
}

void TensorWriter::check() {
  if (!out_) fail(part_.string(), "cannot be written");
}

}  // namespace pretrained
