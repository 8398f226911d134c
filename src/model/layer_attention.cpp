#include <algorithm>
#include <cmath>
#include <functional>

#include "indexer/selection_recorder.h"
#include "model/decoder_layer.h"

namespace keysieve {
namespace {

LayerInputs inputs_of(const Chunk& chunk) {
  return {.hidden = chunk.normed(),
          .q = chunk.q(),
          .k = chunk.k(),
          .positions = chunk.positions(),
          .tokens = chunk.tokens};
}

// LayerQuery::refine_from: the first of the chunk's queries that is at a prompt's end.
size_t refine_from(const Chunk& chunk) {
  if (!chunk.state.cache->rows_in_place()) return SIZE_MAX;
  const size_t at_end = kPromptEnd - std::min(kPromptEnd, chunk.options.to_come);
  return chunk.tokens - std::min(chunk.tokens, at_end);
}

// The chunk's queries against all rows stored so far, the chunk's own included.
LayerQuery query_of(const Chunk& chunk, size_t layer) {
  const KvCache& cache = *chunk.state.cache;
  return {.layer = layer,
          .inputs = inputs_of(chunk),
          .first_visible = cache.size(layer) - chunk.tokens,
          .kv = cache.kv(layer),
          .index_keys = cache.index_keys(layer),
          .slot_positions = cache.slot_positions(layer),
          .recorder = chunk.options.recorder,
          .heads = chunk.config().heads,
          .refine_from = refine_from(chunk)};
}

void append(Chunk& chunk, size_t layer) {
  SequenceState::Impl& state = chunk.state;
  float* index_keys = state.buffers.index_keys.data();
  if (state.index.heads > 0) {
    KernelContext context = state.context();
    state.selector->project_keys(index_keys, layer, inputs_of(chunk), context);
  }
  state.cache->append(layer, {.keys = chunk.k(),
                              .values = chunk.v(),
                              .index_keys = state.index.heads > 0 ? index_keys : nullptr,
                              .positions = chunk.positions(),
                              .tokens = chunk.tokens});
}

// Queries [first, first + count) of the chunk over rows `kv`; selection null: each reads all slots up to its
// own. `choose`: as AttentionArgs has it.
void attend(Chunk& chunk, const KvView& kv, size_t first, size_t count, size_t first_visible,
            const SelectionView* selection,
            const std::function<void(size_t set, int worker)>* choose = nullptr) {
  if (count == 0) return;
  const ModelConfig& config = chunk.config();
  chunk.kernels().attention({.out = chunk.attention() + first * config.q_width(),
                             .q = chunk.q() + first * config.q_width(),
                             .queries = count,
                             .heads = config.heads,
                             .scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim)),
                             .kv = kv,
                             .first_visible = first_visible,
                             .selection = selection,
                             .choose = choose},
                            chunk.state.scratch, chunk.state.model->threads());

  uint64_t rows = 0;
  for (size_t i = 0; i < count; ++i) {
    if (selection == nullptr) {
      rows += (first_visible + i + 1) * config.kv_heads;
    } else {
      for (size_t g = 0; g < selection->groups; ++g) {
        rows += selection->count(i, g) * (config.kv_heads / selection->groups);
      }
    }
  }
  WorkCounters& work = chunk.state.work;
  work.queries += count * config.kv_heads;
  work.positions_read += rows;
  const uint64_t row_bytes = 2 * kv_row_bytes(kv.type, config.head_dim);
  work.kv_bytes_read += rows * row_bytes;
  work.memory_bytes_read += std::min<uint64_t>(rows, (first_visible + count) * config.kv_heads) * row_bytes;
  work.multiply_adds += rows * (config.heads / config.kv_heads) * 2 * config.head_dim;
}

// Bytes of index keys that scoring `slots` slots reads.
uint64_t index_bytes(const KeySelector::KeyShape& shape, uint64_t slots) {
  const uint64_t key = index_key_bytes(shape.type, shape.dim, kIndexBlock) / kIndexBlock;
  return slots * shape.heads * (key + index_scale_bytes(shape.type));
}

// `slots` in all scored by some queries, `distinct` different ones among them.
void count_scores(Chunk& chunk, uint64_t slots, uint64_t distinct) {
  const KeySelector::KeyShape& shape = chunk.state.index;
  WorkCounters& work = chunk.state.work;
  work.index_bytes_read += index_bytes(shape, slots);
  work.memory_bytes_read += index_bytes(shape, distinct);
  work.multiply_adds += slots * shape.query_heads * shape.dim;
}

// The keys that refining reads. Those it chooses attention reads again, from a cache by then.
void count_refined(Chunk& chunk, const LayerQuery& query) {
  const ModelConfig& config = chunk.config();
  const KeySelector& selector = *chunk.state.selector;
  uint64_t rows = 0, chosen = 0;
  for (size_t i = 0; i < chunk.tokens; ++i) {
    const size_t keys = selector.keys_refined(query, i);
    rows += keys * config.kv_heads;
    if (keys > 0) chosen += selector.budget(query.layer) * config.kv_heads;
  }
  if (rows == 0) return;
  WorkCounters& work = chunk.state.work;
  const uint64_t row_bytes = kv_row_bytes(query.kv.type, config.head_dim);
  work.kv_bytes_read += rows * row_bytes;
  const uint64_t stored = query.slots() * config.kv_heads;
  work.memory_bytes_read += (std::min(rows, stored) - std::min(chosen, stored)) * row_bytes;
  work.multiply_adds += rows * (config.heads / config.kv_heads) * config.head_dim;
}

// The same question for some of the chunk's queries.
LayerQuery part_of(const LayerQuery& query, const ModelConfig& config, size_t first, size_t count) {
  LayerQuery part = query;
  part.inputs.hidden += first * config.hidden;
  part.inputs.q += first * config.q_width();
  part.inputs.k += first * config.kv_width();
  part.inputs.positions += first;
  part.inputs.tokens = count;
  part.first_visible += first;
  if (part.refine_from != SIZE_MAX) part.refine_from -= std::min(part.refine_from, first);
  return part;
}

// Queries whose selections are made together: all of a chunk (parts of 96 cost 1% of prefill), but where
// memory is bounded half a megabyte of positions, and no fewer than keep all threads busy.
size_t queries_together(const SequenceState::Impl& state, size_t layer) {
  if (!bounded_memory(state.max_chunk)) return state.max_chunk;
  constexpr size_t kBytes = size_t{1} << 19;
  constexpr size_t kStep = 32;
  const KeySelector& selector = *state.selector;
  const size_t row = selector.groups() * selector.budget(layer) * sizeof(uint32_t);
  const auto busy = static_cast<size_t>(state.model->threads().count()) * kStep / 2;
  return (std::max(busy, kBytes / row) + kStep - 1) / kStep * kStep;
}

// Queries with no more candidates than the budget read them all, without indexer work; the rest read what the
// selector picks. `first`: the part's first query in the chunk. Returns how many slots were scored, by all of
// these queries together.
uint64_t attend_part(Chunk& chunk, const LayerQuery& part, size_t first) {
  SequenceState::Impl& state = chunk.state;
  KernelContext context = state.context();
  const size_t tokens = part.inputs.tokens;
  if (state.cache->rows_in_place()) {
    // Decode: threads go from choosing to reading set by set, not all at once.
    if (const auto choose = state.selector->choose_later(part, context, state.selection)) {
      const SelectionView view = state.selection.view();
      attend(chunk, part.kv, first, tokens, part.first_visible, &view, &choose);
      return part.candidates(0);
    }
  }
  if (!state.selector->select(part, context, state.selection)) {
    attend(chunk, part.kv, first, tokens, part.first_visible, nullptr);
    return 0;
  }
  const size_t budget = state.selector->budget(part.layer);
  const size_t dense = budget > part.first_visible ? std::min(budget - part.first_visible, tokens) : 0;
  attend(chunk, part.kv, first, dense, part.first_visible, nullptr);
  SelectionBuffer& picked = state.selection;
  const SelectionView view = picked.view();
  for (size_t i = dense; i < tokens;) {
    const SelectedRows rows{picked.row(i, 0), &picked.count(i, 0), tokens - i, view.groups, view.budget};
    const StagedRows staged = state.cache->stage(part.layer, rows, context.threads);
    const SelectionView staged_view{rows.slots, rows.counts, view.groups, view.budget};
    attend(chunk, staged.kv, first + i, staged.queries, part.first_visible + i, &staged_view);
    i += staged.queries;
  }
  uint64_t scored = 0;
  for (size_t i = dense; i < tokens; ++i) scored += part.candidates(i);
  return scored;
}

void attend_selected(Chunk& chunk, const LayerQuery& query) {
  const size_t together = queries_together(chunk.state, query.layer);
  uint64_t scored = 0;
  for (size_t first = 0, count = 0; first < chunk.tokens; first += count) {
    // Parts end where the position is a multiple of `together`, so that neighbours that choose together stay
    // so wherever a chunk begins.
    count = std::min(together - (together < chunk.tokens ? (chunk.first_position + first) % together : 0),
                     chunk.tokens - first);
    scored += attend_part(chunk, part_of(query, chunk.config(), first, count), first);
  }
  count_scores(chunk, scored, scored == 0 ? 0 : query.candidates(chunk.tokens - 1));
  count_refined(chunk, query);
}

// The scores of the last `voters` queries: [groups, slots].
std::span<const float> score_slots(Chunk& chunk, const LayerQuery& query, size_t voters) {
  SequenceState::Impl& state = chunk.state;
  const size_t groups = state.selector->groups();
  state.scores.resize(groups * query.slots());
  KernelContext context = state.context();
  state.selector->scores(state.scores.data(), query, voters, context);
  count_scores(chunk, query.slots() * std::min(voters, chunk.tokens), query.slots());
  return state.scores;
}

// Decode of a cache with a budget: the new row is weighed against those kept, the lowest goes (perhaps the
// new one), and attention reads all that is left.
void attend_after_drop(Chunk& chunk, const LayerQuery& query) {
  KvCache& cache = *chunk.state.cache;
  const size_t layer = query.layer;
  if (cache.over_budget(layer)) cache.keep_best(layer, score_slots(chunk, query, 1));
  attend(chunk, cache.kv(layer), 0, 1, cache.size(layer) - 1, nullptr);
  if (chunk.options.recorder == nullptr) return;
  std::vector<std::vector<int32_t>> kept;
  for (size_t set = 0; set < cache.sets(); ++set) kept.push_back(cache.positions(layer, set));
  chunk.options.recorder->record(layer, chunk.positions()[0], std::move(kept));
}

// Each query's scores, computed for the tap alone.
void tap_scores(Chunk& chunk, const LayerQuery& query) {
  const auto& tap = chunk.options.taps->scores;
  const ModelConfig& config = chunk.config();
  const WorkCounters work = chunk.state.work;
  for (size_t i = 0; i < chunk.tokens; ++i) {
    const LayerQuery one = part_of(query, config, i, 1);
    const std::span<const float> scores = score_slots(chunk, one, 1);
    std::vector<int32_t> positions(one.slots());
    for (size_t group = 0; group < chunk.state.selector->groups(); ++group) {
      for (size_t slot = 0; slot < positions.size(); ++slot) {
        const size_t set = chunk.state.cache->sets() == 1 ? 0 : group;
        positions[slot] = query.position(set, slot);
      }
      tap(query.layer, chunk.first_position + i, group, positions,
          scores.subspan(group * positions.size(), positions.size()));
    }
  }
  chunk.state.work = work;  // a look is no work
}

}  // namespace

void layer_attention(Chunk& chunk, size_t layer) {
  SequenceState::Impl& state = chunk.state;
  KvCache& cache = *state.cache;
  const size_t before = cache.size(layer);
  append(chunk, layer);
  const LayerQuery query = query_of(chunk, layer);
  if (!state.selector || state.selector->budget(layer) == 0) {
    if (query.recorder != nullptr) query.recorder->record(query, nullptr);
    return attend(chunk, query.kv, 0, chunk.tokens, query.first_visible, nullptr);
  }
  if (chunk.options.taps && chunk.options.taps->scores) tap_scores(chunk, query);

  // A layer within its budget meets one new row: that is decode, or the same thing at a prompt's end.
  const bool limited = cache.budget(layer) != 0;
  if (limited && chunk.tokens == 1 && before <= cache.budget(layer) && chunk.options.to_come == 0) {
    return attend_after_drop(chunk, query);
  }
  attend_selected(chunk, query);
  if (limited && cache.over_budget(layer) && (cache.cuts_each_chunk() || chunk.options.to_come == 0)) {
    cache.keep_best(layer, score_slots(chunk, query, cache.voters()));
  }
}

}  // namespace keysieve
