#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "indexer/indexer.h"
#include "indexer/scoring_selector.h"

namespace keysieve {

// Goes by a learned (or calibrated) indexer. With several key heads and scope shared, the key heads' scores
// are added up.
class LearnedSelector final : public ScoringSelector {
 public:
  // Throws Error{usage} for scope per_group with an indexer of one key head, and as
  // SelectionPolicy::validate.
  LearnedSelector(std::shared_ptr<const Indexer> indexer, const SelectionPolicy& policy);

  const Indexer& indexer() const { return *indexer_; }
  KeyShape key_shape() const override;
  void project_keys(float* keys, size_t layer, const LayerInputs& inputs, KernelContext& context) override;

 protected:
  void prepare(const LayerQuery& query, size_t first, KernelContext& context) override;
  void score(float* out, const LayerQuery& query, size_t index, size_t group, bool accumulate,
             KernelContext& context, int worker) override;
  void score_block(float* out, const LayerQuery& query, size_t first, size_t count, size_t group,
                   KernelContext& context, int worker) override;
  bool scores_in_parts() const override;
  void score_part(float* out, const LayerQuery& query, size_t index, size_t first, size_t count,
                  KernelContext& context, int worker) override;

 private:
  // Slots [first, first + count) for one query and set; `first` begins a block of 16. Of neighbours each
  // scores one slot more than the one before.
  struct Slots {
    size_t query;
    size_t group;
    size_t first;
    size_t count;
    bool accumulate = false;
    size_t neighbours = 1;
  };
  void score_slots(float* out, const LayerQuery& query, const Slots& slots, KernelContext& context,
                   int worker);

  void reserve_rows(size_t slots, const KernelContext& context);

  std::shared_ptr<const Indexer> indexer_;
  size_t first_ = 0;                             // the chunk's query in row 0 of the two arrays
  std::vector<float> queries_;                   // [tokens - first, heads, dim]
  std::vector<float> head_weights_;              // [tokens - first, heads], relu_sum only
  std::vector<std::vector<float>> worker_rows_;  // [threads][slots rounded up to 16], of score_block()
};

// The baseline every indexer must beat: sinks, and the most recent positions up to the budget (StreamingLLM,
// arXiv 2309.17453).
class RecentSelector final : public ScoringSelector {
 public:
  RecentSelector(const SelectionPolicy& policy, size_t kv_heads);

 protected:
  void score(float* out, const LayerQuery& query, size_t index, size_t group, bool accumulate,
             KernelContext& context, int worker) override;
};

// Sinks, recent and a random rest, the same for the same seed, layer, query position and set.
class RandomSelector final : public ScoringSelector {
 public:
  RandomSelector(const SelectionPolicy& policy, size_t kv_heads, uint64_t seed);

 protected:
  void score(float* out, const LayerQuery& query, size_t index, size_t group, bool accumulate,
             KernelContext& context, int worker) override;

 private:
  uint64_t seed_;
};

}  // namespace keysieve
