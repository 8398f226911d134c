#include "indexer/heavy_hitters.h"

#include <algorithm>

#include "indexer/selection_recorder.h"

namespace keysieve {

// Adds what the chunk's queries attend to, unless it has been added.
void HeavyHitterSelector::count(const LayerQuery& query, KernelContext& context) {
  if (layers_.size() <= query.layer) layers_.resize(query.layer + 1);
  Layer& layer = layers_[query.layer];
  const int32_t newest = query.inputs.positions[query.inputs.tokens - 1];
  if (newest == layer.newest) return;
  if (newest < layer.newest) layer = Layer{};  // another sequence
  layer.newest = newest;
  const size_t slots = query.slots();
  chunk_.resize(groups() * slots);
  attention_->scores(chunk_.data(), query, query.inputs.tokens, context);
  layer.received.resize(groups());
  for (size_t group = 0; group < groups(); ++group) {
    std::vector<float>& received = layer.received[group];
    received.resize(std::max(received.size(), static_cast<size_t>(newest) + 1), 0.0f);
    for (size_t s = 0; s < slots; ++s)
      received[static_cast<size_t>(query.position(group, s))] += chunk_[group * slots + s];
  }
}

bool HeavyHitterSelector::select(const LayerQuery& query, KernelContext& context, SelectionBuffer&) {
  count(query, context);
  if (query.recorder) query.recorder->record(query, nullptr);
  return false;
}

void HeavyHitterSelector::scores(float* scores, const LayerQuery& query, size_t, KernelContext& context) {
  count(query, context);
  const size_t slots = query.slots();
  for (size_t group = 0; group < groups(); ++group) {
    const std::vector<float>& received = layers_[query.layer].received[group];
    for (size_t s = 0; s < slots; ++s)
      scores[group * slots + s] = received[static_cast<size_t>(query.position(group, s))];
  }
}

}  // namespace keysieve
