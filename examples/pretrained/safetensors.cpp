#include "safetensors.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <utility>

#include "json_field.hpp"

namespace pretrained {

namespace {

static_assert(std::endian::native == std::endian::little, "the numbers of these files are little endian");

constexpr std::uint64_t kPrefix = 8, kMostHeader = 100'000'000;  // the limit of the reference implementation

[[noreturn]] void fail(const std::string& file, const std::string& what) {
  throw std::runtime_error(file + ": " + what);
}

std::string quoted(const std::string& name) { return "'" + name + "'"; }

std::string to_string(const std::vector<Index>& shape) {
  std::string text = "[";
  for (const Index size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

Index bytes_of_number(const Field& dtype) {
  using namespace std::string_view_literals;
  constexpr std::array kSizes = {std::pair("F64"sv, 8),     std::pair("F32"sv, 4),     std::pair("F16"sv, 2),
                                 std::pair("BF16"sv, 2),    std::pair("I64"sv, 8),     std::pair("I32"sv, 4),
                                 std::pair("I16"sv, 2),     std::pair("I8"sv, 1),      std::pair("U64"sv, 8),
                                 std::pair("U32"sv, 4),     std::pair("U16"sv, 2),     std::pair("U8"sv, 1),
                                 std::pair("F8_E4M3"sv, 1), std::pair("F8_E5M2"sv, 1), std::pair("BOOL"sv, 1)};
  for (const auto& [name, bytes] : kSizes)
    if (dtype.string() == name) return bytes;
  dtype.expected("a dtype such as F32, F16, BF16 or I64");
}

/// The header's entry of one tensor; `data` is all that lies behind the header.
Tensor read_entry(const Field& entry, std::span<const std::byte> data) {
  constexpr Index kMost = std::numeric_limits<Index>::max();
  const Field shape = entry["shape"], offsets = entry["data_offsets"];
  Tensor tensor;
  Index bytes = bytes_of_number(entry["dtype"]);
  tensor.dtype = entry["dtype"].string();
  for (std::size_t i = 0; i < shape.array().size(); i++) {
    const Index size = shape[i].integer(kMost);
    if (size != 0 && bytes > kMost / size) shape.fail("asks for 2^63 bytes or more");
    bytes *= size;
    tensor.shape.push_back(size);
  }
  if (offsets.array().size() != 2)
    offsets.fail("has " + std::to_string(offsets.array().size()) + " numbers; expected 2");
  const Index begin = offsets[0].integer(kMost), end = offsets[1].integer(kMost, begin);
  if (end > Index(data.size()))
    offsets[1].fail("is " + std::to_string(end) + ", but the file has " + std::to_string(data.size()) +
                    " bytes of data; is it truncated?");
  if (end - begin != bytes)
    offsets.fail("has " + std::to_string(end - begin) + " bytes; expected " + std::to_string(bytes) + " for dtype " +
                 tensor.dtype + " and shape " + to_string(tensor.shape));
  tensor.bytes = data.subspan(std::size_t(begin), std::size_t(bytes));
  return tensor;
}

/// Throws unless the tensors cover the data from its first byte to its last, each byte once.
void check_cover(const std::map<std::string, Tensor>& tensors, std::span<const std::byte> data,
                 const std::string& file) {
  std::vector<const Tensor*> in_order;
  in_order.reserve(tensors.size());
  for (const auto& [name, tensor] : tensors) in_order.push_back(&tensor);
  std::ranges::stable_sort(in_order, {}, [](const Tensor* t) { return std::pair(t->bytes.data(), t->bytes.size()); });
  const std::byte* end = data.data();
  const Tensor* before = nullptr;
  for (const Tensor* tensor : in_order) {
    const std::ptrdiff_t gap = tensor->bytes.data() - end;
    if (gap < 0) tensor->fail("overlaps tensor " + quoted(before->name));
    if (gap > 0) tensor->fail("begins " + std::to_string(gap) + " bytes behind the end of what is before it");
    end += tensor->bytes.size();
    before = tensor;
  }
  const std::ptrdiff_t rest = data.data() + data.size() - end;
  if (rest > 0) fail(file, "has " + std::to_string(rest) + " bytes behind its last tensor");
}

}  // namespace

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
    fail(name, "has " + std::to_string(file.size()) + " bytes; expected at least 8, the size of the header");
  std::uint64_t header_size;
  std::memcpy(&header_size, file.data(), kPrefix);
  const std::uint64_t most = std::min<std::uint64_t>(file.size() - kPrefix, kMostHeader);
  if (header_size > most)
    fail(name, "has a header of " + std::to_string(header_size) + " bytes by its first 8 bytes; expected at most " +
                   std::to_string(most) + ": is it truncated?");
  const auto* text = reinterpret_cast<const char*>(file.data() + kPrefix);
  const std::span<const std::byte> data = file.subspan(kPrefix + header_size);
  const Json json = parse_json({text, header_size}, name);
  const Field header(json, name);
  std::map<std::string, Tensor> tensors;
  for (const auto& [key, unused] : header.object()) {
    if (key == "__metadata__") continue;
    Tensor& tensor = tensors[key] = read_entry(header[key], data);
    tensor.file = name;
    tensor.name = key;
  }
  check_cover(tensors, data, name);
  return tensors;
}

const Tensor& SafetensorsFile::at(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) fail(name_, "has no tensor " + quoted(name));
  return found->second;
}

Checkpoint::Checkpoint(const std::filesystem::path& folder) {
  const std::filesystem::path whole = folder / "model.safetensors", index = folder / "model.safetensors.index.json";
  if (!std::filesystem::exists(whole) && std::filesystem::exists(index)) {
    read_shards(index);
    return;
  }
  source_ = whole.string();
  for (const auto& [name, tensor] : files_.try_emplace(source_, whole).first->second.tensors())
    tensors_[name] = &tensor;
}

void Checkpoint::read_shards(const std::filesystem::path& index) {
  source_ = index.string();
  const Json json = parse_json(MappedFile(index).text(), source_);
  const Field map = Field(json, source_)["weight_map"];
  for (const auto& [name, unused] : map.object()) {
    const Field shard = map[name];
    const std::string& file = shard.string();
    if (file.empty() || file.find('/') != std::string::npos || file == "." || file == "..")
      shard.expected("the name of a file in the same folder");
    tensors_[name] = &files_.try_emplace(file, index.parent_path() / file).first->second.at(name);
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
  header.resize((header.size() + 7) / 8 * 8, ' ');  // so that the data is aligned
  const std::uint64_t size = header.size();
  out_.write(reinterpret_cast<const char*>(&size), kPrefix);
  out_.write(header.data(), std::streamsize(size));
  data_ = std::streamoff(kPrefix + size);
  check();
}

TensorWriter::~TensorWriter() {
  std::error_code ignored;
  out_.close();
  std::filesystem::remove(part_, ignored);  // finish() has renamed it
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
