#include "indexer/selectors.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "keysieve/error.h"

namespace keysieve {
namespace {

size_t groups_for(const Indexer& indexer, const SelectionPolicy& policy) {
  if (policy.scope == SelectionScope::per_group && indexer.config().shape == IndexerShape::seed) {
    throw Error(ErrorKind::usage, "selection", "per-group", "shared: this indexer's heads share one key",
                "use --selection shared");
  }
  return indexer.key_heads();
}

// A share of attention can only be told from scores that are shares.
size_t checked_groups(const Indexer& indexer, const SelectionPolicy& policy) {
  if (policy.mass < 1 && indexer.config().combine != IndexCombine::softmax_sum) {
    throw Error(ErrorKind::usage, "mass", fmt::format("{}", policy.mass),
                "1 with this indexer: its scores are no shares of attention",
                "use --budget, or an indexer from keysieve calibrate or train");
  }
  return groups_for(indexer, policy);
}

// splitmix64 (Steele, Lea, Flood 2014): one well-mixed word per input.
uint64_t mix(uint64_t state) {
  state += 0x9e3779b97f4a7c15u;
  state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9u;
  state = (state ^ (state >> 27)) * 0x94d049bb133111ebu;
  return state ^ (state >> 31);
}

}  // namespace

LearnedSelector::LearnedSelector(std::shared_ptr<const Indexer> indexer, const SelectionPolicy& policy)
    : ScoringSelector(policy, checked_groups(*indexer, policy)), indexer_(std::move(indexer)) {}

KeySelector::KeyShape LearnedSelector::key_shape() const {
  return {indexer_->key_heads(), indexer_->dim(), indexer_->config().key_type(), indexer_->heads()};
}

void LearnedSelector::project_keys(float* keys, size_t layer, const LayerInputs& inputs,
                                   KernelContext& context) {
  indexer_->project_keys(keys, layer, inputs, context);
}

void LearnedSelector::prepare(const LayerQuery& query, size_t first, KernelContext& context) {
  first_ = first;
  const IndexerConfig& config = indexer_->config();
  const size_t tokens = query.inputs.tokens - first;
  const size_t query_values = tokens * config.heads * config.dim;
  if (queries_.size() < query_values) queries_.resize(query_values);
  LayerInputs inputs = query.inputs;
  inputs.tokens = tokens;
  inputs.positions += first;
  if (config.shape == IndexerShape::seed) {
    if (head_weights_.size() < tokens * config.heads) head_weights_.resize(tokens * config.heads);
    inputs.hidden += first * config.hidden;
    if (policy().query_block > 1) reserve_rows(query.slots(), context);
  } else {
    inputs.q += first * config.heads * config.head_dim;
  }
  indexer_->project_queries(queries_.data(), head_weights_.data(), query.layer, inputs, context);
}

void LearnedSelector::reserve_rows(size_t slots, const KernelContext& context) {
  worker_rows_.resize(std::max(worker_rows_.size(), static_cast<size_t>(context.threads.count())));
  for (std::vector<float>& row : worker_rows_) {
    if (row.size() < slots + kIndexBlock) row.resize(slots + slots / 4 + kIndexBlock);
  }
}

void LearnedSelector::score(float* out, const LayerQuery& query, size_t index, size_t group, bool accumulate,
                            KernelContext& context, int worker) {
  score_slots(out, query,
              {.query = index,
               .group = group,
               .first = 0,
               .count = query.candidates(index),
               .accumulate = accumulate},
              context, worker);
}

// Weighted sums of ReLUs are logits of what the indexer was trained to: their softmax is a share of
// attention, as sums of heads' softmaxes are, and no query's large numbers drown its neighbours'
// (docs/decisions/0020).
void LearnedSelector::score_block(float* out, const LayerQuery& query, size_t first, size_t count,
                                  size_t group, KernelContext& context, int worker) {
  if (indexer_->config().combine != IndexCombine::relu_sum) {
    return score_slots(
        out, query,
        {.query = first, .group = group, .first = 0, .count = query.candidates(first), .neighbours = count},
        context, worker);
  }
  float* const row = worker_rows_[static_cast<size_t>(worker)].data();
  for (size_t i = 0; i < count; ++i) {
    const size_t slots = query.candidates(first + i);
    score_slots(row, query, {.query = first + i, .group = group, .first = 0, .count = slots}, context,
                worker);
    context.kernels.add_softmax(out, row, slots, i > 0);
  }
}

// A softmax needs all slots; sums of dot products do not.
bool LearnedSelector::scores_in_parts() const {
  return indexer_->config().combine != IndexCombine::softmax_sum;
}

void LearnedSelector::score_part(float* out, const LayerQuery& query, size_t index, size_t first,
                                 size_t count, KernelContext& context, int worker) {
  score_slots(out + first, query, {.query = index, .group = 0, .first = first, .count = count}, context,
              worker);
}

void LearnedSelector::score_slots(float* out, const LayerQuery& query, const Slots& slots,
                                  KernelContext& context, int worker) {
  const IndexerConfig& config = indexer_->config();
  const size_t heads = config.heads / config.key_heads;  // query heads per key head
  const float* queries = queries_.data() + (slots.query - first_) * config.heads * config.dim;
  const float* head_weights = config.combine == IndexCombine::relu_sum
                                  ? head_weights_.data() + (slots.query - first_) * config.heads
                                  : nullptr;
  // A shared set is voted on by every key head; a set of its own only by its key head.
  const size_t key_begin = groups() == 1 ? 0 : slots.group;
  const size_t key_end = groups() == 1 ? config.key_heads : slots.group + 1;
  for (size_t key_head = key_begin; key_head < key_end; ++key_head) {
    IndexKeyView keys = query.index_keys[key_head];
    keys.data += index_key_bytes(keys.type, keys.dim, slots.first);
    if (keys.scales != nullptr) keys.scales += slots.first * index_scale_bytes(keys.type);
    context.kernels.index_scores({.scores = out,
                                  .q = queries + key_head * heads * config.dim,
                                  .head_weight = head_weights,
                                  .heads = heads,
                                  .count = slots.count,
                                  .keys = keys,
                                  .combine = config.combine,
                                  .cold = query.inputs.tokens == 1,
                                  .accumulate = slots.accumulate || key_head != key_begin,
                                  .queries = slots.neighbours,
                                  .query_stride = config.heads * config.dim},
                                 context.scratch, worker);
  }
}

RecentSelector::RecentSelector(const SelectionPolicy& policy, size_t kv_heads)
    : ScoringSelector(policy.unaided().whole_budget(), kv_heads) {}

// The later the better; positions are exact in a float up to 16,777,216.
void RecentSelector::score(float* out, const LayerQuery& query, size_t index, size_t group, bool,
                           KernelContext&, int) {
  for (size_t s = 0; s < query.candidates(index); ++s) out[s] = static_cast<float>(query.position(group, s));
}

RandomSelector::RandomSelector(const SelectionPolicy& policy, size_t kv_heads, uint64_t seed)
    : ScoringSelector(policy.unaided().whole_budget(), kv_heads), seed_(seed) {}

void RandomSelector::score(float* out, const LayerQuery& query, size_t index, size_t group, bool,
                           KernelContext&, int) {
  const auto position = static_cast<uint64_t>(query.inputs.positions[index]);
  const uint64_t state = mix(mix(mix(seed_ ^ query.layer) ^ position) ^ group);
  for (size_t s = 0; s < query.candidates(index); ++s) {
    const auto key = static_cast<uint64_t>(query.position(group, s));
    out[s] = static_cast<float>(mix(state ^ key) >> 40);  // 24 random bits, exact in a float
  }
}

}  // namespace keysieve
