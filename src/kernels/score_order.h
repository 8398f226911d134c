#pragma once

#include <bit>
#include <cstdint>

namespace keysieve {

// Maps a score to an unsigned number in the same order: -0 equals +0, NaN is the lowest. What every top-k
// compares.
inline uint32_t score_order(float score) {
  const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);  // -0 + 0 = +0
  if (score != score) return 0;
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

}  // namespace keysieve
