#pragma once

#include <cstddef>
#include <cstdint>

namespace keysieve::simd {

// Activations rounded to int8 by groups of 32 columns, or of 64, whose two halves then have the same scale:
// value = scale * code, codes -127 .. 127.
struct ActivationView {
  const int8_t* codes;       // [tokens, columns]
  const float* scales;       // [tokens, columns / 32]
  const float* scaled_sums;  // [tokens, columns / 32], scale * sum of the codes, for weights with biases
  const int32_t* sums;       // [tokens, columns / 32], sums of the codes, for weights with a zero point
  const int32_t*
      first_sums;  // [tokens, columns / 32], of the first 16 codes of each group, for 6-bit weights
  size_t tokens;
  size_t columns;  // a multiple of 32
  // Values that were taken out before rounding (their codes are 0) and are multiplied in fp32, the same even
  // number for every token; where a token has fewer, zeros of column 0 follow.
  size_t exact;
  const float* exact_values;      // [tokens, exact]
  const uint32_t* exact_columns;  // [tokens, exact]
};

// Where rows of a product go, or are added to what is there.
struct RowOutput {
  float* out;  // [tokens, stride]
  size_t stride;
  size_t first_row;  // of the weight: the one whose results begin each row of `out`
  bool add;

  float* at(size_t token, size_t row) const { return out + token * stride + (row - first_row); }
};

}  // namespace keysieve::simd
