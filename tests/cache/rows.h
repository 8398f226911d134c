#pragma once

#include <cstddef>
#include <cstring>

#include "core/half.h"
#include "kernels/kv_view.h"

namespace keysieve {

inline constexpr size_t kKvHeads = 2;
inline constexpr size_t kHeadDim = 4;

// One number of a row of keys or values.
inline float load(const std::byte* row, KvType type, size_t d) {
  if (type == KvType::f32) {
    float value;
    std::memcpy(&value, row + 4 * d, 4);
    return value;
  }
  Half value;
  std::memcpy(&value, row + 2 * d, 2);
  return to_float(value);
}

}  // namespace keysieve
