#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>

#include "cache/kv_cache.h"
#include "indexer/key_selector.h"
#include "kernels/kernels.h"
#include "model/model.h"

namespace keysieve {

struct SequenceOptions {
  size_t context = 0;      // positions to reserve, at most the model's; 0: the model's
  size_t max_chunk = 512;  // tokens one forward() may take: its buffers are allocated once for this many
  std::optional<KvType> kv_type = {};  // nullopt: Model::default_kv_type()
  // Chooses the positions each query reads; null: dense. It keeps working memory, so it belongs to this state
  // alone.
  std::shared_ptr<KeySelector> selector = nullptr;
  // Makes the cache from the shape that model and selector need; empty: a FullCache.
  std::function<std::unique_ptr<KvCache>(const CacheShape&, std::shared_ptr<const Kernels>)> make_cache = {};
};

// What attention and the indexer read, summed since the last clear(), so that reports need not estimate.
struct WorkCounters {
  uint64_t queries = 0;         // (query, layer, KV head) triples
  uint64_t positions_read = 0;  // keys read, summed over those triples
  uint64_t kv_bytes_read =
      0;  // of keys and values; a row read by all heads of a KV group counts once a query
  uint64_t index_bytes_read = 0;
  // Each weight, row and index key once a forward, however many of its queries read it.
  uint64_t memory_bytes_read = 0;
  uint64_t multiply_adds = 0;  // weight products of layers and head, attention, index scores
  // Mean positions one query read in one layer and KV head.
  double mean_positions_read() const {
    return queries == 0 ? 0.0 : static_cast<double>(positions_read) / static_cast<double>(queries);
  }
};

// One sequence: the KV store and index keys of every layer, the position reached, and the buffers a forward
// works in (allocated once, for max_chunk tokens). Belongs to one model. Movable.
class SequenceState {
 public:
  // Throws Error{usage} for options out of range, a cache that forgets without a selector to go by, or one
  // whose sets differ from the selector's groups; Error{resource}.
  explicit SequenceState(std::shared_ptr<const Model> model, const SequenceOptions& options = {});
  SequenceState(SequenceState&&) noexcept;
  SequenceState& operator=(SequenceState&&) noexcept;
  ~SequenceState();

  size_t position() const;  // of the next token: the number of tokens seen
  size_t context() const;   // positions there is room for
  size_t max_chunk() const;
  KvType kv_type() const;
  const Model& model() const;
  const KvCache& cache() const;
  KeySelector* selector() const;               // null: dense
  std::span<const float> last_logits() const;  // [vocabulary] after a forward that computed them; else empty

  void clear();  // forgets the sequence and the counters; gives the caches' pages back
  // Goes back to the first `positions` tokens; false (and unchanged) where the cache has dropped some of
  // them.
  bool truncate(size_t positions);

  // For session files: whether there are logits, these [vocabulary], the cache's state. Throws what the
  // writer throws, Error{unsupported} where the cache cannot be saved.
  void save(StateWriter& out) const;
  // In place of this sequence: `positions` <= context() tokens. Throws what the reader and the cache throw
  // (see KvCache::load); the sequence is then empty.
  void load(StateReader& in, size_t positions);

  const WorkCounters& work() const;
  CacheBytes memory() const { return cache().bytes(); }

  struct Impl;
  Impl& impl() { return *impl_; }
  const Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace keysieve
