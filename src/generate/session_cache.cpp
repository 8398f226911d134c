#include "generate/session_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "cache/fixed_cache.h"
#include "cache/tiered_cache.h"
#include "generate/handles.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

// A vote of 32 queries is steadier than the last one's.
constexpr size_t kDefaultVoters = 32;

// A chunk's rows and buffers are in memory beside the budget's: no more of them than that. 128 tokens are 6%
// slower in prefill than 512 and save some 20 MB of the 100 that a small model has beyond its weights. A
// multiple of 64, so that a chunk's end cuts no block of neighbours that the full cache's chunks leave whole.
size_t chunk_beside(size_t budget, size_t most) {
  constexpr size_t kStep = 64;
  constexpr size_t kMost = 128;
  return std::clamp(budget / kStep * kStep, std::min(kStep, most), std::min(kMost, most));
}

// `given` (not empty) in ascending order.
std::vector<size_t> checked_layers(std::vector<size_t> given, std::string_view option, size_t layers) {
  std::ranges::sort(given);
  if (given.back() >= layers) {
    throw Error(ErrorKind::usage, option, fmt::format("layer {}", given.back()),
                fmt::format("layers 0 to {} of this model", layers - 1));
  }
  return given;
}

// All layers but `sparse` (not empty) read everything.
void leave_dense(SelectionPolicy& policy, const std::vector<size_t>& sparse, size_t layers) {
  policy.budgets.resize(layers, policy.budget);
  for (size_t layer = 0; layer < layers; ++layer) {
    if (!std::ranges::binary_search(sparse, layer)) policy.budgets[layer] = 0;
  }
}

}  // namespace

SelectionPolicy selection_policy(const SessionOptions& options, size_t layers) {
  SelectionPolicy policy;
  if (options.indexer) {
    policy = SelectionPolicy::from(options.indexer->impl()->indexer->config());
  } else {
    policy.budget = 0;
    policy.sinks = 4;
    policy.recent = 64;
    policy.scope = SelectionScope::per_group;
  }
  if (options.budget > 0) {
    policy.budget = options.budget;
    // A budget asked for holds for every layer, but those the indexer leaves dense (0) stay dense.
    for (size_t& budget : policy.budgets) budget = budget == 0 ? 0 : options.budget;
  }
  if (!options.sparse_layers.empty()) {
    leave_dense(policy, checked_layers(options.sparse_layers, "sparse layers", layers), layers);
  }
  if (options.sinks) policy.sinks = *options.sinks;
  if (options.recent) policy.recent = *options.recent;
  if (options.query_block > SessionOptions::kMostQueryBlock) {
    throw Error(ErrorKind::usage, "query block", fmt::format("{}", options.query_block),
                fmt::format("at most {}", SessionOptions::kMostQueryBlock));
  }
  if (options.query_block > 0) policy.query_block = options.query_block;
  if (options.refine) policy.refine = *options.refine;
  if (options.refine_prompt) policy.refine_prompt = *options.refine_prompt;
  if (!options.refine_layers.empty())
    policy.refine_layers = checked_layers(options.refine_layers, "refine layers", layers);
  policy.mass = options.mass;
  if (options.selection == SelectionMode::shared) policy.scope = SelectionScope::shared;
  if (options.selection == SelectionMode::per_group) policy.scope = SelectionScope::per_group;
  return policy;
}

void choose_cache(SequenceOptions& sequence, const SessionOptions& options, const SelectionPolicy& policy,
                  bool seed_rule) {
  if (options.cache == CacheKind::tiered) {
    TieredCacheOptions tiered;
    tiered.budget = policy.budget;
    tiered.budgets = policy.budgets;
    tiered.sets = sequence.selector->groups();
    tiered.chunk = sequence.max_chunk = chunk_beside(policy.budget, sequence.max_chunk);
    sequence.make_cache = [tiered, folder = options.cold_store](const CacheShape& shape,
                                                                std::shared_ptr<const Kernels> kernels) {
      return make_tiered_cache(shape, std::move(kernels), tiered, folder);
    };
  }
  if (options.cache == CacheKind::fixed) {
    FixedCacheOptions fixed;
    fixed.budget = policy.budget;
    fixed.budgets = policy.budgets;
    fixed.sinks = policy.sinks;
    fixed.recent = policy.recent;
    fixed.sets = sequence.selector->groups();
    fixed.voters = options.voters != 0 ? options.voters : seed_rule ? 1 : kDefaultVoters;
    if (options.prune == PruneRule::after_each_chunk) {
      fixed.chunk = sequence.max_chunk = chunk_beside(policy.budget, sequence.max_chunk);
    }
    sequence.make_cache = [fixed](const CacheShape& shape, std::shared_ptr<const Kernels> kernels) {
      return std::make_unique<FixedCache>(shape, fixed, std::move(kernels));
    };
  }
}

}  // namespace keysieve
