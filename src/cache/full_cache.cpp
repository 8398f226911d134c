#include "cache/full_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "keysieve/error.h"

namespace keysieve {

FullCache::FullCache(const CacheShape& shape, std::shared_ptr<const Kernels> kernels)
    : shape_(shape), kernels_(std::move(kernels)), sizes_(shape.layers, 0) {
  for (size_t i = 0; i < shape.layers; ++i) stores_.emplace_back(shape, shape.capacity);
}

void FullCache::append(size_t layer, const KvRows& rows) {
  size_t& size = sizes_[layer];
  if (rows.tokens > shape_.capacity - size) {
    throw Error(ErrorKind::mismatch, "cache", fmt::format("{} positions", size + rows.tokens),
                fmt::format("at most {}", shape_.capacity), "use a larger context or a shorter prompt");
  }
  // Slots are positions here: a gap would make every later key rotate wrongly against its slot.
  for (size_t t = 0; t < rows.tokens; ++t) {
    if (static_cast<size_t>(rows.positions[t]) != size + t) {
      throw Error(ErrorKind::usage, "cache", fmt::format("position {}", rows.positions[t]),
                  fmt::format("{}, the next", size + t));
    }
  }
  stores_[layer].write(*kernels_, size, rows);
  size += rows.tokens;
}

CacheBytes FullCache::bytes() const {
  CacheBytes bytes;
  for (const LayerStore& store : stores_) {
    bytes.hot += store.kv_bytes();
    bytes.index += store.index_bytes();
  }
  return bytes;
}

void FullCache::save(StateWriter& out) const {
  for (size_t i = 0; i < shape_.layers; ++i) stores_[i].save(out, sizes_[i]);
}

void FullCache::load(StateReader& in, size_t tokens) {
  for (size_t i = 0; i < shape_.layers; ++i) stores_[i].load(in, tokens);
  std::fill(sizes_.begin(), sizes_.end(), tokens);
}

void FullCache::clear() {
  for (size_t i = 0; i < shape_.layers; ++i) stores_[i] = LayerStore(shape_, shape_.capacity);
  std::fill(sizes_.begin(), sizes_.end(), 0);
}

bool FullCache::truncate(size_t tokens) {
  for (size_t& size : sizes_) size = std::min(size, tokens);
  return true;
}

}  // namespace keysieve
