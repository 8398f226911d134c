#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "core/matrix_source.h"

namespace keysieve {

// A matrix in memory as Kernels::pack reads it. The values must outlive the object.
class FloatMatrix final : public MatrixSource {
 public:
  // values [rows, columns], each exact in `dtype` (f32, f16 or bf16): the type to keep it in.
  FloatMatrix(std::span<const float> values, size_t rows, DType dtype)
      : values_(values), rows_(rows), dtype_(dtype) {}

  size_t rows() const override { return rows_; }
  size_t columns() const override { return values_.size() / rows_; }
  uint64_t file_bytes() const override { return checked_bytes(dtype_, values_.size(), "indexer weights"); }
  std::optional<AffineFormat> affine() const override { return std::nullopt; }
  DType plain_dtype() const override { return dtype_; }
  void read_codes(size_t, std::span<uint8_t>, std::span<float>, std::span<float>) const override {}
  void read_values(size_t row, std::span<float> values) const override {
    std::copy_n(values_.data() + row * columns(), columns(), values.data());
  }
  void release(size_t, size_t) const override {}

 private:
  std::span<const float> values_;
  size_t rows_;
  DType dtype_;
};

}  // namespace keysieve
