#include "indexer/attention_shares.h"

#include <cmath>

namespace keysieve {

void AttentionShares::add_up(const LayerQuery& query, const SharesOf& of, KernelContext& context,
                             int worker) {
  // Heads that look for few keys come first, more so than in calibrated scores (decisions 0017, 0025).
  constexpr float kSharpness = 2.5f;
  const size_t dim = query.kv.head_dim, heads = query.heads / query.kv.kv_heads, count = slots.size();
  shares.assign(count, 0.0f);
  logits_.resize(of.queries * heads * count);
  for (size_t kv_head = of.first_kv_head; kv_head < of.first_kv_head + of.kv_heads; ++kv_head) {
    context.kernels.key_scores({.scores = logits_.data(),
                                .stride = count,
                                .q = query.inputs.q + (of.first_query * query.heads + kv_head * heads) * dim,
                                .heads = heads,
                                .scale = kSharpness / std::sqrt(static_cast<float>(dim)),
                                .kv = query.kv,
                                .kv_head = kv_head,
                                .slots = slots,
                                .queries = of.queries,
                                .query_stride = query.heads * dim},
                               context.scratch, worker);
    for (size_t row = 0; row < of.queries * heads; ++row) {
      const size_t seen = count - (of.queries - 1 - row / heads);
      context.kernels.add_softmax(shares.data(), logits_.data() + row * count, seen, true);
    }
  }
}

}  // namespace keysieve
