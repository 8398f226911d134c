#include "indexer/key_selector.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numeric>
#include <utility>

#include "keysieve/error.h"

namespace keysieve {
namespace {

size_t round_up_to_block(size_t count) { return (count + kIndexBlock - 1) / kIndexBlock * kIndexBlock; }

}  // namespace

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

SelectionPolicy SelectionPolicy::from(const IndexerConfig& config) {
  SelectionPolicy policy{config.budget, config.budgets, config.sinks,
                         config.recent, config.scope,   config.query_block};
  policy.refine = config.refine;
  policy.refine_prompt = config.refine_prompt;
  return policy;
}

void SelectionBuffer::reset(size_t queries, size_t groups, size_t budget) {
  queries_ = queries;
  groups_ = groups;
  budget_ = budget;
  slots_.resize(std::max(slots_.size(), queries * groups * budget));
  counts_.assign(queries * groups, 0);
}

std::span<const uint32_t> SelectionBuffer::slots(size_t query, size_t group) const {
  const size_t row = query * groups_ + group;
  return {slots_.data() + row * budget_, counts_[row]};
}

std::vector<SelectionRecorder::Row>& SelectionRecorder::layer(size_t index) {
  if (layers_.size() <= index) layers_.resize(index + 1);
  return layers_[index];
}

void SelectionRecorder::record(size_t layer_index, int32_t query, std::vector<std::vector<int32_t>> groups) {
  layer(layer_index).push_back({query, std::move(groups)});
}

void SelectionRecorder::record(const LayerQuery& query, const SelectionBuffer* selection) {
  const size_t groups = selection ? selection->groups() : 1;
  for (size_t i = 0; i < query.inputs.tokens; ++i) {
    std::vector<std::vector<int32_t>> sets(groups);
    for (size_t g = 0; g < groups; ++g) {
      const int32_t* positions =
          query.slot_positions ? query.slot_positions + g * query.kv.capacity : nullptr;
      const size_t count = selection ? selection->slots(i, g).size() : query.candidates(i);
      for (size_t s = 0; s < count; ++s) {
        const size_t slot = selection ? selection->slots(i, g)[s] : s;
        sets[g].push_back(positions ? positions[slot] : static_cast<int32_t>(slot));
      }
      if (positions) std::sort(sets[g].begin(), sets[g].end());
    }
    record(query.layer, query.inputs.positions[i], std::move(sets));
  }
}

void KeySelector::project_keys(float*, size_t, const LayerInputs&, KernelContext&) {}

ScoringSelector::ScoringSelector(SelectionPolicy policy, size_t kv_heads)
    : policy_(std::move(policy)), groups_(policy_.scope == SelectionScope::per_group ? kv_heads : 1) {
  policy_.validate();
}

void ScoringSelector::prepare(const LayerQuery&, size_t, KernelContext&) {}

void ScoringSelector::score_block(float* out, const LayerQuery& query, size_t first, size_t count,
                                  size_t group, KernelContext& context, int worker) {
  for (size_t i = 0; i < count; ++i) score(out, query, first + i, group, i > 0, context, worker);
}

void ScoringSelector::reserve_workers(const LayerQuery& query, const KernelContext& context) {
  worker_scores_.resize(std::max(worker_scores_.size(), static_cast<size_t>(context.threads.count())));
  worker_values_.resize(worker_scores_.size());
  worker_refined_.resize(worker_scores_.size());
  // Grown with room to spare: a decode step adds one slot, and must not allocate each time.
  const size_t needed = round_up_to_block(query.slots());
  for (std::vector<float>& scores : worker_scores_) {
    if (scores.size() < needed) scores.resize(needed + needed / 4 + 256);
  }
}

std::function<void(size_t, int)> KeySelector::choose_later(const LayerQuery&, KernelContext&,
                                                           SelectionBuffer&) {
  return {};
}

bool ScoringSelector::begin(const LayerQuery& query, KernelContext& context, SelectionBuffer& out) {
  const size_t budget = policy_.layer_budget(query.layer);
  if (budget == 0 || query.slots() <= budget) return false;
  out.reset(query.inputs.tokens, groups_, budget);
  // Queries [0, first) have no more candidates than the budget and read them all.
  const size_t first = query.first_visible >= budget ? 0 : budget - query.first_visible;
  if (budget > policy_.sinks + policy_.recent) {
    prepare(query, first, context);
    reserve_workers(query, context);
  }
  return true;
}

bool ScoringSelector::select(const LayerQuery& query, KernelContext& context, SelectionBuffer& out) {
  if (!begin(query, context, out)) {
    if (query.recorder) query.recorder->record(query, nullptr);
    return false;
  }
  const std::vector<QueryBlock> blocks = blocks_of(query);
  const bool scored = score_together(query, context);
  context.threads.run(blocks.size() * groups_, [&](size_t task, int worker) {
    // Late queries have the most keys to score: they go first, so that no worker is left with one at the end.
    const QueryBlock block = blocks[blocks.size() - 1 - task / groups_];
    select_block({query, block, task % groups_, context, worker}, scored, out);
  });
  if (query.recorder) query.recorder->record(query, &out);
  return true;
}

std::function<void(size_t, int)> ScoringSelector::choose_later(const LayerQuery& query,
                                                               KernelContext& context, SelectionBuffer& out) {
  // What is recorded must be there when this returns.
  if (query.inputs.tokens != 1 || groups_ == 1 || query.recorder != nullptr) return {};
  if (!begin(query, context, out)) return {};
  return [this, &query, &context, &out](size_t set, int worker) {
    select_block({query, {.first = 0, .count = 1}, set, context, worker}, false, out);
  };
}

bool ScoringSelector::score_together(const LayerQuery& query, KernelContext& context) {
  // Below this a region of threads costs what it saves.
  constexpr size_t kFewestSlots = 1024;
  const size_t candidates = query.candidates(0);
  const size_t budget = policy_.layer_budget(query.layer);
  const auto threads = static_cast<size_t>(context.threads.count());
  if (groups_ != 1 || query.inputs.tokens != 1 || threads == 1) return false;
  if (candidates < kFewestSlots || candidates <= budget) return false;
  if (!scores_in_parts() || budget <= policy_.sinks + policy_.recent) return false;
  float* scores = worker_scores_.front().data();
  const size_t part = round_up_to_block((candidates + threads - 1) / threads);
  context.threads.run((candidates + part - 1) / part, [&](size_t task, int worker) {
    const size_t first = task * part;
    score_part(scores, query, 0, first, std::min(part, candidates - first), context, worker);
  });
  return true;
}

// Cuts a chunk where the position is a multiple of query_block, whatever the chunk begins with; queries with
// no more candidates than the budget, and blocks whose recent positions would not fit it, stay apart.
std::vector<ScoringSelector::QueryBlock> ScoringSelector::blocks_of(const LayerQuery& query) const {
  const size_t budget = policy_.layer_budget(query.layer);
  const size_t most = std::min(policy_.query_block, budget - policy_.sinks - policy_.recent + 1);
  std::vector<QueryBlock> blocks;
  for (size_t i = 0; i < query.inputs.tokens; ++i) {
    const bool joins = !blocks.empty() && query.candidates(blocks.back().first) > budget &&
                       blocks.back().count < most &&
                       static_cast<size_t>(query.inputs.positions[i]) % policy_.query_block != 0;
    if (joins) {
      ++blocks.back().count;
    } else {
      blocks.push_back({i, 1});
    }
  }
  return blocks;
}

void ScoringSelector::select_block(const SetChoice& choice, bool scored, SelectionBuffer& out) {
  const auto& [query, block, group, context, worker] = choice;
  const size_t last = block.last();
  const size_t candidates = choice.candidates();
  const size_t budget = policy_.layer_budget(query.layer);
  uint32_t* row = out.row(last, group);
  if (candidates <= budget) {
    std::iota(row, row + candidates, uint32_t{0});
    out.count(last, group) = static_cast<uint32_t>(candidates);
    return;
  }
  // Sinks, the best of the middle, and the end: what is recent for the first query, up to the last query's
  // own row. An earlier query reads the same but for the rows after its own.
  const size_t middle_end = candidates - policy_.recent;
  const size_t best = budget - policy_.sinks - (query.candidates(last) - middle_end);
  std::iota(row, row + policy_.sinks, uint32_t{0});
  uint32_t* middle = row + policy_.sinks;
  size_t kept = best;
  if (best != 0) {
    float* scores = worker_scores_[static_cast<size_t>(worker)].data();
    if (block.count > 1) {
      score_block(scores, query, block.first, block.count, group, context, worker);
    } else if (!scored) {
      score(scores, query, last, group, false, context, worker);
    }
    if (const size_t among = refined_among(query, block.first)) {
      const size_t most = std::min(among - budget + best, middle_end - policy_.sinks);
      refine(middle, best, most, scores, choice);
    } else {
      context.kernels.top_k(middle, scores + policy_.sinks, middle_end - policy_.sinks, best, context.scratch,
                            worker);
      for (size_t i = 0; i < best; ++i) middle[i] += static_cast<uint32_t>(policy_.sinks);
    }
    if (policy_.mass < 1) kept = keep_mass(middle, best, scores, middle_end, candidates, worker);
  }
  const size_t read = budget - (best - kept);
  std::iota(middle + kept, row + read, static_cast<uint32_t>(middle_end));
  for (size_t i = block.first; i <= last; ++i) {
    const size_t count = read - (last - i);
    if (i != last) std::copy_n(row, count, out.row(i, group));
    out.count(i, group) = static_cast<uint32_t>(count);
  }
}

size_t ScoringSelector::refined_among(const LayerQuery& query, size_t index) const {
  if (query.refine_from == SIZE_MAX) return 0;
  const size_t among = index >= query.refine_from ? policy_.refine : policy_.refine_prompt;
  return among > policy_.layer_budget(query.layer) ? among : 0;
}

void ScoringSelector::refine(uint32_t* middle, size_t best, size_t most, const float* scores,
                             const SetChoice& choice) {
  const LayerQuery& query = choice.query;
  const Kernels& kernels = choice.context.kernels;
  KernelScratch& scratch = choice.context.scratch;
  const size_t sinks = policy_.sinks, middle_end = choice.candidates() - policy_.recent;
  RefineBuffers& work = worker_refined_[static_cast<size_t>(choice.worker)];
  // Sinks and the end take part, since they take their share of attention.
  work.slots.resize(sinks + most + query.candidates(choice.block.last()) - middle_end);
  uint32_t* const found = work.slots.data() + sinks;
  std::iota(work.slots.begin(), work.slots.begin() + static_cast<std::ptrdiff_t>(sinks), uint32_t{0});
  kernels.top_k(found, scores + sinks, middle_end - sinks, most, scratch, choice.worker);
  for (size_t i = 0; i < most; ++i) found[i] += static_cast<uint32_t>(sinks);
  std::iota(found + most, work.slots.data() + work.slots.size(), static_cast<uint32_t>(middle_end));
  work.shares.assign(work.slots.size(), 0.0f);
  // A shared set is chosen by all KV heads.
  const size_t kv_heads = query.kv.kv_heads;
  const size_t first = groups_ == 1 ? 0 : choice.group, end = groups_ == 1 ? kv_heads : choice.group + 1;
  for (size_t kv_head = first; kv_head < end; ++kv_head) add_attention_shares(kv_head, choice);
  work.chosen.resize(best);
  kernels.top_k(work.chosen.data(), work.shares.data() + sinks, most, best, scratch, choice.worker);
  for (size_t i = 0; i < best; ++i) middle[i] = found[work.chosen[i]];
}

void ScoringSelector::add_attention_shares(size_t kv_head, const SetChoice& choice) {
  // Heads that look for few keys come first, more so than in calibrated scores (decisions 0017, 0025).
  constexpr float kSharpness = 2.5f;
  const auto& [query, block, group, context, worker] = choice;
  const size_t dim = query.kv.head_dim, heads = query.heads / query.kv.kv_heads;
  RefineBuffers& work = worker_refined_[static_cast<size_t>(worker)];
  const size_t slots = work.slots.size();
  work.logits.resize(block.count * heads * slots);
  context.kernels.key_scores({.scores = work.logits.data(),
                              .stride = slots,
                              .q = query.inputs.q + (block.first * query.heads + kv_head * heads) * dim,
                              .heads = heads,
                              .scale = kSharpness / std::sqrt(static_cast<float>(dim)),
                              .kv = query.kv,
                              .kv_head = kv_head,
                              .slots = work.slots,
                              .queries = block.count,
                              .query_stride = query.heads * dim},
                             context.scratch, worker);
  for (size_t row = 0; row < block.count * heads; ++row) {
    const size_t seen = slots - (block.count - 1 - row / heads);  // an earlier query sees less of the end
    context.kernels.add_softmax(work.shares.data(), work.logits.data() + row * slots, seen, true);
  }
}

size_t ScoringSelector::keys_refined(const LayerQuery& query, size_t index) const {
  const size_t candidates = query.candidates(index);
  if (candidates <= policy_.layer_budget(query.layer)) return 0;
  return std::min(refined_among(query, index), candidates);
}

namespace {

// In eight sums side by side, which the compiler puts into vectors.
double sum_of(const float* values, size_t count) {
  std::array<double, 8> sums{};
  size_t i = 0;
  for (; i + sums.size() <= count; i += sums.size()) {
    for (size_t lane = 0; lane < sums.size(); ++lane) sums[lane] += values[i + lane];
  }
  for (; i < count; ++i) sums[0] += values[i];
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

// How many of the largest values it takes to reach `wanted`; puts the last of these at that place (counted
// from 1). All of them where all are not enough. Halving, not sorting, since there
// is one such choice for each layer, set and block of queries (decision 0016).
size_t fewest_to_reach(std::span<float> values, double wanted) {
  size_t begin = 0, end = values.size();
  while (begin < end) {
    const size_t middle = (begin + end) / 2;
    const auto at = [&values](size_t i) { return values.begin() + static_cast<std::ptrdiff_t>(i); };
    std::nth_element(at(begin), at(middle), at(end), std::greater<>());
    const double sum = sum_of(values.data() + begin, middle + 1 - begin);
    if (sum >= wanted) {
      end = middle;
    } else {
      wanted -= sum;
      begin = middle + 1;
    }
  }
  return std::min(begin + 1, values.size());
}

}  // namespace

size_t ScoringSelector::keep_mass(uint32_t* middle, size_t count, const float* scores, size_t middle_end,
                                  size_t candidates, int worker) {
  const double always = sum_of(scores, policy_.sinks) + sum_of(scores + middle_end, candidates - middle_end);
  const double all = always + sum_of(scores + policy_.sinks, middle_end - policy_.sinks);
  if (always >= policy_.mass * all) return 0;
  std::vector<float>& values = worker_values_[static_cast<size_t>(worker)];
  values.resize(count);
  for (size_t i = 0; i < count; ++i) values[i] = scores[middle[i]];
  const size_t kept = fewest_to_reach(values, policy_.mass * all - always);
  if (kept == count) return count;
  // The slots are ascending and stay so; of equal scores the later slots are read.
  const float least = values[kept - 1];
  size_t above = 0, equal = 0;
  for (const float value : values) {
    above += value > least;
    equal += value == least;
  }
  size_t passed_over = equal - (kept - above);
  size_t out = 0;
  for (size_t i = 0; i < count; ++i) {
    const float score = scores[middle[i]];
    if (score < least) continue;
    if (score == least && passed_over > 0) {
      --passed_over;
      continue;
    }
    middle[out++] = middle[i];
  }
  return out;
}

void ScoringSelector::scores(float* out, const LayerQuery& query, size_t voters, KernelContext& context) {
  const size_t slots = query.slots();
  const size_t first = query.inputs.tokens - std::min(std::max<size_t>(voters, 1), query.inputs.tokens);
  prepare(query, first, context);
  reserve_workers(query, context);
  context.threads.run(groups_, [&](size_t group, int worker) {
    float* total = out + group * slots;
    std::fill_n(total, slots, 0.0f);
    float* scores = worker_scores_[static_cast<size_t>(worker)].data();
    for (size_t i = first; i < query.inputs.tokens; ++i) {
      score(scores, query, i, group, false, context, worker);
      for (size_t s = 0; s < query.candidates(i); ++s) total[s] += scores[s];
    }
  });
}

}  // namespace keysieve
