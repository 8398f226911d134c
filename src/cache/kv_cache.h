#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/state_stream.h"
#include "core/threads.h"
#include "kernels/index_keys.h"
#include "kernels/kv_view.h"

namespace keysieve {

struct CacheShape {
  size_t layers = 0;
  size_t kv_heads = 0;
  size_t head_dim = 0;
  KvType kv_type = KvType::f16;
  // Most positions a layer may hold. Address space is reserved for all of them, memory is taken as they
  // arrive.
  size_t capacity = 0;
  // Index keys kept beside the rows; heads 0: none.
  size_t index_heads = 0;
  size_t index_dim = 0;
  IndexKeyType index_type = IndexKeyType::i8;
};

// The rows of a chunk of tokens.
struct KvRows {
  const float* keys;         // [tokens, kv_heads, head_dim], after RoPE
  const float* values;       // [tokens, kv_heads, head_dim]
  const float* index_keys;   // [tokens, index_heads, index_dim]; null without index keys
  const int32_t* positions;  // [tokens], ascending
  size_t tokens;
};

// The rows that some queries of a layer are going to read; stage() rewrites them.
struct SelectedRows {
  uint32_t* slots;         // [queries, groups, budget], the first counts[..] of each row used, ascending
  const uint32_t* counts;  // [queries, groups]
  size_t queries;
  size_t groups;  // 1 or kv_heads
  size_t budget;

  uint32_t* row(size_t query, size_t group) const { return slots + (query * groups + group) * budget; }
  size_t count(size_t query, size_t group) const { return counts[query * groups + group]; }
};

// Where the first `queries` of them can be read: the slots are now those of `kv`, in the order they had.
struct StagedRows {
  size_t queries;
  KvView kv;
};

// Bytes in use by tier.
struct CacheBytes {
  uint64_t hot = 0;    // keys and values in RAM
  uint64_t cold = 0;   // keys and values in the cold store
  uint64_t index = 0;  // index keys with their scales
  uint64_t maps = 0;   // where hot rows lie and when each was last read
  uint64_t moved = 0;  // keys and values read back from the cold store since the last clear()
  uint64_t total() const { return hot + cold + index + maps; }
};

// What each layer remembers of the tokens so far. One object serves one sequence. Rows live in slots; a layer
// may keep different positions per KV head (`sets` of them). The order of calls:
//   prefill, per chunk and layer:  append -> select -> attention; after the LAST chunk's attention
//                                  (cuts_each_chunk(): after each), if over_budget(layer):
//                                  keep_best(layer, scores by voters() queries)
//   decode, per layer:             append -> if over_budget(layer): keep_best(layer, scores of this query)
//                                  -> attention over what is left (the new row itself may be gone)
class KvCache {
 public:
  virtual ~KvCache() = default;

  virtual const CacheShape& shape() const = 0;
  virtual size_t sets() const = 0;  // 1, or kv_heads where each KV head keeps its own positions
  // True where a full view needs no keep_best: slot and position are one number and selectors choose per
  // query.
  virtual bool keeps_everything() const = 0;

  // Stores rows behind those present. Throws Error{mismatch} past the capacity (full) and Error{usage} for
  // positions out of order.
  virtual void append(size_t layer, const KvRows& rows) = 0;

  virtual size_t size(size_t layer) const = 0;  // slots filled: 0 .. size-1
  // The rows by slot. A cache with a cold store holds only some of them here: all of a layer within its
  // budget, else those that stage() has brought.
  virtual KvView kv(size_t layer) const = 0;
  // True: every row is in kv(), and stage() has nothing to do.
  virtual bool rows_in_place() const { return true; }
  // Makes selected rows readable, for as many of the queries as there is room for, at least one. The view is
  // valid until the next call that changes the cache. Throws Error{file} where a cold store has lost rows.
  virtual StagedRows stage(size_t layer, const SelectedRows& rows, const Threads&) {
    return {rows.queries, kv(layer)};
  }
  virtual std::span<const IndexKeyView> index_keys(size_t layer) const = 0;  // [index_heads]
  // [sets, kv(layer).capacity]; null: slot and position are the same number. Valid until the next change.
  virtual const int32_t* slot_positions(size_t layer) const = 0;
  // Positions held by one set, ascending.
  std::vector<int32_t> positions(size_t layer, size_t set) const;

  virtual size_t budget(size_t layer) const = 0;  // 0: no limit
  bool over_budget(size_t layer) const { return budget(layer) != 0 && size(layer) > budget(layer); }
  // True: the cut comes after each chunk of a prompt, not only after the last.
  virtual bool cuts_each_chunk() const { return false; }
  virtual size_t voters() const { return 1; }  // queries whose scores the cut after prefill should add up
  // Keeps the budget(layer) best of each set, those protected first; among equals the older goes. scores
  // [sets, size(layer)] by slot. Nothing happens to a layer within its budget.
  virtual void keep_best(size_t layer, std::span<const float> scores) = 0;

  // Goes back to the first `tokens` positions; false (and unchanged) where some of them have been dropped.
  virtual bool truncate(size_t) { return false; }

  // For session files. Caches with equal shape and state_format(), and budgets where that is not "full", can
  // load each other's state. Empty: this cache cannot be saved, and the two below throw Error{unsupported}.
  virtual std::string_view state_format() const { return {}; }
  virtual void save(StateWriter& out) const;
  // Into an empty cache, of a sequence of `tokens` <= shape().capacity positions. Throws what the reader
  // throws and Error{format} for what no cache can hold; the cache must then be cleared.
  virtual void load(StateReader& in, size_t tokens);

  virtual CacheBytes bytes() const = 0;
  // Forgets everything and gives the memory back; the object can be used for the next sequence.
  virtual void clear() = 0;
};

}  // namespace keysieve
