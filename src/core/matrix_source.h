#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "core/dtype.h"

namespace keysieve {

// Affine group quantisation, the one form every quantised file maps onto with its codes kept exactly:
//   value[row][column] = scale[row][column / group] * code[row][column] + bias[row][column / group]
// with unsigned codes below 2^bits. Where `zero_point` is set, every bias is -zero_point * scale and need not
// be stored (Q4_0: 8, Q5_0: 16, Q8_0: 128, Q6_K: 32).
struct AffineFormat {
  int bits = 4;    // 4, 5, 6 or 8
  int group = 32;  // 16, 32, 64 or 128 columns share a scale
  std::optional<int> zero_point;
  // Of 8-bit codes only kNonlinearCodes occur, so 4 bits can name one (IQ4_NL, IQ4_XS).
  bool nonlinear = false;
  bool operator==(const AffineFormat&) const = default;
};

// llama.cpp's values for its nonlinear types, with 128 added; ascending.
inline constexpr std::array<uint8_t, 16> kNonlinearCodes = {1,   24,  45,  63,  79,  93,  106, 118,
                                                            129, 141, 153, 166, 181, 197, 217, 241};

// One weight matrix as some file holds it, read row by row. Lets the kernels pack weights without knowing
// file formats, and the file formats be read without knowing kernels.
class MatrixSource {
 public:
  virtual ~MatrixSource() = default;

  virtual size_t rows() const = 0;
  virtual size_t columns() const = 0;
  virtual uint64_t file_bytes() const = 0;
  // Set for quantised matrices; columns() is then a multiple of the group.
  virtual std::optional<AffineFormat> affine() const = 0;
  // The element type of a matrix that is not quantised: f32, f16 or bf16.
  virtual DType plain_dtype() const = 0;

  // Quantised only. codes [columns], scales and biases [columns / group] (biases filled in all cases). The
  // values are exact: scales are the file's, in f32.
  virtual void read_codes(size_t row, std::span<uint8_t> codes, std::span<float> scales,
                          std::span<float> biases) const = 0;
  // Any matrix, dequantised exactly as scale * code + bias in f32: values [columns].
  virtual void read_values(size_t row, std::span<float> values) const = 0;
  // The rows [first, first + count) will not be read again: their file pages may leave memory.
  virtual void release(size_t first, size_t count) const = 0;
};

}  // namespace keysieve
