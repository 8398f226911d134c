#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "core/dtype.h"
#include "core/file_io.h"
#include "core/memory.h"

namespace keysieve {

// A NumPy .npy file (versions 1 to 3, C order, little endian; f16, f32, f64, i16, i32, i64), mapped
// read-only. Throws Error{file}, Error{format}, and Error{unsupported} for other types and Fortran order.
class NpyFile {
 public:
  explicit NpyFile(const std::filesystem::path& path);

  DType dtype() const { return dtype_; }
  const std::vector<uint64_t>& shape() const { return shape_; }
  std::span<const std::byte> data() const { return data_; }

  std::vector<float> floats() const;      // all elements, converted
  std::vector<double> doubles() const;    // all elements, converted
  std::vector<int64_t> integers() const;  // Error{format} for a float type

 private:
  void parse_header(std::span<const std::byte> bytes);
  template <class T>
  std::vector<T> convert() const;

  MappedFile file_;
  DType dtype_ = DType::f32;
  std::vector<uint64_t> shape_;
  std::span<const std::byte> data_;
};

// Writes a float32 .npy (version 1) piece by piece, so that a [30000, 151936] array need not be in memory.
// The file appears at commit(), which throws Error{usage} unless exactly the shape's elements were written.
class NpyWriter {
 public:
  NpyWriter(std::filesystem::path path, std::span<const uint64_t> shape);
  void write(std::span<const float> values);  // the next elements in C order
  void commit();

 private:
  std::filesystem::path path_;
  AtomicFileWriter file_;
  uint64_t remaining_ = 0;  // elements
};

}  // namespace keysieve
