#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache/kv_cache.h"
#include "core/memory.h"
#include "kernels/kernels.h"

namespace keysieve {

// So many slots pass through one buffer on their way to or from a session file.
inline constexpr size_t kRecordsAtOnce = 256;

// Rows of one layer at a fixed capacity: keys, values and index keys by slot. Knows nothing of positions or
// budgets. Memory is reserved at once and taken page by page as slots are written.
class LayerStore {
 public:
  LayerStore() = default;
  LayerStore(const CacheShape& shape, size_t capacity);  // throws Error{resource}

  size_t capacity() const { return capacity_; }
  KvView kv() const;
  std::span<const IndexKeyView> index_keys() const { return index_views_; }  // [index_heads]

  // Writes the chunk's rows to slots first .. first + tokens - 1.
  void write(const Kernels& kernels, size_t first, const KvRows& rows);
  // [head_dim] of the shape's type. Whoever writes through these says so to mark_written().
  std::byte* key_row(size_t kv_head, size_t slot);
  std::byte* value_row(size_t kv_head, size_t slot);
  void mark_written(size_t slots) { written_ = slots > written_ ? slots : written_; }
  // Copies slot `from` over slot `to` for one KV head / one index head.
  void move_kv(size_t kv_head, size_t from, size_t to);
  void move_index(size_t index_head, size_t from, size_t to);
  // Copies the first `slots` slots of `other`, which has the same shape.
  void copy_prefix(const LayerStore& other, size_t slots);

  // The first `slots` slots: records [slots] of [kv_heads]{key row, value row}, then of each index head the
  // blocks and the scales.
  void save(StateWriter& out, size_t slots) const;
  void load(StateReader& in, size_t slots);

  // Bytes of keys and values, and of index keys with scales, in the slots written so far.
  uint64_t kv_bytes() const;
  uint64_t index_bytes() const;

 private:
  size_t record_bytes() const { return 2 * shape_.kv_heads * row_bytes_; }
  std::byte* index_data(size_t head);
  std::byte* index_scales(size_t head);

  CacheShape shape_;
  size_t capacity_ = 0;
  size_t written_ = 0;          // highest slot written + 1
  size_t row_bytes_ = 0;        // head_dim values
  size_t index_stride_ = 0;     // bytes of one index head, scales included
  size_t index_scales_at_ = 0;  // offset of the scales in it
  ReservedMemory keys_;         // [kv_heads, capacity, head_dim]
  ReservedMemory values_;       // [kv_heads, capacity, head_dim]
  ReservedMemory index_;        // [index_heads]{blocks of 16 slots (kernels/index_keys.h), scales [capacity]}
  std::vector<IndexKeyView> index_views_;  // [index_heads]
};

}  // namespace keysieve
