// Tensors in files as on the Hugging Face hub: `model.safetensors`, or shards with `model.safetensors.index.json`.
//
// A file (huggingface.co/docs/safetensors) is the size of the header, in 8 bytes, little endian; the header, in JSON;
// and the data:
//
//   {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ..., "__metadata__": {...}}
//
// Files are mapped into memory: weights are read from the disk when they are used. A header must fit its file: the
// tensors lie one after another, without a gap or an overlap, from the first byte of the data to the last, and each
// takes the bytes that its dtype and shape need.
//
// Errors are std::runtime_error that names the file, and the tensor or the field.
#pragma once

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "mapped_file.hpp"
#include "numbers.hpp"

namespace pretrained {

/// A tensor in memory that a SafetensorsFile or a Checkpoint holds.
struct Tensor {
  std::string file, name;
  std::string dtype;  ///< as in the file: "F32", "BF16", "I64", ...
  std::vector<Index> shape;
  std::span<const std::byte> bytes;

  /// Throws "FILE: tensor 'NAME' `what`".
  [[noreturn]] void fail(const std::string& what) const;
  /// The dtype of a tensor of weights. Throws for any other.
  Dtype float_dtype() const;
  void expect_shape(const std::vector<Index>& expected) const;
};

/// The tensors of a file, given its bytes; `name` stands for it in errors.
std::map<std::string, Tensor> parse_safetensors(std::span<const std::byte> file, const std::string& name);

class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path)
      : name_(path.string()), file_(path), tensors_(parse_safetensors(file_.bytes(), name_)) {}

  const std::map<std::string, Tensor>& tensors() const { return tensors_; }
  /// Throws for a name that the file does not have.
  const Tensor& at(const std::string& name) const;

 private:
  std::string name_;
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

  std::string source_;  // the file, or the index of the shards: for errors
  std::map<std::string, SafetensorsFile> files_;
  std::map<std::string, const Tensor*> tensors_;
};

/// Writes a file of one float32 tensor, its numbers in any order. The file appears under its name in finish(). Without
/// finish(), nothing is left of it.
class TensorWriter {
 public:
  TensorWriter(const std::filesystem::path& path, const std::string& name, const std::vector<Index>& shape);
  ~TensorWriter();
  TensorWriter(const TensorWriter&) = delete;
  TensorWriter& operator=(const TensorWriter&) = delete;

  /// Writes numbers of the tensor, from its number `first` on.
  void write(Index first, std::span<const float> numbers);
  void finish();

 private:
  void check();

  std::filesystem::path path_, part_;
  std::ofstream out_;
  std::streamoff data_ = 0;
};

}  // namespace pretrained
