#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "indexer/layer_query.h"

namespace keysieve {

// Neighbouring queries and the KV heads whose query heads look at the same slots.
struct SharesOf {
  size_t first_query;  // in the chunk
  size_t queries;
  size_t first_kv_head;
  size_t kv_heads;
};

// What the model's own attention gives to some slots (decisions 0025, 0026). Working memory of one worker.
struct AttentionShares {
  std::vector<uint32_t> slots;  // [count], ascending, to be filled in: what the last query sees, its own last
  std::vector<float> shares;    // [count], what add_up() makes

  // shares[i] = what each query head of each query gives slots[i], added up: a softmax over these slots,
  // sharper than attention's own. An earlier query does not see the slots after its own, which are the last
  // ones. The keys lie slot by slot in query.kv. Uses the scratch of `worker`.
  void add_up(const LayerQuery& query, const SharesOf& of, KernelContext& context, int worker);

 private:
  std::vector<float> logits_;  // [queries, heads of a KV head, count]
};

}  // namespace keysieve
