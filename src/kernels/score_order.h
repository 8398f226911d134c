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

// A score of the given order, NaN for 0: the inverse of score_order.
inline float score_of_order(uint32_t order) {
  if (order == 0) return std::bit_cast<float>(0x7fc00000u);
  return std::bit_cast<float>((order & 0x80000000u) != 0 ? order ^ 0x80000000u : ~order);
}

}  // namespace keysieve
