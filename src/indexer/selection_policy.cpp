#include "indexer/selection_policy.h"

#include <fmt/format.h>

#include <algorithm>

#include "keysieve/error.h"

namespace keysieve {

void SelectionPolicy::validate() const {
  const auto check = [&](size_t value, bool may_be_dense) {
    if (value == 0 && may_be_dense) return;
    if (value == 0) throw Error(ErrorKind::usage, "budget", "0", "at least 1 position");
    // Compared one by one: the sum of two hostile numbers may wrap.
    if (sinks > value || recent > value - sinks) {
      throw Error(ErrorKind::usage, "budget", fmt::format("{}", value),
                  fmt::format("at least sinks {} + recent {}", sinks, recent),
                  "raise --budget, or lower --sinks or --recent");
    }
  };
  if (!(mass > 0 && mass <= 1)) {
    throw Error(ErrorKind::usage, "mass", fmt::format("{}", mass), "more than 0 and at most 1");
  }
  if (query_block == 0) throw Error(ErrorKind::usage, "query block", "0", "at least 1");
  check(budget, false);
  for (const size_t value : budgets) check(value, true);
}

bool SelectionPolicy::refines(size_t layer) const {
  return refine_layers.empty() || std::ranges::binary_search(refine_layers, layer);
}

SelectionPolicy SelectionPolicy::from(const IndexerConfig& config) {
  SelectionPolicy policy{config.budget, config.budgets, config.sinks,
                         config.recent, config.scope,   config.query_block};
  policy.refine = config.refine;
  policy.refine_prompt = config.refine_prompt;
  policy.refine_layers = config.refine_layers;
  return policy;
}

SelectionPolicy SelectionPolicy::unaided() const {
  SelectionPolicy policy = *this;
  policy.query_block = 1;
  policy.refine = policy.refine_prompt = 0;
  return policy;
}

SelectionPolicy SelectionPolicy::whole_budget() const {
  SelectionPolicy policy = *this;
  policy.mass = 1;
  return policy;
}

}  // namespace keysieve
