#pragma once

#include <cstddef>
#include <cstdint>

namespace keysieve {

// How the scores of several query heads become one score per key.
enum class IndexCombine : uint8_t {
  relu_sum,     // sum_h weight[h] * max(0, q[h] . k)           (DeepSeek-V3.2's lightning indexer; the seed
                // shape)
  softmax_sum,  // sum_h softmax_s(q[h] . k[s])                  (the native shape, each head)
  linear_sum,   // sum_h q[h] . k                                (the native shape, one query per group)
};

enum class IndexKeyType : uint8_t { f32, i8, i4 };

// Index keys are stored in blocks of 16 slots so that one vector holds the same dimension of 16 keys and
// scoring needs no horizontal sums:
//   f32: [slots / 16, dim, 16]
//   i8:  [slots / 16, dim / 4, 16, 4] unsigned bytes (value + 128), with one f32 scale a slot: [slots]
//   i4:  [slots / 16, dim / 8, 16, 4] bytes of two codes, dimension 8b + j low and 8b + 4 + j high; the value
//        is (16 code - 120) * scale, so that 16 levels lie evenly around 0; one bf16 scale a slot: [slots]
// For i8 and i4 a query is rounded to int8 as well (one scale a head), and the dot product is exact in int32.
inline constexpr size_t kIndexBlock = 16;

// The dimension as stored: whole groups of 4 (i4: 8), padded with zeros (69 -> 72).
inline size_t padded_index_dim(IndexKeyType type, size_t dim) {
  const size_t group = type == IndexKeyType::i4 ? 8 : 4;
  return (dim + group - 1) / group * group;
}

struct IndexKeyView {
  const std::byte* data;
  const std::byte* scales;  // [slots rounded up to 16] of f32 (i8) or bf16 (i4); f32 keys have none
  IndexKeyType type;
  size_t dim;  // unpadded
};

// Bytes of `slots` keys (whole blocks), without the scales.
inline size_t index_key_bytes(IndexKeyType type, size_t dim, size_t slots) {
  const size_t values = (slots + kIndexBlock - 1) / kIndexBlock * kIndexBlock * padded_index_dim(type, dim);
  return type == IndexKeyType::f32 ? values * 4 : type == IndexKeyType::i8 ? values : values / 2;
}
// Bytes of one slot's scale.
inline size_t index_scale_bytes(IndexKeyType type) {
  return type == IndexKeyType::f32 ? 0 : type == IndexKeyType::i8 ? 4 : 2;
}

// Writes key [dim] into `slot` with its scale: i8 rounds to nearest even with scale max|key| / 127, i4 to the
// nearest level with scale max|key| / 120.
void store_index_key(std::byte* data, std::byte* scales, IndexKeyType type, size_t dim, size_t slot,
                     const float* key);
// Moves a stored key to another slot (eviction by swap).
void move_index_key(std::byte* data, std::byte* scales, IndexKeyType type, size_t dim, size_t from,
                    size_t to);
// Of a stored i8 or i4 key: its scale, and what dimension d holds in units of that scale.
float index_key_scale(const IndexKeyView& view, size_t slot);
int index_key_code(const IndexKeyView& view, size_t slot, size_t d);
// The stored value of one key, dequantised: key [dim].
void load_index_key(float* key, const IndexKeyView& view, size_t slot);

}  // namespace keysieve
