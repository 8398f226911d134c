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

enum class IndexKeyType : uint8_t { f32, i8 };

// Index keys are stored in blocks of 16 slots so that one vector holds the same dimension of 16 keys and
// scoring needs no horizontal sums:
//   f32: [slots / 16, dim, 16]
//   i8:  [slots / 16, dim / 4, 16, 4] unsigned bytes (value + 128), with one f32 scale a slot: [slots]
// For i8 a query is rounded to int8 as well (one scale a head), and the dot product is exact in int32.
inline constexpr size_t kIndexBlock = 16;

// The dimension as stored: a multiple of 4, padded with zeros (69 -> 72).
inline size_t padded_index_dim(size_t dim) { return (dim + 3) / 4 * 4; }

struct IndexKeyView {
  const std::byte* data;
  const float* scales;  // [slots rounded up to 16], i8 only
  IndexKeyType type;
  size_t dim;  // unpadded
};

// Bytes of `slots` keys (whole blocks), without the scales.
inline size_t index_key_bytes(IndexKeyType type, size_t dim, size_t slots) {
  const size_t blocks = (slots + kIndexBlock - 1) / kIndexBlock;
  return blocks * kIndexBlock * padded_index_dim(dim) * (type == IndexKeyType::f32 ? 4 : 1);
}

// Writes key [dim] into `slot`; i8 rounds to nearest even with scale max|key| / 127 and sets scales[slot].
void store_index_key(std::byte* data, float* scales, IndexKeyType type, size_t dim, size_t slot,
                     const float* key);
// Moves a stored key to another slot (eviction by swap).
void move_index_key(std::byte* data, float* scales, IndexKeyType type, size_t dim, size_t from, size_t to);
// The stored value of one key, dequantised: key [dim].
void load_index_key(float* key, const IndexKeyView& view, size_t slot);

}  // namespace keysieve
