#pragma once

#include <memory>
#include <vector>

#include "cache/kv_cache.h"
#include "cache/layer_store.h"

namespace keysieve {

struct FixedCacheOptions {
  size_t budget = 0;            // slots each layer keeps; not 0
  std::vector<size_t> budgets;  // [layers] or empty; 0: that layer keeps everything
  size_t sinks = 0;             // positions < sinks are never dropped
  size_t recent = 0;            // nor the newest `recent` positions
  size_t sets = 1;              // 1, or kv_heads: each KV head keeps its own positions
  size_t voters = 1;            // queries that vote in the cut after prefill
  size_t chunk = 0;             // not 0: the cut comes after each chunk, of at most so many tokens
};

// Constant memory: after prefill (or each of its chunks) each layer is cut to exactly `budget` rows; then
// every new row is weighed against those and the lowest goes, the new one included. What went is gone. A
// layer's bigger store for prefill is given back at its first cut, with cuts after each chunk at the first
// step of decode. After that the order of slots is not the order of positions, except while a chunk of
// several tokens is appended (a new turn of a chat), for which slots are put in order first.
class FixedCache final : public KvCache {
 public:
  // Throws Error{usage} for a budget of 0, sinks + recent >= a budget, or sets that are neither 1 nor
  // kv_heads, or several sets with another number of index heads.
  FixedCache(const CacheShape& shape, FixedCacheOptions options, std::shared_ptr<const Kernels> kernels);

  const CacheShape& shape() const override { return shape_; }
  size_t sets() const override { return options_.sets; }
  bool keeps_everything() const override { return false; }
  void append(size_t layer, const KvRows& rows) override;
  size_t size(size_t layer) const override { return layers_[layer].size; }
  KvView kv(size_t layer) const override { return layers_[layer].store.kv(); }
  std::span<const IndexKeyView> index_keys(size_t layer) const override;
  const int32_t* slot_positions(size_t layer) const override { return layers_[layer].positions.data(); }
  size_t budget(size_t layer) const override;
  bool cuts_each_chunk() const override { return options_.chunk != 0; }
  size_t voters() const override { return options_.voters; }
  void keep_best(size_t layer, std::span<const float> scores) override;
  std::string_view state_format() const override { return "fixed"; }
  void save(StateWriter& out) const override;
  void load(StateReader& in, size_t tokens) override;
  CacheBytes bytes() const override;
  void clear() override;

 private:
  struct Layer {
    LayerStore store;
    std::vector<int32_t> positions;  // [sets, store.capacity()]
    size_t size = 0;
    int32_t newest = -1;  // highest position ever appended
    bool ordered = true;  // slots ascend by position in every set
  };
  size_t prefill_capacity(size_t layer) const;
  void reshape(Layer& layer, size_t capacity);
  void order_slots(Layer& layer);
  void move_slot(Layer& layer, size_t set, size_t from, size_t to);
  bool is_protected(const Layer& layer, int32_t position) const;
  void drop_one(Layer& layer, size_t set, const float* scores);
  void keep_many(Layer& layer, size_t set, const float* scores, size_t kept);

  CacheShape shape_;
  FixedCacheOptions options_;
  std::shared_ptr<const Kernels> kernels_;
  std::vector<Layer> layers_;  // [layers]
};

}  // namespace keysieve
