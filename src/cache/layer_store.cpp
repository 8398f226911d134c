#include "cache/layer_store.h"

#include <algorithm>
#include <cstring>

#include "keysieve/error.h"

namespace keysieve {
namespace {

size_t product(size_t a, size_t b) { return detail::checked_product(a, b); }

}  // namespace

LayerStore::LayerStore(const CacheShape& shape, size_t capacity)
    : shape_(shape), capacity_(capacity), row_bytes_(kv_row_bytes(shape.kv_type, shape.head_dim)) {
  const size_t store_bytes = product(product(shape.kv_heads, capacity), row_bytes_);
  keys_ = ReservedMemory(store_bytes);
  values_ = ReservedMemory(store_bytes);
  if (shape.index_heads == 0) return;
  // Each head starts on a cache line: its blocks are whole lines of 64 bytes, its scales are padded to one.
  const size_t padded = (capacity + kIndexBlock - 1) / kIndexBlock * kIndexBlock;
  index_scales_at_ = index_key_bytes(shape.index_type, shape.index_dim, capacity);
  index_stride_ = index_scales_at_ + (padded * index_scale_bytes(shape.index_type) + 63) / 64 * 64;
  index_ = ReservedMemory(product(shape.index_heads, index_stride_));
  for (size_t head = 0; head < shape.index_heads; ++head) {
    index_views_.push_back({index_data(head), index_scales(head), shape.index_type, shape.index_dim});
  }
}

KvView LayerStore::kv() const {
  return {keys_.data(), values_.data(), shape_.kv_type, shape_.kv_heads, capacity_, shape_.head_dim};
}

std::byte* LayerStore::key_row(size_t kv_head, size_t slot) {
  return keys_.data() + (kv_head * capacity_ + slot) * row_bytes_;
}
std::byte* LayerStore::value_row(size_t kv_head, size_t slot) {
  return values_.data() + (kv_head * capacity_ + slot) * row_bytes_;
}
std::byte* LayerStore::index_data(size_t head) { return index_.data() + head * index_stride_; }
std::byte* LayerStore::index_scales(size_t head) { return index_data(head) + index_scales_at_; }

void LayerStore::write(const Kernels& kernels, size_t first, const KvRows& rows) {
  const size_t dim = shape_.head_dim;
  for (size_t t = 0; t < rows.tokens; ++t) {
    for (size_t head = 0; head < shape_.kv_heads; ++head) {
      const size_t row = (t * shape_.kv_heads + head) * dim;
      kernels.store_kv(key_row(head, first + t), shape_.kv_type, rows.keys + row, dim);
      kernels.store_kv(value_row(head, first + t), shape_.kv_type, rows.values + row, dim);
    }
    for (size_t head = 0; head < shape_.index_heads; ++head) {
      store_index_key(index_data(head), index_scales(head), shape_.index_type, shape_.index_dim, first + t,
                      rows.index_keys + (t * shape_.index_heads + head) * shape_.index_dim);
    }
  }
  written_ = std::max(written_, first + rows.tokens);
}

void LayerStore::move_kv(size_t kv_head, size_t from, size_t to) {
  if (from == to) return;
  std::memcpy(key_row(kv_head, to), key_row(kv_head, from), row_bytes_);
  std::memcpy(value_row(kv_head, to), value_row(kv_head, from), row_bytes_);
  written_ = std::max(written_, to + 1);
}

void LayerStore::move_index(size_t index_head, size_t from, size_t to) {
  if (from == to) return;
  move_index_key(index_data(index_head), index_scales(index_head), shape_.index_type, shape_.index_dim, from,
                 to);
  written_ = std::max(written_, to + 1);
}

void LayerStore::copy_prefix(const LayerStore& other, size_t slots) {
  for (size_t head = 0; head < shape_.kv_heads; ++head) {
    const size_t from = head * other.capacity_ * row_bytes_;
    std::memcpy(key_row(head, 0), other.keys_.data() + from, slots * row_bytes_);
    std::memcpy(value_row(head, 0), other.values_.data() + from, slots * row_bytes_);
  }
  for (size_t head = 0; head < shape_.index_heads; ++head) {
    const std::byte* from = other.index_.data() + head * other.index_stride_;
    std::memcpy(index_data(head), from, index_key_bytes(shape_.index_type, shape_.index_dim, slots));
    std::memcpy(index_scales(head), from + other.index_scales_at_,
                slots * index_scale_bytes(shape_.index_type));
  }
  written_ = std::max(written_, slots);
}

void LayerStore::save(StateWriter& out, size_t slots) const {
  std::vector<std::byte> records(kRecordsAtOnce * record_bytes());
  const KvView view = kv();
  for (size_t first = 0; first < slots && !records.empty(); first += kRecordsAtOnce) {
    const size_t count = std::min(kRecordsAtOnce, slots - first);
    std::byte* to = records.data();
    for (size_t slot = first; slot < first + count; ++slot) {
      for (size_t head = 0; head < shape_.kv_heads; ++head, to += 2 * row_bytes_) {
        std::memcpy(to, view.key_row(head, slot), row_bytes_);
        std::memcpy(to + row_bytes_, view.value_row(head, slot), row_bytes_);
      }
    }
    out.write({records.data(), count * record_bytes()});
  }
  for (const IndexKeyView& keys : index_views_) {
    out.write({keys.data, index_key_bytes(keys.type, keys.dim, slots)});
    out.write({keys.scales, slots * index_scale_bytes(keys.type)});
  }
}

void LayerStore::load(StateReader& in, size_t slots) {
  std::vector<std::byte> records(kRecordsAtOnce * record_bytes());
  for (size_t first = 0; first < slots && !records.empty(); first += kRecordsAtOnce) {
    const size_t count = std::min(kRecordsAtOnce, slots - first);
    in.read({records.data(), count * record_bytes()});
    const std::byte* from = records.data();
    for (size_t slot = first; slot < first + count; ++slot) {
      for (size_t head = 0; head < shape_.kv_heads; ++head, from += 2 * row_bytes_) {
        std::memcpy(key_row(head, slot), from, row_bytes_);
        std::memcpy(value_row(head, slot), from + row_bytes_, row_bytes_);
      }
    }
  }
  for (size_t head = 0; head < shape_.index_heads; ++head) {
    in.read({index_data(head), index_key_bytes(shape_.index_type, shape_.index_dim, slots)});
    in.read({index_scales(head), slots * index_scale_bytes(shape_.index_type)});
  }
  written_ = std::max(written_, slots);
}

uint64_t LayerStore::kv_bytes() const { return uint64_t{2} * shape_.kv_heads * written_ * row_bytes_; }

uint64_t LayerStore::index_bytes() const {
  return shape_.index_heads * (index_key_bytes(shape_.index_type, shape_.index_dim, written_) +
                               written_ * index_scale_bytes(shape_.index_type));
}

}  // namespace keysieve
