#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "indexer/indexer_config.h"
#include "indexer/layer_query.h"
#include "kernels/selection.h"

namespace keysieve {

// How many positions a query may read and which are never left out. Sinks and recent count in the budget.
struct SelectionPolicy {
  size_t budget = 2048;
  std::vector<size_t> budgets;  // [layers] or empty; 0: the layer is dense
  size_t sinks = 0;
  size_t recent = 0;
  SelectionScope scope = SelectionScope::shared;
  // Neighbouring queries of a prompt that choose together: one set for all of them, by the sum of their
  // scores. 1: each for itself. Blocks start at positions that are multiples of it.
  size_t query_block = 1;
  // A query with more candidates than the budget reads only the fewest positions that are expected to carry
  // this share of its attention, at most the budget. 1: always the budget. For scores that are shares of
  // attention (IndexCombine::softmax_sum).
  double mass = 1;
  // In decode and at a prompt's end (LayerQuery::refine_from): of so many positions that score best, sinks
  // and recent included, the model's own attention chooses what is read (decision 0025). Up to the budget:
  // the scores alone choose.
  size_t refine = 0;
  // The same for a prompt's other queries, before its end (decision 0026).
  size_t refine_prompt = 0;

  size_t layer_budget(size_t layer) const { return layer < budgets.size() ? budgets[layer] : budget; }
  // Throws Error{usage} for a budget of 0 (not in `budgets`), for sinks + recent > a budget, for a
  // query_block of 0, and for a mass that is not above 0 and at most 1.
  void validate() const;
  static SelectionPolicy from(const IndexerConfig& config);
};

// The selections of one chunk, in the layout attention reads. Memory is kept between chunks.
class SelectionBuffer {
 public:
  void reset(size_t queries, size_t groups, size_t budget);
  uint32_t* row(size_t query, size_t group) { return slots_.data() + (query * groups_ + group) * budget_; }
  uint32_t& count(size_t query, size_t group) { return counts_[query * groups_ + group]; }
  std::span<const uint32_t> slots(size_t query, size_t group) const;  // [count], ascending
  SelectionView view() const { return {slots_.data(), counts_.data(), groups_, budget_}; }
  size_t queries() const { return queries_; }
  size_t groups() const { return groups_; }

 private:
  size_t queries_ = 0;
  size_t groups_ = 1;
  size_t budget_ = 0;
  std::vector<uint32_t> slots_;   // [queries, groups, budget], the first counts[..] of each row used
  std::vector<uint32_t> counts_;  // [queries, groups]
};

// The positions every query read, kept for evaluation and pictures. Costs nothing where LayerQuery::recorder
// is null.
class SelectionRecorder {
 public:
  struct Row {
    int32_t query;                             // its position
    std::vector<std::vector<int32_t>> groups;  // [groups][count], ascending positions; one group: shared
  };
  // Selector's side: `selection` null means every candidate was read.
  void record(const LayerQuery& query, const SelectionBuffer* selection);
  // For a query that read exactly the stored positions `groups` (a fixed cache in decode).
  void record(size_t layer, int32_t query, std::vector<std::vector<int32_t>> groups);
  const std::vector<std::vector<Row>>& layers() const {
    return layers_;
  }  // [layer][query in order of arrival]
  void clear() { layers_.clear(); }

 private:
  std::vector<Row>& layer(size_t index);
  std::vector<std::vector<Row>> layers_;
};

// Chooses the keys each query of a layer reads. The model calls, per layer and chunk: project_keys, appends
// the keys to the cache, select, attention. One selector serves one session (it keeps working memory).
class KeySelector {
 public:
  virtual ~KeySelector() = default;

  virtual size_t groups() const = 0;              // sets per query: 1 or the model's kv_heads
  virtual size_t budget(size_t layer) const = 0;  // 0: the layer is dense
  // Stored keys that choosing reads for query `index`, in each KV head.
  virtual size_t keys_refined(const LayerQuery&, size_t /*index*/) const { return 0; }

  // What the cache must hold beside keys and values; heads 0: nothing, and project_keys is not called.
  struct KeyShape {
    size_t heads = 0;
    size_t dim = 0;
    IndexKeyType type = IndexKeyType::f32;
    size_t query_heads = 0;  // dot products one query takes a slot
  };
  virtual KeyShape key_shape() const { return {}; }
  // keys [inputs.tokens, heads, dim] of key_shape()
  virtual void project_keys(float* keys, size_t layer, const LayerInputs& inputs, KernelContext& context);

  // False: every query of the chunk reads all its candidates, `out` is untouched and attention runs dense.
  // True: `out` holds the selection of every query.
  virtual bool select(const LayerQuery& query, KernelContext& context, SelectionBuffer& out) = 0;

  // For a chunk of one query with several sets: prepares, and returns what makes set g of `out`, to be called
  // once for each set, from any worker, while all three live. Empty: select() is to be used.
  virtual std::function<void(size_t set, int worker)> choose_later(const LayerQuery& query,
                                                                   KernelContext& context,
                                                                   SelectionBuffer& out);

  // What a cache that must forget goes by: scores [groups, query.slots()], the sum over the last
  // min(voters, tokens) queries of their scores (0 where a slot is no candidate of a voter). voters 1 is the
  // seed's rule.
  virtual void scores(float* scores, const LayerQuery& query, size_t voters, KernelContext& context) = 0;
};

// A selector that gives every candidate a score: always-kept positions first, then the best of the rest, ties
// to the more recent. Derived classes supply the scores only.
class ScoringSelector : public KeySelector {
 public:
  // `kv_heads` sets where the policy's scope is per_group. Throws as SelectionPolicy::validate.
  ScoringSelector(SelectionPolicy policy, size_t kv_heads);

  const SelectionPolicy& policy() const { return policy_; }
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
  // How many of the `count` best middle slots it takes to reach the policy's mass, given that the slots from
  // `middle_end` on and the sinks are read; leaves these in front, ascending.
  size_t keep_mass(uint32_t* middle, size_t count, const float* scores, size_t middle_end, size_t candidates,
                   int worker);
  // The positions that attention itself chooses among for query `index`; 0: the scores alone choose.
  size_t refined_among(const LayerQuery& query, size_t index) const;
  // Leaves in `middle` the `best` slots that attention gives most to, of the `most` that score best;
  // ascending. The share of each head counts alike, as in the scores.
  void refine(uint32_t* middle, size_t best, size_t most, const float* scores, const SetChoice& choice);
  // Adds each head's attention shares of the worker's RefineBuffers::slots to its `shares`.
  void add_attention_shares(size_t kv_head, const SetChoice& choice);
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
  std::vector<std::vector<float>> worker_scores_;  // [threads][slots rounded up to 16]
  std::vector<std::vector<float>> worker_values_;  // [threads][budget], of keep_mass()
  struct RefineBuffers {
    std::vector<uint32_t> slots;   // [sinks + most + the end], ascending
    std::vector<float> logits;     // [queries, heads of a KV head, slots]
    std::vector<float> shares;     // [slots], of attention
    std::vector<uint32_t> chosen;  // [best], indices in `slots` past the sinks
  };
  std::vector<RefineBuffers> worker_refined_;  // [threads]
};

}  // namespace keysieve
