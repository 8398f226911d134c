#include "indexer/scoring_selector.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "indexer/attention_mass.h"
#include "indexer/selection_recorder.h"

namespace keysieve {
namespace {

size_t round_up_to_block(size_t count) { return (count + kIndexBlock - 1) / kIndexBlock * kIndexBlock; }

}  // namespace

ScoringSelector::ScoringSelector(SelectionPolicy policy, size_t kv_heads)
    : policy_(std::move(policy)), groups_(policy_.scope == SelectionScope::per_group ? kv_heads : 1) {
  policy_.validate();
}

void ScoringSelector::replace_policy(SelectionPolicy policy) {
  policy.validate();
  policy.scope = policy_.scope;
  policy_ = std::move(policy);
}

void ScoringSelector::prepare(const LayerQuery&, size_t, KernelContext&) {}

void ScoringSelector::score_block(float* out, const LayerQuery& query, size_t first, size_t count,
                                  size_t group, KernelContext& context, int worker) {
  for (size_t i = 0; i < count; ++i) score(out, query, first + i, group, i > 0, context, worker);
}

void ScoringSelector::reserve_workers(const LayerQuery& query, const KernelContext& context) {
  workers_.resize(std::max(workers_.size(), static_cast<size_t>(context.threads.count())));
  // Grown with room to spare: a decode step adds one slot, and must not allocate each time.
  const size_t needed = round_up_to_block(query.slots());
  for (WorkerMemory& worker : workers_) {
    if (worker.scores.size() < needed) worker.scores.resize(needed + needed / 4 + 256);
  }
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
  float* scores = workers_.front().scores.data();
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
  const size_t kept = best == 0 ? 0 : choose_middle(middle, best, scored, choice);
  const size_t read = budget - (best - kept);
  std::iota(middle + kept, row + read, static_cast<uint32_t>(middle_end));
  for (size_t i = block.first; i <= last; ++i) {
    const size_t count = read - (last - i);
    if (i != last) std::copy_n(row, count, out.row(i, group));
    out.count(i, group) = static_cast<uint32_t>(count);
  }
}

size_t ScoringSelector::choose_middle(uint32_t* middle, size_t best, bool scored, const SetChoice& choice) {
  const auto& [query, block, group, context, worker] = choice;
  const size_t sinks = policy_.sinks, candidates = choice.candidates(),
               middle_end = candidates - policy_.recent;
  WorkerMemory& memory = workers_[static_cast<size_t>(worker)];
  float* scores = memory.scores.data();
  if (block.count > 1) {
    score_block(scores, query, block.first, block.count, group, context, worker);
  } else if (!scored) {
    score(scores, query, block.first, group, false, context, worker);
  }
  if (const size_t among = refined_among(query, block.first)) {
    const size_t most = std::min(among - policy_.layer_budget(query.layer) + best, middle_end - sinks);
    refine(middle, best, most, scores, choice);
  } else {
    context.kernels.top_k(middle, scores + sinks, middle_end - sinks, best, context.scratch, worker);
    for (size_t i = 0; i < best; ++i) middle[i] += static_cast<uint32_t>(sinks);
  }
  if (policy_.mass >= 1) return best;
  return keep_mass(middle, best, scores, {sinks, middle_end, candidates}, policy_.mass, memory.mass_values);
}

size_t ScoringSelector::refined_among(const LayerQuery& query, size_t index) const {
  if (query.refine_from == SIZE_MAX || !policy_.refines(query.layer)) return 0;
  const size_t among = index >= query.refine_from ? policy_.refine : policy_.refine_prompt;
  return among > policy_.layer_budget(query.layer) ? among : 0;
}

void ScoringSelector::refine(uint32_t* middle, size_t best, size_t most, const float* scores,
                             const SetChoice& choice) {
  const LayerQuery& query = choice.query;
  const Kernels& kernels = choice.context.kernels;
  KernelScratch& scratch = choice.context.scratch;
  const size_t sinks = policy_.sinks, middle_end = choice.candidates() - policy_.recent;
  WorkerMemory& memory = workers_[static_cast<size_t>(choice.worker)];
  // Sinks and the end take part, since they take their share of attention.
  std::vector<uint32_t>& slots = memory.attention.slots;
  slots.resize(sinks + most + query.candidates(choice.block.last()) - middle_end);
  uint32_t* const found = slots.data() + sinks;
  std::iota(slots.data(), found, uint32_t{0});
  kernels.top_k(found, scores + sinks, middle_end - sinks, most, scratch, choice.worker);
  for (size_t i = 0; i < most; ++i) found[i] += static_cast<uint32_t>(sinks);
  std::iota(found + most, slots.data() + slots.size(), static_cast<uint32_t>(middle_end));
  // A shared set is chosen by all KV heads.
  const bool shared = groups_ == 1;
  memory.attention.add_up(query,
                          {.first_query = choice.block.first,
                           .queries = choice.block.count,
                           .first_kv_head = shared ? 0 : choice.group,
                           .kv_heads = shared ? query.kv.kv_heads : 1},
                          choice.context, choice.worker);
  memory.refined.resize(best);
  kernels.top_k(memory.refined.data(), memory.attention.shares.data() + sinks, most, best, scratch,
                choice.worker);
  for (size_t i = 0; i < best; ++i) middle[i] = found[memory.refined[i]];
}

size_t ScoringSelector::keys_refined(const LayerQuery& query, size_t index) const {
  const size_t candidates = query.candidates(index);
  if (candidates <= policy_.layer_budget(query.layer)) return 0;
  return std::min(refined_among(query, index), candidates);
}

void ScoringSelector::scores(float* out, const LayerQuery& query, size_t voters, KernelContext& context) {
  const size_t slots = query.slots();
  const size_t first = query.inputs.tokens - std::min(std::max<size_t>(voters, 1), query.inputs.tokens);
  prepare(query, first, context);
  reserve_workers(query, context);
  context.threads.run(groups_, [&](size_t group, int worker) {
    float* total = out + group * slots;
    std::fill_n(total, slots, 0.0f);
    float* scores = workers_[static_cast<size_t>(worker)].scores.data();
    for (size_t i = first; i < query.inputs.tokens; ++i) {
      score(scores, query, i, group, false, context, worker);
      for (size_t s = 0; s < query.candidates(i); ++s) total[s] += scores[s];
    }
  });
}

}  // namespace keysieve
