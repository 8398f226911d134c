#pragma once

#include <cstddef>
#include <vector>

#include "indexer/indexer_config.h"

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
  std::vector<size_t> refine_layers = {};  // ascending: layers that either holds for; empty: all

  size_t layer_budget(size_t layer) const { return layer < budgets.size() ? budgets[layer] : budget; }
  bool refines(size_t layer) const;
  // Throws Error{usage} for a budget of 0 (not in `budgets`), for sinks + recent > a budget, for a
  // query_block of 0, and for a mass that is not above 0 and at most 1.
  void validate() const;
  static SelectionPolicy from(const IndexerConfig& config);
  // The same for scores that need no help: each query for itself, nothing refined. What rules and the oracle
  // have.
  SelectionPolicy unaided() const;
  // The same without a share of attention to stop at (mass 1), which no published rule knows.
  SelectionPolicy whole_budget() const;
};

}  // namespace keysieve
