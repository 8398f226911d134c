#pragma once

#include <cstddef>
#include <cstdint>

namespace keysieve {

// i8: a row is head_dim codes -127 .. 127, padded to 4 bytes, then one f32 scale: value = code * scale.
enum class KvType : uint8_t { f32, f16, i8 };

// Where an i8 row's scale lies in it.
inline size_t kv_scale_at(size_t head_dim) { return (head_dim + 3) / 4 * 4; }
// Bytes of one stored key or value [head_dim].
inline size_t kv_row_bytes(KvType type, size_t head_dim) {
  return type == KvType::f32 ? head_dim * 4 : type == KvType::f16 ? head_dim * 2 : kv_scale_at(head_dim) + 4;
}

// The keys (after RoPE) and values one layer has stored, by slot. A slot is a row of the store; in a full
// cache slot and position are the same number.
struct KvView {
  const std::byte* keys;    // [kv_heads, capacity] rows of `type`
  const std::byte* values;  // [kv_heads, capacity] rows of `type`
  KvType type;
  size_t kv_heads;
  size_t capacity;
  size_t head_dim;

  const std::byte* key_row(size_t kv_head, size_t slot) const {
    return keys + (kv_head * capacity + slot) * kv_row_bytes(type, head_dim);
  }
  const std::byte* value_row(size_t kv_head, size_t slot) const {
    return values + (kv_head * capacity + slot) * kv_row_bytes(type, head_dim);
  }
};

}  // namespace keysieve
