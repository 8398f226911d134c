#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/memory.h"
#include "formats/tensor_info.h"

namespace keysieve {

// A safetensors file mapped read-only. The constructor checks the header against the format: length,
// duplicates, dtype and shape agreeing with the bytes, and offsets that cover the data exactly, without
// overlap or hole. Throws Error{file} and Error{format}. Tensors live as long as the object, moves included.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);
  // The same from bytes that the caller keeps; `subject` stands for the path in errors.
  static SafetensorsFile from_bytes(std::span<const std::byte> bytes, std::string subject);

  const std::string& subject() const { return subject_; }  // the path
  uint64_t file_bytes() const { return bytes_.size(); }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }  // `__metadata__`

  // In the order of their data.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const TensorInfo* find(std::string_view name) const;            // null if there is none
  const TensorInfo& require_tensor(std::string_view name) const;  // Error{format} if there is none

 private:
  SafetensorsFile() = default;
  void parse();

  std::unique_ptr<MappedFile> file_;  // behind a pointer: tensors keep its address
  std::span<const std::byte> bytes_;
  std::string subject_;
  std::map<std::string, std::string> metadata_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string_view, size_t> index_;  // keys are the tensors' names
};

// A tensor to be written; `data` is the elements in C order, little endian.
struct TensorToWrite {
  std::string name;
  DType dtype = DType::f32;  // a plain type
  std::vector<uint64_t> shape;
  std::span<const std::byte> data;
};

// Writes a whole file atomically (core/file_io.h). Data follow in the order given, except that wider types
// come first, so that every tensor is aligned to its own type. Throws Error{usage} for a duplicate name, a
// block type or bytes that disagree with the shape; Error{file} where the file cannot be written.
void write_safetensors(const std::filesystem::path& path, std::span<const TensorToWrite> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace keysieve
