#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "indexer/indexer_config.h"
#include "indexer/indexer_weights.h"
#include "model/model.h"

namespace keysieve {

// How much of a layer's attention the keys catch that its indexer picks, for a row of budgets.
struct BudgetCurves {
  std::vector<size_t> budgets;                // ascending
  std::vector<std::vector<double>> captured;  // [layers, budgets], 0 to 1, mean over queries and sets
};

// Measures the curves on windows of text, each a sequence of its own, at queries of its second half; dense
// hidden states. Budgets reach from the smallest multiple of 64 that holds sinks and recent to half of the
// longest window. nullopt: cancelled. Throws Error{mismatch} for windows too short to tell two budgets apart.
std::optional<BudgetCurves> captured_curves(const std::shared_ptr<const Model>& model,
                                            const IndexerConfig& config,
                                            std::span<const IndexerLayerWeights> layers,
                                            std::span<const std::vector<int32_t>> windows,
                                            const std::atomic<bool>* cancel);

// Budgets [layers] that together are at most `total` and catch the most: each step goes to the layer where it
// catches most for each position. Layers in `dense` get 0, which means no selection, and take nothing of the
// total. Throws Error{usage} where `total` is less than the smallest budget for each of the others.
std::vector<size_t> spread_budget(const BudgetCurves& curves, size_t total, std::span<const size_t> dense);

}  // namespace keysieve
