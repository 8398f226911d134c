#pragma once

#include <cstddef>
#include <cstdint>

namespace keysieve {

// The largest index dimension any kernel accepts; the indexer's loader refuses more.
inline constexpr size_t kMaxIndexDim = 1024;

// Rounds values [dim] to int8 codes [dim] (nearest, ties to even, -127 .. 127) and returns the scale
// max|value| / 127. The one rounding of index queries and keys in every kernel family.
float round_to_int8(int8_t* codes, const float* values, size_t dim);

}  // namespace keysieve
