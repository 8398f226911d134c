#include "indexer/quest.h"

#include <algorithm>
#include <limits>

namespace keysieve {

QuestSelector::QuestSelector(const SelectionPolicy& policy, size_t heads, size_t kv_heads)
    : ScoringSelector(policy.unaided().whole_budget(), kv_heads), heads_(heads), kv_heads_(kv_heads) {}

// Widens the bounds of the pages that the chunk's keys fall into.
void QuestSelector::add_keys(const LayerQuery& query) {
  if (layers_.size() <= query.layer) layers_.resize(query.layer + 1);
  Layer& layer = layers_[query.layer];
  const size_t row = kv_heads_ * query.kv.head_dim;
  const auto page_of = [&](size_t token) {
    return static_cast<size_t>(query.inputs.positions[token]) / kPage;
  };
  if (query.inputs.positions[0] == 0) layer = Layer{};  // another sequence
  // Rows taken back: later pages go, and the one that is now the last keeps bounds that are wide enough.
  const size_t known = (page_of(0) + 1) * row;
  if (layer.least.size() > known) {
    layer.least.resize(known);
    layer.greatest.resize(known);
  }
  const size_t values = (page_of(query.inputs.tokens - 1) + 1) * row;
  layer.least.resize(values, std::numeric_limits<float>::infinity());
  layer.greatest.resize(values, -std::numeric_limits<float>::infinity());
  for (size_t i = 0; i < query.inputs.tokens; ++i) {
    const float* key = query.inputs.k + i * row;
    float* least = layer.least.data() + page_of(i) * row;
    float* greatest = layer.greatest.data() + page_of(i) * row;
    for (size_t d = 0; d < row; ++d) {
      least[d] = std::min(least[d], key[d]);
      greatest[d] = std::max(greatest[d], key[d]);
    }
  }
}

bool QuestSelector::select(const LayerQuery& query, KernelContext& context, SelectionBuffer& out) {
  add_keys(query);
  return ScoringSelector::select(query, context, out);
}

void QuestSelector::score(float* out, const LayerQuery& query, size_t index, size_t group, bool accumulate,
                          KernelContext&, int) {
  const Layer& layer = layers_[query.layer];
  const size_t dim = query.kv.head_dim;
  const size_t heads_of_key = heads_ / kv_heads_;
  const size_t first_head = groups() == 1 ? 0 : group * heads_of_key;
  const size_t last_head = groups() == 1 ? heads_ : first_head + heads_of_key;
  const size_t candidates = query.candidates(index);
  for (size_t begin = 0; begin < candidates; begin += kPage) {
    const size_t end = std::min(begin + kPage, candidates);
    float bound = 0;
    for (size_t head = first_head; head < last_head; ++head) {
      const float* q = query.inputs.q + (index * heads_ + head) * dim;
      const size_t page = (begin / kPage * kv_heads_ + head / heads_of_key) * dim;
      const float* least = layer.least.data() + page;
      const float* greatest = layer.greatest.data() + page;
      for (size_t d = 0; d < dim; ++d) bound += std::max(q[d] * least[d], q[d] * greatest[d]);
    }
    // The query's own page may hold keys that come after it: its bound says nothing, and it is read anyway.
    if (end == candidates) bound = std::numeric_limits<float>::max() / 256;
    for (size_t s = begin; s < end; ++s) out[s] = accumulate ? out[s] + bound : bound;
  }
}

}  // namespace keysieve
