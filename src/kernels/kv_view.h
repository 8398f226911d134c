#pragma once

#include <cstddef>
#include <cstdint>

namespace keysieve {

enum class KvType : uint8_t { f32, f16 };
inline size_t bytes_per_value(KvType type) { return type == KvType::f32 ? 4 : 2; }

// The keys (after RoPE) and values one layer has stored, by slot. A slot is a row of the store; in a full
// cache slot and position are the same number.
struct KvView {
  const std::byte* keys;    // [kv_heads, capacity, head_dim] of `type`
  const std::byte* values;  // [kv_heads, capacity, head_dim] of `type`
  KvType type;
  size_t kv_heads;
  size_t capacity;
  size_t head_dim;

  const std::byte* key_row(size_t kv_head, size_t slot) const {
    return keys + (kv_head * capacity + slot) * head_dim * bytes_per_value(type);
  }
  const std::byte* value_row(size_t kv_head, size_t slot) const {
    return values + (kv_head * capacity + slot) * head_dim * bytes_per_value(type);
  }
};

}  // namespace keysieve
