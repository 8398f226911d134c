#pragma once

#include <algorithm>
#include <memory>
#include <span>

#include "core/half.h"
#include "core/memory.h"
#include "kernels/kernels.h"

namespace keysieve::simd {

inline constexpr size_t kPanelRows = 16;  // one 512-bit vector of int32 sums, two 256-bit ones
inline constexpr size_t kGroup = 32;  // columns per unit of the layout; one or two have an activation scale
inline constexpr size_t kStepBytes = 64;  // 16 rows x 4 columns: the operand of one u8 x s8 dot product step
inline constexpr size_t kSteps = kGroup / 4;

// Code bytes of one panel and one group of 32 columns: a low nibble plane of 4 x 64 bytes and, for 5 and 6
// bits, a high plane; 8-bit codes are stored whole.
constexpr size_t group_code_bytes(int bits) { return static_cast<size_t>(bits) * kPanelRows * kGroup / 8; }

// Bits a code takes in memory: nonlinear ones are stored as their places in kNonlinearCodes.
constexpr int stored_bits(const AffineFormat& format) { return format.nonlinear ? 4 : format.bits; }

// Affine group-quantised weights by panels of 16 rows, all codes kept exactly:
//   value = unit * (scale * code + bias), scale and bias fp16, unit a power of two that keeps them in fp16's
//   range.
// Within a group of 32 columns step s holds columns 4s .. 4s+3 of the 16 rows, byte 4 * row + column % 4.
//   4-bit plane: block b of 64 bytes has step b in its low and step b + 4 in its high nibbles, b = 0 .. 3.
//   5 bits: one block; bit s of a byte is the fifth bit of step s.
//   6 bits: two blocks; block s / 4 has the high pair of step s at bits 2 * (s % 4).
struct PackedAffine : PackedMatrix {
  size_t row_count = 0;
  size_t column_count = 0;
  AffineFormat format;
  float unit = 1.0f;
  AlignedArray<uint8_t> codes;  // [panels, columns / 32, group_code_bytes]
  AlignedArray<Half> scales;    // [panels, columns / format.group, 16]
  AlignedArray<Half> biases;    // the same; empty where format.zero_point gives them

  size_t rows() const override { return row_count; }
  size_t columns() const override { return column_count; }
  size_t bytes() const override { return codes.bytes() + scales.bytes() + biases.bytes(); }

  size_t panels() const { return (row_count + kPanelRows - 1) / kPanelRows; }
  size_t groups() const { return column_count / kGroup; }
  size_t scale_groups() const { return column_count / static_cast<size_t>(format.group); }
  const uint8_t* panel_codes(size_t panel) const {
    return codes.data() + panel * groups() * group_code_bytes(stored_bits(format));
  }
  const Half* panel_scales(size_t panel) const { return scales.data() + panel * scale_groups() * kPanelRows; }
  const Half* panel_biases(size_t panel) const {
    return biases.size() == 0 ? nullptr : biases.data() + panel * scale_groups() * kPanelRows;
  }
};

// Unquantised weights by panels of 16 rows: [panels, columns, 16] of the file's own type (f32, f16 or bf16).
struct PackedPlain : PackedMatrix {
  size_t row_count = 0;
  size_t column_count = 0;
  DType dtype = DType::f32;
  AlignedArray<std::byte> values;  // [panels, columns, 16]

  size_t rows() const override { return row_count; }
  size_t columns() const override { return column_count; }
  size_t bytes() const override { return values.bytes(); }

  size_t panels() const { return (row_count + kPanelRows - 1) / kPanelRows; }
  size_t value_bytes() const { return dtype == DType::f32 ? 4 : 2; }
  const std::byte* panel(size_t index) const {
    return values.data() + index * column_count * kPanelRows * value_bytes();
  }
};

// Packs any matrix: PackedAffine if it is quantised in whole groups of 32 columns, else PackedPlain.
std::unique_ptr<PackedMatrix> pack_matrix(const MatrixSource& source, std::span<const uint32_t> row_order,
                                          const Threads& threads, Arena* arena);

}  // namespace keysieve::simd
