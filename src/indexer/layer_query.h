#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/threads.h"
#include "kernels/kernels.h"

namespace keysieve {

class SelectionRecorder;

// Threads and working memory of one session; kernels carry no state of their own.
struct KernelContext {
  const Kernels& kernels;
  const Threads& threads;
  KernelScratch& scratch;
};

// What a layer knows of a chunk of tokens when its indexer runs. A shape reads only what it needs: seed
// `hidden`, native `q` and `k`; the others may be null.
struct LayerInputs {
  const float* hidden;       // [tokens, hidden], after the layer's input norm
  const float* q;            // [tokens, heads, head_dim], after QK norm and RoPE
  const float* k;            // [tokens, kv_heads, head_dim], after QK norm and RoPE
  const int32_t* positions;  // [tokens]
  size_t tokens;
};

// Queries this near a prompt's end ask the question: what they miss the answer misses.
inline constexpr size_t kPromptEnd = 64;

// A chunk of queries and the stored rows they may read. Query i's candidates are slots 0 .. first_visible +
// i; its own row is already stored, as slot first_visible + i.
struct LayerQuery {
  size_t layer;
  LayerInputs inputs;
  size_t first_visible;
  KvView kv;  // the layer's rows; read by selectors that look at true attention
  std::span<const IndexKeyView> index_keys;  // [key_heads]; empty for selectors without index keys
  const int32_t* slot_positions;  // [sets, kv.capacity]; null: slot and position are the same number
  SelectionRecorder* recorder;    // null: off
  size_t heads = 0;               // of inputs.q
  // Queries from here on are those of decode and of a prompt's end (SelectionPolicy::refine), those before
  // are refined by refine_prompt. SIZE_MAX: none is, since the keys do not lie slot by slot in `kv`.
  size_t refine_from = SIZE_MAX;

  size_t candidates(size_t query) const { return first_visible + query + 1; }
  size_t slots() const { return first_visible + inputs.tokens; }
  int32_t position(size_t set, size_t slot) const {
    return slot_positions == nullptr ? static_cast<int32_t>(slot) : slot_positions[set * kv.capacity + slot];
  }
};

}  // namespace keysieve
