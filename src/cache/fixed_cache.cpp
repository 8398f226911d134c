#include "cache/fixed_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "keysieve/error.h"

namespace keysieve {
namespace {

// One slot more than the budget: the row that is weighed against the others.
constexpr size_t kSpare = 1;

// Order of worth: the higher score, among equals (-0 equals +0) the more recent. NaN is worth least.
bool worth_less(float score, int32_t position, float other_score, int32_t other_position) {
  const bool is_nan = score != score;
  const bool other_is_nan = other_score != other_score;
  if (is_nan != other_is_nan) return is_nan;
  if (!is_nan && score != other_score) return score < other_score;
  return position < other_position;
}

}  // namespace

FixedCache::FixedCache(const CacheShape& shape, FixedCacheOptions options,
                       std::shared_ptr<const Kernels> kernels)
    : shape_(shape), options_(std::move(options)), kernels_(std::move(kernels)), layers_(shape.layers) {
  if (options_.budget == 0)
    throw Error(ErrorKind::usage, "fixed cache", "a budget of 0", "at least 1 position");
  std::vector<size_t> budgets = options_.budgets;
  budgets.push_back(options_.budget);
  for (const size_t budget : budgets) {
    if (budget == 0) continue;
    // With every row protected none could make room for the next.
    if (options_.sinks >= budget || options_.recent >= budget - options_.sinks) {
      throw Error(ErrorKind::usage, "fixed cache", fmt::format("a budget of {}", budget),
                  fmt::format("more than sinks {} + recent {}", options_.sinks, options_.recent),
                  "raise --budget, or lower --sinks or --recent");
    }
  }
  const bool per_head =
      options_.sets == shape.kv_heads && (options_.sets == shape.index_heads || shape.index_heads == 0);
  if (options_.sets != 1 && !per_head) {
    throw Error(ErrorKind::usage, "fixed cache",
                fmt::format("{} sets with {} KV heads and {} index heads", options_.sets, shape.kv_heads,
                            shape.index_heads),
                "1 set, or one for each KV head and its index key");
  }
  clear();
}

std::span<const IndexKeyView> FixedCache::index_keys(size_t layer) const {
  return layers_[layer].store.index_keys();
}

size_t FixedCache::budget(size_t layer) const {
  return layer < options_.budgets.size() ? options_.budgets[layer] : options_.budget;
}

// Slots a layer has room for while a prompt comes in.
size_t FixedCache::prefill_capacity(size_t layer) const {
  if (options_.chunk == 0 || budget(layer) == 0) return shape_.capacity;
  const size_t beside = std::min(options_.chunk + kSpare, shape_.capacity);
  return std::min(budget(layer), shape_.capacity - beside) + beside;
}

void FixedCache::clear() {
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    layers_[layer] = Layer{};
    reshape(layers_[layer], prefill_capacity(layer));
  }
}

void FixedCache::append(size_t layer_index, const KvRows& rows) {
  Layer& layer = layers_[layer_index];
  int32_t previous = layer.newest;
  for (size_t t = 0; t < rows.tokens; ++t) {
    if (rows.positions[t] <= previous) {
      throw Error(ErrorKind::usage, "fixed cache", fmt::format("position {}", rows.positions[t]),
                  fmt::format("one above {}", previous));
    }
    previous = rows.positions[t];
  }
  const size_t needed = layer.size + rows.tokens;
  if (rows.tokens > 1 && !layer.ordered) order_slots(layer);
  // A new turn after the cut needs room for its rows until they have been weighed in turn.
  if (needed > layer.store.capacity()) {
    reshape(layer, std::max(needed + kSpare, prefill_capacity(layer_index)));
  }
  layer.store.write(*kernels_, layer.size, rows);
  for (size_t set = 0; set < options_.sets; ++set) {
    std::copy_n(rows.positions, rows.tokens,
                layer.positions.data() + set * layer.store.capacity() + layer.size);
  }
  layer.size = needed;
  layer.newest = previous;
}

// Moves the layer into a store of another capacity; the old one's memory goes back.
void FixedCache::reshape(Layer& layer, size_t capacity) {
  LayerStore store(shape_, capacity);
  std::vector<int32_t> positions(options_.sets * capacity, -1);
  if (layer.size != 0) {
    store.copy_prefix(layer.store, layer.size);
    for (size_t set = 0; set < options_.sets; ++set) {
      std::copy_n(layer.positions.data() + set * layer.store.capacity(), layer.size,
                  positions.data() + set * capacity);
    }
  }
  layer.store = std::move(store);
  layer.positions = std::move(positions);
}

// Set 0 of 1 moves the slot in every head; otherwise set, KV head and index head are the same number.
void FixedCache::move_slot(Layer& layer, size_t set, size_t from, size_t to) {
  if (from == to) return;
  const bool shared = options_.sets == 1;
  for (size_t head = shared ? 0 : set; head < (shared ? shape_.kv_heads : set + 1); ++head) {
    layer.store.move_kv(head, from, to);
  }
  if (shape_.index_heads != 0) {
    for (size_t head = shared ? 0 : set; head < (shared ? shape_.index_heads : set + 1); ++head) {
      layer.store.move_index(head, from, to);
    }
  }
  int32_t* positions = layer.positions.data() + set * layer.store.capacity();
  positions[to] = positions[from];
}

// Sorts every set by position, cycle by cycle through the first free slot.
void FixedCache::order_slots(Layer& layer) {
  if (layer.size == layer.store.capacity()) reshape(layer, layer.size + kSpare);
  const size_t spare = layer.size;
  for (size_t set = 0; set < options_.sets; ++set) {
    const int32_t* positions = layer.positions.data() + set * layer.store.capacity();
    std::vector<size_t> source(layer.size);  // slot i shall hold what source[i] holds now
    std::iota(source.begin(), source.end(), size_t{0});
    std::sort(source.begin(), source.end(), [&](size_t a, size_t b) { return positions[a] < positions[b]; });
    for (size_t start = 0; start < layer.size; ++start) {
      if (source[start] == start) continue;
      move_slot(layer, set, start, spare);
      size_t slot = start;
      while (source[slot] != start) {
        move_slot(layer, set, source[slot], slot);
        slot = std::exchange(source[slot], slot);
      }
      move_slot(layer, set, spare, slot);
      source[slot] = slot;
    }
  }
  layer.ordered = true;
}

bool FixedCache::is_protected(const Layer& layer, int32_t position) const {
  return static_cast<size_t>(position) < options_.sinks ||
         static_cast<size_t>(layer.newest - position) < options_.recent;
}

void FixedCache::keep_best(size_t layer_index, std::span<const float> scores) {
  Layer& layer = layers_[layer_index];
  if (!over_budget(layer_index)) return;
  if (scores.size() != options_.sets * layer.size) {
    throw Error(ErrorKind::usage, "fixed cache", fmt::format("{} scores", scores.size()),
                fmt::format("{} sets of {}", options_.sets, layer.size));
  }
  const size_t kept = budget(layer_index);
  const bool one = layer.size == kept + 1;
  for (size_t set = 0; set < options_.sets; ++set) {
    const float* set_scores = scores.data() + set * layer.size;
    if (one) {
      drop_one(layer, set, set_scores);
    } else {
      keep_many(layer, set, set_scores, kept);
    }
  }
  if (one) layer.ordered = false;
  layer.size = kept;
  // More chunks may follow one that was cut.
  if ((one || !cuts_each_chunk()) && layer.store.capacity() != kept + kSpare) {
    reshape(layer, kept + kSpare);
  }
}

// A decode step: the last slot's row takes the place of the one that goes.
void FixedCache::drop_one(Layer& layer, size_t set, const float* scores) {
  const int32_t* positions = layer.positions.data() + set * layer.store.capacity();
  size_t worst = layer.size;
  for (size_t slot = 0; slot < layer.size; ++slot) {
    if (is_protected(layer, positions[slot])) continue;
    if (worst == layer.size || worth_less(scores[slot], positions[slot], scores[worst], positions[worst])) {
      worst = slot;
    }
  }
  move_slot(layer, set, layer.size - 1, worst);
}

// The cut after a prompt: the survivors close up in the order they have.
void FixedCache::keep_many(Layer& layer, size_t set, const float* scores, size_t kept) {
  const int32_t* positions = layer.positions.data() + set * layer.store.capacity();
  std::vector<size_t> slots(layer.size);
  std::iota(slots.begin(), slots.end(), size_t{0});
  std::nth_element(slots.begin(), slots.begin() + static_cast<ptrdiff_t>(kept), slots.end(),
                   [&](size_t a, size_t b) {
                     const bool a_protected = is_protected(layer, positions[a]);
                     if (a_protected != is_protected(layer, positions[b])) return a_protected;
                     return worth_less(scores[b], positions[b], scores[a], positions[a]);
                   });
  std::sort(slots.begin(), slots.begin() + static_cast<ptrdiff_t>(kept));
  for (size_t to = 0; to < kept; ++to) move_slot(layer, set, slots[to], to);
}

// Of each layer its size (between two chunks of a prompt that is more than the budget), the positions [sets,
// size], then the rows by slot.
void FixedCache::save(StateWriter& out) const {
  for (const Layer& layer : layers_) {
    out.value<uint64_t>(layer.size);
    for (size_t set = 0; set < options_.sets; ++set) {
      const int32_t* positions = layer.positions.data() + set * layer.store.capacity();
      out.write(std::as_bytes(std::span(positions, layer.size)));
    }
    layer.store.save(out, layer.size);
  }
}

void FixedCache::load(StateReader& in, size_t tokens) {
  for (size_t index = 0; index < layers_.size(); ++index) {
    Layer& layer = layers_[index];
    const size_t kept = budget(index);
    const auto size = in.value<uint64_t>();
    if (size > tokens || (size < tokens && (kept == 0 || size < kept))) {
      throw Error(ErrorKind::format, "session", fmt::format("{} rows in layer {}", size, index),
                  fmt::format("at most {} and no less than were to be kept", tokens));
    }
    layer = Layer{};
    reshape(layer, size == kept ? kept + kSpare : std::max<size_t>(size, prefill_capacity(index)));
    layer.size = size;
    layer.newest = static_cast<int32_t>(tokens) - 1;
    std::vector<int32_t> sorted(layer.size);
    for (size_t set = 0; set < options_.sets; ++set) {
      const std::span positions(layer.positions.data() + set * layer.store.capacity(), layer.size);
      in.read(std::as_writable_bytes(positions));
      layer.ordered = layer.ordered && std::is_sorted(positions.begin(), positions.end());
      std::copy(positions.begin(), positions.end(), sorted.begin());
      std::sort(sorted.begin(), sorted.end());
      const bool distinct = std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end();
      if (!distinct || (!sorted.empty() && (sorted.front() < 0 || sorted.back() > layer.newest))) {
        throw Error(ErrorKind::format, "session", fmt::format("bad positions in layer {}", index),
                    fmt::format("different ones of {}", tokens));
      }
    }
    layer.store.load(in, layer.size);
  }
}

CacheBytes FixedCache::bytes() const {
  CacheBytes bytes;
  for (const Layer& layer : layers_) {
    bytes.hot += layer.store.kv_bytes();
    bytes.index += layer.store.index_bytes();
  }
  return bytes;
}

}  // namespace keysieve
