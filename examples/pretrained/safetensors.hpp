// Tensors in files as on the Hugging Face hub: `model.safetensors`, or shards with `model.safetensors.index.json`.
//
// Format (huggingface.co/docs/safetensors): 8 bytes, the size of the header, little endian; the header, JSON; the data.
//
//   {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, …, "__metadata__": {…}}
//
// Files are mapped into memory, so that weights are read from the disk when they are used and take no memory of the
// process. A header is believed only where it fits the file: tensors lie one after another, without a gap or an
// overlap, from the first byte of the data to the last, each as long as its shape says.
//
// Errors: std::runtime_error that names the file and the tensor or the field.
#pragma once

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "numbers.hpp"

namespace pretrained {

/// A tensor in memory that a SafetensorsFile or a Checkpoint holds.
struct Tensor {
  std::string file, name;
  std::string dtype;  ///< as in the file: "F32", "BF16", "I64", …
  std::vector<Index> shape;
  std::span<const std::byte> bytes;

  /// Throws what is wrong with it: "FILE: tensor 'NAME' `what`".
  [[noreturn]] void fail(const std::string& what) const;
  /// The dtype of a tensor of weights. Throws for any other.
  Dtype float_dtype() const;
  void expect_shape(const std::vector<Index>& expected) const;
};

std::string to_string(const std::vector<Index>& shape);

/// The tensors of a file whose bytes are given; `name` stands for it in errors.
std::map<std::string, Tensor> parse_safetensors(std::span<const std::byte> file, const std::string& name);

/// A file in memory, read only.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept : bytes_(other.bytes_) { other.bytes_ = {}; }
  MappedFile& operator=(MappedFile&&) = delete;

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path)
      : file_(path), tensors_(parse_safetensors(file_.bytes(), path.string())) {}

  const std::map<std::string, Tensor>& tensors() const { return tensors_; }
  /// Throws for a name that the file does not have.
  const Tensor& at(const std::string& name) const;

 private:
  MappedFile file_;
  std::map<std::string, Tensor> tensors_;
};

/// The tensors of a folder.
class Checkpoint {
 public:
  explicit Checkpoint(const std::filesystem::path& folder);

  bool has(const std::string& name) const { return tensors_.contains(name); }
  const Tensor& at(const std::string& name) const;

 private:
  void read_shards(const std::filesystem::path& index);

  std::string source_;  // what errors call it: the file, or the index of the shards
  std::vector<SafetensorsFile> files_;
  std::map<std::string, const Tensor*> tensors_;
};

/// Writes a file of one float32 tensor, in any order. It appears under its name with finish(), complete; without that
/// nothing is left of it.
class TensorWriter {
 public:
  TensorWriter(const std::filesystem::path& path, const std::string& name, const std::vector<Index>& shape);
  ~TensorWriter();
  TensorWriter(const TensorWriter&) = delete;
  TensorWriter& operator=(const TensorWriter&) = delete;

  /// Numbers of the tensor from place `first` on.
  void write(Index first, std::span<const float> numbers);
  void finish();

 private:
  void check();

  std::filesystem::path path_, part_;
  std::ofstream out_;
  std::streamoff data_ = 0;
};

}  // namespace pretrained
