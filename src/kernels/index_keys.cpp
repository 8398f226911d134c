#include "kernels/index_keys.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/half.h"
#include "kernels/index_query.h"

namespace keysieve {
namespace {

// Where dimension d of a slot's key lies, in values (f32) or bytes.
size_t f32_offset(size_t dim, size_t slot, size_t d) {
  return (slot / kIndexBlock * padded_index_dim(IndexKeyType::f32, dim) + d) * kIndexBlock +
         slot % kIndexBlock;
}
size_t i8_offset(size_t dim, size_t slot, size_t d) {
  return (slot / kIndexBlock * (padded_index_dim(IndexKeyType::i8, dim) / 4) + d / 4) * kIndexBlock * 4 +
         slot % kIndexBlock * 4 + d % 4;
}
// i4: the byte that holds dimensions d and d + 4 of each 8.
size_t i4_offset(size_t dim, size_t slot, size_t d) {
  return (slot / kIndexBlock * (padded_index_dim(IndexKeyType::i4, dim) / 8) + d / 8) * kIndexBlock * 4 +
         slot % kIndexBlock * 4 + d % 4;
}

constexpr int kI8Offset = 128;  // stored as value + 128: the unsigned operand of u8 x s8 dot products

float largest_magnitude(const float* values, size_t count) {
  float largest = 0.0f;
  for (size_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(values[i]));
  return largest;
}

void store_i8(std::byte* data, std::byte* scales, size_t dim, size_t slot, const float* key) {
  int8_t codes[kMaxIndexDim];
  const float scale = round_to_int8(codes, key, dim);
  std::memcpy(scales + slot * sizeof(scale), &scale, sizeof(scale));
  auto* bytes = reinterpret_cast<uint8_t*>(data);
  for (size_t d = 0; d < padded_index_dim(IndexKeyType::i8, dim); ++d) {
    const int code = d < dim ? codes[d] : 0;
    bytes[i8_offset(dim, slot, d)] = static_cast<uint8_t>(code + kI8Offset);
  }
}

// The scale is rounded to bf16 first, so that codes are nearest to what will be read back.
void store_i4(std::byte* data, std::byte* scales, size_t dim, size_t slot, const float* key) {
  const float largest = largest_magnitude(key, dim);
  const bool usable = largest > 0.0f && std::isfinite(largest);
  const BFloat16 scale = to_bfloat16(usable ? largest / 120.0f : 0.0f);
  std::memcpy(scales + slot * sizeof(scale), &scale, sizeof(scale));
  const float stored = to_float(scale);
  const float inverse = stored > 0.0f ? 1.0f / (16.0f * stored) : 0.0f;
  const size_t padded = padded_index_dim(IndexKeyType::i4, dim);
  uint8_t codes[kMaxIndexDim + 8] = {};
  for (size_t d = 0; d < dim; ++d) {
    const float level = std::clamp(std::nearbyint(key[d] * inverse + 7.5f), 0.0f, 15.0f);
    codes[d] = static_cast<uint8_t>(std::isnan(level) ? 0.0f : level);
  }
  auto* bytes = reinterpret_cast<uint8_t*>(data) + i4_offset(dim, slot, 0);
  for (size_t d = 0; d < padded; d += 8, bytes += kIndexBlock * 4) {
    for (size_t j = 0; j < 4; ++j) bytes[j] = static_cast<uint8_t>(codes[d + j] | codes[d + 4 + j] << 4);
  }
}

}  // namespace

float round_to_int8(int8_t* codes, const float* values, size_t dim) {
  const float largest = largest_magnitude(values, dim);
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

void store_index_key(std::byte* data, std::byte* scales, IndexKeyType type, size_t dim, size_t slot,
                     const float* key) {
  switch (type) {
    case IndexKeyType::f32: {
      auto* values = reinterpret_cast<float*>(data);
      for (size_t d = 0; d < dim; ++d) values[f32_offset(dim, slot, d)] = key[d];
      break;
    }
    case IndexKeyType::i8:
      store_i8(data, scales, dim, slot, key);
      break;
    case IndexKeyType::i4:
      store_i4(data, scales, dim, slot, key);
      break;
  }
}

void move_index_key(std::byte* data, std::byte* scales, IndexKeyType type, size_t dim, size_t from,
                    size_t to) {
  const size_t scale = index_scale_bytes(type);
  if (scale != 0) std::memcpy(scales + to * scale, scales + from * scale, scale);  // f32 keys have no scales
  for (size_t d = 0; d < padded_index_dim(type, dim); ++d) {
    switch (type) {
      case IndexKeyType::f32: {
        auto* values = reinterpret_cast<float*>(data);
        values[f32_offset(dim, to, d)] = values[f32_offset(dim, from, d)];
        break;
      }
      case IndexKeyType::i8:
        data[i8_offset(dim, to, d)] = data[i8_offset(dim, from, d)];
        break;
      case IndexKeyType::i4:
        data[i4_offset(dim, to, d)] = data[i4_offset(dim, from, d)];
        break;
    }
  }
}

float index_key_scale(const IndexKeyView& view, size_t slot) {
  if (view.type == IndexKeyType::i8) {
    float scale;
    std::memcpy(&scale, view.scales + slot * sizeof(scale), sizeof(scale));
    return scale;
  }
  BFloat16 scale;
  std::memcpy(&scale, view.scales + slot * sizeof(scale), sizeof(scale));
  return to_float(scale);
}

int index_key_code(const IndexKeyView& view, size_t slot, size_t d) {
  if (view.type == IndexKeyType::i8) {
    return static_cast<int>(view.data[i8_offset(view.dim, slot, d)]) - kI8Offset;
  }
  const int both = static_cast<int>(view.data[i4_offset(view.dim, slot, d)]);
  return 16 * (d % 8 < 4 ? both & 15 : both >> 4) - 120;
}

void load_index_key(float* key, const IndexKeyView& view, size_t slot) {
  for (size_t d = 0; d < view.dim; ++d) {
    key[d] = view.type == IndexKeyType::f32
                 ? reinterpret_cast<const float*>(view.data)[f32_offset(view.dim, slot, d)]
                 : static_cast<float>(index_key_code(view, slot, d)) * index_key_scale(view, slot);
  }
}

}  // namespace keysieve
