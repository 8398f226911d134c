#pragma once

#include <vector>

#include "indexer/scoring_selector.h"

namespace keysieve {

// Chooses pages of neighbouring keys as Quest does (arXiv 2406.10774): of each page the least and greatest
// value of every key channel are known, which bounds the product of a query with any key of the page; the
// pages of the highest bounds are read. The query heads of a set add their bounds up. A page's last keys
// count from the moment they are stored, and a query's own page comes first. A baseline for `eval`: all keys
// stay, and every query chooses anew, those of a prompt as well (the paper reads prompts densely).
// For one sequence at a time, on a cache whose slots are positions. After rows are taken back the bounds of
// the page that ended last may be wider than they must be.
class QuestSelector final : public ScoringSelector {
 public:
  static constexpr size_t kPage = 16;  // keys, as in the paper

  // `heads` query heads read `kv_heads`. Throws as SelectionPolicy::validate.
  QuestSelector(const SelectionPolicy& policy, size_t heads, size_t kv_heads);
  bool select(const LayerQuery& query, KernelContext& context, SelectionBuffer& out) override;

 protected:
  void score(float* out, const LayerQuery& query, size_t index, size_t group, bool accumulate,
             KernelContext& context, int worker) override;

 private:
  struct Layer {
    std::vector<float> least;     // [pages, kv_heads, head_dim]
    std::vector<float> greatest;  // the same
  };
  void add_keys(const LayerQuery& query);

  size_t heads_;
  size_t kv_heads_;
  std::vector<Layer> layers_;
};

}  // namespace keysieve
