#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "cache/cold_store.h"
#include "cache/kv_cache.h"
#include "cache/layer_store.h"
#include "cache/slot_map.h"

namespace keysieve {

struct TieredCacheOptions {
  size_t budget = 0;            // rows a query may read; not 0
  std::vector<size_t> budgets;  // [layers] or empty; 0: that layer is dense and stays in memory
  size_t chunk = 512;           // most tokens one append() brings
  size_t sets = 1;              // 1, or kv_heads: each KV head selects its own positions
};

// Nothing is forgotten and little is in memory: every index key stays, every key and value goes to the cold
// store, and a layer keeps budget + chunk rows hot, those selected last. stage() brings what a selection
// misses. A layer that fits its hot rows (or is dense) has slot and position the same; selectors always see
// positions.
class TieredCache final : public KvCache {
 public:
  // Throws Error{usage} for a budget or chunk of 0, or sets that are neither 1 nor kv_heads;
  // Error{resource}.
  TieredCache(const CacheShape& shape, TieredCacheOptions options, std::shared_ptr<const Kernels> kernels,
              std::unique_ptr<ColdStore> cold);

  const CacheShape& shape() const override { return shape_; }
  size_t sets() const override { return 1; }
  bool keeps_everything() const override { return true; }
  void append(size_t layer, const KvRows& rows) override;
  size_t size(size_t layer) const override { return layers_[layer].size; }
  KvView kv(size_t layer) const override { return layers_[layer].hot.kv(); }
  bool rows_in_place() const override { return false; }
  StagedRows stage(size_t layer, const SelectedRows& rows, const Threads& threads) override;
  std::span<const IndexKeyView> index_keys(size_t layer) const override {
    return layers_[layer].index.index_keys();
  }
  const int32_t* slot_positions(size_t) const override { return nullptr; }
  size_t budget(size_t) const override { return 0; }
  void keep_best(size_t, std::span<const float>) override {}
  bool truncate(size_t tokens) override;
  std::string_view state_format() const override { return "full"; }  // the same bytes
  void save(StateWriter& out) const override;
  void load(StateReader& in, size_t tokens) override;
  CacheBytes bytes() const override;
  void clear() override;

 private:
  static constexpr uint32_t kNone = SlotMap::kNone;
  // Which positions one set of KV heads has hot. The slots used longest ago give way.
  struct HotSet {
    SlotMap slots;                    // [capacity] position -> slot or kNone
    std::vector<uint32_t> positions;  // [slots] -> position or kNone
    std::vector<uint32_t> used;       // [slots]: the last round that needed this slot; 0: free
  };
  struct Layer {
    LayerStore hot;    // keys and values, by slot
    LayerStore index;  // index keys, by position
    std::vector<HotSet> sets;
    size_t size = 0;
    uint32_t round = 0;     // counts appends and stages, from 1
    bool resident = false;  // all rows stay hot; nothing is in the cold store
    bool in_order = true;   // slot and position are the same number
  };
  // Working memory of one thread in fetch().
  struct Reading {
    std::vector<ColdRow> rows;  // of one head, ascending
    std::vector<std::byte> buffer;
  };
  // Working memory of one set in stage().
  struct Staging {
    std::vector<uint32_t> seen;  // [positions]: mark of the last pass that met it
    uint32_t mark = 0;
    std::vector<uint32_t> missing;  // positions
    std::vector<uint32_t> victims;  // slots, of the last free_slots()
    size_t fits = 0;                // queries
    uint64_t moved = 0;             // bytes
  };

  Layer make_layer(size_t layer) const;
  size_t first_head(size_t set) const { return set * (shape_.kv_heads / options_.sets); }
  void encode(const KvRows& rows);
  void put_in_order(size_t layer);
  void admit(Layer& layer, size_t set, size_t first, size_t count);
  static void next_round(Layer& layer);
  static void free_slots(const Layer& layer, HotSet& set, std::vector<uint32_t>& victims, size_t count);
  void copy_encoded(Layer& layer, size_t set, size_t token, uint32_t slot);
  void fetch(size_t layer, size_t set, std::span<const uint32_t> positions, std::span<const uint32_t> slots,
             Reading& reading);
  void count_fitting(const Layer& layer, const SelectedRows& rows, size_t set);
  size_t before_cut_run(const SelectedRows& rows, size_t queries) const;
  void find_missing(size_t layer, const SelectedRows& rows, size_t set, size_t queries);
  void read_missing(size_t layer, const Threads& threads);
  void rewrite(size_t layer, const SelectedRows& rows, size_t set, size_t queries);

  CacheShape shape_;
  TieredCacheOptions options_;
  std::shared_ptr<const Kernels> kernels_;
  std::unique_ptr<ColdStore> cold_;
  std::vector<Layer> layers_;       // [layers]
  std::vector<Staging> staging_;    // [sets]
  std::vector<Reading> readings_;   // [threads]
  std::vector<std::byte> encoded_;  // records of the chunk being appended
  std::vector<size_t> shared_;      // [queries, sets]: leading rows that the query before has too
  uint64_t moved_ = 0;
};

// `folder` holds the cold store's file; empty: the store is in memory. Throws as the constructor and
// make_file_cold_store().
std::unique_ptr<TieredCache> make_tiered_cache(const CacheShape& shape,
                                               std::shared_ptr<const Kernels> kernels,
                                               const TieredCacheOptions& options,
                                               const std::filesystem::path& folder);

}  // namespace keysieve
