#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "kernels/kernels.h"
#include "model/model.h"

namespace keysieve {

struct SequenceOptions {
  size_t context = 0;      // positions to reserve; 0: the model's
  size_t max_chunk = 512;  // tokens one forward() may take: its buffers are allocated once for this many
  std::optional<KvType> kv_type;  // nullopt: Model::default_kv_type()
};

// What attention and the indexer read, summed since the last clear(), so that reports need not estimate.
struct WorkCounters {
  uint64_t queries = 0;         // (query, layer, KV head) triples
  uint64_t positions_read = 0;  // keys read, summed over those triples
  uint64_t kv_bytes_read =
      0;  // of keys and values; a row read by all heads of a KV group counts once a query
  uint64_t index_bytes_read = 0;
  // Mean positions one query read in one layer and KV head.
  double mean_positions_read() const {
    return queries == 0 ? 0.0 : static_cast<double>(positions_read) / static_cast<double>(queries);
  }
};

struct SequenceMemory {
  uint64_t kv_hot_bytes = 0;   // keys and values in RAM, rows in use
  uint64_t kv_cold_bytes = 0;  // in the cold store
  uint64_t index_bytes = 0;    // index keys and their scales
};

// One sequence: the KV store and index keys of every layer, the position reached, and the buffers a forward
// works in (allocated once, for max_chunk tokens). Belongs to one model. Movable.
class SequenceState {
 public:
  explicit SequenceState(std::shared_ptr<const Model> model, const SequenceOptions& options = {});
  SequenceState(SequenceState&&) noexcept;
  SequenceState& operator=(SequenceState&&) noexcept;
  ~SequenceState();

  size_t position() const;  // of the next token: the number of tokens seen
  size_t context() const;   // positions there is room for
  size_t max_chunk() const;
  KvType kv_type() const;
  std::span<const float> last_logits() const;  // [vocabulary] after a forward that computed them; else empty

  void clear();  // forgets the sequence and the counters; gives the caches' pages back
  // Goes back to the first `positions` tokens; false (and unchanged) where the cache has dropped some of
  // them.
  bool truncate(size_t positions);

  const WorkCounters& work() const;
  SequenceMemory memory() const;

  struct Impl;
  Impl& impl() { return *impl_; }
  const Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace keysieve
