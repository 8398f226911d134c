#include "eval/attention_mode.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "generate/handles.h"
#include "generate/session_cache.h"
#include "indexer/heavy_hitters.h"
#include "indexer/indexer.h"
#include "indexer/quest.h"
#include "indexer/selectors.h"
#include "indexer/snap_kv.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

constexpr std::array<std::string_view, 9> kNames{"dense",   "sparse", "oracle",    "recent", "random",
                                                 "snap-kv", "h2o",    "streaming", "quest"};

// Whether the mode is a rule for what a fixed cache keeps.
bool is_cache_rule(AttentionMode mode) {
  return mode == AttentionMode::snap_kv || mode == AttentionMode::heavy_hitters ||
         mode == AttentionMode::streaming;
}

}  // namespace

std::string_view to_string(AttentionMode mode) { return kNames[static_cast<size_t>(mode)]; }

AttentionMode parse_attention_mode(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<AttentionMode>(i);
  }
  throw Error(ErrorKind::usage, "mode", '"' + std::string(name) + '"',
              "dense, sparse, oracle, recent, random, snap-kv, h2o, streaming or quest");
}

EvalSetting::EvalSetting(const LanguageModel& model, SessionOptions sparse)
    : model_(model),
      sparse_(std::move(sparse)),
      policy_(selection_policy(sparse_, model_.impl()->model->config().layers)) {
  if (policy_.budget != 0) policy_.validate();
}

const std::shared_ptr<const Model>& EvalSetting::model() const { return model_.impl()->model; }

EvalSetting EvalSetting::with_budget(size_t budget) const {
  SessionOptions options = sparse_;
  options.budget = budget;
  return {model_, options};
}

std::string EvalSetting::indexer_path() const {
  return sparse_.indexer ? sparse_.indexer->info().path : std::string();
}

Json EvalSetting::describe() const {
  Json json = {{"sinks", policy_.sinks},
               {"recent", policy_.recent},
               {"per_group", policy_.scope == SelectionScope::per_group},
               {"query_block", policy_.query_block},
               {"mass", policy_.mass},
               {"cache", static_cast<int>(sparse_.cache)},
               {"voters", sparse_.voters},
               {"prune", static_cast<int>(sparse_.prune)},
               {"kv", static_cast<int>(model_.impl()->kv_type)},
               {"model", model()->sequence_identity()}};
  if (policy_.refine > 0) json["refine"] = policy_.refine;
  if (policy_.refine_prompt > 0) json["refine_prompt"] = policy_.refine_prompt;
  if (!policy_.refine_layers.empty()) json["refine_layers"] = policy_.refine_layers;
  if (!sparse_.sparse_layers.empty()) json["sparse_layers"] = sparse_.sparse_layers;
  if (sparse_.indexer) json["indexer"] = sparse_.indexer->impl()->identity;
  return json;
}

std::vector<EvalSetting> EvalSetting::at_budgets(std::span<const size_t> budgets) const {
  std::vector<EvalSetting> settings;
  for (const size_t budget : budgets) settings.push_back(with_budget(budget));
  if (settings.empty()) settings.push_back(*this);
  return settings;
}

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
    case AttentionMode::snap_kv:
      return std::make_shared<SnapKvSelector>(make_oracle_selector(*model(), policy_.whole_budget()));
    case AttentionMode::heavy_hitters:
      return std::make_shared<HeavyHitterSelector>(make_oracle_selector(*model(), policy_.whole_budget()));
    case AttentionMode::streaming:
      return std::make_shared<RecentSelector>(policy_, kv_heads);
    case AttentionMode::quest:
      return std::make_shared<QuestSelector>(policy_, model()->config().heads, kv_heads);
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
  const bool seed_rule =
      mode == AttentionMode::sparse && sparse_.indexer->impl()->indexer->config().shape == IndexerShape::seed;
  SelectionPolicy policy = policy_;
  SessionOptions session = sparse_;
  if (is_cache_rule(mode)) {
    session.cache = CacheKind::fixed;
    session.prune = PruneRule::after_prompt;
  }
  if (mode == AttentionMode::quest) session.cache = CacheKind::full;
  // Scores that are positions are not added up.
  if (mode == AttentionMode::recent || mode == AttentionMode::streaming) session.voters = 1;
  if (mode == AttentionMode::snap_kv) {
    session.voters = SnapKvSelector::kWindow;
    policy.sinks = 0;
    policy.recent = std::min(SnapKvSelector::kWindow, policy.budget / 2);
  }
  if (mode == AttentionMode::heavy_hitters) {
    policy.sinks = 0;
    policy.recent = policy.budget / 2;
  }
  if (options.selector) choose_cache(options, session, policy, seed_rule);
  return SequenceState(model(), options);
}

std::shared_ptr<KeySelector> make_oracle_selector(const Model& model, const SelectionPolicy& of) {
  const SelectionPolicy policy = of.unaided();
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
