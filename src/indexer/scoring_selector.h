#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "indexer/attention_shares.h"
#include "indexer/key_selector.h"
#include "indexer/selection_policy.h"

namespace keysieve {

// A selector that gives every candidate a score: always-kept positions first, then the best of the rest, ties
// to the more recent. Derived classes supply the scores only.
class ScoringSelector : public KeySelector {
 public:
  // `kv_heads` sets where the policy's scope is per_group. Throws as SelectionPolicy::validate.
  ScoringSelector(SelectionPolicy policy, size_t kv_heads);

  const SelectionPolicy& policy() const { return policy_; }
  // From the next chunk on, but for its scope, which stays. Throws as SelectionPolicy::validate.
  void replace_policy(SelectionPolicy policy);
  size_t groups() const override { return groups_; }
  size_t budget(size_t layer) const override { return policy_.layer_budget(layer); }
  size_t keys_refined(const LayerQuery& query, size_t index) const override;
  bool select(const LayerQuery& query, KernelContext& context, SelectionBuffer& out) override;
  std::function<void(size_t set, int worker)> choose_later(const LayerQuery& query, KernelContext& context,
                                                           SelectionBuffer& out) override;
  void scores(float* scores, const LayerQuery& query, size_t voters, KernelContext& context) override;

 protected:
  // Called once before the queries [first, tokens) of the chunk are scored, on the calling thread.
  virtual void prepare(const LayerQuery& query, size_t first, KernelContext& context);
  // Scores of slots 0 .. candidates(index)-1 for one query and set: out [candidates rounded up to 16]; with
  // `accumulate` they are added to what is there. Called from worker `worker`; kernels' scratch of that
  // worker is free to use.
  virtual void score(float* out, const LayerQuery& query, size_t index, size_t group, bool accumulate,
                     KernelContext& context, int worker) = 0;
  // The scores of neighbours that choose together, added up: what makes them count alike. Query `first` + i
  // of `count` scores i slots more than the first. By default sums of score().
  virtual void score_block(float* out, const LayerQuery& query, size_t first, size_t count, size_t group,
                           KernelContext& context, int worker);
  // Whether a slot's score depends on that slot alone, so that threads may share the slots of one query (a
  // shared set in decode): then score_part() writes those of [first, first + count) to out + first, `first` a
  // multiple of 16.
  virtual bool scores_in_parts() const { return false; }
  virtual void score_part(float*, const LayerQuery&, size_t /*index*/, size_t /*first*/, size_t /*count*/,
                          KernelContext&, int /*worker*/) {}

 private:
  // Queries [first, first + count) of a chunk, one choice for all.
  struct QueryBlock {
    size_t first;
    size_t count;
    size_t last() const { return first + count - 1; }
  };
  // One set of one block, and the worker that chooses it.
  struct SetChoice {
    const LayerQuery& query;
    QueryBlock block;
    size_t group;
    KernelContext& context;
    int worker;
    size_t candidates() const { return query.candidates(block.first); }  // of every query of the block
  };
  // The positions that attention itself chooses among for query `index`; 0: the scores alone choose.
  size_t refined_among(const LayerQuery& query, size_t index) const;
  // Writes to `middle` [best], ascending, the best slots between sinks and end, and returns how many of them
  // the policy's mass takes.
  size_t choose_middle(uint32_t* middle, size_t best, bool scored, const SetChoice& choice);
  // Leaves in `middle` the `best` slots that attention gives most to, of the `most` that score best;
  // ascending. The share of each head counts alike, as in the scores.
  void refine(uint32_t* middle, size_t best, size_t most, const float* scores, const SetChoice& choice);
  // Readies `out` and the working memory for a selection. False: nothing is to be selected.
  bool begin(const LayerQuery& query, KernelContext& context, SelectionBuffer& out);
  std::vector<QueryBlock> blocks_of(const LayerQuery& query) const;
  // `scored`: the worker's scores are there.
  void select_block(const SetChoice& choice, bool scored, SelectionBuffer& out);
  // Scores the chunk's one query with all threads, to worker 0's scores. False: nothing done.
  bool score_together(const LayerQuery& query, KernelContext& context);
  void reserve_workers(const LayerQuery& query, const KernelContext& context);

  SelectionPolicy policy_;
  size_t groups_;
  struct WorkerMemory {
    std::vector<float> scores;       // [slots rounded up to 16]
    std::vector<float> mass_values;  // [best], of keep_mass()
    AttentionShares attention;
    std::vector<uint32_t> refined;  // [best], places in attention.slots past the sinks
  };
  std::vector<WorkerMemory> workers_;  // [threads]
};

}  // namespace keysieve
