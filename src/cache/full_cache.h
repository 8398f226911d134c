#pragma once

#include <memory>
#include <vector>

#include "cache/kv_cache.h"
#include "cache/layer_store.h"

namespace keysieve {

// Every position stays; attention reads only what the selector picks. Slot and position are the same number.
class FullCache final : public KvCache {
 public:
  FullCache(const CacheShape& shape, std::shared_ptr<const Kernels> kernels);

  const CacheShape& shape() const override { return shape_; }
  size_t sets() const override { return 1; }
  bool keeps_everything() const override { return true; }
  void append(size_t layer, const KvRows& rows) override;
  size_t size(size_t layer) const override { return sizes_[layer]; }
  KvView kv(size_t layer) const override { return stores_[layer].kv(); }
  std::span<const IndexKeyView> index_keys(size_t layer) const override {
    return stores_[layer].index_keys();
  }
  const int32_t* slot_positions(size_t) const override { return nullptr; }
  size_t budget(size_t) const override { return 0; }
  void keep_best(size_t, std::span<const float>) override {}
  std::string_view state_format() const override { return "full"; }
  void save(StateWriter& out) const override;
  void load(StateReader& in, size_t tokens) override;
  CacheBytes bytes() const override;
  void clear() override;
  bool truncate(size_t tokens) override;

 private:
  CacheShape shape_;
  std::shared_ptr<const Kernels> kernels_;
  std::vector<LayerStore> stores_;  // [layers]
  std::vector<size_t> sizes_;       // [layers]
};

}  // namespace keysieve
