#pragma once

#include <cstddef>
#include <cstdint>

namespace keysieve::simd {

// Activations rounded to int8 by groups of 32 columns: value = scale * code, codes -127 .. 127.
struct ActivationView {
  const int8_t* codes;  // [tokens, columns]
  const float* scales;  // [tokens, columns / 32]
  const int32_t* sums;  // [tokens, columns / 16], sums of the codes
  size_t tokens;
  size_t columns;  // a multiple of 32
};

}  // namespace keysieve::simd
