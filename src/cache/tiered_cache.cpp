#include "cache/tiered_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "keysieve/error.h"

namespace keysieve {
namespace {

size_t layer_budget(const TieredCacheOptions& options, size_t layer) {
  return layer < options.budgets.size() ? options.budgets[layer] : options.budget;
}

}  // namespace

TieredCache::TieredCache(const CacheShape& shape, TieredCacheOptions options,
                         std::shared_ptr<const Kernels> kernels, std::unique_ptr<ColdStore> cold)
    : shape_(shape),
      options_(std::move(options)),
      kernels_(std::move(kernels)),
      cold_(std::move(cold)),
      staging_(options_.sets),
      readings_(1) {
  if (options_.budget == 0 || options_.chunk == 0) {
    throw Error(ErrorKind::usage, "tiered cache", "a budget or chunk of 0", "at least 1");
  }
  if (options_.sets != 1 && options_.sets != shape.kv_heads) {
    throw Error(ErrorKind::usage, "tiered cache", fmt::format("{} sets of positions", options_.sets),
                fmt::format("1 or {}, one for each KV head", shape.kv_heads));
  }
  for (size_t i = 0; i < shape.layers; ++i) layers_.push_back(make_layer(i));
}

TieredCache::Layer TieredCache::make_layer(size_t layer) const {
  Layer made;
  const size_t budget = layer_budget(options_, layer);
  made.resident = budget == 0 || budget >= shape_.capacity || options_.chunk >= shape_.capacity - budget;
  const size_t slots = made.resident ? shape_.capacity : budget + options_.chunk;
  CacheShape hot = shape_;
  hot.index_heads = 0;
  made.hot = LayerStore(hot, slots);
  CacheShape index = shape_;
  index.kv_heads = 0;
  made.index = LayerStore(index, shape_.capacity);
  if (made.resident) return made;
  made.sets.resize(options_.sets);
  for (HotSet& set : made.sets) {
    set.slots = SlotMap(shape_.capacity, slots);
    set.positions.assign(slots, kNone);
    set.used.assign(slots, 0);
  }
  return made;
}

void TieredCache::encode(const KvRows& rows) {
  const size_t row = cold_->row_bytes();
  encoded_.resize(rows.tokens * cold_->record_bytes());
  std::byte* out = encoded_.data();
  for (size_t i = 0; i < rows.tokens * shape_.kv_heads; ++i, out += 2 * row) {
    const size_t from = i * shape_.head_dim;
    kernels_->store_kv(out, shape_.kv_type, rows.keys + from, shape_.head_dim);
    kernels_->store_kv(out + row, shape_.kv_type, rows.values + from, shape_.head_dim);
  }
}

void TieredCache::append(size_t index, const KvRows& rows) {
  Layer& layer = layers_[index];
  if (rows.tokens > shape_.capacity - layer.size) {
    throw Error(ErrorKind::mismatch, "cache", fmt::format("{} positions", layer.size + rows.tokens),
                fmt::format("at most {}", shape_.capacity), "use a larger context or a shorter prompt");
  }
  for (size_t t = 0; t < rows.tokens; ++t) {
    if (static_cast<size_t>(rows.positions[t]) != layer.size + t) {
      throw Error(ErrorKind::usage, "cache", fmt::format("position {}", rows.positions[t]),
                  fmt::format("{}, the next", layer.size + t));
    }
  }
  if (layer.resident) {
    layer.hot.write(*kernels_, layer.size, rows);
    layer.index.write(*kernels_, layer.size, rows);
    layer.size += rows.tokens;
    return;
  }
  if (rows.tokens > options_.chunk) {
    throw Error(ErrorKind::usage, "tiered cache", fmt::format("{} tokens at once", rows.tokens),
                fmt::format("at most {}", options_.chunk));
  }
  encode(rows);
  cold_->write(index, layer.size, encoded_);
  // Queries with no more candidates than the budget read every slot up to their own, in order.
  const bool fits = layer.size + rows.tokens <= layer.hot.capacity();
  if (fits && !layer.in_order) put_in_order(index);
  if (!fits) layer.in_order = false;
  next_round(layer);
  for (size_t set = 0; set < options_.sets; ++set) admit(layer, set, layer.size, rows.tokens);
  layer.index.write(*kernels_, layer.size, rows);
  layer.size += rows.tokens;
}

// Gives new positions, whose records are in encoded_, hot slots.
void TieredCache::admit(Layer& layer, size_t index, size_t first, size_t count) {
  HotSet& set = layer.sets[index];
  std::vector<uint32_t>& victims = staging_[index].victims;
  if (!layer.in_order) free_slots(layer, set, victims, count);
  for (size_t t = 0; t < count; ++t) {
    const size_t position = first + t;
    const uint32_t slot = layer.in_order ? static_cast<uint32_t>(position) : victims[t];
    copy_encoded(layer, index, t, slot);
    set.slots.set(position, slot);
    set.positions[slot] = static_cast<uint32_t>(position);
    set.used[slot] = layer.round;
  }
}

void TieredCache::copy_encoded(Layer& layer, size_t set, size_t token, uint32_t slot) {
  const size_t row = cold_->row_bytes();
  for (size_t head = first_head(set); head < first_head(set + 1); ++head) {
    const std::byte* from = encoded_.data() + token * cold_->record_bytes() + 2 * head * row;
    std::memcpy(layer.hot.key_row(head, slot), from, row);
    std::memcpy(layer.hot.value_row(head, slot), from + row, row);
  }
  layer.hot.mark_written(slot + 1);
}

// The longest generation that anyone may wait for counts past 32 bits: then all that is hot is equally old.
void TieredCache::next_round(Layer& layer) {
  if (++layer.round != 0) return;
  for (HotSet& set : layer.sets) {
    for (uint32_t& used : set.used) used = std::min<uint32_t>(used, 1);
  }
  layer.round = 2;
}

// Takes `count` slots that this round does not need from the positions in them, those used longest ago
// first. There are so many: what a round needs fits the slots.
void TieredCache::free_slots(const Layer& layer, HotSet& set, std::vector<uint32_t>& victims, size_t count) {
  victims.clear();
  if (count == 0) return;
  const auto older = [&set](uint32_t a, uint32_t b) {
    return set.used[a] != set.used[b] ? set.used[a] < set.used[b] : a < b;
  };
  for (uint32_t slot = 0; slot < set.used.size(); ++slot) {
    if (set.used[slot] != layer.round) victims.push_back(slot);
  }
  const auto end = victims.begin() + static_cast<std::ptrdiff_t>(count);
  if (end != victims.end()) std::nth_element(victims.begin(), end - 1, victims.end(), older);
  victims.resize(count);
  for (const uint32_t slot : victims) {
    uint32_t& position = set.positions[slot];
    if (position != kNone) set.slots.set(position, kNone);
    position = kNone;
    set.used[slot] = 0;
  }
}

// Reads ascending positions into slots. If it throws, nothing points to the slots yet.
void TieredCache::fetch(size_t index, size_t set, std::span<const uint32_t> positions,
                        std::span<const uint32_t> slots, Reading& reading) {
  LayerStore& hot = layers_[index].hot;
  for (size_t head = first_head(set); head < first_head(set + 1); ++head) {
    reading.rows.clear();
    for (size_t i = 0; i < positions.size(); ++i)
      reading.rows.push_back({positions[i], hot.key_row(head, slots[i]), hot.value_row(head, slots[i])});
    cold_->read(index, head, reading.rows, reading.buffer);
  }
}

// After truncate(): the positions left are few enough to lie in order again.
void TieredCache::put_in_order(size_t index) {
  Layer& layer = layers_[index];
  for (size_t s = 0; s < options_.sets; ++s) {
    HotSet& set = layer.sets[s];
    std::fill(set.positions.begin(), set.positions.end(), kNone);
    set.slots.clear();
    std::fill(set.used.begin(), set.used.end(), uint32_t{0});
    std::vector<uint32_t> all(layer.size);
    std::iota(all.begin(), all.end(), uint32_t{0});
    fetch(index, s, all, all, readings_[0]);
    for (const uint32_t position : all) set.slots.set(position, position);
    std::copy(all.begin(), all.end(), set.positions.begin());
    std::fill_n(set.used.begin(), layer.size, layer.round);
    moved_ += layer.size * (cold_->record_bytes() / options_.sets);
  }
  layer.hot.mark_written(layer.size);
  layer.in_order = true;
}

// How many queries' rows, taken together, this set has slots for; at least one query's.
void TieredCache::count_fitting(const Layer& layer, const SelectedRows& rows, size_t s) {
  Staging& work = staging_[s];
  const HotSet& set = layer.sets[s];
  work.seen.resize(std::max(work.seen.size(), layer.size), 0);
  ++work.mark;
  size_t distinct = 0;
  for (work.fits = 0; work.fits < rows.queries; ++work.fits) {
    const size_t query = work.fits;
    const uint32_t* row = rows.row(query, s);
    const size_t count = rows.count(query, s);
    // Neighbouring queries mostly choose together.
    size_t same = 0;
    if (query > 0) {
      const size_t before = rows.count(query - 1, s);
      const size_t common = std::min(count, before);
      if (std::memcmp(row, rows.row(query - 1, s), common * sizeof(uint32_t)) == 0) same = common;
    }
    shared_[query * options_.sets + s] = same;
    for (size_t i = same; i < count; ++i) {
      distinct += work.seen[row[i]] != work.mark;
      work.seen[row[i]] = work.mark;
    }
    if (distinct > set.positions.size()) return;
  }
}

// At most `queries`, without the last of them if the query after them reads what they do and more: kernels
// may read such a run as one, and its rows, those of its last query, fit.
size_t TieredCache::before_cut_run(const SelectedRows& rows, size_t queries) const {
  const auto goes_on = [&](size_t query) {
    for (size_t s = 0; s < options_.sets; ++s) {
      if (shared_[query * options_.sets + s] == rows.count(query - 1, s)) return true;
    }
    return false;
  };
  size_t whole = queries;
  while (whole > 0 && whole < rows.queries && goes_on(whole)) --whole;
  return whole == 0 ? queries : whole;
}

// The rows of the first `queries` that are not hot, ascending, and slots for them.
void TieredCache::find_missing(size_t index, const SelectedRows& rows, size_t s, size_t queries) {
  Layer& layer = layers_[index];
  HotSet& set = layer.sets[s];
  Staging& work = staging_[s];
  ++work.mark;
  work.missing.clear();
  for (size_t query = 0; query < queries; ++query) {
    const uint32_t* row = rows.row(query, s);
    for (size_t i = shared_[query * options_.sets + s]; i < rows.count(query, s); ++i) {
      const uint32_t slot = set.slots[row[i]];
      if (slot != kNone) {
        set.used[slot] = layer.round;
      } else if (work.seen[row[i]] != work.mark) {
        work.seen[row[i]] = work.mark;
        work.missing.push_back(row[i]);
      }
    }
  }
  free_slots(layer, set, work.victims, work.missing.size());
  std::sort(work.missing.begin(), work.missing.end());  // neighbours are read together
  work.moved = work.missing.size() * (cold_->record_bytes() / options_.sets);
}

// In slices, since one set may miss many more rows than another.
void TieredCache::read_missing(size_t index, const Threads& threads) {
  constexpr size_t kSlice = 64;
  size_t slices = 0;
  for (const Staging& work : staging_) slices += (work.missing.size() + kSlice - 1) / kSlice;
  readings_.resize(std::max(readings_.size(), static_cast<size_t>(threads.count())));
  threads.run(slices, [&](size_t slice, int worker) {
    size_t set = 0;
    for (; slice * kSlice >= staging_[set].missing.size(); ++set)
      slice -= (staging_[set].missing.size() + kSlice - 1) / kSlice;
    const size_t first = slice * kSlice;
    const size_t count = std::min(kSlice, staging_[set].missing.size() - first);
    fetch(index, set, std::span(staging_[set].missing).subspan(first, count),
          std::span(staging_[set].victims).subspan(first, count), readings_[static_cast<size_t>(worker)]);
  });
}

// Tells the set where the rows lie that were missing, and turns positions into slots.
void TieredCache::rewrite(size_t index, const SelectedRows& rows, size_t s, size_t queries) {
  Layer& layer = layers_[index];
  HotSet& set = layer.sets[s];
  const Staging& work = staging_[s];
  for (size_t i = 0; i < work.missing.size(); ++i) {
    const uint32_t position = work.missing[i];
    const uint32_t slot = work.victims[i];
    set.slots.set(position, slot);
    set.positions[slot] = position;
    set.used[slot] = layer.round;
  }
  for (size_t query = 0; query < queries; ++query) {
    uint32_t* row = rows.row(query, s);
    const size_t same = shared_[query * options_.sets + s];
    if (same > 0) std::copy_n(rows.row(query - 1, s), same, row);
    for (size_t i = same; i < rows.count(query, s); ++i) row[i] = set.slots[row[i]];
  }
}

StagedRows TieredCache::stage(size_t index, const SelectedRows& rows, const Threads& threads) {
  Layer& layer = layers_[index];
  if (layer.in_order) return {rows.queries, layer.hot.kv()};
  if (rows.groups != options_.sets) {
    throw Error(ErrorKind::usage, "tiered cache", fmt::format("a selection of {} sets", rows.groups),
                fmt::format("{}", options_.sets));
  }
  shared_.resize(std::max(shared_.size(), rows.queries * options_.sets));
  threads.run(options_.sets, [&](size_t set, int) { count_fitting(layer, rows, set); });
  size_t queries = rows.queries;
  for (const Staging& work : staging_) queries = std::min(queries, work.fits);
  queries = before_cut_run(rows, queries);
  if (queries == 0) {
    throw Error(ErrorKind::usage, "tiered cache", "a query that reads more rows than can be hot",
                fmt::format("at most {}", layer.hot.capacity()));
  }
  next_round(layer);
  threads.run(options_.sets, [&](size_t set, int) { find_missing(index, rows, set, queries); });
  read_missing(index, threads);  // if it throws, the slots are free and nothing points to them
  threads.run(options_.sets, [&](size_t set, int) { rewrite(index, rows, set, queries); });
  for (const Staging& work : staging_) moved_ += work.moved;
  return {queries, layer.hot.kv()};
}

bool TieredCache::truncate(size_t tokens) {
  for (Layer& layer : layers_) {
    for (HotSet& set : layer.sets) {
      for (size_t position = tokens; position < layer.size; ++position) {
        const uint32_t slot = set.slots[position];
        if (slot == kNone) continue;
        set.slots.set(position, kNone);
        set.positions[slot] = kNone;
        set.used[slot] = 0;
      }
    }
    layer.size = std::min(layer.size, tokens);
  }
  return true;
}

void TieredCache::save(StateWriter& out) const {
  std::vector<std::byte> records(kRecordsAtOnce * cold_->record_bytes());
  for (size_t index = 0; index < shape_.layers; ++index) {
    const Layer& layer = layers_[index];
    if (layer.resident) layer.hot.save(out, layer.size);
    for (size_t first = 0; first < layer.size && !layer.resident; first += kRecordsAtOnce) {
      const size_t count = std::min(kRecordsAtOnce, layer.size - first);
      const std::span part(records.data(), count * cold_->record_bytes());
      cold_->read_records(index, first, part);
      out.write(part);
    }
    layer.index.save(out, layer.size);
  }
}

// Rows become hot when they are selected, or all at once where they fit (put_in_order).
void TieredCache::load(StateReader& in, size_t tokens) {
  std::vector<std::byte> records(kRecordsAtOnce * cold_->record_bytes());
  for (size_t index = 0; index < shape_.layers; ++index) {
    Layer& layer = layers_[index];
    if (layer.resident) layer.hot.load(in, tokens);
    for (size_t first = 0; first < tokens && !layer.resident; first += kRecordsAtOnce) {
      const size_t count = std::min(kRecordsAtOnce, tokens - first);
      const std::span part(records.data(), count * cold_->record_bytes());
      in.read(part);
      cold_->write(index, first, part);
    }
    layer.index.load(in, tokens);
    layer.size = tokens;
    if (layer.resident || tokens == 0) continue;
    layer.in_order = false;
    if (tokens <= layer.hot.capacity()) put_in_order(index);
  }
}

CacheBytes TieredCache::bytes() const {
  CacheBytes bytes;
  for (const Layer& layer : layers_) {
    bytes.hot += layer.hot.kv_bytes();
    bytes.index += layer.index.index_bytes();
    if (layer.resident) continue;
    bytes.cold += layer.size * cold_->record_bytes();
    for (const HotSet& set : layer.sets) {
      bytes.maps +=
          set.slots.bytes(layer.size) + std::min(layer.size, set.positions.size()) * 2 * sizeof(uint32_t);
    }
  }
  bytes.moved = moved_;
  return bytes;
}

void TieredCache::clear() {
  for (size_t i = 0; i < layers_.size(); ++i) layers_[i] = make_layer(i);
  moved_ = 0;
  cold_->clear();
}

std::unique_ptr<TieredCache> make_tiered_cache(const CacheShape& shape,
                                               std::shared_ptr<const Kernels> kernels,
                                               const TieredCacheOptions& options,
                                               const std::filesystem::path& folder) {
  return std::make_unique<TieredCache>(
      shape, options, std::move(kernels),
      folder.empty() ? make_memory_cold_store(shape) : make_file_cold_store(shape, folder));
}

}  // namespace keysieve
