#include "kernels/index_keys.h"

#include <algorithm>
#include <cmath>

#include "kernels/index_query.h"

namespace keysieve {
namespace {

// Where dimension d of a slot's key lies, in values.
size_t f32_offset(size_t dim, size_t slot, size_t d) {
  return (slot / kIndexBlock * padded_index_dim(dim) + d) * kIndexBlock + slot % kIndexBlock;
}
size_t i8_offset(size_t dim, size_t slot, size_t d) {
  return (slot / kIndexBlock * (padded_index_dim(dim) / 4) + d / 4) * kIndexBlock * 4 +
         slot % kIndexBlock * 4 + d % 4;
}

constexpr int kCodeOffset =
    128;  // i8 keys are stored as value + 128: the unsigned operand of u8 x s8 dot products

}  // namespace

float round_to_int8(int8_t* codes, const float* values, size_t dim) {
  float largest = 0.0f;
  for (size_t d = 0; d < dim; ++d) largest = std::max(largest, std::fabs(values[d]));
  // A value that is not finite, or all zeros, leaves codes of 0: the score is then 0, never undefined
  // behaviour.
  if (!(largest > 0.0f) || !std::isfinite(largest)) {
    std::fill_n(codes, dim, int8_t{0});
    return 0.0f;
  }
  const float inverse = 127.0f / largest;
  for (size_t d = 0; d < dim; ++d) {
    const float scaled = std::clamp(std::nearbyint(values[d] * inverse), -127.0f, 127.0f);
    codes[d] = static_cast<int8_t>(std::isnan(scaled) ? 0.0f : scaled);
  }
  return largest / 127.0f;
}

void store_index_key(std::byte* data, float* scales, IndexKeyType type, size_t dim, size_t slot,
                     const float* key) {
  if (type == IndexKeyType::f32) {
    auto* values = reinterpret_cast<float*>(data);
    for (size_t d = 0; d < dim; ++d) values[f32_offset(dim, slot, d)] = key[d];
    return;
  }
  int8_t codes[kMaxIndexDim];
  scales[slot] = round_to_int8(codes, key, dim);
  auto* bytes = reinterpret_cast<uint8_t*>(data);
  for (size_t d = 0; d < padded_index_dim(dim); ++d) {
    const int code = d < dim ? codes[d] : 0;
    bytes[i8_offset(dim, slot, d)] = static_cast<uint8_t>(code + kCodeOffset);
  }
}

void move_index_key(std::byte* data, float* scales, IndexKeyType type, size_t dim, size_t from, size_t to) {
  for (size_t d = 0; d < padded_index_dim(dim); ++d) {
    if (type == IndexKeyType::f32) {
      auto* values = reinterpret_cast<float*>(data);
      values[f32_offset(dim, to, d)] = values[f32_offset(dim, from, d)];
    } else {
      data[i8_offset(dim, to, d)] = data[i8_offset(dim, from, d)];
    }
  }
  if (type == IndexKeyType::i8) scales[to] = scales[from];
}

void load_index_key(float* key, const IndexKeyView& view, size_t slot) {
  for (size_t d = 0; d < view.dim; ++d) {
    if (view.type == IndexKeyType::f32) {
      key[d] = reinterpret_cast<const float*>(view.data)[f32_offset(view.dim, slot, d)];
    } else {
      const int code = static_cast<int>(view.data[i8_offset(view.dim, slot, d)]) - kCodeOffset;
      key[d] = static_cast<float>(code) * view.scales[slot];
    }
  }
}

}  // namespace keysieve
