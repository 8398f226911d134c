#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "indexer/cache_rule.h"

namespace keysieve {

// What a fixed cache keeps by H2O's rule (arXiv 2306.14048): the positions with the most attention summed
// over all queries so far, beside the most recent ones (half of the budget each, which is the cache's
// `recent`). The prompt is read densely and cut once. A baseline for `eval`; it scores every query of the
// prompt against every key, so it costs as much again as dense attention.
class HeavyHitterSelector final : public CacheRule {
 public:
  // `attention` scores by the true probabilities.
  explicit HeavyHitterSelector(std::shared_ptr<KeySelector> attention) : CacheRule(std::move(attention)) {}

  bool select(const LayerQuery& query, KernelContext& context, SelectionBuffer& out) override;
  // `voters` is not asked: all queries have voted.
  void scores(float* scores, const LayerQuery& query, size_t voters, KernelContext& context) override;

 private:
  struct Layer {
    std::vector<std::vector<float>> received;  // [groups][positions]
    int32_t newest = -1;                       // the last query counted
  };
  void count(const LayerQuery& query, KernelContext& context);
  std::vector<Layer> layers_;
  std::vector<float> chunk_;  // [groups, slots]
};

}  // namespace keysieve
