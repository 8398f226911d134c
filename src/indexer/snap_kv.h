#pragma once

#include <memory>
#include <utility>

#include "indexer/cache_rule.h"

namespace keysieve {

// What a fixed cache keeps by SnapKV's rule (arXiv 2404.14469): the prompt is read densely, then its last
// queries vote by their attention probabilities, summed over the heads of a set and averaged over
// neighbouring positions, so that what stands around a wanted position stays as well. A baseline for `eval`.
class SnapKvSelector final : public CacheRule {
 public:
  static constexpr size_t kWindow = 32;  // queries that vote; a cache should keep their own rows
  static constexpr size_t kPool = 7;     // positions averaged over

  // `attention` scores by the true probabilities.
  explicit SnapKvSelector(std::shared_ptr<KeySelector> attention) : CacheRule(std::move(attention)) {}

  bool select(const LayerQuery& query, KernelContext& context, SelectionBuffer& out) override;
  void scores(float* scores, const LayerQuery& query, size_t voters, KernelContext& context) override;
};

}  // namespace keysieve
