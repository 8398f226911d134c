#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/half.h"
#include "kernels/kernels.h"

namespace keysieve::testing {

// Random numbers that are the same on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  float uniform(float low, float high) {
    return low + (high - low) * static_cast<float>(engine_() >> 40) * 0x1p-24f;
  }
  uint32_t below(uint32_t bound) { return static_cast<uint32_t>((engine_() >> 32) * bound >> 32); }
  std::vector<float> values(size_t count, float low = -1.0f, float high = 1.0f) {
    std::vector<float> v(count);
    for (float& x : v) x = uniform(low, high);
    return v;
  }

 private:
  std::mt19937_64 engine_;
};

// Code `index` of those a format can have.
inline uint8_t code_of(const AffineFormat& format, uint32_t index) {
  return format.nonlinear ? kNonlinearCodes[index] : static_cast<uint8_t>(index);
}
inline uint32_t code_count(const AffineFormat& format) {
  return format.nonlinear ? static_cast<uint32_t>(kNonlinearCodes.size()) : 1u << format.bits;
}
inline uint8_t highest_code(const AffineFormat& format) { return code_of(format, code_count(format) - 1); }

// A matrix held in memory, quantised or plain.
class MemoryMatrix : public MatrixSource {
 public:
  static MemoryMatrix quantized(AffineFormat format, size_t rows, size_t columns, uint64_t seed) {
    MemoryMatrix m(rows, columns);
    m.format_ = format;
    Random random(seed);
    m.codes_.resize(rows * columns);
    for (uint8_t& code : m.codes_) code = code_of(format, random.below(code_count(format)));
    m.codes_[0] = highest_code(format);
    m.scales_.resize(rows * columns / static_cast<size_t>(format.group));
    m.biases_.resize(m.scales_.size());
    for (size_t i = 0; i < m.scales_.size(); ++i) {
      // fp16 values, as files hold them.
      m.scales_[i] = to_float(to_half(random.uniform(-0.02f, 0.02f)));
      m.biases_[i] = format.zero_point ? -static_cast<float>(*format.zero_point) * m.scales_[i]
                                       : to_float(to_half(random.uniform(-0.1f, 0.1f)));
    }
    return m;
  }
  static MemoryMatrix plain(DType dtype, size_t rows, size_t columns, uint64_t seed) {
    MemoryMatrix m(rows, columns);
    m.dtype_ = dtype;
    m.values_ = Random(seed).values(rows * columns);
    for (float& v : m.values_) {
      if (dtype == DType::f16) v = to_float(to_half(v));
      if (dtype == DType::bf16) v = to_float(to_bfloat16(v));
    }
    return m;
  }

  size_t rows() const override { return rows_; }
  size_t columns() const override { return columns_; }
  uint64_t file_bytes() const override { return rows_ * columns_; }
  std::optional<AffineFormat> affine() const override { return format_; }
  DType plain_dtype() const override { return dtype_; }
  void read_codes(size_t row, std::span<uint8_t> codes, std::span<float> scales,
                  std::span<float> biases) const override {
    std::copy_n(codes_.begin() + static_cast<ptrdiff_t>(row * columns_), columns_, codes.begin());
    std::copy_n(scales_.begin() + static_cast<ptrdiff_t>(row * scales.size()), scales.size(), scales.begin());
    std::copy_n(biases_.begin() + static_cast<ptrdiff_t>(row * biases.size()), biases.size(), biases.begin());
  }
  void read_values(size_t row, std::span<float> values) const override {
    for (size_t c = 0; c < columns_; ++c) values[c] = value(row, c);
  }
  void release(size_t, size_t) const override {}

  float value(size_t row, size_t column) const {
    if (!format_) return values_[row * columns_ + column];
    const size_t at =
        row * columns_ / static_cast<size_t>(format_->group) + column / static_cast<size_t>(format_->group);
    return scales_[at] * static_cast<float>(codes_[row * columns_ + column]) + biases_[at];
  }

 private:
  MemoryMatrix(size_t rows, size_t columns) : rows_(rows), columns_(columns) {}
  size_t rows_;
  size_t columns_;
  std::optional<AffineFormat> format_;
  DType dtype_ = DType::f32;
  std::vector<uint8_t> codes_;  // [rows, columns]
  std::vector<float> scales_;   // [rows, columns / group]
  std::vector<float> biases_;
  std::vector<float> values_;  // [rows, columns]
};

// Every family this machine can run, the reference included.
inline std::vector<std::shared_ptr<const Kernels>> all_kernels() {
  std::vector<std::shared_ptr<const Kernels>> all;
  for (const std::string_view name : available_kernels()) all.push_back(make_kernels(name));
  return all;
}

inline float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  float largest = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    if (std::isnan(a[i]) || std::isnan(b[i])) return INFINITY;
    largest = std::max(largest, std::fabs(a[i] - b[i]));
  }
  return largest;
}

}  // namespace keysieve::testing
