#include "eval/attention_mode.h"

#include <array>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "cache/fixed_cache.h"
#include "cache/tiered_cache.h"
#include "generate/handles.h"
#include "indexer/indexer.h"
#include "indexer/selectors.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

constexpr std::array<std::string_view, 5> kNames{"dense", "sparse", "oracle", "recent", "random"};

SelectionPolicy policy_of(const SessionOptions& options) {
  SelectionPolicy policy;
  if (options.indexer) {
    policy = SelectionPolicy::from(options.indexer->impl()->indexer->config());
  } else {
    // What native indexers use; see IndexerConfig::native_for.
    policy.budget = 0;
    policy.sinks = 4;
    policy.recent = 64;
    policy.scope = SelectionScope::per_group;
  }
  if (options.budget > 0) {
    policy.budget = options.budget;
    for (size_t& budget : policy.budgets) budget = budget == 0 ? 0 : options.budget;
  }
  if (options.sinks) policy.sinks = *options.sinks;
  if (options.recent) policy.recent = *options.recent;
  if (options.selection == SelectionMode::shared) policy.scope = SelectionScope::shared;
  if (options.selection == SelectionMode::per_group) policy.scope = SelectionScope::per_group;
  return policy;
}

}  // namespace

std::string_view to_string(AttentionMode mode) { return kNames[static_cast<size_t>(mode)]; }

AttentionMode parse_attention_mode(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<AttentionMode>(i);
  }
  throw Error(ErrorKind::usage, "mode", '"' + std::string(name) + '"',
              "dense, sparse, oracle, recent or random");
}

EvalSetting::EvalSetting(const LanguageModel& model, SessionOptions sparse)
    : model_(model), sparse_(std::move(sparse)), policy_(policy_of(sparse_)) {
  if (policy_.budget != 0) policy_.validate();
}

const std::shared_ptr<const Model>& EvalSetting::model() const { return model_.impl()->model; }

bool EvalSetting::can(AttentionMode mode) const {
  if (mode == AttentionMode::dense) return true;
  return mode == AttentionMode::sparse ? sparse_.indexer.has_value() : policy_.budget != 0;
}

size_t EvalSetting::budget(AttentionMode mode) const {
  return mode == AttentionMode::dense ? 0 : policy_.budget;
}

std::shared_ptr<KeySelector> EvalSetting::selector(AttentionMode mode) const {
  const size_t kv_heads = model()->config().kv_heads;
  switch (mode) {
    case AttentionMode::dense:
      break;
    case AttentionMode::sparse:
      return std::make_shared<LearnedSelector>(sparse_.indexer->impl()->indexer, policy_);
    case AttentionMode::oracle:
      return make_oracle_selector(*model(), policy_);
    case AttentionMode::recent:
      return std::make_shared<RecentSelector>(policy_, kv_heads);
    case AttentionMode::random:
      return std::make_shared<RandomSelector>(policy_, kv_heads, 1);
  }
  return nullptr;
}

void EvalSetting::require(AttentionMode mode) const {
  if (can(mode)) return;
  const bool sparse = mode == AttentionMode::sparse;
  throw Error(ErrorKind::usage, "mode " + std::string(to_string(mode)), sparse ? "no indexer" : "no budget",
              sparse ? "one to choose positions" : "the positions a query may read",
              sparse ? "name one with --indexer" : "give --budget or --indexer");
}

SequenceState EvalSetting::sequence(AttentionMode mode, size_t context) const {
  require(mode);
  SequenceOptions options;
  options.context = context;
  options.kv_type = model_.impl()->kv_type;
  options.selector = selector(mode);
  if (sparse_.cache == CacheKind::tiered && options.selector) {
    TieredCacheOptions tiered;
    tiered.budget = policy_.budget;
    tiered.budgets = policy_.budgets;
    tiered.sets = options.selector->groups();
    tiered.chunk = options.max_chunk = std::clamp<size_t>(policy_.budget, 64, options.max_chunk);
    options.make_cache = [tiered, folder = sparse_.cold_store](const CacheShape& shape,
                                                               std::shared_ptr<const Kernels> kernels) {
      return make_tiered_cache(shape, std::move(kernels), tiered, folder);
    };
  }
  if (sparse_.cache == CacheKind::fixed && options.selector) {
    FixedCacheOptions fixed;
    fixed.budget = policy_.budget;
    fixed.budgets = policy_.budgets;
    fixed.sinks = policy_.sinks;
    fixed.recent = policy_.recent;
    fixed.sets = options.selector->groups();
    fixed.voters = 32;  // as Session's for native indexers
    if (mode == AttentionMode::sparse &&
        sparse_.indexer->impl()->indexer->config().shape == IndexerShape::seed)
      fixed.voters = 1;
    options.make_cache = [fixed](const CacheShape& shape, std::shared_ptr<const Kernels> kernels) {
      return std::make_unique<FixedCache>(shape, fixed, std::move(kernels));
    };
  }
  return SequenceState(model(), options);
}

std::shared_ptr<KeySelector> make_oracle_selector(const Model& model, const SelectionPolicy& of) {
  SelectionPolicy policy = of;
  policy.query_block = 1;  // what is best for each query alone
  const ModelShape shape = model.shape();
  const size_t dim = shape.head_dim;
  IndexerConfig config = IndexerConfig::native_for(shape, dim, policy.budget);
  config.sinks = policy.sinks;
  config.recent = policy.recent;
  config.key_choice = IndexKeyChoice::f32;
  IndexerLayerWeights layer;
  layer.q.assign(shape.kv_heads * dim * dim, 0.0f);
  layer.k.assign(shape.kv_heads * dim * dim, 0.0f);
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
  for (size_t group = 0; group < shape.kv_heads; ++group) {
    for (size_t i = 0; i < dim; ++i) {
      layer.q[(group * dim + i) * dim + i] = scale;
      layer.k[(group * dim + i) * dim + i] = 1.0f;
    }
  }
  const std::vector<IndexerLayerWeights> layers(shape.layers, layer);
  auto indexer =
      std::make_shared<const Indexer>(config, layers, shape, model.shared_kernels(), model.threads());
  return std::make_shared<LearnedSelector>(std::move(indexer), policy);
}

}  // namespace keysieve
